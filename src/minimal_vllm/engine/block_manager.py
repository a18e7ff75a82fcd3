"""The block manager: gives requests their blocks, and enters full blocks into the prefix cache.

The scheduler decides who computes how many tokens. The block manager does what follows from that
for the block tables: it appends blocks from the pool, shares those of a cached prefix, and returns
them. It decides nothing, and moves no request and no counter.
"""

from collections import Counter
from collections.abc import Sequence

from minimal_vllm.cache.block_pool import BlockPool, InvariantError
from minimal_vllm.cache.prefix_hash import extend_block_hashes
from minimal_vllm.config import SchedulerConfig
from minimal_vllm.step.request import Request


class BlockManager:
    """Fills and empties the block tables of requests, with blocks from a pool.

    ``check`` verifies these invariants: only running requests have blocks; a partly filled block
    has one owner.
    """

    def __init__(self, config: SchedulerConfig, pool: BlockPool) -> None:
        if config.blocks_for(config.max_model_len) > pool.num_blocks:
            raise ValueError(
                f"a request of max_model_len={config.max_model_len} tokens needs "
                f"{config.blocks_for(config.max_model_len)} blocks of {config.block_size}, but the "
                f"pool has {pool.num_blocks}: lower max_model_len or enlarge the pool"
            )
        self.config = config
        self.pool = pool

    # ---- the prefix cache -----------------------------------------------------------------------

    def find_cached_prefix(self, request: Request) -> list[int]:
        """Return the longest run of cached blocks that ``request`` begins with.

        They never cover the whole request: the last token must be computed, for its logits.
        """
        self._extend_hashes(request)
        usable = (request.num_tokens - 1) // self.config.block_size
        return self.pool.find_prefix(request.block_hashes[:usable])

    def share(self, request: Request, cached: Sequence[int]) -> int:
        """Begin an empty block table with cached blocks; return the number of their tokens."""
        self.pool.share(cached)
        request.block_table.extend(cached)
        request.num_findable_blocks = len(cached)
        return len(cached) * self.config.block_size

    def store_full(self, request: Request) -> None:
        """Enter the blocks that this step fills into the prefix cache, if their tokens are known.

        A request admitted later in the same step may share them already: in each layer, all keys
        and values of a step are written before any are read.
        """
        num_known = min(request.num_computed_tokens, len(request.token_ids))
        first, end = request.num_findable_blocks, num_known // self.config.block_size
        if end <= first or not self.config.enable_prefix_caching:
            return  # as in most steps of a decoding request
        self._extend_hashes(request)
        for index in range(first, end):
            self.pool.store(request.block_table[index], request.block_hashes[index])
        request.num_findable_blocks = end

    def forget(self, request: Request) -> None:
        """Drop the hashes of the blocks that ``request`` wrote, so that they can't be found."""
        # A request preempted while the step ran has no block table; its hashes find its blocks.
        self.pool.forget(request.block_table or self.pool.find_prefix(request.block_hashes))

    def _extend_hashes(self, request: Request) -> None:
        extend_block_hashes(
            request.block_hashes, request.token_ids, self.config.block_size, request.cache_salt
        )

    # ---- block tables ---------------------------------------------------------------------------

    def num_missing(self, request: Request, num_new: int) -> int:
        """Return the number of blocks ``request`` lacks to compute ``num_new`` more tokens."""
        needed = self.config.blocks_for(request.num_computed_tokens + num_new)
        return needed - len(request.block_table)

    def num_taken_by_sharing(self, cached: Sequence[int]) -> int:
        """Return how many free blocks are used up if a request shares ``cached``."""
        return sum(self.pool.is_evictable(block) for block in cached)

    def append(self, request: Request, count: int) -> Sequence[int]:
        """Append ``count`` blocks to a block table, and return them; the pool must have them."""
        new_blocks = self.pool.allocate(count) if count else ()
        request.block_table.extend(new_blocks)
        return new_blocks

    def drop_surplus(self, request: Request) -> None:
        """Release the last blocks of a table that its computed tokens no longer need."""
        needed = self.config.blocks_for(request.num_computed_tokens)
        self.pool.release(request.block_table[needed:])
        del request.block_table[needed:]

    def release(self, request: Request) -> None:
        """Return all blocks of ``request`` to the pool."""
        self.pool.release(request.block_table)
        del request.block_table[:]

    # ---- proof ----------------------------------------------------------------------------------

    def check(self, running: Sequence[Request]) -> None:
        """Verify that the block tables of the running requests and the pool agree.

        Raises:
            InvariantError: an invariant is broken; the message names the request or block.
        """
        self.pool.check(request.block_table for request in running)
        owners = Counter(block for request in running for block in request.block_table)
        for request in running:
            is_partly_filled = request.num_computed_tokens % self.config.block_size
            if is_partly_filled and owners[request.block_table[-1]] != 1:
                raise InvariantError(f"{request.request_id}'s partly filled block is shared")
