"""Helpers that scripts for vLLM import from modules of these names."""
