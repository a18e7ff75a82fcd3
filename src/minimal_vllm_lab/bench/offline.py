"""``bench throughput`` and ``bench latency``: the engine without a server."""

import time
from collections.abc import Sequence

from tqdm import tqdm

from minimal_vllm.llm import LLM
from minimal_vllm.outputs import RequestOutput
from minimal_vllm.sampling_params import SamplingParams
from minimal_vllm_lab.bench.config import Workload
from minimal_vllm_lab.bench.statistics import Fields, latency_result, throughput_result
from minimal_vllm_lab.bench.workload import SampleRequest, make_requests


def run_throughput(llm: LLM, workload: Workload, n: int, *, detokenize: bool) -> Fields:
    """Complete the workload's requests in one continuous batch.

    Returns:
        The result, and the numbers of prompt and output tokens.

    Raises:
        ValueError: a request is longer than the model's context, or could not be computed.
    """
    requests = make_requests(workload, llm.built.files.config.vocab_size)
    begun = time.perf_counter()
    outputs = _generate(llm, requests, n, detokenize=detokenize, progress=True)
    elapsed = time.perf_counter() - begun
    num_prompt = sum(len(output.prompt_token_ids) for output in outputs)
    num_output = sum(len(each.token_ids) for output in outputs for each in output.outputs)
    return {
        **throughput_result(len(requests), num_prompt + num_output, elapsed),
        "total_num_prompt_tokens": num_prompt,
        "total_num_output_tokens": num_output,
    }


def run_latency(
    llm: LLM, workload: Workload, n: int, *, detokenize: bool, num_warmups: int, num_iters: int
) -> Fields:
    """Complete the same batch again and again, after some times that don't count.

    Raises:
        ValueError: see ``run_throughput``.
    """
    requests = make_requests(workload, llm.built.files.config.vocab_size)
    latencies = []
    for _ in tqdm(range(num_warmups + num_iters), desc="Iterations, warm-up included"):
        begun = time.perf_counter()
        _generate(llm, requests, n, detokenize=detokenize, progress=False)
        latencies.append(time.perf_counter() - begun)
    return latency_result(latencies[num_warmups:])


def _generate(
    llm: LLM, requests: Sequence[SampleRequest], n: int, *, detokenize: bool, progress: bool
) -> list[RequestOutput]:
    longest = max(len(each.prompt) + each.output_len for each in requests)
    if longest > llm.built.scheduler_config.max_model_len:
        raise ValueError(
            f"a request has {longest:,} tokens, prompt and output together, but the context holds "
            f"{llm.built.scheduler_config.max_model_len:,}: ask for less"
        )
    outputs = llm.generate(
        [{"prompt_token_ids": each.prompt} for each in requests],
        [
            SamplingParams(
                n=n,
                temperature=1.0,
                ignore_eos=True,
                max_tokens=each.output_len,
                detokenize=detokenize,
            )
            for each in requests
        ],
        use_tqdm=progress,
    )
    for completion in (each for output in outputs for each in output.outputs):
        if completion.finish_reason == "error":
            raise ValueError(f"the engine failed: {completion.stop_reason}")
    return outputs
