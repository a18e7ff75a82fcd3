"""From logits to tokens.

Read in this order: ``sampler`` (the list of stages), ``logit_rules`` (what a request forbids,
favours and penalises), ``filters`` (min_p, top_k, top_p), ``draw`` and ``uniform`` (the random
choice), ``logprobs``.
"""
