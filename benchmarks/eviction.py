"""Hit rate of the prefix cache on multi-turn traffic, with each eviction strategy.

python -m benchmarks.eviction [--plot]

The traffic consists of conversations under a few system prompts, whose popularity follows Zipf's
law. Each turn sends the whole conversation so far; then the user reads and thinks. In between,
there are long documents that are only sent once. The traffic runs through the real scheduler and
block pool, step by step, with random tokens in place of a model's. The hit rate is the fraction of
prompt tokens found in the cache.

Two rows show how good a strategy can be. "belady" evicts the block that will be needed latest,
which only a simulation can know (Belady, 1966). "no eviction" is an unlimited pool, which only
misses content that was never seen before.
"""

import argparse
from array import array
from collections import defaultdict, deque
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from heapq import heappop, heappush
from pathlib import Path
from random import Random
from typing import Any

from benchmarks.common import RESULTS, print_table, report
from minimal_vllm.cache.block_pool import BlockPool
from minimal_vllm.cache.eviction import EVICTION_STRATEGIES, _SmallestKeyFirst
from minimal_vllm.cache.prefix_hash import extend_block_hashes
from minimal_vllm.config import SchedulerConfig
from minimal_vllm.engine.scheduler import Scheduler
from minimal_vllm.sampling_params import SamplingParams
from minimal_vllm.step.request import Request

BLOCK_SIZE = 16
VOCAB_SIZE = 50_000
MAX_MODEL_LEN = 8192
NUM_SYSTEM_PROMPTS = 24
STEPS_BETWEEN_CONVERSATIONS = 45
"""Mean number of steps between arrivals. A step is the time of one token, such as 30 ms."""
STEPS_TO_THINK = 1500
"""Mean number of steps between an answer and the next turn."""
SHARE_OF_DOCUMENTS = 0.25
"""Fraction of conversations that are a single long prompt."""


@dataclass(frozen=True)
class Turn:
    """Prompt, and the answer that it will be given."""

    arrival: int
    """Earliest step in which the turn is sent; it is sent after the previous turn's answer."""
    prompt: "array[int]"
    answer: list[int]
    previous: int | None
    """Index of the previous turn in the list of all turns; None for the first turn."""


# ---- traffic ------------------------------------------------------------------------------------


def make_traffic(num_conversations: int, seed: int) -> list[Turn]:
    """Return all turns of all conversations in order of arrival."""
    random = Random(seed)
    system_prompts = [_tokens(random, 100, 1500) for _ in range(NUM_SYSTEM_PROMPTS)]
    popularity = [1 / rank for rank in range(1, NUM_SYSTEM_PROMPTS + 1)]
    turns: list[Turn] = []
    begins = 0.0
    for _ in range(num_conversations):
        begins += random.expovariate(1 / STEPS_BETWEEN_CONVERSATIONS)
        if random.random() < SHARE_OF_DOCUMENTS:
            document = _tokens(random, 500, 4000)
            turns.append(Turn(int(begins), document, _answer(random), None))
        else:
            (system_prompt,) = random.choices(system_prompts, popularity)
            _add_conversation(turns, random, int(begins), system_prompt)
    return _in_order_of_arrival(turns)


def _add_conversation(
    turns: list[Turn], random: Random, arrival: int, system_prompt: "array[int]"
) -> None:
    history = system_prompt[:]
    previous = None
    goes_on = True
    while goes_on:
        history = history + _tokens(random, 10, 200)
        turn = Turn(arrival, history, _answer(random), previous)
        previous = len(turns)
        turns.append(turn)
        history = history + array("i", turn.answer)
        arrival += len(turn.answer) + int(random.expovariate(1 / STEPS_TO_THINK))
        goes_on = random.random() < 0.8 and len(history) < MAX_MODEL_LEN - 600


def _in_order_of_arrival(turns: list[Turn]) -> list[Turn]:
    order = sorted(range(len(turns)), key=lambda index: turns[index].arrival)
    rank_of = {index: rank for rank, index in enumerate(order)}
    return [
        Turn(
            turns[index].arrival,
            turns[index].prompt,
            turns[index].answer,
            None if (previous := turns[index].previous) is None else rank_of[previous],
        )
        for index in order
    ]


def _tokens(random: Random, min_length: int, max_length: int) -> "array[int]":
    return array("i", random.choices(range(VOCAB_SIZE), k=random.randint(min_length, max_length)))


def _answer(random: Random) -> list[int]:
    return _tokens(random, 20, 300).tolist()


# ---- simulation ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Outcome:
    """Result of one strategy with one pool size."""

    strategy: str
    num_blocks: int
    hit_rate: float
    queried_tokens: int
    evictions: int
    preemptions: int


class Belady(_SmallestKeyFirst):
    """Optimal strategy: evict the block whose content will be needed latest, or never again."""

    def __init__(self, requests: Sequence[Request], turns: Sequence[Turn]) -> None:
        super().__init__()
        self._requests, self._turns = requests, turns
        self._uses: defaultdict[bytes, deque[int]] = defaultdict(deque)
        for index, request in enumerate(requests):
            extend_block_hashes(request.block_hashes, request.token_ids, BLOCK_SIZE)
            for block_hash in request.block_hashes:
                self._uses[block_hash].append(index)
        self.hash_of: Sequence[bytes | None] = ()
        """Content hash of each block, shared with the pool."""

    def _key(self, block: int) -> tuple[int, int]:
        uses = self._uses[self.hash_of[block] or b""]
        while uses and self._requests[uses[0]].num_cached_tokens is not None:  # already served
            uses.popleft()
        next_use = self._turns[uses[0]].arrival if uses else 2**62
        return -next_use, self._releases


def simulate(turns: Sequence[Turn], strategy: str, num_blocks: int) -> Outcome:
    """Run the traffic through a scheduler, and check its invariants at the end."""
    requests = [_make_request(index, turn) for index, turn in enumerate(turns)]
    scheduler = _make_scheduler(strategy, num_blocks, requests, turns)
    follower_of = {turn.previous: index for index, turn in enumerate(turns)}
    arrivals = [(turn.arrival, index) for index, turn in enumerate(turns) if turn.previous is None]
    step = evictions = 0
    while arrivals or scheduler.has_work:
        if not scheduler.has_work:
            step = max(step, arrivals[0][0])
        while arrivals and arrivals[0][0] <= step:
            scheduler.add(requests[heappop(arrivals)[1]])
        plan = scheduler.schedule()
        sampling = plan.sampling
        answers = [[turns[each.arrival].answer[each.num_output_tokens]] for each in sampling]
        scheduler.update(plan, answers)
        for request in sampling:
            follower = follower_of.get(request.arrival)
            if request.finished and follower is not None:
                heappush(arrivals, (turns[follower].arrival, follower))
        evictions += len(plan.evicted)
        step += 1
    scheduler.check()
    stats = scheduler.prefix_cache_stats
    preemptions = sum(request.num_preemptions for request in requests)
    hit_rate = stats.hits / stats.queries
    return Outcome(strategy, num_blocks, hit_rate, stats.queries, evictions, preemptions)


def _make_request(index: int, turn: Turn) -> Request:
    params = SamplingParams(ignore_eos=True)
    length, answer = len(turn.prompt), len(turn.answer)
    return Request(str(index), turn.prompt[:], length, replace(params, max_tokens=answer), index)


def _make_scheduler(
    strategy: str, num_blocks: int, requests: Sequence[Request], turns: Sequence[Turn]
) -> Scheduler:
    config = SchedulerConfig(max_model_len=MAX_MODEL_LEN, max_num_seqs=64, block_size=BLOCK_SIZE)
    if strategy != "belady":
        return Scheduler(config, BlockPool(num_blocks, EVICTION_STRATEGIES[strategy]()))
    belady = Belady(requests, turns)
    pool = BlockPool(num_blocks, belady)
    belady.hash_of = pool._hashes  # private, but the oracle has to know what blocks contain
    return Scheduler(config, pool)


def blocks_for_all(turns: Sequence[Turn]) -> int:
    """Return a pool size with which nothing is ever evicted."""
    return sum((len(turn.prompt) + len(turn.answer)) // BLOCK_SIZE + 1 for turn in turns)


# ---- results ------------------------------------------------------------------------------------


def print_outcomes(outcomes: Sequence[Outcome], unlimited: Outcome) -> None:
    """Print a table with a row for each strategy and a column for each pool size."""
    pools = sorted({outcome.num_blocks for outcome in outcomes})
    rates = {(outcome.strategy, outcome.num_blocks): outcome.hit_rate for outcome in outcomes}
    strategies = list(dict.fromkeys(outcome.strategy for outcome in outcomes))
    print_table(
        f"Fraction of {unlimited.queried_tokens:,} prompt tokens found in the cache",
        ["strategy", *(f"{num_blocks:,} blocks" for num_blocks in pools)],
        [
            *([name, *(f"{rates[name, size]:.1%}" for size in pools)] for name in strategies),
            ["no eviction", *(f"{unlimited.hit_rate:.1%}" for _ in pools)],
        ],
    )


def plot(outcomes: Sequence[Outcome], unlimited: Outcome, path: Path) -> None:
    """Plot hit rates over pool sizes."""
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4.5))
    for strategy in dict.fromkeys(outcome.strategy for outcome in outcomes):
        chosen = [outcome for outcome in outcomes if outcome.strategy == strategy]
        sizes, rates = [each.num_blocks for each in chosen], [each.hit_rate for each in chosen]
        axes.plot(sizes, rates, marker="o", label=strategy)
    axes.axhline(unlimited.hit_rate, color="grey", linestyle="--", label="no eviction")
    axes.set(xscale="log", xlabel="blocks in the pool", ylabel="hit rate (tokens)", ylim=(0, 1))
    axes.legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150, bbox_inches="tight")
    print(f"\nPlotted to {path}")


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Run the benchmark; return the results that are written to the file."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--conversations", type=int, default=800)
    parser.add_argument("--blocks", type=int, nargs="+", default=[4000, 8000, 16000, 32000])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--plot", action="store_true", help="also plot the hit rates")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder for the results")
    options = parser.parse_args(arguments)

    turns = make_traffic(options.conversations, options.seed)
    strategies = [*EVICTION_STRATEGIES, "belady"]
    outcomes = [simulate(turns, name, size) for name in strategies for size in options.blocks]
    unlimited = simulate(turns, "lru", blocks_for_all(turns))
    print_outcomes(outcomes, unlimited)
    if options.plot:
        plot(outcomes, unlimited, options.results / "eviction.png")
    results = {
        "turns": len(turns),
        "outcomes": [asdict(outcome) for outcome in outcomes],
        "no_eviction": asdict(unlimited),
    }
    report("eviction", results, options.results)
    return results


if __name__ == "__main__":
    main()
