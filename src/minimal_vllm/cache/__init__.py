"""KV cache management: which block holds what, which requests share it, and what is evicted.

Read in this order: ``block_pool`` (states of a block), ``prefix_hash`` (names of shared content),
``prompt_hashes`` (hashing a shared beginning once), ``eviction`` (what to evict first),
``kv_cache`` (the tensors), ``memory`` (how many blocks fit).
"""
