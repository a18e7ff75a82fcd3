"""What scripts for vLLM do with ``LLM.get_tokenizer()``, with transformers and without."""

import pytest
from checkpoints import FAMILIES, write_checkpoint
from transformers import PreTrainedTokenizerFast

from minimal_vllm.demo import DEMO_MODEL_DIR
from minimal_vllm.text.chat_template import load_chat_template
from minimal_vllm.text.script_tokenizer import ScriptTokenizer, make_script_tokenizer
from minimal_vllm.text.tokenizer import Tokenizer
from minimal_vllm.tokenizers import get_tokenizer

TEXT = "the rain in Spain"
CHAT = [{"role": "user", "content": "Good day."}]


@pytest.fixture(scope="module")
def ours():
    return Tokenizer(DEMO_MODEL_DIR)


@pytest.fixture(scope="module", params=["transformers", "alone"])
def tokenizer(request, ours):
    template = load_chat_template(ours)
    if request.param == "alone":
        return ScriptTokenizer(ours, template)
    made = make_script_tokenizer(ours, template)
    assert isinstance(made, PreTrainedTokenizerFast)
    return made


def test_it_encodes_as_the_engine_does(tokenizer, ours):
    ids = ours.encode(TEXT)
    assert tokenizer.encode(TEXT) == ids
    assert tokenizer(TEXT).input_ids == tokenizer(TEXT)["input_ids"] == ids
    assert tokenizer([TEXT, "a"]).input_ids == ours.encode_batch([TEXT, "a"])
    assert tokenizer(TEXT).attention_mask == [1] * len(ids)
    bare = ours.encode(TEXT, add_special_tokens=False)
    assert tokenizer(TEXT, add_special_tokens=False).input_ids == bare
    assert tokenizer(TEXT, truncation=True, max_length=2).input_ids == ids[:2]


def test_it_decodes_and_knows_the_vocabulary(tokenizer, ours):
    ids = ours.encode(TEXT, add_special_tokens=False)
    assert tokenizer.decode(ids) == TEXT
    assert tokenizer.batch_decode([ids, ids], skip_special_tokens=True) == [TEXT, TEXT]
    assert tokenizer.convert_tokens_to_ids(tokenizer.convert_ids_to_tokens(ids)) == ids
    assert tokenizer.tokenize(TEXT) == tokenizer.convert_ids_to_tokens(ids)
    assert len(tokenizer) == len(tokenizer.get_vocab()) == ours.vocab_size
    assert tokenizer.decode(ids[0]) == ours.decode(ids[:1])


def test_it_knows_the_special_tokens(tokenizer, ours):
    assert tokenizer.eos_token_id == ours.eos_token_id
    assert tokenizer.eos_token == ours.special_tokens["eos_token"]
    assert tokenizer.bos_token_id == ours.bos_token_id
    assert set(tokenizer.all_special_ids) == ours.special_token_ids


def test_it_renders_conversations(tokenizer, ours):
    text = tokenizer.apply_chat_template(CHAT, tokenize=False, add_generation_prompt=True)
    assert text == load_chat_template(ours).render(CHAT)
    rendered = tokenizer.apply_chat_template(CHAT, add_generation_prompt=True)
    assert rendered["input_ids"] == ours.encode(text, add_special_tokens=False)
    ids = tokenizer.apply_chat_template(CHAT, add_generation_prompt=True, return_dict=False)
    assert ids == rendered["input_ids"]
    given = tokenizer.apply_chat_template(
        [CHAT, CHAT], chat_template="{{ messages[0]['content'] }}", tokenize=False
    )
    assert given == ["Good day.", "Good day."]


def test_what_needs_transformers_says_so(ours):
    with pytest.raises(AttributeError, match="install transformers"):
        ScriptTokenizer(ours, None).save_pretrained("folder")


def test_scripts_find_it_where_vllm_has_it(tmp_path):
    folder = write_checkpoint(tmp_path, FAMILIES["llama"])
    assert get_tokenizer(folder, tokenizer_mode="auto", revision=None).encode(TEXT)
    with pytest.raises(ValueError, match="tokenizer_mode='slow' is not supported"):
        get_tokenizer(folder, tokenizer_mode="slow")
