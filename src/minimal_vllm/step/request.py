"""A request: a list of tokens, and a counter that catches up with it."""

from array import array
from dataclasses import dataclass, field
from enum import Enum, StrEnum

from minimal_vllm.sampling.row import Constraint, needs_history
from minimal_vllm.sampling_params import SamplingParams


class Status(Enum):
    """Where a request is. A preempted one is waiting again."""

    WAITING = "waiting"
    RUNNING = "running"
    FINISHED = "finished"


class FinishReason(StrEnum):
    """Why a request ended, in the API's words."""

    STOP = "stop"
    LENGTH = "length"
    ABORT = "abort"
    ERROR = "error"


@dataclass(eq=False, slots=True)
class Request:
    """One sequence of tokens to extend.

    There is no prefill phase and no decode phase: ``num_computed_tokens`` says for how many of
    ``token_ids`` the keys and values are in the cache; each step computes some more; when the
    counter has caught up with the list, the model's logits give the list one token more.

    A step may be planned while the one before it still runs. The tokens that this one samples have
    their places behind the list already, and are counted, but nobody knows them yet: they are
    *pending*.
    """

    request_id: str
    token_ids: "array[int]"
    """Prompt and output, as ``array('i')``: 4 bytes a token, joined into a batch by memcpy."""
    num_prompt_tokens: int
    params: SamplingParams
    arrival: int
    """Unique and increasing: who came first."""
    seed: int = 0
    """Random numbers for sampling are a function of this and of the output's length."""
    eos_token_ids: frozenset[int] = frozenset()
    """Tokens that end the output; empty if the request ignores them."""
    bad_word_ids: tuple[tuple[int, ...], ...] = ()
    grammar: Constraint | None = None
    """What the output must match; None: anything."""
    priority: int = 0
    """With the priority policy: smaller goes first."""
    cache_salt: bytes = b""
    """Only requests with the same salt share cached blocks."""

    stop_token_ids: frozenset[int] = field(init=False)
    """All tokens that end the output."""
    needs_history: bool = field(init=False)
    """Whether what is sampled depends, beyond the logits, on the tokens before it."""
    max_num_tokens: int = 0
    """It ends when it has so many tokens; set by the scheduler."""
    status: Status = Status.WAITING
    num_computed_tokens: int = 0
    num_pending_tokens: int = 0
    """Tokens behind ``token_ids`` that steps in flight sample."""
    row: int = -1
    """While it runs: its own among the ``max_num_seqs`` rows of what a GPU keeps of requests."""
    block_table: "array[int]" = field(default_factory=lambda: array("i"))
    """Logical to physical: block ``i`` holds the tokens from ``i * block_size`` on."""
    block_hashes: list[bytes] = field(default_factory=list)
    """Of the full blocks of ``token_ids``, extended when they are needed."""
    num_findable_blocks: int = 0
    """How many blocks of the table the prefix cache knows."""
    num_cached_tokens: int | None = None
    """Tokens found in the prefix cache when it was first admitted; None before."""
    num_preemptions: int = 0
    finish_reason: FinishReason | None = None
    stop_reason: int | str | None = None

    def __post_init__(self) -> None:
        self.stop_token_ids = self.eos_token_ids.union(self.params.stop_token_ids or ())
        self.needs_history = needs_history(self)

    @property
    def num_tokens(self) -> int:
        """Prompt and output tokens together."""
        return len(self.token_ids)

    @property
    def num_output_tokens(self) -> int:
        """Tokens generated so far."""
        return len(self.token_ids) - self.num_prompt_tokens

    @property
    def num_planned_tokens(self) -> int:
        """Prompt and output tokens together, and the pending ones."""
        return len(self.token_ids) + self.num_pending_tokens

    @property
    def next_output_index(self) -> int:
        """The place, in the output, of the token that the step planned last samples."""
        return self.num_planned_tokens - 1 - self.num_prompt_tokens

    @property
    def num_uncomputed_tokens(self) -> int:
        """How far the counter is behind the list."""
        return self.num_planned_tokens - self.num_computed_tokens

    @property
    def awaits_its_end(self) -> bool:
        """Whether a pending token will be its last, for its length."""
        return self.num_planned_tokens >= self.max_num_tokens

    @property
    def finished(self) -> bool:
        """Whether it has ended, for whatever reason."""
        return self.status is Status.FINISHED
