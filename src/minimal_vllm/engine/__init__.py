"""Continuous batching: from a queue of requests to one batch per step, and back to text.

Read in this order: ``scheduler``, ``engine``, ``output_processor``, ``admission``, ``reporter``.
"""
