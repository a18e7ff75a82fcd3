"""``cleanup_dist_env_and_memory``, which scripts for vLLM call between two models."""

import gc

import torch


def cleanup_dist_env_and_memory() -> None:
    """Free the memory of models that are no longer referenced."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
