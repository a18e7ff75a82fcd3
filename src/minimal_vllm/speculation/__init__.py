"""Speculation: guess several tokens, and compute them in one step.

Guesses are tokens behind a request's list. A step computes them like any chunk, samples a token at
each of their places, and keeps the guesses up to the first that was not sampled. So a step yields
several tokens, and they are the same as without guesses.

Read in this order: ``interface``, ``ngram``, ``pace``, ``allowance``, ``rows``, ``runner``,
``draft_cache``, ``draft_model``, ``eagle_cache``, ``eagle_model``.

Sources: Leviathan, Kalman and Matias, "Fast Inference from Transformers via Speculative Decoding",
ICML 2023; Chen et al., "Accelerating Large Language Model Decoding with Speculative Sampling",
arXiv:2302.01318, 2023.
"""
