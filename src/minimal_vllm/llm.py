"""The offline API, with vLLM's names: prompts in, completions out."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from threading import RLock
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from minimal_vllm.beam_search import BeamSearchOutput, asking_engine, beam_search
from minimal_vllm.config import EngineConfig
from minimal_vllm.demo import DEMO_MODEL_DIR
from minimal_vllm.engine.start import start_engine
from minimal_vllm.engine.text_side import TextSide, make_text_side
from minimal_vllm.garbage import without_collections
from minimal_vllm.llm_engine import LLMEngine
from minimal_vllm.outputs import OutputKind, RequestOutput
from minimal_vllm.sampling_params import BeamSearchParams, SamplingParams
from minimal_vllm.text.chat_template import ChatTemplate, load_chat_template
from minimal_vllm.text.content_format import ContentFormat
from minimal_vllm.text.prompt import Prompt, TokenizedPrompt, as_list, tokenize_prompts
from minimal_vllm.text.script_tokenizer import (
    Conversation,
    as_conversations,
    make_script_tokenizer,
)
from minimal_vllm.text.tokenizer import Tokenizer
from minimal_vllm.trace.step_record import Observer
from minimal_vllm.vllm_arguments import (
    BEAM_SEARCH_REQUEST,
    OFFLINE,
    REQUEST,
    check_unsupported,
    drop_neutral,
)

if TYPE_CHECKING:
    from minimal_vllm.metrics.listener import MetricsListener
    from minimal_vllm.metrics.reader import Metric

MakeBar = Callable[..., "tqdm[Any]"]
PromptParamsPriority = tuple[TokenizedPrompt, SamplingParams, int]

MANY_WAITING = 32
"""Number of waiting requests that the GPU begins with while the CPU still takes in others."""


class LLM:
    """Language model that is ready to complete prompts.

    Args:
        model: folder with a checkpoint in Hugging Face's format, .gguf file, model fetched with
            ``minimal-vllm fetch``, or id of a model on the hub. Default: the small built-in model.
        observers: called with a ``StepRecord`` after each step of the engine.
        disable_log_stats: collect no metrics; with False, ``get_metrics`` returns them.
        options: the other fields of ``EngineConfig``, and vLLM's other arguments at values that
            change nothing here.

    Raises:
        ValueError: an option is unknown, unsupported or out of range, the checkpoint is broken, or
            there is too little memory; the message says which.
    """

    _lazy = False
    """Whether the engine may be ready before it is prepared completely; see
    ``BuiltEngine.idle_work``."""

    def __init__(
        self,
        model: str | Path | None = None,
        *,
        observers: Sequence[Observer] = (),
        disable_log_stats: bool = True,
        **options: Any,
    ) -> None:
        options = drop_neutral(options, OFFLINE)
        self.config = EngineConfig(model=str(model or DEMO_MODEL_DIR), **options)
        self._metrics = None if disable_log_stats else _make_metrics(self.config.model)
        watchers: list[Observer] = [*observers]
        if self._metrics:
            watchers.append(self._metrics)
        self.built = start_engine(self.config, observers=watchers, progress=True, lazy=self._lazy)
        self.engine = self.built.engine
        if self._metrics:
            self._metrics.attach(self.config, self.built)
        self._text = make_text_side(self.config, self.built)
        self._num_requests = 0
        self._turn = RLock()

    @property
    def text(self) -> TextSide:
        """Return the parts of the engine that handle text.

        Raises:
            ValueError: no tokenizer was loaded.
        """
        if self._text is None:
            raise ValueError("no tokenizer was loaded (skip_tokenizer_init): give token ids")
        return self._text

    @property
    def tokenizer(self) -> Tokenizer:
        """Return the engine's own tokenizer.

        Raises:
            ValueError: none was loaded.
        """
        return self.text.tokenizer

    def get_tokenizer(self) -> Any:
        """Return the tokenizer with the methods of Hugging Face's, which scripts expect.

        It is a ``transformers.PreTrainedTokenizerFast`` where transformers is installed. It encodes
        as the engine does.

        Raises:
            ValueError: no tokenizer was loaded.
        """
        return self._script_tokenizer

    @cached_property
    def _script_tokenizer(self) -> Any:
        return make_script_tokenizer(self.tokenizer, self.text.chat_template)

    @cached_property
    def llm_engine(self) -> LLMEngine:
        """Return what vLLM's scripts read from the engine, such as the model's configuration."""
        return LLMEngine(self.config, self.built)

    @property
    def model_config(self) -> Any:
        """Return the model's configuration with vLLM's attributes, such as ``max_model_len``."""
        return self.llm_engine.model_config

    def get_default_sampling_params(self) -> SamplingParams:
        """Return the parameters used where none are given.

        They are those of ``override_generation_config``, then the model's own, then the engine's.
        """
        return SamplingParams(**self.built.files.generation_config.sampling)

    def get_metrics(self) -> list["Metric"]:
        """Return the engine's metrics, as the server shows them at ``/metrics``.

        Each is a ``Counter``, ``Gauge`` or ``Histogram`` of ``minimal_vllm.metrics.reader``.

        Raises:
            ValueError: none were collected.
        """
        if self._metrics is None:
            raise ValueError("no metrics are collected: give LLM disable_log_stats=False")
        from minimal_vllm.metrics.reader import read_metrics

        return read_metrics(self._metrics.metrics.registry)

    def generate(
        self,
        prompts: Prompt | Iterable[Prompt],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        use_tqdm: bool | MakeBar = True,
        priority: int | Sequence[int] | None = None,
        **unsupported: Any,
    ) -> list[RequestOutput]:
        """Complete prompts, all in one continuous batch.

        Several threads may call this at once; their calls run one after the other.

        Args:
            prompts: one prompt, or several.
            sampling_params: for all prompts, or one for each. Default: the model's.
            use_tqdm: whether to show a progress bar, or a function that makes one, like ``tqdm``.
            priority: for all prompts, or one for each; the smallest number goes first. Needs
                ``scheduling_policy="priority"``.
            **unsupported: vLLM's other arguments, such as ``lora_request``, which can only be None.

        Returns:
            One output for each prompt, in order. A request whose computation fails ends with the
            ``finish_reason`` ``"error"``, and the others go on.

        Raises:
            ValueError: a prompt can't be completed. In that case, no prompt is.
        """
        check_unsupported("generate", unsupported, REQUEST)
        tokenized = tokenize_prompts(as_list(prompts), lambda: self.tokenizer)
        params = self._params_for(len(tokenized), sampling_params)
        priorities = self._priorities_for(len(tokenized), priority)
        with self._turn:
            with without_collections():
                request_ids, early = self._add_all(zip(tokenized, params, priorities, strict=True))
            try:
                return self._run(request_ids, early, use_tqdm)
            except BaseException:  # Ctrl-C too: it may interrupt a step halfway
                self.engine.reset()
                raise

    def chat(
        self,
        messages: Conversation | Sequence[Conversation],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        use_tqdm: bool | MakeBar = True,
        *,
        priority: int | Sequence[int] | None = None,
        chat_template: str | None = None,
        chat_template_content_format: ContentFormat = "auto",
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        tools: Sequence[Mapping[str, Any]] | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        **unsupported: Any,
    ) -> list[RequestOutput]:
        """Continue conversations, each rendered by the model's chat template.

        Args:
            messages: one conversation, or several.
            sampling_params: as in ``generate``.
            use_tqdm: as in ``generate``.
            priority: as in ``generate``.
            chat_template: template to use in place of the model's.
            chat_template_content_format: form of the messages' content in the template: one text
                (``"string"``), a list of parts (``"openai"``), or the form that the template seems
                to be written for (``"auto"``).
            add_generation_prompt: end the prompt with the header of the assistant's next message.
            continue_final_message: leave the last message open, to be continued.
            tools: JSON schemas of functions that the model may call.
            chat_template_kwargs: further variables of the template.
            **unsupported: as in ``generate``.

        Raises:
            ValueError: as in ``generate``; or there is no chat template, or it rejects the
                messages.
        """
        check_unsupported("chat", unsupported, REQUEST)
        template = self._choose_template(chat_template)
        prompts = [
            template.render(
                conversation,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=continue_final_message,
                tools=tools,
                chat_template_content_format=chat_template_content_format,
                **(chat_template_kwargs or {}),
            )
            for conversation in as_conversations(messages)
        ]
        tokenized = self.tokenizer.encode_batch(prompts, add_special_tokens=False)
        tokens_and_text = [
            {"prompt_token_ids": token_ids, "prompt": prompt}
            for token_ids, prompt in zip(tokenized, prompts, strict=True)
        ]
        return self.generate(tokens_and_text, sampling_params, use_tqdm=use_tqdm, priority=priority)

    def beam_search(
        self,
        prompts: Prompt | Iterable[Prompt],
        params: BeamSearchParams,
        *,
        use_tqdm: bool = False,
        **unsupported: Any,
    ) -> list[BeamSearchOutput]:
        """Return the most probable continuations of prompts, which are searched together.

        Args:
            prompts: one prompt, or several.
            params: number of beams, and their length.
            use_tqdm: show a progress bar for each token.
            **unsupported: as in ``generate``.

        Raises:
            ValueError: a prompt can't be completed, or ``max_logprobs`` is less than twice
                ``beam_width``.
        """
        check_unsupported("beam_search", unsupported, BEAM_SEARCH_REQUEST)
        generate = partial(self.generate, use_tqdm=use_tqdm)
        found = beam_search(
            [each.token_ids for each in tokenize_prompts(as_list(prompts), lambda: self.tokenizer)],
            params,
            asking_engine(generate, params, self.config.max_logprobs),
            eos_token_ids=self.built.files.eos_token_ids,
            max_model_len=self.built.scheduler_config.max_model_len,
        )
        if self._text is not None:
            for beam in (beam for output in found for beam in output.sequences):
                beam.text = self.tokenizer.decode(beam.tokens)
        return found

    def render_chat(self, messages: Conversation, **options: Any) -> str:
        """Return the prompt of a conversation; ``options`` are those of ``ChatTemplate.render``."""
        return self._choose_template(None).render(messages, **options)

    def _choose_template(self, given: str | None) -> ChatTemplate:
        template = self.text.chat_template
        if given is not None:
            template = load_chat_template(self.tokenizer, given)
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
    def _priorities_for(count: int, given: int | Sequence[int] | None) -> Sequence[int]:
        if given is None or isinstance(given, int):
            return [given or 0] * count
        if len(given) != count:
            raise ValueError(f"there are {count} prompts but {len(given)} priorities")
        return given

    def _add_all(
        self, requests: Iterable[PromptParamsPriority]
    ) -> tuple[list[str], list[RequestOutput]]:
        """Return the ids of added requests, and the outputs of those that have already failed."""
        if self.engine.has_unfinished_requests:
            raise ValueError(
                "the engine still has requests that were added to it directly: finish or abort them"
            )
        # By priority, those that run first may still have to be added.
        in_order = self.config.scheduling_policy == "fcfs"
        request_ids: list[str] = []
        outputs: list[RequestOutput] = []
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
                if in_order and len(self.engine.scheduler.waiting) >= MANY_WAITING:
                    outputs += self.engine.begin_early()
        except ValueError:  # a request was refused
            for request_id in request_ids:
                self.engine.abort(request_id)
            while self.engine.has_unfinished_requests:  # steps that began early
                self.engine.step()
            raise
        except BaseException:  # Ctrl-C may interrupt a step halfway
            self.engine.reset()
            raise
        return request_ids, outputs

    def _run(
        self, request_ids: list[str], early: list[RequestOutput], use_tqdm: bool | MakeBar
    ) -> list[RequestOutput]:
        make_bar = use_tqdm if callable(use_tqdm) else tqdm
        outputs = {output.request_id: output for output in early}
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


def _make_metrics(model_name: str) -> "MetricsListener":
    """Return an observer that collects metrics. Its library is imported only here."""
    try:
        from minimal_vllm.metrics.engine_metrics import EngineMetrics
        from minimal_vllm.metrics.listener import MetricsListener
    except ModuleNotFoundError as error:
        raise ValueError(
            f"disable_log_stats=False needs {error.name}, which is not installed: "
            "pip install 'minimal-vllm[server]'"
        ) from error
    return MetricsListener(EngineMetrics(model_name))
