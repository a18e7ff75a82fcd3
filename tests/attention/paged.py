"""Two kinds of attention on the batches of ``check.paged_case``."""

import torch

from minimal_vllm.attention.reference import ReferenceAttention
from minimal_vllm.attention.tiled import TiledAttention
from minimal_vllm_lab.check.paged_case import make_case
from minimal_vllm_lab.check.paged_case import run_case as run

__all__ = ["make_case", "run", "run_reference", "run_tiled"]

CPU = torch.device("cpu")


def run_reference(case, window=None):
    return run(ReferenceAttention(CPU), case, window)


def run_tiled(case, window=None):
    _, num_kv_heads, block_size, head_dim = case.cache.key.shape
    attention = TiledAttention(frozenset({window}), block_size, num_kv_heads, head_dim, CPU)
    return run(attention, case, window)
