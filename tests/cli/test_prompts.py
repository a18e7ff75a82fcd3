import io

import click
import pytest

from minimal_vllm.cli.prompts import read_prompts


@pytest.fixture
def stdin(monkeypatch):
    def set_stdin(text, *, isatty=False):
        stream = io.StringIO(text)
        stream.isatty = lambda: isatty
        monkeypatch.setattr("sys.stdin", stream)

    return set_stdin


def test_arguments_are_prompts_and_a_dash_is_standard_input(stdin):
    stdin("piped\n")
    assert read_prompts(["a", "-", "b"], None) == ["a", "piped", "b"]


def test_without_arguments_all_of_standard_input_is_one_prompt(stdin):
    stdin("first line\n\nsecond line\n")
    assert read_prompts([], None) == ["first line\n\nsecond line"]


def test_a_terminal_is_not_waited_for(stdin):
    stdin("", isatty=True)
    with pytest.raises(click.UsageError, match="Give a prompt"):
        read_prompts([], None)


def test_an_empty_standard_input_is_no_prompt(stdin):
    stdin("\n")
    with pytest.raises(click.UsageError, match="Standard input is empty"):
        read_prompts([], None)


def test_each_line_of_a_file_is_a_prompt(tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_bytes("one\r\n\n{two}\n drei\u2028é".encode())
    assert read_prompts([], path) == ["one", "{two}", " drei\u2028é"]


def test_a_jsonl_file_holds_texts_and_token_ids(tmp_path):
    path = tmp_path / "prompts.jsonl"
    path.write_text(
        '{"prompt": "one\\ntwo"}\n\n{"prompt_token_ids": [1, 2]}\n'
        '{"prompt": "x", "cache_salt": "s"}\n'
    )
    assert read_prompts([], path) == [
        "one\ntwo",
        {"prompt_token_ids": [1, 2]},
        {"prompt": "x", "cache_salt": "s"},
    ]


@pytest.mark.parametrize("line", ["[1, 2]", '"text"', '{"text": "x"}', '{"prompt": 3}', "{}"])
def test_a_jsonl_line_that_is_no_prompt_is_named(tmp_path, line):
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"prompt": "x"}\n\n' + line)
    with pytest.raises(ValueError, match=r"prompts.jsonl, line 3 should be an object with"):
        read_prompts([], path)


@pytest.mark.parametrize("line", ['{"prompt": ', "[" * 100_000], ids=["cut short", "nested"])
def test_a_line_that_is_not_json_is_named(tmp_path, line):
    path = tmp_path / "prompts.jsonl"
    path.write_text(line)
    with pytest.raises(ValueError, match=r"prompts.jsonl, line 1 is not JSON: "):
        read_prompts([], path)


@pytest.mark.parametrize(
    ("content", "complaint"),
    [(b"\xff\xfe", "can't be read: 'utf-8' codec"), (b"\n \n", "holds no prompt")],
)
def test_a_file_without_prompts_is_named(tmp_path, content, complaint):
    path = tmp_path / "prompts.txt"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"prompts.txt {complaint}"):
        read_prompts([], path)


def test_a_missing_file_is_named_in_one_line(tmp_path):
    with pytest.raises(ValueError, match=r"none.txt can't be read: No such file or directory$"):
        read_prompts([], tmp_path / "none.txt")


def test_prompts_in_two_ways_are_refused(tmp_path):
    with pytest.raises(click.UsageError, match="not both"):
        read_prompts(["a"], tmp_path / "prompts.txt")
