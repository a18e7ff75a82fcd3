"""Exercise kv-cache: compute attention of new tokens over all earlier ones.

The idea. A token's key and value never change, whatever text follows. So they are computed once and
kept. A new token has one query, which is compared with all keys so far. Without the cache, the
whole text would be computed again for every token.

A text has m tokens, of which the last n are new. Each token attends to itself and to earlier ones::

               keys  0  1  2  3  4  5          m = 6
    query of token 4 ×  ×  ×  ×  ×  ·          n = 2
    query of token 5 ×  ×  ×  ×  ×  ×          × visible    · hidden, because it comes later

    scores = q k^T * scale        softmax over visible keys        result = softmax v

*Grouped-query attention*: there are H query heads, but only K kv heads. Each kv head serves H / K
adjacent query heads: with H = 4 and K = 2, query heads 0 and 1 use kv head 0. With a *sliding
window* of w, a token attends to itself and to the w - 1 tokens before it.

What to write: ``attend``, for one request and one layer, in plain PyTorch.

How it is checked: random inputs, compared with the engine's reference. Then a text computed token
by token must give the same result as the whole text at once.

    minimal-vllm learn check kv-cache
"""

import torch
from torch import Tensor


def attend(q: Tensor, keys: Tensor, values: Tensor, scale: float, window: int | None) -> Tensor:
    """Return ``softmax(q k^T * scale) v`` of the last tokens of a sequence, with a causal mask.

    Args:
        q: ``[n, H, D]``, the queries of the last ``n`` of ``m`` tokens.
        keys: ``[m, K, D]``. Each kv head serves ``H / K`` query heads.
        values: ``[m, K, D]``.
        scale: factor for the scores.
        window: number of tokens that a token attends to, itself included. None: all.

    Returns:
        ``[n, H, D]`` in the dtype of ``q``, computed in float32.
    """
    raise NotImplementedError
