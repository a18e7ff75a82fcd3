"""Simulator: the engine's own scheduler and block pool on a cost model, without GPU or weights.

It does not import torch. Read the modules in this order: ``load`` (the work of a step),
``cost_model`` (how long that work takes), ``hardware`` (the GPUs' datasheets), ``replica`` (one
engine on a simulated clock), ``cluster`` (several, behind a router of ``minimal_vllm.routing``),
``job`` and the workloads, ``metrics``, ``simulation`` (all of them put together), ``capacity`` and
``sweep`` (questions to ask a simulation).
"""
