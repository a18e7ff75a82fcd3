import click
import pytest
from click.testing import CliRunner

from minimal_vllm.cli.commands import Commands
from minimal_vllm.cli.errors import Failure, StepFailure
from minimal_vllm.config import EngineConfig
from minimal_vllm.sampling_params import SamplingParams


@pytest.mark.parametrize(
    ("cls", "values", "message"),
    [
        (
            SamplingParams,
            {"max_tokens": 0},
            "max_tokens: should be greater than or equal to 1, not 0",
        ),
        (
            SamplingParams,
            {"top_p": 2.0, "min_p": -1.0},
            "top_p: should be less than or equal to 1, not 2.0; "
            "min_p: should be greater than or equal to 0, not -1.0",
        ),
        (
            SamplingParams,
            {"temperature": 0, "n": 2},
            "n must be 1 with greedy sampling (temperature 0), not 2",
        ),
        (SamplingParams, {"stop": ""}, "stop: a stop string must not be empty"),
        (
            SamplingParams,
            {"stop_token_ids": [3, -1]},
            "stop_token_ids.1: should be greater than or equal to 0, not -1",
        ),
        (
            EngineConfig,
            {"model": "m", "gpu_memory_utilization": 1.5},
            "gpu_memory_utilization: should be less than or equal to 1, not 1.5",
        ),
    ],
)
def test_a_validation_error_becomes_one_line_that_names_the_option(cls, values, message):
    with pytest.raises(ValueError) as caught:
        cls(**values)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("error", "code", "stderr"),
    [
        (ValueError("one\n  two"), 2, "minimal-vllm: error: one two\n"),
        (OSError("no space"), 2, "minimal-vllm: error: no space\n"),
        (OSError(2, "No such file", "a.json"), 2, "minimal-vllm: error: a.json: No such file\n"),
        (Failure("bad luck"), 2, "minimal-vllm: error: bad luck\n"),
        (StepFailure("bad luck"), 1, "minimal-vllm: error: bad luck\n"),
        (KeyboardInterrupt(), 130, ""),
        (BrokenPipeError(32, "Broken pipe"), 1, ""),
    ],
)
def test_every_error_has_its_exit_code_and_at_most_one_line(error, code, stderr):
    @click.group(cls=Commands)
    def group():
        pass

    @group.command()
    def fail():
        raise error

    result = CliRunner().invoke(group, ["fail"])
    assert (result.exit_code, result.stdout, result.stderr) == (code, "", stderr)


def test_a_bug_is_not_hidden():
    @click.group(cls=Commands)
    def group():
        pass

    @group.command()
    def fail():
        raise KeyError("oops")

    assert isinstance(CliRunner().invoke(group, ["fail"]).exception, KeyError)
