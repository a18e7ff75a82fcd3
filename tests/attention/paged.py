"""Two kinds of attention on the batches of ``check.paged_case``."""

from dataclasses import replace

import torch

from minimal_vllm.attention.interface import AttentionOptions
from minimal_vllm.attention.paged import write_to_cache
from minimal_vllm.attention.reference import ReferenceAttention
from minimal_vllm.attention.tiled import TiledAttention
from minimal_vllm.cache.kv_cache import LayerCache
from minimal_vllm.cache.layer_groups import first_seen_block
from minimal_vllm_lab.check.paged_case import make_case

__all__ = [
    "UNUSUAL",
    "in_fp8",
    "make_case",
    "make_needle_case",
    "passed_by",
    "run",
    "run_reference",
    "run_tiled",
    "window_of",
]

CPU = torch.device("cpu")
FP8 = torch.float8_e4m3fn
UNUSUAL = {
    "softcap": AttentionOptions(0.25, softcap=0.7),
    "softcap and window": AttentionOptions(0.3, window=100, softcap=2.0),
    "sinks": AttentionOptions(0.25, sinks=torch.linspace(-3, 4, 12)),
    "sinks and window": AttentionOptions(0.25, window=5, sinks=torch.linspace(-3, 4, 12)),
    "great sinks": AttentionOptions(0.25, sinks=torch.linspace(-500, 500, 12)),
    "softcap and sinks": AttentionOptions(0.25, softcap=0.7, sinks=torch.linspace(-3, 4, 12)),
    "all": AttentionOptions(0.5, window=100, softcap=1.5, sinks=torch.linspace(-3, 4, 12)),
}
"""Options other than a scale and a window. Sinks are cut to the number of heads."""


def run(attention, case, options=None, plan=None):
    """Write the new keys and values to a copy of the cache, and run attention.

    Args:
        attention: the backend.
        case: the inputs. They are not changed.
        options: a window, or any ``AttentionOptions``.
        plan: replaces ``attention.plan``.
    """
    if not isinstance(options, AttentionOptions):
        options = AttentionOptions(case.q.shape[-1] ** -0.5, options)
    if options.sinks is not None:
        sinks = options.sinks[: case.q.shape[1]].to(case.q)
        options = replace(options, sinks=sinks)
    cache = LayerCache(case.cache.key.clone(), case.cache.value.clone())
    attend = (plan or attention.plan)(case.batch)
    write_to_cache(case.k, case.v, cache, attend.slots)
    return attend(case.q, case.k, case.v, cache, options)


def in_fp8(case):
    """Return the case with its cache rounded to FP8."""
    return replace(case, cache=LayerCache(*(layer.to(FP8) for layer in case.cache)))


def passed_by(case, window):
    """Return the case with poison for the blocks that the window has passed."""
    tables, block_size = case.batch.block_tables.copy(), case.cache.key.shape[2]
    unused = set(range(len(case.cache.key))) - {*tables.flat}
    for row, start in enumerate(case.batch.seq_lens - case.batch.num_new):
        tables[row, : first_seen_block(start, window, block_size)] = min(unused)
    return replace(case, batch=replace(case.batch, block_tables=tables))


def make_needle_case(num_keys, num_tokens, dtype=torch.float32):
    """Return a request with one key that its first query finds, with 0, 1, … 15 as its value."""
    case = make_case([(num_keys, num_tokens)], heads=(1, 1), head_dim=16, dtype=dtype)
    block_size = case.cache.key.shape[2]
    block, offset = divmod(num_keys // 2, block_size)
    needle = case.batch.block_tables[0][block], 0, offset
    query = case.q[0, 0].float()
    case.cache.key[needle] = (20 * query / query.norm()).to(dtype)
    case.cache.value[needle] = torch.arange(16.0).to(dtype)
    return case


def window_of(options):
    return options.window if isinstance(options, AttentionOptions) else options


def run_reference(case, options=None):
    return run(ReferenceAttention(CPU), case, options)


def run_tiled(case, options=None):
    _, num_kv_heads, block_size, head_dim = case.cache.key.shape
    attention = TiledAttention(block_size, num_kv_heads, head_dim, CPU)
    return run(attention, case, options)
