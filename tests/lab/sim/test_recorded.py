from array import array

import pytest

from minimal_vllm_lab.sim.recorded import recorded_jobs


@pytest.fixture
def file(tmp_path):
    def write(*lines):
        path = tmp_path / "traffic.jsonl"
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        return path

    return write


def test_each_line_is_a_request(file):
    path = file(
        '{"prompt_token_ids": [5, 6, 7], "max_tokens": 3}',
        "",
        '{"arrival": 0.5, "prompt_len": 40, "max_tokens": 8}',
    )
    first, second = recorded_jobs(path, seed=0)
    assert (first.arrival, first.prompt, first.num_output_tokens) == (0, array("i", [5, 6, 7]), 3)
    assert (second.arrival, len(second.prompt), second.num_output_tokens) == (0.5, 40, 8)
    assert [each.prompt for each in recorded_jobs(path, 0)] == [first.prompt, second.prompt]


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("nonsense", "JSON"),
        ("[1]", "object|dict"),
        ('{"prompt_len": 4}', "max_tokens"),
        ('{"prompt_len": 0, "max_tokens": 1}', "prompt_len"),
        ('{"prompt_len": 4, "max_tokens": 1, "arival": 3}', "arival"),
        ('{"prompt_token_ids": [], "max_tokens": 1}', "prompt_token_ids"),
        ('{"prompt_token_ids": [-1], "max_tokens": 1}', "prompt_token_ids"),
        ('{"max_tokens": 1}', "prompt_token_ids and prompt_len"),
        ('{"prompt_token_ids": [1], "prompt_len": 1, "max_tokens": 1}', "exactly one"),
        ('{"prompt_len": 4, "max_tokens": 1, "arrival": 0.5}', "sort"),
    ],
)
def test_an_invalid_line_is_reported_with_its_number_and_the_reason(file, line, complaint):
    path = file('{"arrival": 1, "prompt_len": 4, "max_tokens": 1}', line)
    with pytest.raises(ValueError, match=f"traffic.jsonl, line 2: .*({complaint})"):
        list(recorded_jobs(path, seed=0))
