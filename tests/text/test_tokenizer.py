import json
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from minimal_vllm.text.chat_template import load_chat_template
from minimal_vllm.text.tokenizer import Tokenizer
from tests.text.tiny_tokenizers import FORMATS, llama2, qwen

TEXTS = [
    "",
    "It was a dark",
    " It was",
    "two  spaces\n\n and\tmore ",
    "naïve 🙂 你好 \x00",
    "<s>hi <s> there</s>",
    "<|begin_of_text|>a<|eot_id|> b",
    "<|im_start|>user\n<think>hm</think><|im_end|>",
]


@pytest.fixture(scope="module")
def transformers_ones(folders):
    return {name: AutoTokenizer.from_pretrained(folder) for name, folder in folders.items()}


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("add_special_tokens", [True, False])
def test_encodes_as_transformers_does(tokenizers, transformers_ones, name, add_special_tokens):
    theirs = transformers_ones[name](TEXTS, add_special_tokens=add_special_tokens).input_ids
    ours = tokenizers[name]
    assert ours.encode_batch(TEXTS, add_special_tokens=add_special_tokens) == theirs
    assert [ours.encode(t, add_special_tokens=add_special_tokens) for t in TEXTS] == theirs


def test_half_of_a_surrogate_pair_is_refused_in_plain_words(tokenizers):
    with pytest.raises(ValueError, match=r"unpaired surrogates, .* bytes that are not UTF-8"):
        next(iter(tokenizers.values())).encode("half \ud800")


@pytest.mark.parametrize("name", FORMATS)
def test_decodes_as_transformers_does(tokenizers, transformers_ones, name):
    for text in TEXTS:
        ids = tokenizers[name].encode(text)
        for skip in (True, False):
            theirs = transformers_ones[name].decode(ids, skip_special_tokens=skip)
            assert tokenizers[name].decode(ids, skip_special_tokens=skip) == theirs


@pytest.mark.parametrize("name", FORMATS)
def test_knows_the_special_tokens_that_transformers_knows(tokenizers, transformers_ones, name):
    ours, theirs = tokenizers[name], transformers_ones[name]
    assert ours.special_tokens == theirs.special_tokens_map
    assert (ours.bos_token_id, ours.eos_token_id) == (theirs.bos_token_id, theirs.eos_token_id)
    assert ours.vocab_size == len(theirs)


@pytest.mark.parametrize("setting", [True, False])
def test_tokenizer_json_decides_about_bos_as_in_transformers(tmp_path, setting):
    folder = llama2(tmp_path, add_bos_token=setting, tokenizer_class="PreTrainedTokenizerFast")
    ids = Tokenizer(folder).encode("It was")
    assert ids == AutoTokenizer.from_pretrained(folder)("It was").input_ids
    assert ids[0] == Tokenizer(folder).bos_token_id


@pytest.mark.parametrize("tokenizer_class", ["LlamaTokenizer", "LlamaTokenizerFast"])
@pytest.mark.parametrize(
    ("config", "begins", "ends"),
    [
        ({}, True, False),
        ({"add_bos_token": True, "add_eos_token": False}, True, False),
        ({"add_bos_token": False}, False, False),
        ({"add_eos_token": True}, True, True),
        ({"add_bos_token": False, "add_eos_token": True}, False, True),
        ({"add_bos_token": None, "add_eos_token": None}, True, False),
    ],
)
def test_llama_s_tokenizers_add_bos_and_eos_as_configured(
    tmp_path, tokenizer_class, config, begins, ends
):
    """As in vLLM and transformers 4: tokenizer.json, which adds BOS, is overruled."""
    tokenizer = Tokenizer(llama2(tmp_path, **config, tokenizer_class=tokenizer_class))
    plain = tokenizer.encode("It was", add_special_tokens=False)
    before, after = [tokenizer.bos_token_id] * begins, [tokenizer.eos_token_id] * ends
    assert tokenizer.encode("It was") == [*before, *plain, *after]


def test_a_token_that_only_the_configuration_calls_special_is_special(tmp_path):
    folder = qwen(tmp_path)
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text()) | {"eos_token": "It", "pad_token": "<new>"}
    path.write_text(json.dumps(config))
    ours, theirs = Tokenizer(folder), AutoTokenizer.from_pretrained(folder)
    for text in ("It was<new>", "Italy"):
        assert ours.encode(text) == theirs(text).input_ids
        assert ours.decode(ours.encode(text)) == theirs.decode(
            theirs(text).input_ids, skip_special_tokens=True
        )


def test_tokens_listed_in_the_configuration_are_added_in_the_order_of_their_ids(tmp_path):
    folder = qwen(tmp_path)
    path = folder / "tokenizer_config.json"
    size = Tokenizer(folder).vocab_size
    fields = {"lstrip": False, "rstrip": False, "normalized": False, "single_word": False}
    listed = {
        str(size + 1): {"content": "<b>", "special": False, **fields},
        str(size): {"content": "<a>", "special": True, **fields},
    }
    config = json.loads(path.read_text()) | {"added_tokens_decoder": listed}
    path.write_text(json.dumps(config))
    ours = Tokenizer(folder)
    assert ours.encode("<a><b>") == [size, size + 1]
    assert ours.encode("<a><b>") == AutoTokenizer.from_pretrained(folder)("<a><b>").input_ids
    assert ours.decode([size, size + 1]) == "<b>"


def test_special_tokens_map_serves_where_the_configuration_is_silent(tmp_path):
    folder = llama2(tmp_path)
    (folder / "tokenizer_config.json").unlink()
    (folder / "special_tokens_map.json").write_text(json.dumps({"eos_token": {"content": "</s>"}}))
    assert Tokenizer(folder).special_tokens == {"eos_token": "</s>"}


def test_a_baked_in_truncation_does_not_shorten_a_prompt(tmp_path):
    folder = qwen(tmp_path)
    path = folder / "tokenizer.json"
    content = json.loads(path.read_text())
    content["truncation"] = {
        "direction": "Right",
        "max_length": 3,
        "strategy": "LongestFirst",
        "stride": 0,
    }
    path.write_text(json.dumps(content))
    assert len(Tokenizer(folder).encode("zzzzzzzzzzzzzzz")) > 3


@pytest.mark.parametrize("name", ["llama3", "qwen"])
@settings(deadline=None, max_examples=200)
@given(data=st.data())
def test_bytes_of_byte_level_tokens_join_to_the_decoded_text(tokenizers, name, data):
    tokenizer = tokenizers[name]
    ids = data.draw(st.lists(st.integers(0, tokenizer.vocab_size + 2)))
    joined = b"".join(map(tokenizer.token_bytes, ids))
    assert joined.decode(errors="replace") == tokenizer.decode(ids, skip_special_tokens=False)


@pytest.mark.parametrize("name", FORMATS)
@settings(deadline=None, max_examples=100)
@given(text=st.text())
def test_bytes_of_a_texts_tokens_are_the_texts_bytes(tokenizers, name, text):
    tokenizer = tokenizers[name]
    ids = tokenizer.encode(text, add_special_tokens=False)
    joined = b"".join(
        tokenizer.first_token_bytes(t) if i == 0 else tokenizer.token_bytes(t)
        for i, t in enumerate(ids)
    )
    assert joined.decode() == tokenizer.decode(ids, skip_special_tokens=False)


def test_the_text_of_one_token_keeps_its_space(tokenizers):
    for name in FORMATS:
        last = tokenizers[name].encode("dark and")[-1]
        assert tokenizers[name].token_text(last) == " and"
    part_of_a_character = tokenizers["qwen"].encode("🙂")[0]
    assert tokenizers["qwen"].token_text(part_of_a_character) == "�"


def test_a_token_beyond_the_vocabulary_has_no_text(tokenizers):
    assert tokenizers["qwen"].token_bytes(10**6) == b""


def test_a_folder_without_tokenizer_json_is_refused_with_advice(tmp_path):
    with pytest.raises(ValueError, match=r"tokenizer\.json, but there is none"):
        Tokenizer(tmp_path)
    (tmp_path / "tokenizer.model").touch()
    with pytest.raises(ValueError, match=r"only tokenizer\.model.*save_pretrained"):
        Tokenizer(tmp_path)


def test_broken_files_are_refused_by_name(tmp_path):
    folder = qwen(tmp_path)
    for broken in ("{", '{"a":' * 100_000):
        (folder / "tokenizer_config.json").write_text(broken)
        with pytest.raises(ValueError, match=r"tokenizer_config\.json is not valid JSON"):
            Tokenizer(folder)
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(ValueError, match=r"tokenizer\.json is not a tokenizer"):
        Tokenizer(folder)


def test_the_text_room_starts_without_torch_and_transformers():
    code = (
        "import sys, minimal_vllm.text.detokenizer, minimal_vllm.text.chat_template\n"
        "sys.exit(bool({'torch', 'transformers'} & set(sys.modules)))"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    "key", ["eos_token", "added_tokens_decoder", "extra_special_tokens", "chat_template"]
)
def test_a_wrong_value_in_the_configuration_is_refused_in_one_line(tmp_path, key):
    folder = qwen(tmp_path)
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text())
    refused = 0
    for wrong in (5, True, [5], [[]], {"a": 5}, {"5": 5}, {"5": {}}, [{"name": "a"}]):
        path.write_text(json.dumps({**config, key: wrong}))
        try:
            load_chat_template(Tokenizer(folder))
            complaint = ""
        except ValueError as error:
            complaint = str(error)
        assert "\n" not in complaint
        refused += bool(complaint)
    assert refused
