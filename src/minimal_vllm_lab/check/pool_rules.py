"""Rules that every block pool must follow."""

from minimal_vllm_lab.check.lesson import Rule

COUNT = Rule(
    "allocate(n) returns n different ids from 0 to num_blocks - 1.",
    "The ids are indices into the KV cache. An id that is out of range or returned twice is "
    "another block's memory.",
    "03-paging",
)
IN_USE = Rule(
    "A block that a request holds is never allocated again.",
    "Two requests would write their keys and values to the same memory, and each would read the "
    "other's.",
    "03-paging",
)
REFUSES = Rule(
    "If fewer than n blocks are free, allocate(n) raises ValueError and takes nothing.",
    "The scheduler then preempts a request and tries again. Blocks that were taken before the "
    "error have no owner, and are lost for good.",
    "03-paging",
)
NUM_FREE = Rule(
    "num_free counts every block that no request holds, whether or not its content is cached.",
    "If it is too low, blocks have leaked, and the pool shrinks until nothing can run. If it is "
    "too high, the scheduler admits requests for which there is no room. A shared block is free "
    "when the last request has released it.",
    "03-paging",
)
FREE_FIRST = Rule(
    "Empty blocks are allocated before cached blocks are evicted.",
    "Eviction throws away keys and values that the next request may need. An empty block costs "
    "nothing.",
    "06-prefix-caching",
)
IDLE = Rule(
    "A cached block is evictable exactly while no request holds it.",
    "If it is not evictable after its last owner has released it, it can never be reused. If it is "
    "evictable while a request holds it, a running request loses its memory.",
    "06-prefix-caching",
)
ORDER = Rule(
    "The eviction strategy chooses the cached block to evict. Released blocks are inserted tail "
    "first.",
    "A block can be found only if all blocks before it are found. The tail of a text must "
    "therefore be evicted before its head; otherwise the rest stays cached, but can never be "
    "found.",
    "06-prefix-caching",
)
FINDS = Rule(
    "find_prefix returns the blocks of the longest prefix whose blocks are all cached.",
    "Too few blocks: prompts are computed again without need. Too many, or blocks after a gap: a "
    "request reads the keys and values of another text.",
    "06-prefix-caching",
)
STALE_HASH = Rule(
    "A block that is allocated again can't be found under its old hash.",
    "A request that found it would read what its new owner writes.",
    "06-prefix-caching",
)
CACHED = Rule(
    "hashes and num_cached report what can be found: one hash per block, one block per hash.",
    "The view and the metrics show them. Two blocks with the same hash waste memory.",
    "06-prefix-caching",
)
EVICTED = Rule(
    "take_evicted returns the blocks evicted since the last call, in order of eviction.",
    "The records and the view rebuild the state of the cache from this list.",
    "06-prefix-caching",
)
STORES = Rule(
    "store(block, hash) makes this block findable, instead of another one with the same content.",
    "find and find_prefix look it up. The newer block replaces the older one, because its request "
    "also holds the rest of the prefix, so that all of the prefix ages together.",
    "06-prefix-caching",
)
FORGETS = Rule(
    "A block that was forgotten can't be found, and is empty once no request holds it.",
    "Blocks are forgotten because what they hold is wrong: the step that should have filled them "
    "failed.",
    "06-prefix-caching",
)
TELLS = Rule(
    "The pool tells its eviction strategy of each hit, and of each content that is dropped.",
    "A strategy such as LFU counts the hits of a block. Without being told, it evicts what is used "
    "most, or counts the hits of a content that is gone.",
    "06-prefix-caching",
)
GRANTS = Rule(
    "If n blocks are free, allocate(n) returns a list of n of them.",
    "A pool that refuses its last block can never be filled: the memory of that block is lost. The "
    "scheduler asks only for as many blocks as num_free promises.",
    "03-paging",
)
NOT_CHANGED = Rule(
    "The pool does not change the lists that it is given.",
    "They are the requests' own block tables.",
    "03-paging",
)
SEPARATE = Rule(
    "Two pools of one class share nothing.",
    "Each engine has a pool of its own. State that is kept in the class or in the module belongs "
    "to all of them: keep it in self.",
    "03-paging",
)
CHECK_PASSES = Rule(
    "After every call, self._references and self._free agree with who holds each block.",
    "A block with too few references is allocated while a request still holds it. A block with too "
    "many references is never free again.",
    "03-paging",
)
CHECK_FAILS = Rule(
    "check() raises InvariantError if the block tables do not agree with the reference counts.",
    "All other tests of the engine rely on it to find mistakes.",
    "03-paging",
)
EMPTIED = Rule(
    "emptied() returns a new pool of the same size, in which all blocks are free.",
    "The engine continues with it after a step that failed halfway.",
    "03-paging",
)
