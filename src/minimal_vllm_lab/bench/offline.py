"""Benchmarks of the engine without a server: ``bench throughput`` and ``bench latency``."""

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

    Args:
        llm: engine to measure.
        workload: requests.
        n: number of outputs per request.
        detokenize: whether to turn output tokens into text.

    Returns:
        Result fields, including the numbers of prompt and output tokens.

    Raises:
        ValueError: a request exceeds the model's context, or failed.
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
    """Complete the same batch repeatedly and time each repetition.

    Args:
        llm: engine to measure.
        workload: requests of the batch.
        n: number of outputs per request.
        detokenize: whether to turn output tokens into text.
        num_warmups: number of repetitions that are not measured.
        num_iters: number of measured repetitions.

    Returns:
        Result fields.

    Raises:
        ValueError: See ``run_throughput``.
    """
    requests = make_requests(workload, llm.built.files.config.vocab_size)
    latencies = []
    for _ in tqdm(range(num_warmups + num_iters), desc="Iterations, including warm-up"):
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
            f"a request has {longest:,} tokens, counting prompt and output, but max_model_len is "
            f"{llm.built.scheduler_config.max_model_len:,}: reduce the lengths"
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
