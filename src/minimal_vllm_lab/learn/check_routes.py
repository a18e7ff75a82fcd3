"""Check of the exercise prefix-router: which replica a request is sent to, after any history."""

from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from types import ModuleType
from typing import TYPE_CHECKING

from minimal_vllm.cache.prefix_hash import extend_block_hashes
from minimal_vllm.routing import IMBALANCE, IMBALANCE_FACTOR, MIN_MATCH
from minimal_vllm_lab.check.lesson import Broken, Lesson, Rule
from minimal_vllm_lab.check.search import History, find_lesson, long_lists, shorter_lists

if TYPE_CHECKING:
    from hypothesis.strategies import SearchStrategy

CHAPTER = "18-routing"
LONGEST = Rule(
    "A prompt is sent to a replica that holds its longest prefix; of several, the least loaded.",
    "What the replica holds already need not be computed. Only a replica that holds all blocks up "
    "to some place holds a prefix.",
    CHAPTER,
)
SHORT = Rule(
    "A prefix that covers less than MIN_MATCH of the prompt does not count.",
    "It saves little, and many prompts may begin with the same few words.",
    CHAPTER,
)
BALANCE = Rule(
    "While the loads are unbalanced, the least loaded replica is chosen.",
    "Waiting in the queue of a busy replica can take longer than computing the prefix elsewhere.",
    CHAPTER,
)
TURNS = Rule(
    "A prompt of which nobody holds anything is sent to the least loaded replica.",
    "Of equals, to the one that was chosen longest ago, so that they take turns.",
    CHAPTER,
)
FORGOTTEN = Rule(
    "A replica that has evicted a block holds neither it nor what is behind it. Others still do.",
    "A router that believes too much sends prompts to where they are computed again.",
    CHAPTER,
)
REPLICAS = range(3)
BLOCK = 2
"""Tokens per block."""
PROMPTS = (
    (1, 1, 2, 2, 3, 3),
    (1, 1, 2, 2, 4, 4),
    (1, 1, 5, 5),
    (7, 7, 2, 2),
    (1, 1, *[6] * 8),  # of which the first block is too little
    (1,),
)


@dataclass(frozen=True)
class Choice:
    """A request comes, and a replica is chosen for it."""

    prompt: tuple[int, ...]


@dataclass(frozen=True)
class Eviction:
    """A replica evicts a block, whether it holds it or not."""

    replica: int
    prompt: tuple[int, ...]
    block: int
    """Index of a block of this prompt."""


@dataclass(frozen=True)
class Load:
    """A replica has a number of unanswered requests."""

    replica: int
    load: int


Event = Choice | Eviction | Load


@dataclass
class Prompt:
    """A request as routers read it."""

    token_ids: "array[int]"
    block_hashes: list[bytes] = field(default_factory=list)
    cache_salt: bytes = b""


def check_routes(module: ModuleType, seed: int | None = None) -> Lesson | None:
    """Compare the choices of ``MyRouter`` with those that follow from what each replica holds.

    Returns:
        A lesson about a wrong choice, or None.
    """

    def run(events: Sequence[Event], history: History) -> None:
        cluster = _Cluster(module, history)
        for event in events:
            cluster.happens(event)

    # Without evictions first, so that a lesson about evictions is really about them.
    for evictions in (False, True):
        events = long_lists(_events(evictions), 24)
        found = find_lesson(events, run, examples=300, seed=seed, shorter=shorter_lists)
        if found:
            return found
    return None


def _events(evictions: bool) -> "SearchStrategy[Event]":
    from hypothesis import strategies as st

    replica, prompt = st.sampled_from(REPLICAS), st.sampled_from(PROMPTS)
    loads = (0, 1, IMBALANCE, IMBALANCE + 1, 3 * IMBALANCE, 4 * IMBALANCE)
    choice = st.builds(Choice, prompt)
    load = st.builds(Load, replica, st.sampled_from(loads))
    eviction = st.builds(Eviction, replica, prompt, st.integers(0, 1))
    return st.one_of(choice, choice, load, eviction) if evictions else st.one_of(choice, load)


class _Cluster:
    """Three replicas, and a learner's router in front of them.

    Each set contains prefixes, as tuples of tokens: a block is held together with all before it.
    """

    def __init__(self, module: ModuleType, history: History) -> None:
        history.note(f"router = MyRouter(range({len(REPLICAS)}), {BLOCK})")
        self._router = module.MyRouter(REPLICAS, BLOCK)
        self._history = history
        self._loads = dict.fromkeys(REPLICAS, 0)
        """Load of each replica. As in the router, the first was chosen longest ago."""
        self._held: dict[int, set[tuple[int, ...]]] = {replica: set() for replica in REPLICAS}
        self._ever_held: dict[int, set[tuple[int, ...]]] = {each: set() for each in REPLICAS}

    def happens(self, event: Event) -> None:
        """Tell the router of an event, or ask it for a choice and check that."""
        match event:
            case Choice(prompt):
                self._choose(prompt)
            case Eviction(replica, prompt, block):
                prefix = prompt[: (block + 1) * BLOCK]
                self._history.note(f"replica {replica} evicts the last block of {list(prefix)}")
                self._router.forget(replica, _hashes(prefix)[-1:])
                self._held[replica].discard(prefix)
            case Load(replica, load):
                self._history.note(f"router.loads[{replica}] = {load}")
                self._router.loads[replica] = self._loads[replica] = load

    def _choose(self, prompt: tuple[int, ...]) -> None:
        def choose(tokens: list[int]) -> int:
            replica: int = self._router.choose(Prompt(array("i", tokens)))
            return replica

        found = self._history.call("router.choose", choose, list(prompt))
        rule, allowed = self._allowed(prompt, self._held)
        if found not in allowed:
            if found in self._allowed(prompt, self._ever_held)[1]:
                rule = FORGOTTEN
            raise Broken(rule, f"replica {found}", self._expected(allowed, prompt))
        for prefix in _prefixes(prompt):
            self._held[found].add(prefix)
            self._ever_held[found].add(prefix)
        self._loads[found] = self._loads.pop(found)

    def _allowed(
        self, prompt: tuple[int, ...], held: dict[int, set[tuple[int, ...]]]
    ) -> tuple[Rule, list[int]]:
        """Return the replicas that may be chosen, and the rule that says so."""
        lengths = {each: _num_held(prompt, held[each]) for each in REPLICAS}
        longest = max(lengths.values())
        lowest, highest = min(self._loads.values()), max(self._loads.values())
        next_in_turn = [next(each for each in self._loads if self._loads[each] == lowest)]
        if longest == 0:
            return TURNS, next_in_turn
        if highest - lowest > IMBALANCE and highest > IMBALANCE_FACTOR * lowest:
            return BALANCE, next_in_turn
        if longest * BLOCK < MIN_MATCH * len(prompt):
            return SHORT, next_in_turn
        holders = [each for each in REPLICAS if lengths[each] == longest]
        least = min(self._loads[each] for each in holders)
        return LONGEST, [each for each in holders if self._loads[each] == least]

    def _expected(self, allowed: list[int], prompt: tuple[int, ...]) -> str:
        replicas = " or ".join(map(str, allowed))
        held = ", ".join(str(_num_held(prompt, self._held[each])) for each in REPLICAS)
        loads = ", ".join(str(self._loads[each]) for each in REPLICAS)
        return (
            f"replica {replicas}: the replicas hold prefixes of {held} blocks, and have loads of "
            f"{loads}"
        )


def _prefixes(prompt: tuple[int, ...]) -> list[tuple[int, ...]]:
    """Return the beginnings of a prompt that end with a full block."""
    return [prompt[:end] for end in range(BLOCK, len(prompt) + 1, BLOCK)]


def _num_held(prompt: tuple[int, ...], held: set[tuple[int, ...]]) -> int:
    """Return the number of a prompt's first blocks that are all held."""
    count = 0
    for prefix in _prefixes(prompt):
        if prefix not in held:
            break
        count += 1
    return count


def _hashes(tokens: tuple[int, ...]) -> list[bytes]:
    hashes: list[bytes] = []
    extend_block_hashes(hashes, array("i", tokens), BLOCK, b"")
    return hashes
