"""Starters: the files that ``minimal-vllm learn start`` writes, one per exercise."""
