from typing import Literal

import click
import pytest
from click.testing import CliRunner
from pydantic.dataclasses import dataclass

from minimal_vllm.cli.chat import chat
from minimal_vllm.cli.generate import generate
from minimal_vllm.cli.options import FieldOption, SectionedCommand, field_options, given_options
from minimal_vllm.config import EngineConfig
from minimal_vllm.sampling_params import SamplingParams
from minimal_vllm.settings import SETTINGS


@dataclass(config=SETTINGS)
class Inner:
    kind: str


@dataclass(config=SETTINGS)
class Settings:
    """An option of each kind."""

    count: int = 3
    """How many."""
    share: float | None = None
    """Which part
    of ``all``."""
    limit: int | None = 16
    """At most."""
    color: Literal["red", "green"] = "red"
    """Which."""
    eager: bool = False
    """Whether to hurry."""
    cached: bool = True
    """Whether to remember."""
    words: str | list[str] | None = None
    """Texts."""
    numbers: list[int] | None = None
    """Numbers."""
    bias: dict[int, float] | None = None
    """By number."""
    inner: Inner | None = None
    """Several in one."""


@field_options(Settings, defaults={"limit": 128})
@click.command(cls=SectionedCommand)
@click.pass_context
def command(ctx, /, **_):
    click.echo(repr(given_options(ctx, Settings)))


def given(*arguments):
    result = CliRunner().invoke(command, arguments)
    assert result.exit_code == 0, result.output
    return eval(result.output)


def test_only_what_was_given_overrides_the_dataclass():
    assert given() == {}
    assert given("--count=3") == {"count": 3}


@pytest.mark.parametrize(
    ("arguments", "values"),
    [
        (["--share", "0.5"], {"share": 0.5}),
        (["--limit", "7"], {"limit": 7}),
        (["--limit", "none"], {"limit": None}),
        (["--color", "green"], {"color": "green"}),
        (["--eager"], {"eager": True}),
        (["--cached"], {"cached": True}),
        (["--no-cached"], {"cached": False}),
        (["--words", "a b", "--words", "c"], {"words": ("a b", "c")}),
        (["--numbers", "1", "--numbers", "2"], {"numbers": (1, 2)}),
        (["--bias", '{"5": -1.5}'], {"bias": {"5": -1.5}}),
        (["--inner", '{"kind": "a"}'], {"inner": {"kind": "a"}}),
    ],
)
def test_each_kind_of_field_is_read_as_what_it_is(arguments, values):
    assert given(*arguments) == values


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--count", "x"], "Invalid value for '--count': 'x' is not a valid integer."),
        (["--limit", "x"], "Invalid value for '--limit': 'x' is neither an integer nor none."),
        (["--bias", "[1]"], "Invalid value for '--bias': '[1]' is not a JSON object."),
        (["--bias", "{"], "Invalid value for '--bias': '{' is not a JSON object."),
        (["--color", "blue"], "'blue' is not one of 'red', 'green'."),
    ],
)
def test_a_value_of_the_wrong_kind_is_named(arguments, complaint):
    result = CliRunner().invoke(command, arguments)
    assert result.exit_code == 2
    assert complaint in result.stderr


def test_help_has_the_field_s_docstring_and_the_command_s_default():
    options = {param.name: param for param in command.params}
    assert options["share"].help == "Which part\nof all."
    assert options["words"].help == "Texts. Can be repeated."
    assert options["limit"].default == 128


@pytest.mark.parametrize("owner", [EngineConfig, SamplingParams])
@pytest.mark.parametrize("real_command", [generate, chat])
def test_every_option_of_the_real_commands_explains_itself(real_command, owner):
    mine = [each for each in real_command.params if getattr(each, "owner", None) is owner]
    assert len(mine) > 10
    assert all(isinstance(each, FieldOption) and each.help for each in mine)


@pytest.mark.parametrize("real_command", [generate, chat])
def test_no_two_options_of_a_command_share_a_name(real_command):
    names = [param.name for param in real_command.params]
    assert len(names) == len(set(names))


def test_help_lists_sampling_and_engine_options_under_their_headings():
    text = CliRunner().invoke(generate, ["--help"]).output
    places = [
        text.index(part) for part in ("--input", "--top-p", "\nEngine:", "--no-enable-prefix")
    ]
    assert places == sorted(places)
