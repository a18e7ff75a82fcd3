"""KV-cache management: which block holds what, who shares it, and what is evicted.

Read in this order: ``block_pool`` (ownership), ``prefix_hash`` (names of shared content),
``eviction`` (what to forget first), ``kv_cache`` (the tensors), ``memory`` (how many blocks).
"""
