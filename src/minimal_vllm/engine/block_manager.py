"""The block manager: gives requests their blocks, and enters full blocks into the prefix cache.

The scheduler decides who computes how many tokens. The block manager does what follows from that
for the block tables: it appends blocks from the pool, shares those of a cached prefix, and returns
them. It decides nothing, and moves no request and no counter.

Most models have one group of layers, and so one block for each ``block_size`` tokens. Layers with a
sliding window are in groups of their own (see ``cache.layer_groups``); then a block table has one
entry per group for the same tokens, side by side.
"""

from collections import Counter
from collections.abc import Sequence

from minimal_vllm.cache.block_pool import BlockPool, InvariantError
from minimal_vllm.cache.grouped_prefix import find_grouped_prefix, group_hash
from minimal_vllm.cache.layer_groups import NO_BLOCK, Window, first_seen_block
from minimal_vllm.cache.prompt_hashes import PromptHashes
from minimal_vllm.config import SchedulerConfig
from minimal_vllm.step.plan import ScheduledRequest
from minimal_vllm.step.request import Request, Status


class BlockManager:
    """Fills and empties the block tables of requests, with blocks from a pool.

    ``check`` verifies these invariants: only running requests have blocks; a partly filled block
    has one owner; every block that a later token attends to is there.
    """

    def __init__(self, config: SchedulerConfig, pool: BlockPool) -> None:
        needed = config.max_blocks_for(config.max_model_len)
        if needed > pool.num_blocks:
            raise ValueError(
                f"a request of max_model_len={config.max_model_len} tokens needs {needed} blocks "
                f"of {config.block_size}, but the pool has {pool.num_blocks}: lower max_model_len "
                f"or enlarge the pool"
            )
        self.config = config
        self.pool = pool
        self._hashes = PromptHashes(config.block_size)
        self.num_groups = len(config.windows)
        self.windows = {group: each for group, each in enumerate(config.windows) if each}
        """Sliding window of each group that has one."""

    # ---- the prefix cache -----------------------------------------------------------------------

    def find_cached_prefix(self, request: Request) -> list[int]:
        """Return the longest run of cached blocks that ``request`` begins with.

        They never cover the whole request: the last token must be computed, for its logits.
        """
        self._extend_hashes(request)
        usable = (request.num_tokens - 1) // self.config.block_size
        hashes = request.block_hashes[:usable]
        if self.config.windows == (None,):
            return self.pool.find_prefix(hashes)
        return find_grouped_prefix(self.pool, hashes, self.config.windows, self.config.block_size)

    def num_tokens_in(self, cached: Sequence[int]) -> int:
        """Return the number of tokens of a cached prefix."""
        return len(cached) // self.num_groups * self.config.block_size

    def num_in_use(self, cached: Sequence[int]) -> int:
        """Return how many of these blocks requests hold; sharing one uses up no free block."""
        return sum(not self.pool.is_evictable(block) for block in self.held(cached))

    def share(self, request: Request, cached: Sequence[int]) -> None:
        """Begin an empty block table with a cached prefix."""
        self.pool.share(self.held(cached))
        request.block_table.extend(cached)
        request.num_findable_blocks = len(cached) // self.num_groups

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
        num_groups = self.num_groups
        for entry in range(first * num_groups, end * num_groups):
            block_hash = group_hash(request.block_hashes[entry // num_groups], entry % num_groups)
            if request.block_table[entry] != NO_BLOCK:
                self.pool.store(request.block_table[entry], block_hash)
        request.num_findable_blocks = end
        for watcher in getattr(self.pool, "watchers", ()):  # a pool of the user's may have none
            watcher.stored(request, first, end)

    def forget(self, request: Request) -> None:
        """Drop the hashes of the blocks that ``request`` wrote, so that they can't be found."""
        table, num_groups = request.block_table, self.num_groups
        self.pool.forget(self.held(table))
        # Their hashes find those that it no longer holds, after a preemption or behind a window.
        for entry in range(request.num_findable_blocks * num_groups):
            if entry >= len(table) or table[entry] == NO_BLOCK:
                block_hash = request.block_hashes[entry // num_groups]
                block = self.pool.find(group_hash(block_hash, entry % num_groups))
                self.pool.forget([] if block is None else [block])

    def _extend_hashes(self, request: Request) -> None:
        self._hashes.extend(request.block_hashes, request.token_ids, request.cache_salt)

    # ---- block tables ---------------------------------------------------------------------------

    def num_missing(self, request: Request, num_new: int) -> int:
        """Return the number of blocks ``request`` lacks to compute ``num_new`` more tokens."""
        needed = self.config.blocks_for(request.num_computed_tokens + num_new)
        return needed * self.num_groups - len(request.block_table)

    def append(self, request: Request, count: int) -> Sequence[int]:
        """Append ``count`` blocks to a block table, and return them; the pool must have them."""
        new_blocks = self.pool.allocate(count) if count else ()
        request.block_table.extend(new_blocks)
        return new_blocks

    def drop_surplus(self, request: Request) -> int:
        """Release the last blocks that the computed tokens don't need, and return their number."""
        needed = self.config.blocks_for(request.num_computed_tokens) * self.num_groups
        self.pool.release(surplus := request.block_table[needed:])
        del request.block_table[needed:]
        return len(surplus)

    def release_passed(self, entry: ScheduledRequest) -> None:
        """Release the blocks that the windows have passed, after the step that ``entry`` is from.

        A window moves on by whole blocks: it passes some when the next token begins a new block.
        """
        request = entry.request
        if request.status is not Status.RUNNING:
            return  # it ended, or was preempted while the step ran
        next_token = entry.start + entry.num_new - max(entry.num_logits - 1, 0)  # guesses may fail
        passed = []
        for group, window in self.windows.items():
            first_seen = first_seen_block(next_token, window, self.config.block_size)
            index = (first_seen - 1) * self.num_groups + group
            while index >= 0 and request.block_table[index] != NO_BLOCK:
                passed.append(index)
                index -= self.num_groups
        if not passed:
            return  # as in most steps of a decoding request
        entry.passed_blocks = [request.block_table[index] for index in sorted(passed)]
        self.pool.release(entry.passed_blocks)
        for index in passed:
            request.block_table[index] = NO_BLOCK

    def release(self, request: Request) -> None:
        """Return all blocks of ``request`` to the pool."""
        self.pool.release(self.held(request.block_table))
        del request.block_table[:]

    def held(self, blocks: Sequence[int]) -> Sequence[int]:
        """Return the entries of a block table that are blocks: all, unless a window passed some."""
        return [block for block in blocks if block != NO_BLOCK] if self.windows else blocks

    # ---- proof ----------------------------------------------------------------------------------

    def check(self, running: Sequence[Request]) -> None:
        """Verify that the block tables of the running requests and the pool agree.

        Raises:
            InvariantError: an invariant is broken; the message names the request or block.
        """
        self.pool.check(self.held(request.block_table) for request in running)
        owners = Counter(block for request in running for block in request.block_table)
        for request in running:
            is_partly_filled = request.num_computed_tokens % self.config.block_size
            last = request.block_table[-self.num_groups :]
            if is_partly_filled and any(owners[block] != 1 for block in last):
                raise InvariantError(f"{request.request_id}'s partly filled block is shared")
            for group, window in enumerate(self.config.windows):
                self._check_passed(request, group, window)

    def _check_passed(self, request: Request, group: int, window: Window) -> None:
        column = request.block_table[group :: self.num_groups]
        num_passed = column.count(NO_BLOCK)
        first_seen = first_seen_block(request.num_computed_tokens, window, self.config.block_size)
        if num_passed > first_seen or NO_BLOCK in column[num_passed:]:
            raise InvariantError(
                f"{request.request_id} lacks blocks of group {group} that its next token sees"
            )
