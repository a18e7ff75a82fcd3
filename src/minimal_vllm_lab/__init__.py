"""The laboratory: simulate, ablate, check, benchmark and watch the engine of ``minimal_vllm``.

The engine imports nothing from here. Commands and the view reach it through entry points.
"""
