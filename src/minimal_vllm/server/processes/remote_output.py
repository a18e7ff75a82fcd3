"""Outputs of a request whose tokens come from another process."""

from functools import cached_property

from minimal_vllm.outputs import CompletionOutput, FlatLogprobs, RequestOutput
from minimal_vllm.server.engine_client import EngineRequest
from minimal_vllm.server.processes.messages import NewTokens
from minimal_vllm.server.served_model import ServedModel
from minimal_vllm.text.detokenizer import Detokenizer


class OutputBuilder:
    """Makes the outputs of one request from its new tokens, as the engine makes them itself.

    Args:
        request: the request as the client sent it, whose outputs are not cumulative.
        model: the model's text side.
    """

    def __init__(self, request: EngineRequest, model: ServedModel) -> None:
        params = request.params
        self._request = request
        self._prompt = list(request.prompt_token_ids)
        self._tokenizer = model.tokenizer
        end_tokens = frozenset() if params.ignore_eos else model.facts.eos_token_ids
        self._stop_token_ids = end_tokens | frozenset(params.stop_token_ids or ())

    @cached_property
    def _detokenizer(self) -> Detokenizer | None:
        """Maker of the text, if the engine's process doesn't make it.

        It is made with the first output: before it, the engine has not checked the prompt's tokens.
        """
        params = self._request.params
        if not params.detokenize or params.stop:
            return None
        return Detokenizer(self._tokenizer, params, self._prompt)

    def build(self, new: NewTokens) -> RequestOutput:
        """Return the output that consists of these tokens."""
        self._name_tokens(new.logprobs)
        self._name_tokens(new.prompt_logprobs.known if new.prompt_logprobs else None)
        completion = CompletionOutput(
            index=0,
            text=self._text(new),
            token_ids=new.token_ids,
            logprobs=new.logprobs,
            finish_reason=new.finish_reason,
            stop_reason=new.stop_reason,
        )
        return RequestOutput(
            request_id=self._request.request_id,
            prompt=None,
            prompt_token_ids=self._prompt,
            prompt_logprobs=new.prompt_logprobs,
            outputs=[completion],
            finished=new.finish_reason is not None,
            num_cached_tokens=new.num_cached_tokens,
        )

    def _text(self, new: NewTokens) -> str:
        """Return the new text; the engine's process has made it if it looks for stop strings."""
        if self._detokenizer is None:
            return new.text
        shown = new.token_ids[:-1] if self._hides_last_token(new) else new.token_ids
        self._detokenizer.append(shown)
        if new.finish_reason is not None:
            self._detokenizer.finish()
        return self._detokenizer.new_text()

    def _hides_last_token(self, new: NewTokens) -> bool:
        """Return whether the last token is a stop token that the text leaves out."""
        by_token = (
            new.finish_reason == "stop"
            and bool(new.token_ids)
            and new.token_ids[-1] in self._stop_token_ids
        )
        return by_token and not self._request.params.include_stop_str_in_output

    def _name_tokens(self, positions: FlatLogprobs | None) -> None:
        """Let log-probabilities be read with the texts of their tokens.

        If the engine has made text, those that were sent know the texts of their own tokens only,
        and could not be joined with others.
        """
        if positions is not None and self._request.params.detokenize:
            positions.text_of = self._tokenizer.token_text
