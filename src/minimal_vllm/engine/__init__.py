"""Continuous batching: scheduling a queue of requests, one batch per step, and making outputs.

Read in this order: ``scheduler``, ``engine``, ``output_processor``, ``admission``, ``reporter``.
"""
