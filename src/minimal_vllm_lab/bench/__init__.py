"""Benchmarks of a server and of the offline engine, with vLLM's options and result fields.

``statistics.py`` is shared by all of them. Only ``config.py`` can be imported without NumPy.
"""
