"""Rules that every scheduler must follow, whatever order it serves requests in."""

from minimal_vllm_lab.check.lesson import Rule

STEP = "01-one-step"
PAGING = "03-paging"
BATCHING = "07-continuous-batching"
CHUNKED = "08-chunked-prefill"
PREEMPTION = "09-preemption"

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
