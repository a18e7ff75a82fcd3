"""Exercise kv-cache: attention of new tokens over all that was computed before.

The idea. A token's key and value never change, whatever is written behind it. So they are computed
once and kept; a new token brings one query, and is compared with all keys so far. Without the cache
the whole text would be computed again for each token.

Of a text of m tokens, n are new, the last ones. Each sees the tokens up to itself::

               keys  0  1  2  3  4  5          m = 6
    query of token 4 ×  ×  ×  ×  ×  ·          n = 2
    query of token 5 ×  ×  ×  ×  ×  ×          × seen    · hidden: it lies behind

    scores = q k^T * scale        softmax over what is seen        result = softmax v

*Grouped-query attention*: there are H query heads, but only K kv heads, of which each serves
H / K query heads that stand next to each other: with H = 4 and K = 2, query heads 0 and 1 use kv
head 0. A *sliding window* of w: a token sees itself and the w - 1 tokens before it.

What to write: ``attend``, for one request and one layer, in plain PyTorch.

How it is checked: against the engine's reference, with random numbers; then a text token by token,
and whole, must give the same.

    minimal-vllm learn check kv-cache
"""

import torch
from torch import Tensor


def attend(q: Tensor, keys: Tensor, values: Tensor, scale: float, window: int | None) -> Tensor:
    """``softmax(q k^T * scale) v`` of the last tokens of one sequence over all of it, causal.

    Args:
        q: ``[n, H, D]``, the last ``n`` of the sequence's ``m`` tokens.
        keys: ``[m, K, D]``; each kv head serves ``H / K`` query heads.
        values: ``[m, K, D]``.
        scale: what the scores are multiplied by.
        window: a token sees so many tokens, itself included; None: all before it.

    Returns:
        ``[n, H, D]`` in ``q``'s dtype; computed in float32.
    """
    raise NotImplementedError(
        "repeat_interleave the kv heads; torch.einsum gives the scores [H, n, m]; set what a token "
        "may not see to -inf; softmax; torch.einsum with the values"
    )
