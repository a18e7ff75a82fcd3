"""Records to test with."""

from minimal_vllm.trace.facts import EngineFacts
from minimal_vllm.trace.step_record import StepRecord

FACTS = EngineFacts(
    program="test",
    model="test",
    device="cpu",
    dtype="float32",
    num_blocks=8,
    block_size=4,
    max_model_len=32,
    max_num_batched_tokens=16,
    max_num_seqs=4,
    scheduling_policy="fcfs",
    eviction_policy="lru",
    enable_prefix_caching=True,
    enable_chunked_prefill=True,
)


def step_record(step=0, **fields):
    """A step of ten milliseconds in which nothing happened but for what is given."""
    return StepRecord(
        **{
            "step": step,
            "started": 10.0 + step,
            "schedule_seconds": 0.001,
            "run_seconds": 0.008,
            "update_seconds": 0.001,
            "scheduled": (),
            "admitted": (),
            "preempted": (),
            "finished": (),
            "evicted_blocks": (),
            "num_running": 0,
            "num_waiting": 0,
            "num_blocks": 8,
            "num_free_blocks": 8,
            "num_cached_blocks": 0,
            "prefix_queries": 0,
            "prefix_hits": 0,
            **fields,
        }
    )
