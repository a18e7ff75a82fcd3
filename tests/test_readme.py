"""The README tells the truth; ``tests/docs/test_commands.py`` runs what it shows to run."""

import re
import runpy
from dataclasses import fields

from click.testing import CliRunner

from minimal_vllm import LLM, SamplingParams
from minimal_vllm.cli.main import main
from minimal_vllm.model.registry import FAMILIES
from tests.markdown import ROOT, broken_links, code_blocks, read

TEXT = read("README.md")


def section(title):
    return TEXT.partition(f"# {title}\n")[2].partition("\n#")[0]


def test_every_link_resolves():
    assert broken_links("README.md") == []


def test_all_commands_of_the_tool_are_shown_and_have_help():
    for name in ("generate", "chat", "info", "simulate", "ablate"):
        assert any(f"minimal-vllm {name}" in block for block in code_blocks(TEXT, "bash"))
        assert CliRunner().invoke(main, [name, "--help"]).exit_code == 0


def test_what_make_demo_prints_is_what_is_shown():
    (demo,) = (block for block in code_blocks(TEXT, "text") if block.startswith("$ make demo"))
    command, text = demo.splitlines()[1:3]
    assert command.removeprefix(".venv/bin/") in read("Makefile")
    prompt = re.search(r'"(.*)"', command)[1]
    llm = LLM(device="cpu", num_gpu_blocks_override=128)
    # Rounding differs between machines, and in a long text it comes to light some day.
    params = SamplingParams(**llm.built.files.generation_config.sampling, max_tokens=8)
    (output,) = llm.generate(prompt, params, use_tqdm=False)
    assert text.startswith(output.outputs[0].text)


def test_the_chart_is_what_the_example_draws(capsys):
    (chart,) = (block for block in code_blocks(TEXT, "text") if not block.startswith("$"))
    runpy.run_path(str(ROOT / "examples" / "02_continuous_batching.py"), run_name="__main__")
    drawn = capsys.readouterr().out.splitlines()
    missing = {line.rstrip() for line in chart.splitlines()} - {line.rstrip() for line in drawn}
    assert missing == set()


def test_all_that_is_supported_is_listed_and_nothing_else():
    listed = set(re.findall(r"`(\w+)`", section("What is supported")))
    parameters = {field.name for field in fields(SamplingParams)}
    assert listed == parameters | FAMILIES.keys()
