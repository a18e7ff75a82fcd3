"""Tokenizer with the methods of Hugging Face's, for scripts that call ``LLM.get_tokenizer``."""

from collections import UserDict
from collections.abc import Iterable, Mapping, Sequence
from importlib.util import find_spec
from typing import Any

from minimal_vllm.text.chat_template import ChatTemplate
from minimal_vllm.text.tokenizer import Tokenizer

COPIED_CONFIG = ("model_max_length", "padding_side", "clean_up_tokenization_spaces")
"""Entries of tokenizer_config.json that Hugging Face's tokenizer reads too."""

Text = str | Sequence[str]

Message = Mapping[str, Any]
"""``{"role": …, "content": …}``, as in OpenAI's API."""

Conversation = Sequence[Message]


def as_conversations(messages: Conversation | Sequence[Conversation]) -> list[Conversation]:
    """Return a list of conversations, given one conversation or several.

    Raises:
        ValueError: the list mixes messages and conversations.
    """
    one = [each for each in messages if isinstance(each, Mapping)]
    several = [each for each in messages if not isinstance(each, Mapping)]
    if one and several:
        raise ValueError("messages should be one conversation, or a list of conversations")
    return [one] if one else several


def make_script_tokenizer(tokenizer: Tokenizer, template: ChatTemplate | None) -> Any:
    """Return a tokenizer for scripts, which encodes exactly as the engine does.

    It is a ``transformers.PreTrainedTokenizerFast`` where transformers is installed, else a
    ``ScriptTokenizer``.
    """
    if find_spec("transformers") is None:
        return ScriptTokenizer(tokenizer, template)
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer.backend,
        name_or_path=str(tokenizer.folder),
        chat_template=_sources_of(template),
        **tokenizer.special_tokens,
        **{name: tokenizer.config[name] for name in COPIED_CONFIG if name in tokenizer.config},
    )


def _sources_of(template: ChatTemplate | None) -> str | dict[str, str] | None:
    """Return a template's source as Hugging Face's tokenizers hold it: several by their names."""
    sources = template.sources if template else {}
    return sources.get("default") if len(sources) < 2 else sources


class Encoding(UserDict[str, Any]):
    """A mapping to ``input_ids`` and ``attention_mask``, which are attributes too."""

    def __getattr__(self, name: str) -> Any:
        if name == "data" or name not in self.data:
            raise AttributeError(name)
        return self.data[name]


class ScriptTokenizer:
    """The common methods of Hugging Face's tokenizers, without transformers.

    Args:
        tokenizer: encodes and decodes.
        template: renders conversations.
    """

    is_fast = True

    def __init__(self, tokenizer: Tokenizer, template: ChatTemplate | None) -> None:
        self._tokenizer = tokenizer
        self._template = template
        self.name_or_path = str(tokenizer.folder)
        self.special_tokens_map = dict(tokenizer.special_tokens)
        self.all_special_ids = sorted(tokenizer.special_token_ids)
        self.all_special_tokens = self.convert_ids_to_tokens(self.all_special_ids)
        self.chat_template = _sources_of(template)

    def __getattr__(self, name: str) -> Any:
        """Return a special token, such as ``eos_token``, or its id, such as ``eos_token_id``."""
        if name.endswith("_token"):
            return self.special_tokens_map.get(name)
        if name.endswith("_token_id"):
            token = self.special_tokens_map.get(name.removesuffix("_id"))
            return None if token is None else self.convert_tokens_to_ids(token)
        raise AttributeError(
            f"the tokenizer has no attribute {name!r}; install transformers to get Hugging Face's"
        )

    @property
    def vocab_size(self) -> int:
        """Return the number of tokens, without added ones."""
        return self._tokenizer.backend.get_vocab_size(with_added_tokens=False)

    def __len__(self) -> int:
        return self._tokenizer.vocab_size

    def get_vocab(self) -> dict[str, int]:
        """Return the id of each token."""
        return self._tokenizer.backend.get_vocab(with_added_tokens=True)

    def __call__(
        self,
        text: Text,
        *,
        add_special_tokens: bool = True,
        truncation: bool = False,
        max_length: int | None = None,
        return_attention_mask: bool = True,
    ) -> Encoding:
        """Encode one text or several.

        Args:
            text: one text, which gives one list, or several, which give a list of lists.
            add_special_tokens: add those that the tokenizer puts around a text.
            truncation: cut texts at ``max_length`` tokens.
            max_length: maximum number of tokens.
            return_attention_mask: add a list of ones as long as the tokens.
        """
        texts = [text] if isinstance(text, str) else list(text)
        ids = self._tokenizer.encode_batch(texts, add_special_tokens=add_special_tokens)
        if truncation:
            ids = [each[:max_length] for each in ids]
        values: dict[str, Any] = {"input_ids": ids}
        if return_attention_mask:
            values["attention_mask"] = [[1] * len(each) for each in ids]
        if isinstance(text, str):
            values = {name: rows[0] for name, rows in values.items()}
        return Encoding(values)

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Return the token ids of a text."""
        return self._tokenizer.encode(text, add_special_tokens=add_special_tokens)

    def decode(self, token_ids: int | Iterable[int], *, skip_special_tokens: bool = False) -> str:
        """Return the text of one token id or several."""
        ids = [token_ids] if isinstance(token_ids, int) else list(token_ids)
        return self._tokenizer.decode(ids, skip_special_tokens=skip_special_tokens)

    def batch_decode(
        self, sequences: Iterable[Iterable[int]], *, skip_special_tokens: bool = False
    ) -> list[str]:
        """Return the text of each sequence of token ids."""
        return [self.decode(ids, skip_special_tokens=skip_special_tokens) for ids in sequences]

    def tokenize(self, text: str, *, add_special_tokens: bool = False) -> list[str]:
        """Return the tokens of a text, as strings of the vocabulary."""
        ids = self.encode(text, add_special_tokens=add_special_tokens)
        return [self._token(each) for each in ids]

    def convert_ids_to_tokens(self, ids: int | Iterable[int]) -> Any:
        """Return the vocabulary's string for a token id, or a list of them for several."""
        return self._token(ids) if isinstance(ids, int) else [self._token(each) for each in ids]

    def convert_tokens_to_ids(self, tokens: str | Iterable[str]) -> Any:
        """Return the id of a token, or a list of ids for several; None for an unknown token."""
        find = self._tokenizer.backend.token_to_id
        return find(tokens) if isinstance(tokens, str) else [find(each) for each in tokens]

    def _token(self, token_id: int) -> str:
        token = self._tokenizer.backend.id_to_token(token_id)
        if token is None:
            raise IndexError(f"there is no token {token_id}")
        return token

    def apply_chat_template(
        self,
        conversation: Conversation | Sequence[Conversation],
        tools: Sequence[Mapping[str, Any]] | None = None,
        chat_template: str | None = None,
        add_generation_prompt: bool = False,
        continue_final_message: bool = False,
        tokenize: bool = True,
        return_dict: bool = True,
        **variables: Any,
    ) -> Any:
        """Render one conversation, or several, with the chat template.

        Args:
            conversation: one conversation, or several, which give a list.
            tools: JSON schemas of functions that the model may call.
            chat_template: template to use in place of the model's.
            add_generation_prompt: end with the header of the assistant's next message.
            continue_final_message: leave the last message open.
            tokenize: return tokens instead of the text.
            return_dict: return tokens as ``__call__`` does, instead of a list of ids.
            **variables: further variables of the template.

        Raises:
            ValueError: there is no template, or it rejects the conversation.
        """
        template = self._template
        if chat_template is not None:
            template = ChatTemplate(chat_template, self._tokenizer.special_tokens)
        if template is None:
            raise ValueError("the model has no chat template: give one with chat_template=…")
        texts = [
            template.render(
                each,
                tools=tools,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=continue_final_message,
                **variables,
            )
            for each in as_conversations(conversation)
        ]
        is_one = bool(conversation) and isinstance(conversation[0], Mapping)
        text: Any = texts[0] if is_one else texts
        if not tokenize:
            return text
        encoding = self(text, add_special_tokens=False)
        return encoding if return_dict else encoding["input_ids"]
