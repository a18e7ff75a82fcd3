"""Making the user's outputs from sampled tokens: text, log-probabilities, and n completions."""

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import repeat

from minimal_vllm.outputs import (
    CompletionOutput,
    FlatLogprobs,
    FlatPromptLogprobs,
    OutputKind,
    RequestMetrics,
    RequestOutput,
)
from minimal_vllm.runner.interface import PromptLogprobs
from minimal_vllm.step.request import FinishReason, Request
from minimal_vllm.text.detokenizer import Detokenizer
from minimal_vllm.text.tokenizer import Tokenizer


@dataclass(slots=True)
class Completion:
    """One of the ``n`` completions of a user's request, while it is generated."""

    index: int
    request: Request
    group: "RequestGroup"
    detokenizer: Detokenizer | None
    """Decoder of the output's tokens; None if no text is asked for, or there is no tokenizer."""
    logprobs: FlatLogprobs
    """One position per output token, if log-probabilities are asked for."""
    cumulative_logprob: float = 0.0
    text_is_final: bool = False
    num_given: int = 0
    """Number of output tokens that the user has already received; used with ``DELTA``."""
    end_is_given: bool = False
    """True if the user has received the end of the completion; used with ``DELTA``."""

    def detokenize(self) -> str | None:
        """Bring the text up to date, and return the stop string that ends it, if one was found."""
        if self.detokenizer is None or self.text_is_final:
            return None
        request = self.request
        start = request.num_prompt_tokens + self.detokenizer.num_tokens
        end = request.num_tokens - self._hides_last_token
        could_end: Iterable[bool] = repeat(True)
        if request.grammar is not None and request.params.stop:
            could_end = request.grammar.could_end(request)[self.detokenizer.num_tokens :]
        stop = self.detokenizer.append(request.token_ids[start:end], could_end)
        if request.finished and stop is None:
            self.detokenizer.finish()
        self.text_is_final = request.finished or stop is not None
        return stop

    def take_logprobs(self, computed: FlatLogprobs) -> None:
        """Append the log-probabilities of the newest output tokens.

        Positions after the last output token are dropped, because the request ended before them.
        """
        left = self.request.num_output_tokens - len(self.logprobs)
        kept = computed if len(computed) <= left else computed.part(0, left)
        self.logprobs.extend(kept)
        self.cumulative_logprob += sum(kept.of_text())

    @property
    def _hides_last_token(self) -> bool:
        """True if the last token is a stop token that the text leaves out."""
        request = self.request
        by_token = (
            request.finish_reason == FinishReason.STOP
            and request.token_ids[-1] in request.stop_token_ids
        )
        return by_token and not request.params.include_stop_str_in_output


@dataclass(slots=True)
class RequestGroup:
    """A request as the user sent it: ``n`` completions of one prompt."""

    request_id: str
    prompt: str | None
    prompt_token_ids: list[int]
    output_kind: OutputKind
    metrics: RequestMetrics = field(default_factory=lambda: RequestMetrics(time.monotonic()))
    completions: list[Completion] = field(default_factory=list)
    prompt_logprobs: FlatPromptLogprobs | None = None

    @property
    def finished(self) -> bool:
        """True if all completions have ended."""
        return all(completion.request.finished for completion in self.completions)

    def note_times(self, *, finished: bool) -> None:
        """Record the time of the first token and, if ``finished``, of the end."""
        if self.metrics.first_token_time is None and any(
            completion.request.num_output_tokens for completion in self.completions
        ):
            self.metrics.first_token_time = time.monotonic()
        if finished:
            self.metrics.finished_time = time.monotonic()

    def take_prompt_logprobs(self) -> FlatPromptLogprobs | None:
        """Return the prompt's log-probabilities; with ``DELTA`` only the first time."""
        known = self.prompt_logprobs
        if self.output_kind is OutputKind.DELTA and known is not None:
            self.prompt_logprobs = None
        return known


class OutputProcessor:
    """Keeps the text and log-probabilities of each request, and makes outputs from them."""

    def __init__(self, tokenizer: Tokenizer | None) -> None:
        self._tokenizer = tokenizer
        self._groups: dict[str, RequestGroup] = {}
        self._completions: dict[Request, Completion] = {}

    def reset(self) -> None:
        """Forget all requests."""
        self._groups.clear()
        self._completions.clear()

    def __contains__(self, request_id: str) -> bool:
        return request_id in self._groups

    def add(self, group: RequestGroup, requests: list[Request]) -> None:
        """Start collecting the outputs of a user's request, with one ``Request`` per completion."""
        self._groups[group.request_id] = group
        if requests[0].params.prompt_logprobs is not None:
            group.prompt_logprobs = FlatPromptLogprobs(self._no_logprobs(requests[0]))
        for index, request in enumerate(requests):
            detokenizer, logprobs = self._make_detokenizer(request), self._no_logprobs(request)
            completion = Completion(index, request, group, detokenizer, logprobs)
            group.completions.append(completion)
            self._completions[request] = completion

    def _make_detokenizer(self, request: Request) -> Detokenizer | None:
        if self._tokenizer is None or not request.params.detokenize:
            return None
        prompt = request.token_ids[: request.num_prompt_tokens]
        return Detokenizer(self._tokenizer, request.params, prompt)

    def _no_logprobs(self, request: Request) -> FlatLogprobs:
        """Return an empty sequence, to be read with texts unless the request wants none."""
        if self._tokenizer is None or not request.params.detokenize:
            return FlatLogprobs()
        return FlatLogprobs(text_of=self._tokenizer.token_text)

    def requests(self, request_id: str) -> list[Request]:
        """Return the completions of a user's request as the scheduler knows them.

        Raises:
            KeyError: the request has ended, or never existed.
        """
        return [completion.request for completion in self._groups[request_id].completions]

    # ---- taking in a step's results -------------------------------------------------------------

    def add_prompt_logprobs(self, computed: Iterable[PromptLogprobs]) -> None:
        """Add log-probabilities of prompts.

        Positions that are known already are skipped: a preempted request computes its prompt again.
        """
        for part in computed:
            completion = self._completions.get(part.request)  # None if it was aborted meanwhile
            known = completion.group.prompt_logprobs if completion else None
            if known is not None and part.first_position <= len(known):
                known.known.extend(part.logprobs.part(len(known) - part.first_position))

    def add_logprobs(
        self, requests: Iterable[Request], computed: Iterable[FlatLogprobs | None]
    ) -> None:
        """Add the log-probabilities of the newest output tokens.

        Args:
            requests: requests that sampled; stop strings have already been cut off.
            computed: for each request, one position per sampled token; None: none are asked for.
        """
        for request, logprobs in zip(requests, computed, strict=True):
            if logprobs is not None:
                self._completions[request].take_logprobs(logprobs)

    def find_stop_strings(self, requests: Iterable[Request]) -> list[tuple[Request, str, int]]:
        """Bring the texts of requests with stop strings up to date; find those that one ends.

        Returns:
            Each such request, its stop string, and its number of tokens up to the one that
            completes the stop string.
        """
        stopped = []
        for request in requests:
            if request.params.stop:
                completion = self._completions[request]
                stop = completion.detokenize()
                if stop is not None and completion.detokenizer is not None:
                    num_tokens = request.num_prompt_tokens + completion.detokenizer.num_tokens
                    stopped.append((request, stop, num_tokens))
        return stopped

    # ---- giving out -----------------------------------------------------------------------------

    def of_step(
        self,
        requests: Sequence[Request],
        logprobs: Iterable[FlatLogprobs | None],
        prompt_logprobs: Iterable[PromptLogprobs],
    ) -> list[RequestOutput]:
        """Return the outputs of requests that got tokens in a step, or ended in it.

        Args:
            requests: the requests; stop strings have already been cut off.
            logprobs: see ``add_logprobs``.
            prompt_logprobs: log-probabilities of prompts.
        """
        self.add_logprobs(requests, logprobs)
        self.add_prompt_logprobs(prompt_logprobs)
        return self.make_outputs(requests)

    def make_outputs(self, requests: Iterable[Request]) -> list[RequestOutput]:
        """Return the new outputs of these requests, and forget the requests that have ended.

        A text that is wanted only at the end, and has no stop strings, is decoded at the end.
        """
        groups: dict[str, RequestGroup] = {}  # each group once, in the order of the requests
        for request in requests:
            completion = self._completions[request]
            group = completion.group
            if request.finished or group.output_kind is not OutputKind.FINAL_ONLY:
                completion.detokenize()
            elif group.metrics.first_token_time:
                continue  # the common case, if the user waits for the end of the request
            groups[group.request_id] = group
        outputs = []
        for group in groups.values():
            finished = group.finished
            group.note_times(finished=finished)
            if finished or group.output_kind is not OutputKind.FINAL_ONLY:
                outputs.append(self._make_output(group, finished=finished))
        return outputs

    def _make_output(self, group: RequestGroup, *, finished: bool) -> RequestOutput:
        first = group.completions[0].request
        output = RequestOutput(
            request_id=group.request_id,
            prompt=group.prompt,
            prompt_token_ids=group.prompt_token_ids,
            prompt_logprobs=group.take_prompt_logprobs(),
            outputs=[
                self._make_completion(completion)
                for completion in group.completions
                if group.output_kind is not OutputKind.DELTA or self._has_news(completion)
            ],
            finished=finished,
            num_cached_tokens=first.num_cached_tokens or 0,
            metrics=group.metrics,
        )
        if finished:
            self._forget(group)
        return output

    @staticmethod
    def _has_news(completion: Completion) -> bool:
        request = completion.request
        ended = request.finished and not completion.end_is_given
        return ended or request.num_output_tokens > completion.num_given

    def _make_completion(self, completion: Completion) -> CompletionOutput:
        request, detokenizer = completion.request, completion.detokenizer
        is_delta = completion.group.output_kind is OutputKind.DELTA
        start = completion.num_given if is_delta else 0
        text = ""
        if detokenizer is not None:
            text = detokenizer.new_text() if is_delta else detokenizer.text
        if is_delta:
            completion.num_given = request.num_output_tokens
            completion.end_is_given = request.finished
        asked = request.params.asked_logprobs is not None
        return CompletionOutput(
            index=completion.index,
            text=text,
            token_ids=request.token_ids[request.num_prompt_tokens + start :].tolist(),
            cumulative_logprob=completion.cumulative_logprob if asked else None,
            logprobs=completion.logprobs.part(start) if asked else None,
            finish_reason=request.finish_reason.value if request.finish_reason else None,
            stop_reason=request.stop_reason,
        )

    def _forget(self, group: RequestGroup) -> None:
        del self._groups[group.request_id]
        for completion in group.completions:
            del self._completions[completion.request]
