"""The parts of an engine that handle text, for the offline API."""

from dataclasses import dataclass

from minimal_vllm.config import EngineConfig
from minimal_vllm.engine.build import BuiltEngine
from minimal_vllm.sampling.grammar import GrammarCompiler
from minimal_vllm.text.chat_template import ChatTemplate, load_chat_template
from minimal_vllm.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class TextSide:
    """Parts of an engine that handle text.

    Attributes:
        tokenizer: encodes and decodes.
        grammars: compiles the grammars of structured outputs.
        chat_template: the model's, or the one given in the configuration; None without one.
    """

    tokenizer: Tokenizer
    grammars: GrammarCompiler
    chat_template: ChatTemplate | None


def make_text_side(config: EngineConfig, built: BuiltEngine) -> TextSide | None:
    """Return the parts of an engine that handle text; None if no tokenizer was loaded."""
    tokenizer, grammars = built.files.tokenizer, built.grammars
    if tokenizer is None or grammars is None:
        return None
    return TextSide(tokenizer, grammars, load_chat_template(tokenizer, config.chat_template))
