"""Preparing the output of the QKV projection for attention, in one pass over memory.

Queries and keys are normalized per head, in models that do that, and rotated by their positions.
Keys and values go to their slots of the paged cache. In plain PyTorch these are a dozen passes over
queries and keys; here one program holds some heads of one token in registers::

    qkv of a token   q0 q1 … │ k0 … │ v0 …      a row of heads, each of D numbers
                     norm, rotate    │            as D / 2 pairs (a, b)
                     in place │ in place and to the cache

Bytes per token: ``(2 H + 3 K + 2 K) * D * itemsize``.

The pairs are those that are rotated together, then those of the dimensions that are not rotated.

Source of the rotation: Su et al., *RoFormer*, 2021, https://arxiv.org/abs/2104.09864.
"""

import triton
import triton.language as tl
from torch import Tensor

from minimal_vllm.cache.kv_cache import LayerCache
from minimal_vllm.device.launch import launch_options, wait_for_previous
from minimal_vllm.model.rope import Rotation

MAX_ALONE = 8
"""Maximum number of tokens whose heads have a program of one warp each."""
FEW_TOKENS = 1024
"""Number of tokens up to which programs are small, so that every SM has some."""


def heads_and_warps(num_tokens: int) -> tuple[int, int]:
    """Return a program's heads and warps: the fastest on an H200."""
    if num_tokens <= MAX_ALONE:
        return 1, 1
    return (8, 2) if num_tokens <= FEW_TOKENS else (16, 2)


def norm_rotate_store(
    qkv: Tensor,
    norms: tuple[Tensor, Tensor] | None,
    eps: float,
    rotation: Rotation | None,
    slots: Tensor,
    cache: LayerCache,
) -> None:
    """Normalize and rotate queries and keys in place; copy keys and values to the cache.

    Args:
        qkv: ``[T, (H + 2 K) * D]``, contiguous; changed.
        norms: the weights of the queries' and the keys' norms, each ``[D]``; None: no norms.
        eps: constant added to the mean square.
        rotation: rotation of the tokens; None: no rotation.
        slots: ``[T]`` int64, ``block * S + offset``; negative: the token is not stored.
        cache: the layer's keys and values, ``[B, K, S, D]``.
    """
    _, num_kv_heads, block_size, head_dim = cache.key.shape
    num_heads = qkv.shape[1] // head_dim - 2 * num_kv_heads
    heads_per_program, num_warps = heads_and_warps(len(qkv))
    _heads_kernel[(len(qkv), triton.cdiv(num_heads + 2 * num_kv_heads, heads_per_program))](
        qkv,
        norms[0] if norms else qkv,
        norms[1] if norms else qkv,
        eps,
        rotation.table if rotation else qkv,
        rotation.positions if rotation else slots,
        slots,
        cache,
        H=num_heads,
        K=num_kv_heads,
        D=head_dim,
        S=block_size,
        HEADS=heads_per_program,
        R=rotation.table.shape[1] if rotation else 0,
        PAIRS=triton.next_power_of_2(head_dim // 2),
        NEIGHBORS=rotation is not None and rotation.config.pairs == "neighbors",
        NORMS=norms is not None,
        num_warps=num_warps,
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
    R: tl.constexpr,
    PAIRS: tl.constexpr,
    NEIGHBORS: tl.constexpr,
    NORMS: tl.constexpr,
    EARLY: tl.constexpr,
):
    token = tl.program_id(0).to(tl.int64)
    head = (tl.program_id(1) * HEADS + tl.arange(0, HEADS))[:, None]
    pair = tl.arange(0, PAIRS)[None, :]
    if NEIGHBORS:
        dim_a, dim_b = 2 * pair, 2 * pair + 1
    elif R == 0 or R == D:
        dim_a, dim_b = pair, pair + D // 2
    else:  # (i, i + R / 2), and of the D - R others (R + i, R + i + (D - R) / 2)
        is_rotated = pair < R // 2
        dim_a = tl.where(is_rotated, pair, pair + R // 2)
        dim_b = tl.where(is_rotated, pair + R // 2, pair + D // 2)
    exists = (head < H + 2 * K) & (pair < D // 2)
    is_value = head >= H + K
    if NORMS:
        weights = tl.where(head < H, q_weight, k_weight)
        weight_a = tl.load(weights + dim_a, mask=exists, other=0.0)
        weight_b = tl.load(weights + dim_b, mask=exists, other=0.0)
    if R:
        angle = rope_table + tl.load(positions + token) * R + pair
        cos = tl.load(angle, mask=pair < R // 2, other=1.0)
        sin = tl.load(angle + R // 2, mask=pair < R // 2, other=0.0)
    slot = tl.load(slots + token)
    wait_for_previous(EARLY)  # up to here only weights and the plan were read

    offsets = token * ((H + 2 * K) * D) + head * D
    raw_a = tl.load(qkv + offsets + dim_a, mask=exists, other=0.0)
    raw_b = tl.load(qkv + offsets + dim_b, mask=exists, other=0.0)
    dtype = raw_a.dtype
    a, b = raw_a.to(tl.float32), raw_b.to(tl.float32)

    if NORMS:
        mean = (tl.sum(a * a, 1) + tl.sum(b * b, 1)) / D
        scale = tl.rsqrt(mean + eps)[:, None]
        # Rounded where Hugging Face's models round: before weights of the model's dtype, and after.
        a = ((a * scale).to(weight_a.dtype) * weight_a).to(dtype)
        b = ((b * scale).to(weight_b.dtype) * weight_b).to(dtype)
        a, b = a.to(tl.float32), b.to(tl.float32)
    if R:
        cos, sin = cos.to(dtype).to(tl.float32), sin.to(dtype).to(tl.float32)
        a, b = a * cos - b * sin, b * cos + a * sin
    a = tl.where(is_value, raw_a, a.to(dtype))
    b = tl.where(is_value, raw_b, b.to(dtype))
    tl.store(qkv + offsets + dim_a, a, mask=exists & (head < H + K))
    tl.store(qkv + offsets + dim_b, b, mask=exists & (head < H + K))

    kv_head = tl.where(is_value, head - H - K, head - H)
    first_cached = tl.where(slot >= 0, H, H + 2 * K)
    cached = exists & (head >= first_cached)
    memory = tl.where(is_value, cache.value, cache.key)
    memory += ((slot // S) * K + kv_head) * (S * D) + (slot % S) * D
    tl.store(memory + dim_a, _as_cached(a, memory.dtype.element_ty), mask=cached)
    tl.store(memory + dim_b, _as_cached(b, memory.dtype.element_ty), mask=cached)


@triton.jit
def _as_cached(numbers, dtype: tl.constexpr):
    """Return keys or values in the dtype of the cache. FP8 is cut off at its largest number.

    NaN stays NaN, so that the request whose numbers they are ends with an error.
    """
    if dtype == tl.float8e4nv:
        numbers = numbers.to(tl.float32)
        numbers = tl.clamp(numbers, -448.0, 448.0, propagate_nan=tl.PropagateNan.ALL)
    return numbers.to(dtype)
