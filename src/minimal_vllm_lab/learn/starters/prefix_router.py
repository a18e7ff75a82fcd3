"""Exercise prefix-router: send a prompt to the replica that holds its beginning.

The idea. Each replica has a cache of its own. A router that has sent prompts knows what is where,
without asking: a dictionary from a block's hash to the replicas that hold it. The hashes are those
of the prefix cache, so equal hashes mean equal beginnings::

    sent before    1 1 2 2  to replica A          1 1 5 5  to replica B
    remembered     h(1 1): A, B      h(1 1 2 2): A      h(1 1 5 5): B
    new prompt     1 1 2 2 9 9  ──►  h(1 1): A, B  ──►  h(1 1 2 2): A  ──►  nobody
                                     2 blocks, and A holds both

The prefix decides only if it is worth it: it must cover at least ``MIN_MATCH`` of the prompt's
tokens, and the loads must be balanced. Otherwise ``LeastLoaded`` chooses. Whoever is chosen holds
the prompt from then on, until it says that it has evicted a block.

What you have: ``self.loads``, a dict from a replica to its number of unanswered requests;
``self._block_size``; ``self._holders``, a dict from a hash to a tuple of replicas;
``self._is_unbalanced()``; and ``super().pick(request)``, which returns the least loaded replica. A
request has ``token_ids`` and ``block_hashes``, to which this adds the hashes of its full blocks::

    extend_block_hashes(
        request.block_hashes, request.token_ids, self._block_size, request.cache_salt
    )

What to write: ``pick`` and ``forget``, and the two methods that ``pick`` calls. Forgetting old
prompts when there are more than ``self._num_remembered`` blocks is not checked.

How it is checked: random requests, evictions and loads, with three replicas. What each replica
holds is tracked token by token, and each choice is compared with it.

    minimal-vllm learn check prefix-router
"""

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from typing import Any

from minimal_vllm.cache.prefix_hash import extend_block_hashes
from minimal_vllm.routing import MIN_MATCH, LeastLoaded, PrefixAware, Routable

__all__ = ["MIN_MATCH", "extend_block_hashes"]


class MyRouter(LeastLoaded[Any]):
    """A router with methods of your own."""

    def __init__(self, replicas: Iterable[Any], block_size: int) -> None:
        super().__init__(replicas, block_size)
        self._num_remembered = 1_000_000
        self._holders: OrderedDict[bytes, tuple[Any, ...]] = OrderedDict()

    _is_unbalanced = PrefixAware._is_unbalanced

    def pick(self, request: Routable) -> Any:
        """Return the replica that suits a request best, and remember that it holds the prompt."""
        raise NotImplementedError

    def forget(self, replica: Any, hashes: Iterable[bytes]) -> None:
        """Take notice that a replica has evicted blocks, some of which it may not have held."""
        raise NotImplementedError

    def _longest_match(self, hashes: Sequence[bytes]) -> tuple[tuple[Any, ...], int]:
        """Return the replicas that hold the longest prefix, and its number of blocks."""
        raise NotImplementedError

    def _remember(self, hashes: Sequence[bytes], replica: Any) -> None:
        """Enter a replica as a holder of all these blocks."""
        raise NotImplementedError
