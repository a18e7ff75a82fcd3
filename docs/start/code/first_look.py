"""A prompt on its way through the cache: ``python docs/start/code/first_look.py "My prompt"``."""

import sys

from minimal_vllm import LLM, SamplingParams
from minimal_vllm.trace.step_record import StepRecord

STORY = "The night was cold, and the wind blew hard from the sea. Nobody was seen on the road."


def show(step: StepRecord) -> None:
    for entry in step.scheduled:
        last = entry.start + entry.num_tokens - 1
        computed = f"tokens {entry.start} to {last}" if entry.num_tokens > 1 else f"token {last}"
        found = f", found: blocks {list(entry.cached_blocks)}" if entry.cached_blocks else ""
        taken = f", taken: blocks {list(entry.new_blocks)}" if entry.new_blocks else ""
        print(f"step {step.step:2}: {computed}{found}{taken}")


prompt = sys.argv[1] if len(sys.argv) > 1 else STORY
llm = LLM(
    observers=[show],
    num_gpu_blocks_override=16,
    max_model_len=256,
    max_num_batched_tokens=16,
    max_num_seqs=2,
)
for _ in range(2):
    params = SamplingParams(temperature=0, max_tokens=4)
    (output,) = llm.generate(prompt, params, use_tqdm=False)
    print(f"{len(output.prompt_token_ids)} tokens of prompt, then {output.outputs[0].text!r}\n")
