import json

import pytest
from checkpoints import write_tokenizer
from hypothesis import given

from minimal_vllm.sampling.grammar import GrammarCompiler
from minimal_vllm.sampling_params import StructuredOutputsParams
from minimal_vllm.server.harmony import AnalysisTokens, HarmonyReader
from minimal_vllm.server.message import CallWriter, ContentReader
from minimal_vllm.server.tools.declaration import Function
from minimal_vllm.server.tools.harmony import Harmony
from minimal_vllm.text.tokenizer import Tokenizer
from tests.server.tools.cutting import cut, read, read_apart, soup

NEXT = "<|start|>assistant"
ANALYSIS = "<|channel|>analysis<|message|>Hm.<|end|>"
PREAMBLE = "<|channel|>commentary<|message|>Let me see.<|end|>"
CALL = '<|channel|>commentary to=functions.turn <|constrain|>json<|message|>{"to": "left"}<|call|>'
FINAL = "<|channel|>final<|message|>Left, 1 <| 2.<|return|>"
LEFT = ("turn", '{"to": "left"}')


def make_reader(parallel=True):
    return HarmonyReader(CallWriter(parallel), ContentReader())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (FINAL, ("", "Left, 1 <| 2.", [])),
        (ANALYSIS + NEXT + FINAL, ("Hm.", "Left, 1 <| 2.", [])),
        (ANALYSIS + NEXT + CALL, ("Hm.", "", [LEFT])),
        (f"{ANALYSIS}{NEXT}{PREAMBLE}{NEXT}{CALL}", ("Hm.", "Let me see.", [LEFT])),
        (f"{ANALYSIS}{NEXT}{ANALYSIS}{NEXT}{FINAL}", ("Hm.\nHm.", "Left, 1 <| 2.", [])),
        (f"{PREAMBLE}{NEXT}{FINAL}", ("", "Let me see.\nLeft, 1 <| 2.", [])),
        (" to=functions.turn<|channel|>commentary json<|message|>{}", ("", "", [("turn", "{}")])),
        ("<|channel|>analysis to=python code<|message|>1<|call|>", ("", "", [("python", "1")])),
        ("<|channel|>analysis<|message|>Hm. <|channel|>final<|message|>Yes", ("Hm. ", "Yes", [])),
        ("<|channel|>analysis<|message|>cut off<|en", ("cut off<|en", "", [])),
        ("<|channel|>anal", ("", "", [])),
        ("no tags", ("", "no tags", [])),
        ("<b>no tags</b>", ("", "<b>no tags</b>", [])),
        (f"{NEXT}{FINAL}", ("", "Left, 1 <| 2.", [])),
        ("", ("", "", [])),
    ],
)  # fmt: skip
def test_a_turn_is_parted_into_its_channels(text, message):
    assert read(make_reader, [text]) == message
    assert read(make_reader, text) == message  # character by character


@given(text_and_pieces=cut(soup(ANALYSIS, NEXT, CALL, FINAL, PREAMBLE, "text ")))
def test_however_a_text_is_cut_it_reads_the_same(text_and_pieces):
    text, pieces = text_and_pieces
    assert read(make_reader, pieces) == read(make_reader, [text])


def test_only_the_first_call_is_kept_if_calls_are_not_parallel():
    calls = f"{CALL}{NEXT}{CALL}"
    assert read(make_reader, [calls])[2] == [LEFT, LEFT]
    assert read(lambda: make_reader(parallel=False), [calls])[2] == [LEFT]


def test_arguments_are_streamed():
    pieces = ["<|channel|>commentary to=functions.f<|message|>", '{"a"', ": 1}", "<|call|>"]
    deltas = read_apart(make_reader(), pieces)
    assert [call.arguments for delta in deltas for call in delta.calls] == ["", '{"a"', ": 1}"]


def test_tokens_of_the_analysis_are_counted():
    pieces = ["<|channel|>", "analysis", "<|message|>", "Hm", ".", "<|end|>", "<|start|>"]
    pieces += ["assistant", "<|channel|>", "final", "<|message|>", "Yes"]
    counter = AnalysisTokens(lambda index: pieces[index].encode())
    assert [counter.count([index]) for index in range(len(pieces))] == [0, 2, 1, 1, 1, 1] + [0] * 6


# ---- forms --------------------------------------------------------------------------------------

TAGS = ["channel", "message", "end", "start", "constrain", "call", "return"]
TURN = {"type": "object", "properties": {"to": {"enum": ["left", "right"]}}, "required": ["to"]}


@pytest.fixture(scope="module")
def grammars(tmp_path_factory):
    """A compiler of grammars for a tokenizer whose special tokens are harmony's."""
    pytest.importorskip("llguidance")
    folder = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(folder)
    saved = json.loads((folder / "tokenizer.json").read_text())
    first = max(saved["model"]["vocab"].values()) + 1
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    saved["added_tokens"] += [
        {"id": first + index, "content": f"<|{name}|>", "special": True, **plain}
        for index, name in enumerate(TAGS)
    ]
    (folder / "tokenizer.json").write_text(json.dumps(saved))
    tokenizer = Tokenizer(folder)
    return tokenizer, GrammarCompiler(tokenizer, first + len(TAGS), [first + TAGS.index("return")])


def matches(grammars, params, text):
    """Whether a whole text matches the grammar of a request."""
    tokenizer, compiler = grammars
    matcher = compiler.start(params)._matcher
    token_ids = tokenizer.encode(text, add_special_tokens=False)
    return matcher.try_consume_tokens(token_ids) == len(token_ids) and matcher.is_accepting()


def test_a_form_holds_for_the_last_message_only(grammars):
    params = StructuredOutputsParams(json=TURN, reasoning="harmony")
    answer = '<|channel|>final<|message|>{"to": "left"}'
    assert matches(grammars, params, answer)
    assert matches(grammars, params, ANALYSIS + NEXT + answer)
    assert matches(grammars, params, ANALYSIS + NEXT + PREAMBLE + NEXT + answer)
    assert not matches(grammars, params, ANALYSIS + NEXT + answer.replace("left", "up"))
    assert not matches(grammars, params, '{"to": "left"}')


@pytest.mark.parametrize("header", [
    "<|channel|>commentary to=functions.turn <|constrain|>json<|message|>",
    " to=functions.turn<|channel|>commentary json<|message|>",
    "<|channel|>commentary to=functions.turn<|message|>",
])  # fmt: skip
def test_calls_of_strict_tools_match_their_schemas(grammars, header):
    tools = Harmony([
        Function(name="turn", parameters=TURN, strict=True),
        Function(name="stop"),
    ])  # fmt: skip
    source = tools.constraint().grammar
    params = StructuredOutputsParams(grammar=source, reasoning="harmony calls")
    assert matches(grammars, params, ANALYSIS + NEXT + header + '{"to": "left"}')
    assert not matches(grammars, params, ANALYSIS + NEXT + header + '{"to": "up"}')
    assert matches(grammars, params, header.replace("turn", "stop") + '{"any": 1}')
    assert not matches(grammars, params, header.replace("turn", "fly") + "{}")
    assert matches(grammars, params, ANALYSIS + NEXT + "<|channel|>final<|message|>any text")


def test_without_strict_tools_the_model_writes_what_it_likes():
    assert Harmony([Function(name="turn", parameters=TURN)]).constraint() is None


def test_calls_or_an_answer_of_a_form(grammars):
    source = Harmony([Function(name="stop")]).constraint('start: "yes" | "no"\n').grammar
    params = StructuredOutputsParams(grammar=source, reasoning="harmony calls")
    assert matches(grammars, params, "<|channel|>final<|message|>yes")
    assert not matches(grammars, params, "<|channel|>final<|message|>perhaps")
    assert matches(grammars, params, CALL.replace("turn", "stop").removesuffix("<|call|>"))
