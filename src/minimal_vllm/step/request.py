"""A request: a list of tokens, and a counter of those that are computed."""

from array import array
from dataclasses import dataclass, field
from enum import Enum, StrEnum

from minimal_vllm.sampling.row import Constraint, needs_history
from minimal_vllm.sampling_params import SamplingParams


class Status(Enum):
    """State of a request. A preempted request is waiting again."""

    WAITING = "waiting"
    RUNNING = "running"
    FINISHED = "finished"


class FinishReason(StrEnum):
    """Reason why a request ended, spelled as in the API."""

    STOP = "stop"
    LENGTH = "length"
    ABORT = "abort"
    ERROR = "error"


@dataclass(eq=False, slots=True)
class Request:
    """One sequence of tokens to extend.

    There is no prefill phase and no decode phase. ``num_computed_tokens`` counts the tokens whose
    keys and values are in the cache, and each step computes some more. When the counter has caught
    up with ``token_ids``, the model's logits give the next token, and the list grows.

    A step may be planned while the previous one still runs. The tokens that the running step
    samples are then *pending*: they count as part of the request, but their ids are not known yet.
    """

    request_id: str
    token_ids: "array[int]"
    """Prompt and output as ``array('i')``, 4 bytes per token, so that a batch is built by copying
    memory."""
    num_prompt_tokens: int
    params: SamplingParams
    arrival: int
    """Unique number that increases with each request; the smaller one arrived first."""
    seed: int = 0
    """Random numbers for sampling are a function of this seed and the output's length."""
    eos_token_ids: frozenset[int] = frozenset()
    """The model's end-of-sequence tokens; empty if the request ignores them."""
    bad_word_ids: tuple[tuple[int, ...], ...] = ()
    """Token sequences that must not appear in the output."""
    grammar: Constraint | None = None
    """Rule that the output must follow; None for free text."""
    priority: int = 0
    """Rank under the ``priority`` policy; the smaller one is served first."""
    cache_salt: bytes = b""
    """Requests share cached blocks only if they have the same salt."""

    stop_token_ids: frozenset[int] = field(init=False)
    """All tokens that end the output: ``eos_token_ids`` and the user's own."""
    needs_history: bool = field(init=False)
    """True if sampling needs the ids of all previous tokens, for penalties, bad words or a
    grammar."""
    max_num_tokens: int = 0
    """Total number of tokens, prompt and output, at which the request ends; set by the
    scheduler."""
    status: Status = Status.WAITING
    num_computed_tokens: int = 0
    """Number of tokens whose keys and values are in the cache after the last planned step."""
    num_pending_tokens: int = 0
    """Number of tokens that steps in flight will append to ``token_ids``, at most."""
    row: int = -1
    """Row of the GPU's table of running requests; below ``max_num_seqs`` while the request runs."""
    block_table: "array[int]" = field(default_factory=lambda: array("i"))
    """Block ids: block ``block_table[i]`` holds the tokens from ``i * block_size`` on. With ``G``
    groups of layers (see ``cache.layer_groups``), entry ``i * G + g`` belongs to group ``g``."""
    block_hashes: list[bytes] = field(default_factory=list)
    """Hashes of the full blocks of ``token_ids``; extended on demand."""
    num_findable_blocks: int = 0
    """Number of leading blocks in the table that the prefix cache can find."""
    num_cached_tokens: int | None = None
    """Number of tokens found in the prefix cache at the first admission; None before that."""
    num_preemptions: int = 0
    finish_reason: FinishReason | None = None
    """Reason why the request ended; None until then."""
    stop_reason: int | str | None = None
    """Stop token or stop string that ended the request, or the message of an error."""

    def __post_init__(self) -> None:
        self.stop_token_ids = self.eos_token_ids.union(self.params.stop_token_ids or ())
        self.needs_history = needs_history(self)

    @property
    def num_tokens(self) -> int:
        """Number of known tokens, prompt and output."""
        return len(self.token_ids)

    @property
    def num_output_tokens(self) -> int:
        """Number of tokens generated so far."""
        return len(self.token_ids) - self.num_prompt_tokens

    @property
    def num_planned_tokens(self) -> int:
        """Number of tokens including the pending ones."""
        return len(self.token_ids) + self.num_pending_tokens

    @property
    def next_output_index(self) -> int:
        """Index in the output of the token that the last planned step samples."""
        return self.num_planned_tokens - 1 - self.num_prompt_tokens

    @property
    def num_uncomputed_tokens(self) -> int:
        """Number of tokens that are still to be computed, pending ones included."""
        return self.num_planned_tokens - self.num_computed_tokens

    @property
    def awaits_its_end(self) -> bool:
        """True if a pending token will bring the request to its maximum length."""
        return self.num_planned_tokens >= self.max_num_tokens

    @property
    def finished(self) -> bool:
        """True if the request has ended, for any reason."""
        return self.status is Status.FINISHED
