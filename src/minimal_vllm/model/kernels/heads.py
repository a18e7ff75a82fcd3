"""Preparing the output of the QKV projection for attention, in one pass over memory.

Queries and keys are normalized per head, in models that do that, and rotated by their positions.
Keys and values go to their slots of the paged cache. In plain PyTorch these are a dozen passes over
queries and keys; here one program holds some heads of one token in registers::

    qkv of a token   q0 q1 … │ k0 … │ v0 …      a row of heads, each of D numbers
                     norm, rotate    │            as two halves (a, b) of D / 2
                     in place │ in place and to the cache

Bytes per token: ``(2 H + 3 K + 2 K) * D * itemsize``.

Source of the rotation: Su et al., *RoFormer*, 2021, https://arxiv.org/abs/2104.09864.
"""

import triton
import triton.language as tl
from torch import Tensor

from minimal_vllm.cache.kv_cache import LayerCache
from minimal_vllm.device.launch import launch_options, wait_for_previous

HEADS = 8
"""Heads per program."""


def norm_rotate_store(
    qkv: Tensor,
    norms: tuple[Tensor, Tensor] | None,
    eps: float,
    rope_table: Tensor | None,
    positions: Tensor,
    slots: Tensor,
    cache: LayerCache,
) -> None:
    """Normalize and rotate queries and keys in place; copy keys and values to the cache.

    Args:
        qkv: ``[T, (H + 2 K) * D]``, contiguous; changed.
        norms: the weights of the queries' and the keys' norms, each ``[D]``; None: no norms.
        eps: constant added to the mean square.
        rope_table: ``[positions, D]`` float32, the cosines, then the sines; None: no rotation.
        positions: ``[T]`` int64.
        slots: ``[T]`` int64, ``block * S + offset``; negative: the token is not stored.
        cache: the layer's keys and values, ``[B, K, S, D]``.
    """
    _, num_kv_heads, block_size, head_dim = cache.key.shape
    num_heads = qkv.shape[1] // head_dim - 2 * num_kv_heads
    _heads_kernel[(len(qkv), triton.cdiv(num_heads + 2 * num_kv_heads, HEADS))](
        qkv,
        norms[0] if norms else qkv,
        norms[1] if norms else qkv,
        eps,
        rope_table if rope_table is not None else qkv,
        positions,
        slots,
        cache,
        H=num_heads,
        K=num_kv_heads,
        D=head_dim,
        S=block_size,
        HEADS=HEADS,
        HALF=triton.next_power_of_2(head_dim // 2),
        NORMS=norms is not None,
        ROTATES=rope_table is not None,
        num_warps=4,
        **launch_options(qkv),
    )


@triton.jit(do_not_specialize_on_alignment=["positions", "slots"])
def _heads_kernel(
    qkv,
    q_weight,
    k_weight,
    eps,
    rope_table,
    positions,
    slots,
    cache,
    H: tl.constexpr,
    K: tl.constexpr,
    D: tl.constexpr,
    S: tl.constexpr,
    HEADS: tl.constexpr,
    HALF: tl.constexpr,
    NORMS: tl.constexpr,
    ROTATES: tl.constexpr,
    EARLY: tl.constexpr,
):
    token = tl.program_id(0).to(tl.int64)
    head = (tl.program_id(1) * HEADS + tl.arange(0, HEADS))[:, None]
    pair = tl.arange(0, HALF)[None, :]
    exists = (head < H + 2 * K) & (pair < D // 2)
    is_value = head >= H + K
    if NORMS:
        weights = tl.where(head < H, q_weight, k_weight) + pair
        weight_a = tl.load(weights, mask=exists, other=0.0)
        weight_b = tl.load(weights + D // 2, mask=exists, other=0.0)
    if ROTATES:
        angle = rope_table + tl.load(positions + token) * D + pair
        cos = tl.load(angle, mask=pair < D // 2, other=0.0)
        sin = tl.load(angle + D // 2, mask=pair < D // 2, other=0.0)
    slot = tl.load(slots + token)
    wait_for_previous(EARLY)  # up to here only weights and the plan were read

    offsets = token * ((H + 2 * K) * D) + head * D + pair
    raw_a = tl.load(qkv + offsets, mask=exists, other=0.0)
    raw_b = tl.load(qkv + offsets + D // 2, mask=exists, other=0.0)
    dtype = raw_a.dtype
    a, b = raw_a.to(tl.float32), raw_b.to(tl.float32)

    if NORMS:
        mean = (tl.sum(a * a, 1) + tl.sum(b * b, 1)) / D
        scale = tl.rsqrt(mean + eps)[:, None]
        a = (a * scale).to(dtype) * weight_a
        b = (b * scale).to(dtype) * weight_b
        a, b = a.to(tl.float32), b.to(tl.float32)
    if ROTATES:
        cos, sin = cos.to(dtype).to(tl.float32), sin.to(dtype).to(tl.float32)
        a, b = a * cos - b * sin, b * cos + a * sin
    a = tl.where(is_value, raw_a, a.to(dtype))
    b = tl.where(is_value, raw_b, b.to(dtype))
    tl.store(qkv + offsets, a, mask=exists & (head < H + K))
    tl.store(qkv + offsets + D // 2, b, mask=exists & (head < H + K))

    kv_head = tl.where(is_value, head - H - K, head - H)
    first_cached = tl.where(slot >= 0, H, H + 2 * K)
    cached = exists & (head >= first_cached)
    memory = tl.where(is_value, cache.value, cache.key)
    memory += ((slot // S) * K + kv_head) * (S * D) + (slot % S) * D + pair
    tl.store(memory, a, mask=cached)
    tl.store(memory + D // 2, b, mask=cached)
