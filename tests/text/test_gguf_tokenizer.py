"""The tokenizer built from a GGUF file's metadata is the one that its tokenizer.json holds."""

import json

import gguf
import pytest
from checkpoints import CHAT_TEMPLATE, FAMILIES, write_json
from gguf_files import tokenizer_metadata, write_gguf
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers
from tokenizers import Tokenizer as Backend
from tokenizers.processors import TemplateProcessing
from tokenizers.trainers import BpeTrainer
from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX
from transformers.tokenization_utils_base import generate_merges

from minimal_vllm.formats import gguf_file
from minimal_vllm.text.chat_template import load_chat_template
from minimal_vllm.text.gguf_tokenizer import PRE_TOKENIZERS
from minimal_vllm.text.tokenizer import Tokenizer
from tests.text.tiny_tokenizers import CORPUS, llama2

LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
TEXTS = [
    "It's 12345 o'clock, SHE'LL say\r\n\r\n  so",
    "def f(x):\n    return x + 1\t# naïve café",
    "你好,世界。 Привет 🙂👩‍👩‍👧 1,000.5",
    "<|im_start|>user\n<think> hi<|im_end|>",
    "  leading,   7 inner  8 and trailing  ",
    "e\u0301 is é",
    "",
    " ",
]
texts = st.text(alphabet="aeinrst THE'l1290 \n\t,.é🙂你<|>▁", max_size=40)


def split_by(pattern):
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


gpt2 = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
digits = pre_tokenizers.Digits(individual_digits=True)
ORIGINALS = {
    "gpt-2": gpt2,
    "smollm": pre_tokenizers.Sequence([digits, gpt2]),
    "qwen2": split_by(PRETOKENIZE_REGEX),
    "llama-bpe": split_by(LLAMA3),
}
"""As the tokenizer.json of GPT-2, SmolLM2, Qwen2 and Llama 3 have them."""


def write_original(folder, pre):
    """A small tokenizer of the same kind, in Hugging Face's files."""
    ignore_merges = pre == "llama-bpe"
    tokenizer = Backend(models.BPE(ignore_merges=ignore_merges))
    tokenizer.pre_tokenizer = ORIGINALS[pre]
    if pre == "qwen2":
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    corpus = [*CORPUS, *[text * 3 for text in TEXTS[:3]]]
    tokenizer.train_from_iterator(corpus, BpeTrainer(vocab_size=420, initial_alphabet=alphabet))
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in special])
    tokenizer.add_tokens([AddedToken("<think>", normalized=False)])
    if pre == "llama-bpe":
        bos = ("<|endoftext|>", tokenizer.token_to_id("<|endoftext|>"))
        tokenizer.post_processor = TemplateProcessing(
            single="<|endoftext|> $A",
            pair="<|endoftext|> $A <|endoftext|> $B:1",
            special_tokens=[bos],
        )
    folder.mkdir(exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    names = {"bos_token": "<|endoftext|>", "eos_token": "<|im_end|>"}
    write_json(folder / "tokenizer_config.json", {**names, "chat_template": CHAT_TEMPLATE})
    return folder


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    """For each kind the original and what is read from a GGUF file."""
    found = {}
    root = tmp_path_factory.mktemp("tokenizers")
    for pre in ORIGINALS:
        folder = write_original(root / pre, pre)
        metadata = tokenizer_metadata(folder, **{"tokenizer.ggml.pre": pre})
        write_gguf(root / f"{pre}.gguf", FAMILIES["llama"], tokenizer=metadata)
        found[pre] = Tokenizer(folder), Tokenizer(root / f"{pre}.gguf")
    folder = write_llama2(root)
    found["llama"] = Tokenizer(folder), Tokenizer(root / "llama.gguf")
    return found


def write_llama2(root):
    """A SentencePiece tokenizer, of which GGUF stores scores in place of merges."""
    folder = root / "llama"
    folder.mkdir()
    llama2(folder)
    stored = json.loads((folder / "tokenizer.json").read_text())
    vocab = stored["model"]["vocab"]
    tokens = sorted(vocab, key=lambda token: vocab[token])
    scores = [-float(token_id) for token_id in range(len(tokens))]
    kinds = [2, 3, 3, *[6] * 256, *[1] * (len(tokens) - 259)]
    normal = {token: vocab[token] for token in tokens[259:]}
    merges = generate_merges(
        normal, {token: scores[token_id] for token, token_id in normal.items()}
    )
    stored["model"]["merges"] = [list(merge) for merge in merges]
    write_json(folder / "tokenizer.json", stored)
    metadata = {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.scores": scores,
        "tokenizer.ggml.token_type": kinds,
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
    }
    write_gguf(root / "llama.gguf", FAMILIES["llama"], tokenizer=metadata)
    return folder


def assert_same(original, found, text):
    for add_special_tokens in (True, False):
        expected = original.encode(text, add_special_tokens=add_special_tokens)
        assert found.encode(text, add_special_tokens=add_special_tokens) == expected
    for skip in (True, False):
        expected_text = original.decode(expected, skip_special_tokens=skip)
        assert found.decode(expected, skip_special_tokens=skip) == expected_text
    for token_id in expected[:5]:
        assert found.token_bytes(token_id) == original.token_bytes(token_id)


@pytest.mark.parametrize("kind", [*ORIGINALS, "llama"])
@pytest.mark.parametrize("text", TEXTS)
def test_texts_are_tokenized_as_the_original_does(pairs, kind, text):
    assert_same(*pairs[kind], text)


@pytest.mark.parametrize("kind", [*ORIGINALS, "llama"])
@given(text=texts)
def test_any_text_is_tokenized_as_the_original_does(pairs, kind, text):
    assert_same(*pairs[kind], text)


@pytest.mark.parametrize("kind", [*ORIGINALS, "llama"])
def test_special_tokens_are_the_original_s(pairs, kind):
    original, found = pairs[kind]
    assert found.special_token_ids == original.special_token_ids
    for name in ("bos_token", "eos_token"):
        assert found.special_tokens[name] == original.special_tokens[name]
    assert found.vocab_size == original.vocab_size


def test_the_chat_template_is_the_original_s(pairs):
    chat = [{"role": "user", "content": "Hello"}]
    original, found = (load_chat_template(each) for each in pairs["qwen2"])
    assert found is not None
    assert original is not None
    assert found.render(chat) == original.render(chat)
    assert load_chat_template(pairs["llama"][1]) is None


def test_named_chat_templates_are_found(tmp_path):
    metadata = tokenizer_metadata(
        **{"tokenizer.chat_templates": ["tool_use"], "tokenizer.chat_template.tool_use": "tools!"}
    )
    write_gguf(tmp_path / "a.gguf", FAMILIES["llama"], tokenizer=metadata)
    template = load_chat_template(Tokenizer(tmp_path / "a.gguf"))
    chat = [{"role": "user", "content": "Hello"}]
    assert template is not None
    assert template.render(chat, tools=[{}]) == "tools!"
    assert "Hello" in template.render(chat)


def read(tmp_path, **changes):
    metadata = {key: value for key, value in tokenizer_metadata(**changes).items() if value != []}
    write_gguf(tmp_path / "a.gguf", FAMILIES["llama"], tokenizer=metadata)
    return Tokenizer(tmp_path / "a.gguf")


def test_bos_and_eos_are_added_where_the_file_says_so(tmp_path):
    plain = read(tmp_path).encode("and")
    flags = {"tokenizer.ggml.add_bos_token": True, "tokenizer.ggml.add_eos_token": True}
    tokenizer = read(tmp_path, **flags, **{"tokenizer.ggml.bos_token_id": 257})
    assert tokenizer.encode("and") == [257, *plain, tokenizer.eos_token_id]
    assert tokenizer.encode("and", add_special_tokens=False) == plain


def test_a_letter_that_pads_stays_a_letter(tmp_path):
    tokenizer = read(tmp_path, **{"tokenizer.ggml.padding_token_id": 0})
    assert 0 not in tokenizer.special_token_ids
    assert "pad_token" not in tokenizer.special_tokens


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"pre": "grok-9"}, r"\(tokenizer\.ggml\.pre\) is 'grok-9', but must be one of .*smollm"),
        ({"pre": None}, r"is None, but must be one of .*--tokenizer"),
        ({"model": "bert"}, r"is 'bert', but must be gpt2 or llama: .*--tokenizer"),
        ({"model": "llama", "merges": None}, "tokens, but 0 scores"),
        ({"tokens": ["a", "b"]}, "2 tokens, but 273 token types"),
        ({"merges": ["zz zzz"]}, "merges don't fit its tokens"),
        ({"merges": ["x"]}, "merges don't fit its tokens"),
        ({"eos_token_id": 999}, "eos_token_id is 999, but there are 273 tokens"),
    ],
)
def test_what_is_unknown_or_does_not_fit_is_named(tmp_path, changes, complaint):
    changes = {f"tokenizer.ggml.{key}": value for key, value in changes.items()}
    with pytest.raises(ValueError, match=complaint) as error:
        read(tmp_path, **changes)
    assert str(error.value).startswith(str(tmp_path / "a.gguf"))


def test_tokens_with_the_same_text_are_refused(tmp_path):
    tokens = tokenizer_metadata()["tokenizer.ggml.tokens"]
    with pytest.raises(ValueError, match="two tokens with the same text"):
        read(tmp_path, **{"tokenizer.ggml.tokens": [*tokens[:-1], tokens[0]]})


def test_every_supported_pre_tokenizer_is_a_valid_pattern(tmp_path):
    for pre in PRE_TOKENIZERS:
        tokenizer = read(tmp_path, **{"tokenizer.ggml.pre": pre})
        for text in TEXTS:
            assert tokenizer.decode(tokenizer.encode(text), skip_special_tokens=False) in {
                text,
                text.replace("e\u0301", "é"),
            }


def test_token_types_have_the_format_s_numbers():
    for name in ("NORMAL", "UNKNOWN", "CONTROL", "USER_DEFINED", "UNUSED", "BYTE"):
        assert getattr(gguf_file, name) == gguf.TokenType[name]
