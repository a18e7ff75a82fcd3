"""From logits to tokens.

Read in this order: ``row`` (what the sampler reads of a request), ``sampler`` (the list of
stages), ``logit_rules`` (tokens that a request forbids, favors and penalizes), ``filters`` (min_p,
top_k, top_p), ``draw`` (the random choice), ``logprobs``; then ``grammar`` (structured output), and
``kernels``, the same on a GPU.
"""
