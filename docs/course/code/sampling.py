"""A seed that works in any batch, and the cost of choosing one token of many."""

import time
from array import array
from collections.abc import Callable
from functools import partial
from statistics import median

import torch

from minimal_vllm import LLM, SamplingParams
from minimal_vllm.sampling.sampler import sample
from minimal_vllm.step.request import Request

PROMPT = "The old captain looked at the sea, and"
OTHERS = ["My dear sister,", "It was a dark and stormy night, and", "The door opened, and"]
VOCAB = 150_000


def main() -> None:
    llm = LLM(dtype="float32", max_logprobs=-1)
    show_candidates(llm)
    show_one_generator()
    show_seeds(llm)
    show_costs()


def show_candidates(llm: LLM) -> None:
    params = SamplingParams(temperature=0, max_tokens=1, logprobs=-1)
    output = llm.generate(PROMPT, params, use_tqdm=False)[0].outputs[0]
    assert output.logprobs is not None
    found = sorted(output.logprobs[0].values(), key=lambda each: -each.logprob)
    logprobs = torch.tensor([each.logprob for each in found])
    print(f"1. {PROMPT} …")
    tokens = "".join(f"{each.decoded_token!s:>8}" for each in found[:6])
    print(f"   temperature{tokens}   hold 90 %")
    for temperature in (1.0, 0.5, 2.0):
        probabilities = (logprobs / temperature).softmax(dim=-1)
        nucleus = int((probabilities.cumsum(0) < 0.9).sum()) + 1
        shown = "".join(f"{each:8.1%}" for each in probabilities[:6].tolist())
        print(f"   {temperature:11}{shown}   {nucleus:4} tokens")
    print()


def show_one_generator() -> None:
    """Sample as a simple engine does, with one random generator for the whole batch."""
    probabilities = torch.rand(1, 50, generator=torch.Generator().manual_seed(0))
    chosen = []
    for num_others in (0, 1, 2):
        generator = torch.Generator().manual_seed(7)
        batch = probabilities.expand(num_others + 1, -1)  # our row is the last
        chosen.append(torch.multinomial(batch, 1, generator=generator)[-1].item())
    print("2. Our row's token, drawn from one generator for the batch, seed 7")
    print(f"   with 0, 1 and 2 other rows: {', '.join(map(str, chosen))}\n")


def show_seeds(llm: LLM) -> None:
    params = SamplingParams(seed=7, max_tokens=8)
    alone = llm.generate(PROMPT, params, use_tqdm=False)[0].outputs[0]
    crowd = llm.generate([*OTHERS, PROMPT], params, use_tqdm=False)[-1].outputs[0]
    print("3. The engine, seed 7")
    print(f"   alone       …{alone.text}")
    print(f"   in a crowd  …{crowd.text}\n")


def show_costs() -> None:
    # The k-th most probable token has a probability in proportion to k ** -1.5, as in a text.
    ranks = torch.rand(16, VOCAB, generator=torch.Generator().manual_seed(0)).argsort() + 1
    logits = -1.5 * ranks.log()
    print(f"4. Milliseconds for 16 rows of {VOCAB:,} logits")
    work: dict[str, Callable[[], object]] = {
        "greedy": partial(choose, logits, SamplingParams(temperature=0)),
        "temperature": partial(choose, logits, SamplingParams()),
        "top_k 50": partial(choose, logits, SamplingParams(top_k=50)),
        "top_p 0.9": partial(choose, logits, SamplingParams(top_p=0.9)),
        "a full sort": partial(logits.sort, descending=True),
    }
    for name, do_it in work.items():
        print(f"   {name:12}{milliseconds(do_it):7.1f}")


def choose(logits: torch.Tensor, params: SamplingParams) -> list[int]:
    rows = [
        Request("", array("i", [0]), 1, params, arrival=seed, seed=seed, num_pending_tokens=1)
        for seed in range(len(logits))
    ]
    return [token for (token,) in sample(logits.clone(), rows).tokens]


def milliseconds(work: Callable[[], object]) -> float:
    seconds = []
    for _ in range(4):
        begun = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - begun)
    return 1e3 * median(seconds[1:])


if __name__ == "__main__":
    main()
