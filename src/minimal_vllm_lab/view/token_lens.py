"""One token under a lens: what it attends to, and the tokens that may come next.

The engine keeps none of this. When somebody asks, the lens computes the token again, with the
plain attention, on a copy of the blocks that the request holds between two steps. The steps of the
engine have no code for it, and the cache is not written to.
"""

from copy import copy
from dataclasses import dataclass, replace
from typing import Annotated

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from minimal_vllm.attention.interface import AttentionOptions
from minimal_vllm.attention.reference import attend, gather_pages
from minimal_vllm.cache.kv_cache import LayerCache
from minimal_vllm.cache.layer_groups import NO_BLOCK
from minimal_vllm.config import EngineConfig
from minimal_vllm.engine.build import BuiltEngine
from minimal_vllm.engine.watched_experts import unwatched
from minimal_vllm.model.eagle import untapped
from minimal_vllm.runner.interface import CachedModel
from minimal_vllm.sampling.sampler import apply_rules, filter_logits
from minimal_vllm.step.request import Request

NUM_CANDIDATES = 10
MAX_TOKENS = 8192
"""Maximum number of tokens that a token under the lens may attend to."""
COLUMNS = 256
"""Number of attention weights that are computed at a time."""


class LensError(ValueError):
    """Raised when a token can't be looked at. The message says why."""


class LensQuery(BaseModel):
    """Token to look at, and how to sample after it."""

    model_config = ConfigDict(extra="forbid")

    request_id: str
    position: Annotated[int, Field(ge=0)] | None = None
    """Position of the token in its request. None: the newest one that has been computed."""
    layer: Annotated[int, Field(ge=0)] = 0
    head: Annotated[int, Field(ge=0)] | None = None
    """Query head whose attention is returned. None: the mean of all heads."""
    temperature: Annotated[float, Field(ge=0, le=100)] | None = None
    """Default, here and below: the request's own."""
    top_k: Annotated[int, Field(ge=0)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None


@dataclass(frozen=True, slots=True)
class Candidate:
    """Token that may come next."""

    token_id: int
    text: str
    before: float
    """Probability according to the model."""
    after: float
    """Probability with which it is drawn: after temperature, top_k, top_p and all other rules."""


@dataclass(frozen=True, slots=True)
class TokenReport:
    """Queries, attention and candidates of a token, as the lens saw them."""

    position: int
    token_id: int
    num_layers: int
    num_heads: int
    queries: list[list[float]]
    """Query of each head in the layer."""
    weights: list[float]
    """Share of the token's attention that each token up to itself gets in the layer."""
    candidates: list[Candidate]
    """The likeliest next tokens by ``before``, and the token that really came next."""
    chosen: int | None
    """Token that really came next; None: none did yet."""
    temperature: float
    top_k: int
    top_p: float


class WatchedAttention:
    """Attention of a single token that keeps its queries and weights; see ``StepAttention``.

    Args:
        position: position of the token. The cache has its request's blocks in order.
        device: device of the model.
    """

    def __init__(self, position: int, device: torch.device) -> None:
        self.slots = torch.tensor([position], device=device)
        self._num_tokens = position + 1
        self.query = torch.empty(0)
        self.weights = torch.empty(0)

    def __call__(
        self,
        q: Tensor,
        k: Tensor,  # noqa: ARG002 - read from the cache
        v: Tensor,  # noqa: ARG002
        cache: LayerCache,
        options: AttentionOptions,
    ) -> Tensor:
        """Compute attention over the cache. The weights are ``[H, tokens]``."""
        table = torch.arange(len(cache.key), device=q.device)
        keys = gather_pages(cache.key, table, self._num_tokens)
        values = gather_pages(cache.value, table, self._num_tokens)
        rules = (options.scale, options.window, options.softcap, options.sinks)
        self.query = q[0].float()
        # With the unit vectors as values, the result of attention is its weights.
        units = torch.eye(self._num_tokens, device=q.device)[:, None]
        columns = [units[..., i : i + COLUMNS] for i in range(0, self._num_tokens, COLUMNS)]
        shape = (-1, keys.shape[1], -1)  # the same for each KV head
        parts = [attend(q.float(), keys, each.expand(shape), *rules) for each in columns]
        self.weights = torch.cat(parts, dim=-1)[0]
        return attend(q, keys, values, *rules)


class TokenLens:
    """Looks at tokens of an engine's requests. Must be called between two steps.

    Args:
        config: the engine's configuration.
        built: the engine.
    """

    def __init__(self, config: EngineConfig, built: BuiltEngine) -> None:
        self._num_ranks = config.tensor_parallel_size
        self._scheduler = built.engine.scheduler
        self._model = built.model
        self._tokenizer = built.files.tokenizer

    @torch.inference_mode()
    def look(self, query: LensQuery) -> TokenReport:
        """Compute a token again, and report what it does.

        Raises:
            LensError: the request holds no such token, or not all blocks that it attends to.
        """
        if self._num_ranks > 1:  # the others would not take part, and this one would wait for them
            raise LensError(
                f"{self._num_ranks} processes compute the model, and the lens is in one"
            )
        request = self._find(query.request_id)
        position = _choose_position(request, query.position)
        if query.layer >= len(self._model.caches):
            raise LensError(f"the model has {len(self._model.caches)} layers")
        attention, logits = self._compute(request, position)
        watched = attention[query.layer]
        num_heads = len(watched.query)
        if query.head is not None and query.head >= num_heads:
            raise LensError(f"the model has {num_heads} heads")
        weights = watched.weights.mean(dim=0) if query.head is None else watched.weights[query.head]
        row = _row_at(request, position, query)
        known = request.token_ids
        chosen = known[position + 1] if position + 1 < len(known) else None
        return TokenReport(
            position=position,
            token_id=known[position],
            num_layers=len(attention),
            num_heads=num_heads,
            queries=_rounded(watched.query),
            weights=_rounded(weights),
            candidates=self._candidates(logits, row, chosen),
            chosen=chosen,
            temperature=row.params.temperature,
            top_k=row.params.top_k,
            top_p=row.params.top_p,
        )

    def _find(self, request_id: str) -> Request:
        for request in self._scheduler.running:
            if request.request_id == request_id:
                return request
        raise LensError(f"{request_id} does not run: only a running request has its tokens cached")

    def _compute(self, request: Request, position: int) -> tuple[list[WatchedAttention], Tensor]:
        """Compute a token of a request on copies of its blocks.

        Returns:
            The attention of each layer, and the logits, ``[V]`` float32.
        """
        model = self._model
        caches = [
            _copy_blocks(model, layer, request, position) for layer in range(len(model.caches))
        ]
        attention = [WatchedAttention(position, model.device) for _ in caches]
        token = torch.tensor([request.token_ids[position]], device=model.device)
        place = torch.tensor([position], device=model.device)
        with unwatched(model.decoder), untapped(model.decoder):
            hidden = model.decoder.forward(token, place, caches, attention)
        return attention, model.decoder.logits(hidden)[0].float()

    def _candidates(self, logits: Tensor, row: Request, chosen: int | None) -> list[Candidate]:
        before, after = logits.softmax(dim=-1), drawn_with(logits, row)
        likeliest = before.topk(min(NUM_CANDIDATES, len(before))).indices.tolist()
        if chosen is not None and chosen not in likeliest:
            likeliest.append(chosen)
        text = self._tokenizer.token_text if self._tokenizer else str
        return [
            Candidate(each, text(each), round(before[each].item(), 5), round(after[each].item(), 5))
            for each in likeliest
        ]


def _choose_position(request: Request, position: int | None) -> int:
    newest = min(request.num_computed_tokens, len(request.token_ids)) - 1
    if position is None:
        position = newest
    if position > newest or newest < 0:
        raise LensError("this token has not been computed yet")
    if position >= MAX_TOKENS:
        raise LensError(f"only the first {MAX_TOKENS} tokens of a request can be looked at")
    return position


def _copy_blocks(model: CachedModel, layer: int, request: Request, position: int) -> LayerCache:
    """Copy the blocks of a layer that a token reads, and those before them, in order."""
    groups, size = model.groups, model.block_size
    group = groups.of_layer[layer]
    window = groups.windows[group]
    blocks = [*request.block_table[group :: groups.number]][: position // size + 1]
    first = max(position - window + 1, 0) // size if window else 0
    if NO_BLOCK in blocks[first:]:
        raise LensError("the window of a layer has passed tokens that this one attends to")
    index = torch.tensor([max(block, 0) for block in blocks], device=model.device)
    cache = model.caches[layer]
    return LayerCache(cache.key[index], cache.value[index])


def _row_at(request: Request, position: int, query: LensQuery) -> Request:
    """Return a copy of the request as it was when the token was its last, with other parameters.

    A grammar is left out: it knows only the present.
    """
    changes = query.model_dump(include={"temperature", "top_k", "top_p"}, exclude_none=True)
    row = copy(request)
    row.params = replace(request.params, **changes)
    row.token_ids = request.token_ids[: position + 1]
    row.grammar = None
    return row


def drawn_with(logits: Tensor, row: Request) -> Tensor:
    """Return the probability with which the sampler draws each token, ``[V]``."""
    logits, rows = logits.clone()[None], [row]
    apply_rules(logits, rows)
    if row.params.greedy:
        return torch.zeros_like(logits[0]).index_fill_(0, logits[0].argmax(), 1.0)
    return filter_logits(logits, logits.amax(dim=-1), rows)[0].softmax(dim=-1)


def _rounded(numbers: Tensor) -> list:  # type: ignore[type-arg]
    return numbers.double().mul(1e4).round().div(1e4).tolist()
