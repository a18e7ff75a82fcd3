"""How much of multi-turn traffic the prefix cache finds, with each eviction strategy.

python -m benchmarks.eviction [--plot]

The traffic: conversations under a few system prompts, some of them popular and most of them not
(Zipf's law); each turn sends all that was said before, then the user reads and thinks; in between,
documents that nobody asks about twice. It runs through the real scheduler and block pool, with
random tokens in the model's place, a step at a time. The hit rate is the share of the prompts'
tokens that need not be computed.

Two rows tell how good a strategy can be at all. "belady" evicts what will be needed again last,
which only a simulation can know (Belady, 1966). "no eviction" is an infinite pool: what it misses
was never seen before.
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
"""On average; a step is the time of one token, say 30 ms."""
STEPS_TO_THINK = 1500
SHARE_OF_DOCUMENTS = 0.25
"""Of all conversations, those that are one long prompt, and never go on."""


@dataclass(frozen=True)
class Turn:
    """A prompt, and what will be answered."""

    arrival: int
    """The step in which it is sent, or later: once the turn before has been answered."""
    prompt: "array[int]"
    answer: list[int]
    previous: int | None
    """The turn before, by its index among all."""


# ---- traffic ------------------------------------------------------------------------------------


def make_traffic(num_conversations: int, seed: int) -> list[Turn]:
    """All turns of all conversations, in the order of their arrival."""
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
    said = system_prompt[:]
    previous = None
    goes_on = True
    while goes_on:
        said = said + _tokens(random, 10, 200)
        turn = Turn(arrival, said, _answer(random), previous)
        previous = len(turns)
        turns.append(turn)
        said = said + array("i", turn.answer)
        arrival += len(turn.answer) + int(random.expovariate(1 / STEPS_TO_THINK))
        goes_on = random.random() < 0.8 and len(said) < MAX_MODEL_LEN - 600


def _in_order_of_arrival(turns: list[Turn]) -> list[Turn]:
    order = sorted(range(len(turns)), key=lambda index: turns[index].arrival)
    place = {index: rank for rank, index in enumerate(order)}
    return [
        Turn(
            turns[index].arrival,
            turns[index].prompt,
            turns[index].answer,
            None if (previous := turns[index].previous) is None else place[previous],
        )
        for index in order
    ]


def _tokens(random: Random, least: int, most: int) -> "array[int]":
    return array("i", random.choices(range(VOCAB_SIZE), k=random.randint(least, most)))


def _answer(random: Random) -> list[int]:
    return _tokens(random, 20, 300).tolist()


# ---- simulation ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Outcome:
    """What a strategy made of the traffic."""

    strategy: str
    num_blocks: int
    hit_rate: float
    queried_tokens: int
    evictions: int
    preemptions: int


class Belady(_SmallestKeyFirst):
    """Evicts the block whose content will be asked for last, or never again."""

    def __init__(self, requests: Sequence[Request], turns: Sequence[Turn]) -> None:
        super().__init__()
        self._requests, self._turns = requests, turns
        self._uses: defaultdict[bytes, deque[int]] = defaultdict(deque)
        for index, request in enumerate(requests):
            extend_block_hashes(request.block_hashes, request.token_ids, BLOCK_SIZE)
            for block_hash in request.block_hashes:
                self._uses[block_hash].append(index)
        self.hash_of: Sequence[bytes | None] = ()
        """Of each block: the pool's."""

    def _key(self, block: int) -> tuple[int, int]:
        uses = self._uses[self.hash_of[block] or b""]
        while uses and self._requests[uses[0]].num_cached_tokens is not None:  # it was served
            uses.popleft()
        next_use = self._turns[uses[0]].arrival if uses else 2**62
        return -next_use, self._releases


def simulate(turns: Sequence[Turn], strategy: str, num_blocks: int) -> Outcome:
    """Run the traffic through a scheduler, and prove its books at the end."""
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
        sampling = [entry.request for entry in plan.scheduled if entry.samples]
        answers = [turns[each.arrival].answer[each.num_output_tokens] for each in sampling]
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
    belady.hash_of = pool._hashes  # what is in a block is the pool's secret, but to an oracle
    return Scheduler(config, pool)


def blocks_for_all(turns: Sequence[Turn]) -> int:
    """A pool so large that nothing is ever evicted."""
    return sum((len(turn.prompt) + len(turn.answer)) // BLOCK_SIZE + 1 for turn in turns)


# ---- results ------------------------------------------------------------------------------------


def print_outcomes(outcomes: Sequence[Outcome], unlimited: Outcome) -> None:
    """A row for each strategy, a column for each size of the pool."""
    pools = sorted({outcome.num_blocks for outcome in outcomes})
    rates = {(outcome.strategy, outcome.num_blocks): outcome.hit_rate for outcome in outcomes}
    strategies = list(dict.fromkeys(outcome.strategy for outcome in outcomes))
    print_table(
        f"Prompt tokens found in the cache, of {unlimited.queried_tokens:,}",
        ["strategy", *(f"{num_blocks:,} blocks" for num_blocks in pools)],
        [
            *([name, *(f"{rates[name, size]:.1%}" for size in pools)] for name in strategies),
            ["no eviction", *(f"{unlimited.hit_rate:.1%}" for _ in pools)],
        ],
    )


def plot(outcomes: Sequence[Outcome], unlimited: Outcome, path: Path) -> None:
    """Hit rates over pool sizes, as a picture."""
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
    print(f"\nDrawn in {path}")


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Run the benchmark; its results, as they are written to the file."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--conversations", type=int, default=800)
    parser.add_argument("--blocks", type=int, nargs="+", default=[4000, 8000, 16000, 32000])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--plot", action="store_true", help="draw a picture, too")
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
