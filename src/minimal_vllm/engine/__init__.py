"""Continuous batching: from a queue of requests to one batch per step, and back to text.

Read in this order: ``request``, ``scheduler``, ``batch``, ``runner``, ``engine``.
"""
