"""Quantized projections: fewer bits per weight, and scales that turn them into numbers again.

Read in this order: ``weight`` (a projection's matrix, and how it multiplies), ``fp8``, ``int4`` and
``int8`` (the layouts in memory), ``experts`` (those of a mixture in such layouts), ``int4_readers``
(how published checkpoints store 4-bit integers), ``staging`` (from the file to the layout),
``convert`` (which projection gets which weight; the tables of formats). What a checkpoint's
config.json says is read in ``model/quantization_config``.
"""
