"""Running one step on the device, from a plan to sampled tokens.

Read in this order: ``interface``, ``plain`` (any device); then for a GPU ``table`` (what it knows
of the running requests), ``step`` (front, body and head), ``shapes``, ``inputs``, ``capture``,
``graphs`` (recorded steps), ``cuda`` (which step is launched how).
"""
