"""Metrics of an engine, with vLLM's names.

They need Prometheus's client library, so nothing here is imported until metrics are asked for.
"""
