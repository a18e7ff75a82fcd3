"""Beam search, which asks the engine for one more token of every beam, again and again.

It needs nothing of the engine: a beam is a prompt, whose prefix is found in the cache. vLLM builds
it in the same way.
"""

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field

from minimal_vllm.inputs import TokensPrompt
from minimal_vllm.outputs import RequestOutput, TokenLogprobs
from minimal_vllm.sampling_params import BeamSearchParams, SamplingParams

NextLogprobs = Callable[[list[list[int]]], Sequence[TokenLogprobs | None]]
"""Returns the log-probabilities of the most probable next tokens of each text, given its tokens;
None for a text that can't be continued."""


def asking_engine(
    generate: Callable[[list[TokensPrompt], SamplingParams], list[RequestOutput]],
    params: BeamSearchParams,
    max_logprobs: int,
) -> NextLogprobs:
    """Return a function that lets an engine compute the next log-probabilities.

    Args:
        generate: ``LLM.generate``.
        params: parameters of the search.
        max_logprobs: the engine's limit; -1: none.

    Raises:
        ValueError: the engine doesn't return as many log-probabilities as are needed.
    """
    width = 2 * params.beam_width  # enough, if each beam has one continuation that ends it
    if 0 <= max_logprobs < width:
        raise ValueError(
            f"beam_width={params.beam_width} needs LLM(max_logprobs={width}): it is {max_logprobs}"
        )
    step = SamplingParams(max_tokens=1, temperature=0, logprobs=width, detokenize=False)

    def next_logprobs(texts: list[list[int]]) -> list[TokenLogprobs | None]:
        outputs = generate([TokensPrompt(prompt_token_ids=text) for text in texts], step)
        return [next(iter(output.outputs[0].logprobs or ()), None) for output in outputs]

    return next_logprobs


@dataclass
class BeamSearchSequence:
    """One beam: a prompt and its continuation."""

    tokens: list[int]
    """Tokens of the prompt and of the output."""
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    """Most probable tokens at each position of the output."""
    cum_logprob: float = 0.0
    """Sum of the log-probabilities of the output's tokens."""
    text: str | None = None
    """Text of all tokens; None if no tokenizer was loaded."""
    finish_reason: str | None = None
    """``stop``: the output ended itself. ``length``: it reached a limit."""

    def extended(self, token_id: int, position: TokenLogprobs) -> "BeamSearchSequence":
        """Return the beam with one more token."""
        return BeamSearchSequence(
            [*self.tokens, token_id],
            [*self.logprobs, position],
            self.cum_logprob + position[token_id].logprob,
        )


@dataclass
class BeamSearchOutput:
    """Result of one prompt."""

    sequences: list[BeamSearchSequence]
    """The ``beam_width`` best beams, the best first."""


class Beams:
    """The beams of one prompt.

    Args:
        prompt: token ids of the prompt.
        params: parameters of the search.
        eos_token_ids: tokens that end an output.
    """

    def __init__(
        self, prompt: Sequence[int], params: BeamSearchParams, eos_token_ids: Collection[int]
    ) -> None:
        self._params = params
        self._eos_token_ids = eos_token_ids
        self._ends = () if params.ignore_eos else eos_token_ids
        self._finished: list[BeamSearchSequence] = []
        self.running = [BeamSearchSequence(list(prompt))]
        """The beams that are continued."""

    def extend(self, positions: Sequence[TokenLogprobs | None]) -> None:
        """Replace the running beams with the best of their continuations.

        Args:
            positions: for each of ``running``, as in ``NextLogprobs``.
        """
        candidates = [
            beam.extended(token_id, position)
            for beam, position in zip(self.running, positions, strict=True)
            if position is not None
            for token_id in position
        ]
        ended = [beam for beam in candidates if beam.tokens[-1] in self._ends]
        self.finish(ended, "stop")
        others = (beam for beam in candidates if beam.tokens[-1] not in self._ends)
        self.running = sorted(others, key=self._score, reverse=True)[: self._params.beam_width]

    def finish(self, beams: Sequence[BeamSearchSequence], reason: str) -> None:
        """Note that beams have ended."""
        for beam in beams:
            beam.finish_reason = reason
        self._finished += beams

    def best(self) -> list[BeamSearchSequence]:
        """Return the best of all beams, the best first; those that still run end here."""
        self.finish(self.running, "length")
        self.running = []
        ranked = sorted(self._finished, key=self._score, reverse=True)
        return ranked[: self._params.beam_width]

    def _score(self, beam: BeamSearchSequence) -> float:
        """Return the log-probability per token; as in vLLM, the prompt counts and the end doesn't.

        https://arxiv.org/abs/1609.08144, section 7, has the idea of a length penalty.
        """
        length = len(beam.tokens) - (beam.tokens[-1] in self._eos_token_ids)
        return beam.cum_logprob / math.pow(max(length, 1), self._params.length_penalty)


def beam_search(
    prompts: Sequence[Sequence[int]],
    params: BeamSearchParams,
    next_logprobs: NextLogprobs,
    *,
    eos_token_ids: Collection[int],
    max_model_len: int,
) -> list[BeamSearchOutput]:
    """Return the most probable continuations of prompts.

    Args:
        prompts: token ids of each prompt.
        params: parameters of the search.
        next_logprobs: called once for each further token, with the beams of all prompts.
        eos_token_ids: tokens that end an output.
        max_model_len: maximum number of tokens of a prompt and its output.
    """
    searches = [Beams(prompt, params, eos_token_ids) for prompt in prompts]
    for _ in range(params.max_tokens):
        running = [
            search
            for search in searches
            if search.running and len(search.running[0].tokens) < max_model_len
        ]
        if not running:
            break
        positions = iter(next_logprobs([beam.tokens for each in running for beam in each.running]))
        for search in running:
            search.extend([next(positions) for _ in search.running])
    return [BeamSearchOutput(search.best()) for search in searches]
