"""vLLM's syntax on the command line: keys of an object that are set one by one."""

import json

import click
import pytest
from click.testing import CliRunner

from minimal_vllm.cli.vllm_flags import VllmCommand, join_dotted

OBJECTS = {
    "--a.b 1": {"b": 1},
    "--a.b=1 --a.c text": {"b": 1, "c": "text"},
    "--a.b.c 1.5 --a.b.d=[1]": {"b": {"c": 1.5, "d": [1]}},
    "--a.some-key -1": {"some_key": -1},
    "--a.b+ 1 --a.b+ 2": {"b": [1, 2]},
    "--a.b --a.c false": {"b": True, "c": False},
}


@pytest.mark.parametrize("typed", OBJECTS)
def test_keys_that_are_set_one_by_one_are_one_object(typed):
    (option,) = join_dotted(typed.split())
    name, _, value = option.partition("=")
    assert name == "--a"
    assert json.loads(value) == OBJECTS[typed]


def test_other_arguments_keep_their_places():
    typed = ["model-v1.2", "--n_a.b", "1", "--port", "1.5", "--x=y.z", "--n-a.c", "2", "../file"]
    joined = ["model-v1.2", '--n-a={"b": 1, "c": 2}', "--port", "1.5", "--x=y.z", "../file"]
    assert join_dotted(typed) == joined


@pytest.mark.parametrize(
    "typed",
    [
        "--a.b 1 --a.b 2",
        "--a.b 1 --a.b.c 2",
        "--a.b 1 --a.b+ 2",
        "--a.b 1 --a {}",
        "--a={} --a.b 1",
    ],
)
def test_options_that_contradict_each_other_are_refused(typed):
    with pytest.raises(click.UsageError):
        join_dotted(typed.split())


def test_a_command_gets_the_object_and_knows_no_other_names():
    @click.command(cls=VllmCommand)
    @click.option("--a", type=str)
    def command(a):
        click.echo(a)

    assert CliRunner().invoke(command, ["--a.b", "1"]).output == '{"b": 1}\n'
    assert "No such option" in CliRunner().invoke(command, ["--c.b", "1"]).output
