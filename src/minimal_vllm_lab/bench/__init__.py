"""Benchmarks of a server, and of the offline engine, with vLLM's options and result fields.

``statistics.py`` is what all of them share. Only ``config.py`` can be imported without NumPy.
"""
