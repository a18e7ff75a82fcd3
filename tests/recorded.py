"""A recorded run in which all happens that can be seen."""

from minimal_vllm import LLM, SamplingParams
from minimal_vllm.trace.facts import engine_facts
from minimal_vllm.trace.writer import TraceWriter

SMALL = {
    "num_gpu_blocks_override": 9,
    "max_model_len": 96,
    "max_num_seqs": 4,
    "max_num_batched_tokens": 24,
}
"""So small that prompts are chunked, requests preempted, and blocks evicted."""


def record_trace(path):
    """Run an engine that is too small, and write its trace."""
    writer = TraceWriter(path, 10**7)
    llm = LLM(observers=[writer], **SMALL)
    writer.begin(engine_facts(llm.config, llm.built), llm.tokenizer.token_text)
    beginning = "The old captain looked at the sea, and then he looked at the ship, and said:"
    prompts = [f"{beginning} {word}" for word in ("Good", "Never", "Where", "I")] * 4
    params = SamplingParams(max_tokens=40, ignore_eos=True, temperature=0)
    llm.generate(prompts, params, use_tqdm=False)
    writer.close()
