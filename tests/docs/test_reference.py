"""The reference is whole: whatever can be imported or set has its place in it."""

import re

import click
import pytest

import minimal_vllm
from benchmarks.shape import kernels
from minimal_vllm.cli.main import main
from minimal_vllm.cli.options import FieldOption
from tests.markdown import read

API, CONFIGURATION = read("docs/reference/api.md"), read("docs/reference/configuration.md")


def all_commands(command):
    yield command
    for inner in getattr(command, "commands", {}).values():
        yield from all_commands(inner)


COMMANDS = list(all_commands(main))
OPTIONS = [param for each in COMMANDS for param in each.params]
OWNERS = list(dict.fromkeys(each.owner for each in OPTIONS if isinstance(each, FieldOption)))


PUBLIC_NAMES = [name for name in minimal_vllm.__all__ if not name.startswith("_")]


@pytest.mark.parametrize("name", PUBLIC_NAMES)
def test_a_public_name_has_a_heading(name):
    assert f"\n## {name}\n" in API.replace("`", "")


@pytest.mark.parametrize("owner", OWNERS, ids=lambda owner: owner.__name__)
def test_a_class_whose_fields_are_options_is_described_field_by_field(owner):
    assert f".{owner.__name__}\n```" in API + CONFIGURATION


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.name)
def test_a_command_and_each_of_its_options_say_what_they_do(command):
    assert command.help
    options = [param for param in command.params if isinstance(param, click.Option)]
    assert [option.name for option in options if not option.help] == []


def test_every_kernel_has_a_row():
    listed = re.findall(r"^\| `([\w/.]+)` \|", read("docs/kernels/README.md"), re.M)
    assert set(listed) == {file for file in kernels() if not file.endswith("__init__.py")}
