"""The model as the HTTP side knows it: its text side and its limits. Nothing imports torch."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minimal_vllm.sampling.grammar import GrammarCompiler
from minimal_vllm.text.chat_template import ChatTemplate, load_chat_template
from minimal_vllm.text.script_tokenizer import Conversation
from minimal_vllm.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from minimal_vllm.llm import LLM


@dataclass(frozen=True)
class ModelFacts:
    """Facts about a loaded model, from which another process can load its text side."""

    name: str
    """Name or folder of the model, as it was given."""
    tokenizer: Path
    """Folder of the tokenizer, or a GGUF file."""
    chat_template: str | None
    """Chat template in place of the model's, or the file that contains it."""
    vocab_size: int
    eos_token_ids: frozenset[int]
    max_model_len: int
    """Maximum number of tokens of prompt and completion together."""
    sampling: Mapping[str, Any]
    """The model's own defaults of sampling parameters."""
    has_priorities: bool
    """Whether the engine schedules requests by priority."""

    @classmethod
    def of(cls, llm: "LLM") -> "ModelFacts":
        """Return the facts about the model of an engine."""
        built = llm.built
        return cls(
            name=llm.config.model,
            tokenizer=llm.tokenizer.folder,
            chat_template=llm.config.chat_template,
            vocab_size=built.files.config.vocab_size,
            eos_token_ids=built.files.eos_token_ids,
            max_model_len=built.scheduler_config.max_model_len,
            sampling=built.files.generation_config.sampling,
            has_priorities=llm.config.scheduling_policy == "priority",
        )


@dataclass(frozen=True)
class ServedModel:
    """A served model as the HTTP side sees it."""

    facts: ModelFacts
    tokenizer: Tokenizer
    grammars: GrammarCompiler
    """Compiles the grammars of structured outputs."""
    chat_template: ChatTemplate | None
    """The model's chat template, or the one given in its place; None without one."""

    @classmethod
    def of(cls, llm: "LLM") -> "ServedModel":
        """Return the model of an engine in this process, which shares its text side."""
        text = llm.text
        return cls(ModelFacts.of(llm), text.tokenizer, text.grammars, text.chat_template)

    @classmethod
    def load(cls, facts: ModelFacts, loaded: Tokenizer | None = None) -> "ServedModel":
        """Load the text side of a model whose engine is in another process.

        Args:
            facts: facts about the model.
            loaded: a tokenizer, which need not be loaded again if it is the model's.
        """
        is_loaded = loaded is not None and loaded.folder == facts.tokenizer
        tokenizer = loaded if loaded and is_loaded else Tokenizer(facts.tokenizer)
        grammars = GrammarCompiler(tokenizer, facts.vocab_size, facts.eos_token_ids)
        template = load_chat_template(tokenizer, facts.chat_template)
        return cls(facts, tokenizer, grammars, template)

    def render_chat(self, messages: Conversation, **options: Any) -> str:
        """Return the prompt of a conversation; ``options`` are those of ``ChatTemplate.render``.

        Raises:
            ValueError: there is no chat template, or it rejects the messages.
        """
        if self.chat_template is None:
            raise ValueError("the model has no chat template: give one with chat_template=…")
        return self.chat_template.render(messages, **options)
