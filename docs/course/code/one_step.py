"""One step of the model with few and with many tokens: operations, bytes read, and time.

The least time of a step is the time of its arithmetic or of its reading, whichever is longer. Both
rates are measured first, with one large matrix.
"""

import time
from collections.abc import Callable

import torch
from torch.utils.flop_counter import FlopCounterMode

from minimal_vllm import LLM, SamplingParams
from minimal_vllm.model.config import ModelConfig
from minimal_vllm.trace.step_record import StepRecord

COUNTS = (1, 4, 16, 64, 256)


def main() -> None:
    torch.set_num_threads(1)
    matrix = torch.randn(4096, 4096)
    many, one = torch.randn(4096, 64), torch.randn(4096, 1)
    flops_per_second = 2 * matrix.numel() * 64 / seconds_of(lambda: matrix @ many)
    bytes_per_second = matrix.nbytes / seconds_of(lambda: matrix @ one)
    print(f"A large matrix times 64 columns  {flops_per_second / 1e9:6.1f} GFLOP/s")
    print(f"           and times one column  {bytes_per_second / 1e9:6.1f} GB/s are read\n")

    records: list[StepRecord] = []
    llm = LLM(
        device="cpu",
        dtype="float32",
        attention_backend="reference",  # and plain products, of weights in float32
        enable_prefix_caching=False,
        observers=[records.append],
    )
    model = llm.built.files.config
    print("tokens      FLOPs    weights   least time    measured   tokens/s")
    for count in COUNTS:
        seconds = seconds_of_step(llm, records, count)
        flops, weights = flops_of(model, count), 4 * model.num_parameters
        least = max(flops / flops_per_second, weights / bytes_per_second)
        print(
            f"{count:6} {flops / 1e6:8.0f} M {weights / 1e6:7.1f} MB {1e3 * least:9.1f} ms "
            f"{1e3 * seconds:8.1f} ms {count / seconds:10.0f}"
        )
    check_flops(model)


def seconds_of(work: Callable[[], object]) -> float:
    """Return the shortest of five runs."""
    times = []
    for _ in range(5):
        begun = time.perf_counter()
        work()
        times.append(time.perf_counter() - begun)
    return min(times)


def seconds_of_step(llm: LLM, records: list[StepRecord], count: int) -> float:
    """Return the shortest of five steps that compute a prompt of ``count`` tokens."""
    for _ in range(5):
        complete(llm, count)
    return min(record.run_seconds for record in records[-5:])


def complete(llm: LLM, count: int) -> None:
    prompt = [300 + index for index in range(count)]
    one_token = SamplingParams(temperature=0, max_tokens=1)
    llm.generate({"prompt_token_ids": prompt}, one_token, use_tqdm=False)


def flops_of(model: ModelConfig, count: int) -> int:
    """Apply the chapter's formula to a prompt of ``count`` tokens; the last one samples."""
    h, num_layers = model.hidden_size, model.num_layers
    queries, keys = model.num_heads * model.head_dim, model.num_kv_heads * model.head_dim
    after_attention = queries * h + 3 * h * model.intermediate_size
    layers = num_layers * (h * (queries + 2 * keys) + after_attention) * count
    not_wanted = after_attention * (count - 1)
    head = h * model.vocab_size
    return 2 * (layers - not_wanted + head) + 4 * num_layers * queries * count * count


def check_flops(model: ModelConfig) -> None:
    """Check against PyTorch's counter, which counts all pairs of tokens in attention, too."""
    llm = LLM(
        device="cpu", dtype="float32", enable_prefix_caching=False, attention_backend="reference"
    )
    for count in (9, 64):
        with FlopCounterMode(display=False) as counter:
            complete(llm, count)
        assert counter.get_total_flops() == flops_of(model, count)


if __name__ == "__main__":
    main()
