import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minimal_vllm.sampling_params import SamplingParams
from minimal_vllm.text.detokenizer import Detokenizer
from tests.text.tiny_tokenizers import FORMATS


def stream(detokenizer, token_ids):
    """All deltas, and the stop string if one was found."""
    deltas = []
    for token_id in token_ids:
        stop = detokenizer.append([token_id])
        deltas.append(detokenizer.new_text())
        if stop is not None:
            break
    else:
        stop = None
        detokenizer.finish()
        deltas.append(detokenizer.new_text())
    assert "".join(deltas) == detokenizer.text
    return deltas, stop


def characters(tokenizer, text):
    """A text as one token for each byte."""
    by_bytes = {tokenizer.token_bytes(i): i for i in reversed(range(tokenizer.vocab_size))}
    return [by_bytes[bytes([byte])] for byte in text.encode()]


@pytest.mark.parametrize("name", ["llama3", "qwen"])
@pytest.mark.parametrize("skip", [True, False])
@settings(deadline=None, max_examples=200)
@given(data=st.data())
def test_deltas_join_to_the_full_decode_for_any_byte_level_tokens(tokenizers, name, skip, data):
    tokenizer = tokenizers[name]
    ids = data.draw(st.lists(st.integers(0, tokenizer.vocab_size - 1), max_size=40))
    params = SamplingParams(skip_special_tokens=skip)
    deltas, _ = stream(Detokenizer(tokenizer, params, []), ids)
    assert "".join(deltas) == tokenizer.decode(ids, skip_special_tokens=skip)


@pytest.mark.parametrize("name", ["llama2", "mistral"])
@settings(deadline=None, max_examples=200)
@given(data=st.data())
def test_deltas_join_to_the_full_decode_for_byte_fallback(tokenizers, name, data):
    tokenizer = tokenizers[name]
    whole = [i for i in range(tokenizer.vocab_size) if "�" not in tokenizer.token_text(i)]
    pieces = st.one_of(
        st.sampled_from(whole).map(lambda i: [i]),
        st.sampled_from("é你🙂").map(lambda c: characters(tokenizer, c)),
    )
    ids = [i for piece in data.draw(st.lists(pieces, max_size=20)) for i in piece]
    deltas, _ = stream(Detokenizer(tokenizer, SamplingParams(), []), ids)
    assert "".join(deltas) == tokenizer.decode(ids)


@pytest.mark.parametrize("name", FORMATS)
@settings(deadline=None, max_examples=100)
@given(prompt=st.text(min_size=1), text=st.text())
def test_output_continues_the_prompts_text(tokenizers, name, prompt, text):
    tokenizer = tokenizers[name]
    prompt_ids = tokenizer.encode(prompt)
    ids = tokenizer.encode(text, add_special_tokens=False)
    deltas, _ = stream(Detokenizer(tokenizer, SamplingParams(), prompt_ids), ids)
    both = tokenizer.decode(prompt_ids + ids)
    assert tokenizer.decode(prompt_ids) + "".join(deltas) == both


def test_the_first_words_space_is_kept_after_a_prompt_and_dropped_without_one(tokenizers):
    llama2 = tokenizers["llama2"]
    word = llama2.encode("and", add_special_tokens=False)
    for prompt, expected in ((llama2.encode("dark"), " and"), ([llama2.bos_token_id], "and")):
        deltas, _ = stream(Detokenizer(llama2, SamplingParams(), prompt), word)
        assert "".join(deltas) == expected


@pytest.mark.parametrize("name", FORMATS)
def test_a_character_is_given_out_only_when_all_its_bytes_are_there(tokenizers, name):
    tokenizer = tokenizers[name]
    ids = characters(tokenizer, "a🙂é")
    deltas, _ = stream(Detokenizer(tokenizer, SamplingParams(), tokenizer.encode("It")), ids)
    assert deltas == ["a", "", "", "", "🙂", "", "é", ""]


def test_a_character_that_the_prompt_began_is_finished_in_the_output(tokenizers):
    ids = characters(tokenizers["qwen"], "🙂!")
    deltas, _ = stream(Detokenizer(tokenizers["qwen"], SamplingParams(), ids[:2]), ids[2:])
    assert "".join(deltas) == "🙂!"


def test_a_character_that_never_ends_is_flushed_as_one_replacement(tokenizers):
    ids = characters(tokenizers["qwen"], "a🙂")[:3]
    deltas, _ = stream(Detokenizer(tokenizers["qwen"], SamplingParams(), []), ids)
    assert deltas == ["a", "", "", "�"]


def test_endless_invalid_bytes_are_not_held_back_for_ever(tokenizers):
    lead = characters(tokenizers["qwen"], "🙂")[0]
    detokenizer = Detokenizer(tokenizers["qwen"], SamplingParams(), [])
    detokenizer.append([lead] * 100)
    assert detokenizer.text == "�" * 99


@pytest.mark.parametrize(
    ("text", "stop", "expected", "found"),
    [
        ("one two three", "two", "one ", "two"),
        ("one two three", ["three", "two"], "one ", "two"),
        ("one two three", ["two", "one two"], "", "one two"),
        ("xabcy", ["abcd", "bc"], "xa", "bc"),
        ("aab", "ab", "a", "ab"),
        ("ababac", "abac", "ab", "abac"),
        ("no such", "suck", "no such", None),
        ("🙂🙂x", "🙂x", "🙂", "🙂x"),
    ],
)
def test_a_stop_string_split_over_tokens_ends_the_text_before_it(
    tokenizers, text, stop, expected, found
):
    tokenizer = tokenizers["qwen"]
    detokenizer = Detokenizer(tokenizer, SamplingParams(stop=stop), [])
    deltas, stopped_by = stream(detokenizer, characters(tokenizer, text))
    assert ("".join(deltas), stopped_by) == (expected, found)


def test_text_after_the_stop_string_in_the_same_token_is_cut(tokenizers):
    tokenizer = tokenizers["qwen"]
    token = next(
        i for i in range(tokenizer.vocab_size) if len(tokenizer.token_text(i).strip()) >= 4
    )
    text = tokenizer.token_text(token).strip()
    before = tokenizer.token_text(token).split(text[1])[0]
    for include, expected in ((False, before), (True, before + text[1])):
        params = SamplingParams(stop=text[1], include_stop_str_in_output=include)
        detokenizer = Detokenizer(tokenizer, params, [])
        assert detokenizer.append([token]) == text[1]
        assert detokenizer.text == expected


def test_finishing_after_a_stop_string_adds_nothing(tokenizers):
    tokenizer = tokenizers["qwen"]
    detokenizer = Detokenizer(tokenizer, SamplingParams(stop="b"), [])
    assert detokenizer.append(characters(tokenizer, "ab🙂")) == "b"
    detokenizer.finish()
    assert detokenizer.text == "a"


def test_bytes_after_a_stop_string_in_the_same_token_are_dropped():
    class OneToken:
        special_token_ids = frozenset()

        def token_bytes(self, token_id):
            return "a.🙂".encode()[:-1]

        first_token_bytes = token_bytes

    detokenizer = Detokenizer(OneToken(), SamplingParams(stop="."), [])
    assert detokenizer.append([0]) == "."
    detokenizer.finish()
    assert detokenizer.text == "a"


def test_an_unheeded_stop_string_is_not_held_back(tokenizers):
    tokenizer = tokenizers["qwen"]
    params = SamplingParams(stop=["xyz", "b"], min_tokens=9)
    deltas, _ = stream(Detokenizer(tokenizer, params, []), characters(tokenizer, "abxc"))
    assert deltas == ["a", "b", "", "xc", ""]


def test_only_what_may_become_a_stop_string_is_held_back(tokenizers):
    tokenizer = tokenizers["qwen"]
    detokenizer = Detokenizer(tokenizer, SamplingParams(stop=["STOP", "Sun"]), [])
    deltas, _ = stream(detokenizer, characters(tokenizer, "xSTSuS"))
    assert deltas == ["x", "", "", "ST", "", "Su", "S"]


def test_stop_strings_are_heeded_only_after_min_tokens(tokenizers):
    tokenizer = tokenizers["qwen"]
    ids = characters(tokenizer, "ab.cd.ef")
    for min_tokens, expected in ((0, "ab"), (2, "ab"), (3, "ab.cd"), (6, "ab.cd.ef")):
        params = SamplingParams(stop=".", min_tokens=min_tokens)
        deltas, _ = stream(Detokenizer(tokenizer, params, []), ids)
        assert "".join(deltas) == expected


def test_a_stop_string_that_ended_before_min_tokens_stays_unheeded(tokenizers):
    tokenizer = tokenizers["qwen"]
    params = SamplingParams(stop=["abc", "b"], min_tokens=2)
    deltas, stop = stream(Detokenizer(tokenizer, params, []), characters(tokenizer, "abxb"))
    assert ("".join(deltas), stop) == ("abx", "b")


@settings(deadline=None, max_examples=300)
@given(
    text=st.text("ab", max_size=30),
    stops=st.lists(st.text("ab", min_size=1, max_size=4), min_size=1, max_size=3),
    cuts=st.lists(st.integers(1, 5), min_size=30, max_size=30),
    include=st.booleans(),
)
def test_stopping_does_not_depend_on_how_the_text_is_cut_into_steps(
    tokenizers, text, stops, cuts, include
):
    tokenizer = tokenizers["qwen"]
    params = SamplingParams(stop=stops, include_stop_str_in_output=include)
    ends = [(e, -len(s), s) for e in range(len(text) + 1) for s in stops if text[:e].endswith(s)]
    end, _, stop = min(ends, default=(len(text), 0, None))
    expected = text[:end] if include or stop is None else text[: end - len(stop)]

    ids, found = characters(tokenizer, text), None
    detokenizer = Detokenizer(tokenizer, params, [])
    while ids and found is None:
        size = cuts.pop()
        found = detokenizer.append(ids[:size])
        ids = ids[size:]
        assert expected.startswith(detokenizer.text)
    detokenizer.finish()
    assert (detokenizer.text, found) == (expected, stop)


def test_special_tokens_are_left_out_or_kept_as_asked(tokenizers):
    tokenizer = tokenizers["qwen"]
    ids = tokenizer.encode("a<|im_end|>b")
    for skip, expected in ((True, "ab"), (False, "a<|im_end|>b")):
        params = SamplingParams(skip_special_tokens=skip)
        assert "".join(stream(Detokenizer(tokenizer, params, []), ids)[0]) == expected


def test_cost_grows_in_proportion_to_the_output(tokenizers):
    tokenizer = tokenizers["qwen"]
    ids = tokenizer.encode("It was a dark and stormy night. ") * 100

    def seconds(repeats):
        detokenizer = Detokenizer(tokenizer, SamplingParams(stop=["never"]), [])
        start = time.process_time()
        for _ in range(repeats):
            for token_id in ids:
                detokenizer.append([token_id])
                detokenizer.new_text()
        return time.process_time() - start

    seconds(1)
    short = min(seconds(4) for _ in range(3))
    long = min(seconds(32) for _ in range(3))
    assert long < 8 * short * 3  # quadratic cost would be 64 times as much
