"""The offline API, with vLLM's names: prompts in, completions out."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tqdm import tqdm

from minimal_vllm.config import EngineConfig
from minimal_vllm.demo import DEMO_MODEL_DIR
from minimal_vllm.engine.build import build_engine
from minimal_vllm.outputs import OutputKind, RequestOutput
from minimal_vllm.sampling_params import SamplingParams
from minimal_vllm.text.chat_template import load_chat_template
from minimal_vllm.text.tokenizer import Tokenizer
from minimal_vllm.trace.step_record import StepObserver

Prompt = str | Sequence[int] | Mapping[str, Any]
"""A text, its token ids, or ``{"prompt": text}`` or ``{"prompt_token_ids": ids}``, these two with
an optional ``"cache_salt"``."""

Message = Mapping[str, Any]
"""``{"role": …, "content": …}``, as in OpenAI's API."""

MakeBar = Callable[..., "tqdm[Any]"]


class LLM:
    """A model, ready to complete prompts.

    Args:
        model: a folder in Hugging Face's format, or the id of a model on the hub; None: the small
            built-in one.
        observers: called with a ``StepRecord`` after each step of the engine.
        options: the other fields of ``EngineConfig``.

    Raises:
        ValueError: an option is unknown or out of range, the checkpoint is broken, or there is too
            little memory; the message says which.
    """

    def __init__(
        self,
        model: str | None = None,
        *,
        observers: Sequence[StepObserver] = (),
        **options: Any,
    ) -> None:
        self.config = EngineConfig(model=str(model or DEMO_MODEL_DIR), **options)
        self.built = build_engine(self.config, observers=observers, progress=True)
        self.engine = self.built.engine
        self._num_requests = 0
        tokenizer, folder = self.built.files.tokenizer, self.built.files.folder
        self._chat_template = (
            load_chat_template(folder, tokenizer, self.config.chat_template) if tokenizer else None
        )

    def get_tokenizer(self) -> Tokenizer:
        """The tokenizer.

        Raises:
            ValueError: none was loaded.
        """
        tokenizer = self.built.files.tokenizer
        if tokenizer is None:
            raise ValueError("no tokenizer was loaded (skip_tokenizer_init): give token ids")
        return tokenizer

    def get_default_sampling_params(self) -> SamplingParams:
        """What is used where no parameters are given: the model's own choice, then the engine's."""
        if self.config.generation_config == "vllm":
            return SamplingParams()
        return SamplingParams(**self.built.files.generation_config.sampling)

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        use_tqdm: bool | MakeBar = True,
        priority: Sequence[int] | None = None,
    ) -> list[RequestOutput]:
        """Complete prompts, all in one continuous batch.

        Args:
            prompts: one prompt, or several.
            sampling_params: for all, or one for each; None: the model's defaults.
            use_tqdm: show a progress bar (or the one that this makes).
            priority: one for each prompt, smaller goes first; needs the ``priority`` policy.

        Returns:
            One output for each prompt, in their order.

        Raises:
            ValueError: a prompt can't be completed; then none is.
        """
        prompt_list = _as_list(prompts)
        params = self._params_for(prompt_list, sampling_params)
        priorities = self._priorities_for(prompt_list, priority)
        request_ids = []
        try:
            for prompt, param, rank in zip(prompt_list, params, priorities, strict=True):
                request_ids.append(self._add(prompt, param, rank))
            return self._run(request_ids, use_tqdm)
        except BaseException:  # also if the user interrupts
            for request_id in request_ids:
                self.engine.abort(request_id)
            raise

    def chat(
        self,
        messages: Sequence[Message] | Sequence[Sequence[Message]],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        use_tqdm: bool | MakeBar = True,
        chat_template: str | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        tools: Sequence[Mapping[str, Any]] | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
    ) -> list[RequestOutput]:
        """Continue conversations, each rendered by the model's chat template.

        Args:
            messages: one conversation, or several.
            sampling_params: as in ``generate``.
            use_tqdm: as in ``generate``.
            chat_template: used in place of the model's.
            add_generation_prompt: end the prompt with the header of the assistant's next message.
            continue_final_message: leave the last message open, to be continued.
            tools: JSON schemas of functions that the model may call.
            chat_template_kwargs: what else the template knows.

        Raises:
            ValueError: as ``generate``; or there is no chat template, or it rejects the messages.
        """
        conversations = [messages] if messages and isinstance(messages[0], Mapping) else messages
        prompts = [
            self.render_chat(
                conversation,  # type: ignore[arg-type] # told apart above
                chat_template=chat_template,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=continue_final_message,
                tools=tools,
                **(chat_template_kwargs or {}),
            )
            for conversation in conversations
        ]
        tokenized = self.get_tokenizer().encode_batch(prompts, add_special_tokens=False)
        tokens_and_text = [
            {"prompt_token_ids": token_ids, "prompt": prompt}
            for token_ids, prompt in zip(tokenized, prompts, strict=True)
        ]
        return self.generate(tokens_and_text, sampling_params, use_tqdm=use_tqdm)

    def render_chat(
        self, messages: Sequence[Message], *, chat_template: str | None = None, **options: Any
    ) -> str:
        """The prompt that a conversation becomes; ``options`` are ``ChatTemplate.render``'s."""
        template = self._chat_template
        if chat_template is not None:
            folder = self.built.files.folder
            template = load_chat_template(folder, self.get_tokenizer(), chat_template)
        if template is None:
            raise ValueError("the model has no chat template: give one with chat_template=…")
        return template.render(messages, **options)

    # ---- inside generate ------------------------------------------------------------------------

    def _params_for(
        self, prompts: list[Prompt], given: SamplingParams | Sequence[SamplingParams] | None
    ) -> Sequence[SamplingParams]:
        if given is None or isinstance(given, SamplingParams):
            return [given or self.get_default_sampling_params()] * len(prompts)
        if len(given) != len(prompts):
            raise ValueError(
                f"there are {len(prompts)} prompts but {len(given)} sampling_params: give one for "
                f"all, or one for each"
            )
        return given

    def _priorities_for(self, prompts: list[Prompt], given: Sequence[int] | None) -> Sequence[int]:
        if given is None:
            return [0] * len(prompts)
        if self.config.scheduling_policy != "priority":
            raise ValueError("priorities need LLM(…, scheduling_policy='priority')")
        if len(given) != len(prompts):
            raise ValueError(f"there are {len(prompts)} prompts but {len(given)} priorities")
        return given

    def _add(self, prompt: Prompt, params: SamplingParams, priority: int) -> str:
        text, token_ids, cache_salt = self._tokenize(prompt)
        request_id = str(self._num_requests)
        self.engine.add_request(
            request_id,
            token_ids,
            params,
            prompt=text,
            output_kind=OutputKind.FINAL_ONLY,
            priority=priority,
            cache_salt=cache_salt,
        )
        self._num_requests += 1
        return request_id

    def _tokenize(self, prompt: Prompt) -> tuple[str | None, Sequence[int], str | None]:
        """A prompt's text, if there is one, its tokens, and its cache salt."""
        if isinstance(prompt, str):
            return prompt, self.get_tokenizer().encode(prompt), None
        if not isinstance(prompt, Mapping):
            return None, prompt, None
        unknown = prompt.keys() - {"prompt", "prompt_token_ids", "cache_salt"}
        if unknown or not prompt.keys() & {"prompt", "prompt_token_ids"}:
            raise ValueError(
                f"a prompt has {sorted(prompt)}, but should have 'prompt' or 'prompt_token_ids', "
                f"and may have 'cache_salt'"
            )
        text, token_ids = prompt.get("prompt"), prompt.get("prompt_token_ids")
        if token_ids is None:
            if not isinstance(text, str):
                raise ValueError(f"a prompt's text is {text!r}, but should be a string")
            token_ids = self.get_tokenizer().encode(text)
        return text, token_ids, prompt.get("cache_salt")

    def _run(self, request_ids: list[str], use_tqdm: bool | MakeBar) -> list[RequestOutput]:
        make_bar = use_tqdm if callable(use_tqdm) else tqdm
        outputs: dict[str, RequestOutput] = {}
        with make_bar(
            total=len(request_ids), desc="Processed prompts", disable=not use_tqdm
        ) as bar:
            num_tokens = 0
            while self.engine.has_unfinished_requests:
                for output in self.engine.step():
                    outputs[output.request_id] = output
                    num_tokens += sum(len(each.token_ids) for each in output.outputs)
                    bar.set_postfix_str(f"{num_tokens} tokens generated", refresh=False)
                    bar.update()
        return [outputs[request_id] for request_id in request_ids]


def _as_list(prompts: Prompt | Sequence[Prompt]) -> list[Prompt]:
    """One prompt or several: a list of integers is one prompt."""
    if isinstance(prompts, str | Mapping):
        return [prompts]
    if len(prompts) and isinstance(prompts[0], int):
        return [prompts]  # type: ignore[list-item]
    return list(prompts)  # type: ignore[arg-type]
