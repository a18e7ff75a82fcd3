"""Ablation studies: what each idea is worth, measured by the same engine and traffic without it.

An idea is switched off by an option, or by a small policy class that replaces the engine's own (see
``engine.parts``).
"""
