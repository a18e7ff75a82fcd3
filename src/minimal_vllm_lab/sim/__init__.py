"""The engine's own scheduler and block pool on a cost model: no GPU, no weights, no torch.

Read in this order: ``load`` (how much work a step is), ``cost_model`` (how long it takes),
``hardware`` (on which GPU), ``replica`` (one engine on a simulated clock), ``routing`` and
``cluster`` (many), ``job`` and the workloads, ``metrics``, ``simulation`` (all put together),
``capacity`` and ``sweep`` (what to ask it).
"""
