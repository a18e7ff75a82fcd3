"""Running one step on the device, from a plan to sampled tokens.

Read in this order: ``interface``, ``plain`` (any device), ``prompt_logprobs``; then, for GPUs,
``table`` (the running requests), ``step`` (front, body and head), ``shapes``, ``inputs``,
``capture``, ``graphs`` (recorded steps), ``compile`` (all kernels at once), ``cuda`` (choosing how
a step is launched).
"""
