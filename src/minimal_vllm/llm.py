"""The offline API, with vLLM's names: prompts in, completions out."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from threading import RLock
from typing import Any

from tqdm import tqdm

from minimal_vllm.config import EngineConfig
from minimal_vllm.demo import DEMO_MODEL_DIR
from minimal_vllm.engine.build import build_engine
from minimal_vllm.outputs import OutputKind, RequestOutput
from minimal_vllm.sampling_params import SamplingParams
from minimal_vllm.text.chat_template import ChatTemplate, load_chat_template
from minimal_vllm.text.prompt import Prompt, TokenizedPrompt, as_list, tokenize_prompts
from minimal_vllm.text.tokenizer import Tokenizer
from minimal_vllm.trace.step_record import Observer

Message = Mapping[str, Any]
"""``{"role": …, "content": …}``, as in OpenAI's API."""

MakeBar = Callable[..., "tqdm[Any]"]
PromptParamsPriority = tuple[TokenizedPrompt, SamplingParams, int]


class LLM:
    """A model, ready to complete prompts.

    Args:
        model: a folder in Hugging Face's format, a .gguf file, a model that ``minimal-vllm fetch``
            has fetched, or the id of a model on the hub; None: the small
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
        observers: Sequence[Observer] = (),
        **options: Any,
    ) -> None:
        self.config = EngineConfig(model=str(model or DEMO_MODEL_DIR), **options)
        self.built = build_engine(self.config, observers=observers, progress=True)
        self.engine = self.built.engine
        self._num_requests = 0
        self._turn = RLock()
        tokenizer = self.built.files.tokenizer
        self._chat_template = (
            load_chat_template(tokenizer, self.config.chat_template) if tokenizer else None
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
        prompts: Prompt | Iterable[Prompt],
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

        A request whose computation fails ends with the ``finish_reason`` ``"error"``; the others
        go on. Threads may call this at once, and take turns.
        """
        tokenized = tokenize_prompts(as_list(prompts), self.get_tokenizer)
        params = self._params_for(len(tokenized), sampling_params)
        priorities = self._priorities_for(len(tokenized), priority)
        with self._turn:
            request_ids = self._add_all(zip(tokenized, params, priorities, strict=True))
            try:
                return self._run(request_ids, use_tqdm)
            except BaseException:  # be it Ctrl-C: a step may be half done
                self.engine.reset()
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
        template = self._choose_template(chat_template)
        options = {
            "add_generation_prompt": add_generation_prompt,
            "continue_final_message": continue_final_message,
            "tools": tools,
            **(chat_template_kwargs or {}),
        }
        prompts = [
            template.render(each, **options)  # type: ignore[arg-type] # told apart above
            for each in conversations
        ]
        tokenized = self.get_tokenizer().encode_batch(prompts, add_special_tokens=False)
        tokens_and_text = [
            {"prompt_token_ids": token_ids, "prompt": prompt}
            for token_ids, prompt in zip(tokenized, prompts, strict=True)
        ]
        return self.generate(tokens_and_text, sampling_params, use_tqdm=use_tqdm)

    @property
    def chat_template(self) -> ChatTemplate | None:
        """The chat template that is used unless a call brings another; None without one."""
        return self._chat_template

    def render_chat(self, messages: Sequence[Message], **options: Any) -> str:
        """The prompt that a conversation becomes; ``options`` are ``ChatTemplate.render``'s."""
        return self._choose_template(None).render(messages, **options)

    def _choose_template(self, given: str | None) -> ChatTemplate:
        template = self._chat_template
        if given is not None:
            template = load_chat_template(self.get_tokenizer(), given)
        if template is None:
            raise ValueError("the model has no chat template: give one with chat_template=…")
        return template

    # ---- inside generate ------------------------------------------------------------------------

    def _params_for(
        self, count: int, given: SamplingParams | Sequence[SamplingParams] | None
    ) -> Sequence[SamplingParams]:
        if given is None or isinstance(given, SamplingParams):
            return [given or self.get_default_sampling_params()] * count
        if len(given) != count:
            raise ValueError(
                f"there are {count} prompts but {len(given)} sampling_params: give one for all, or "
                f"one for each"
            )
        return given

    @staticmethod
    def _priorities_for(count: int, given: Sequence[int] | None) -> Sequence[int]:
        if given is not None and len(given) != count:
            raise ValueError(f"there are {count} prompts but {len(given)} priorities")
        return given or [0] * count

    def _add_all(self, requests: Iterable[PromptParamsPriority]) -> list[str]:
        if self.engine.has_unfinished_requests:
            raise ValueError("the engine is at work on requests that were added to it: end them")
        request_ids: list[str] = []
        try:
            for prompt, params, priority in requests:
                request_ids.append(str(self._num_requests))
                self.engine.add_request(
                    request_ids[-1],
                    prompt.token_ids,
                    params,
                    prompt=prompt.text,
                    output_kind=OutputKind.FINAL_ONLY,
                    priority=priority,
                    cache_salt=prompt.cache_salt,
                )
                self._num_requests += 1
        except BaseException:  # one is refused, or Ctrl-C: the engine is unharmed
            for request_id in request_ids:
                self.engine.abort(request_id)
            raise
        return request_ids

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
