"""Rules that every scheduler must follow, whatever order it serves requests in."""

from minimal_vllm_lab.check.lesson import Rule

STEP = "01-one-step"
PAGING = "03-paging"
PREFIX = "06-prefix-caching"
BATCHING = "07-continuous-batching"
CHUNKED = "08-chunked-prefill"
PREEMPTION = "09-preemption"
GRAPHS = "11-cuda-graphs"

BUDGET = Rule(
    "A step computes at most max_num_batched_tokens tokens.",
    "A step takes longer the more tokens it computes, and every running request waits for it. The "
    "budget bounds the time between two tokens. Buffers are allocated for this number of tokens.",
    CHUNKED,
)
MAX_SEQS = Rule(
    "At most max_num_seqs requests run at once.",
    "The tables on the GPU have one row per running request, and max_num_seqs rows in total.",
    BATCHING,
)
ADVANCES = Rule(
    "Each scheduled request computes at least one token, starting at num_computed_tokens.",
    "The cache holds keys and values for the first num_computed_tokens tokens. A gap would never "
    "be filled, and an overlap would be computed twice.",
    STEP,
)
SAMPLES = Rule(
    "A request samples exactly in the step in which its counter catches up with its tokens.",
    "Only the logits of the last token predict the next one.",
    STEP,
)
NO_STALL = Rule(
    "A running request computes at least one token in every step, unless it is preempted.",
    "Its user is waiting for the next token. Long prompts are split into chunks that fit into the "
    "rest of the budget, so that they never stall a decode.",
    CHUNKED,
)
WHOLE_PROMPT = Rule(
    "Without enable_chunked_prefill, a prompt is computed in one step.",
    "This is what the option asks for.",
    CHUNKED,
)
ONLY_IF_NEEDED = Rule(
    "No request is preempted while there are enough free blocks for all running requests.",
    "Preemption throws away everything that the request has computed.",
    PREEMPTION,
)
FROM_THE_BACK = Rule(
    "Requests are preempted in reverse order of service: the last one first.",
    "The first request in order then always finishes and frees its blocks, so the others make "
    "progress. If any request could preempt any other, two of them might preempt each other "
    "forever.",
    PREEMPTION,
)
NO_SWAP = Rule(
    "No request is admitted in a step that preempts.",
    "There were too few blocks for the running requests. A new request would take the blocks that "
    "were just freed, and would be preempted next.",
    PREEMPTION,
)
PREEMPTED_WAITS = Rule(
    "A preempted request waits again: it has no blocks, its counter is 0, and it keeps its tokens.",
    "Its keys and values are gone. Its prompt and its output so far are computed again when it is "
    "admitted again.",
    PREEMPTION,
)
BLOCK_OWNERS = Rule(
    "A block is held exactly by the requests that have it in their block tables.",
    "A block that is held but in no table is lost for good. A block that is free but in a table "
    "will soon have two owners.",
    PAGING,
)
PROGRESS = Rule(
    "While any request has tokens left to compute, a step computes at least one.",
    "Otherwise the engine loops forever and the users wait.",
    BATCHING,
)
ALL_FINISH = Rule(
    "Every request finishes, with the tokens that it would get alone.",
    "The output of a request must not depend on the rest of the batch, and no request may wait "
    "forever.",
    BATCHING,
)
LISTED = Rule(
    "A request that has not finished is in waiting or in running, as its status says.",
    "A request that is in neither list is never served again, and one that is in both is served "
    "twice.",
    BATCHING,
)
TOLD = Rule(
    "The plans tell everything that happens: who is admitted or preempted, and each block that a "
    "request gets or that is evicted.",
    "Metrics, traces and the view know an engine only by the records of its steps, which are made "
    "from the plans. A plan that leaves something out or tells something else stops an engine "
    "that is watched, or makes the view show what never happened.",
    BATCHING,
)
LOGPROBS = Rule(
    "A request that asks for the log-probabilities of its prompt computes all of its prompt.",
    "They come from the logits of each of its tokens. Keys and values can be found in the prefix "
    "cache, logits can't: see may_use_cache.",
    PREFIX,
)
COUNTED = Rule(
    "Each request's prompt tokens are looked up in the prefix cache once, and counted once.",
    "The usage of a request reports num_cached_tokens, and the hit rate of the engine is "
    "prefix_cache_stats: hits divided by queries.",
    PREFIX,
)
ROWS = Rule(
    "Each running request has a row of its own, below max_num_seqs.",
    "On a GPU, the row is the request's place in the tables of block ids, last tokens and seeds. "
    "Two requests in one row would continue each other's text.",
    BATCHING,
)
SEPARATE = Rule(
    "Two schedulers of one class share nothing.",
    "One process can run several engines. A list in the class or in the module belongs to all of "
    "them: keep all state in self.",
    BATCHING,
)
RESET = Rule(
    "After reset(), a scheduler is like a new one.",
    "The engine calls it when a step was interrupted, and then serves new requests.",
    BATCHING,
)
AHEAD = Rule(
    "A step can be planned while the one before it still runs.",
    "On a GPU the engine runs ahead: the tokens of the running step are pending, and count in "
    "num_planned_tokens, but not yet in num_tokens.",
    GRAPHS,
)
SAME_PLAN = Rule(
    "This step is planned as the exercise asks.",
    "The plan is safe, but differs from the expected one. Compare the two: which request computes "
    "tokens or is admitted in one of them only?",
)
ALL_FREED = Rule(
    "When all requests have finished, all blocks are free.",
    "Leaked blocks are lost until the engine is restarted.",
    PAGING,
)
