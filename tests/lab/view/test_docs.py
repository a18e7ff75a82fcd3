"""docs/view.md and docs/trace-format.md are correct."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from minimal_vllm.trace.lines import ADAPTERS, decode, decode_header
from minimal_vllm.trace.step_record import StepRecord
from tests.markdown import ROOT, broken_links, code_blocks, read
from tests.server.harness import ENVIRONMENT

SIZES = ("1280", "1920")
VIEW, FORMAT = read("docs/view.md"), read("docs/trace-format.md")


@pytest.mark.parametrize("page", ["docs/view.md", "docs/trace-format.md"])
def test_every_link_resolves(page):
    assert broken_links(page) == []


def test_the_pictures_show_both_themes_and_both_sizes():
    shown = re.findall(r"\]\(images/view-(light|dark)-(\d+)\.png\)", VIEW)
    assert set(shown) == {(scheme, width) for scheme in ("light", "dark") for width in SIZES}
    for scheme, width in shown:
        with Image.open(ROOT / "docs" / "images" / f"view-{scheme}-{width}.png") as image:
            assert image.size[0] == int(width)


@pytest.mark.parametrize("command", code_blocks(VIEW, "bash"))
def test_a_command_runs(command, tmp_path):
    scripts = str(Path(sys.executable).parent)
    environment = {**ENVIRONMENT, "PATH": os.pathsep.join([scripts, os.environ["PATH"]])}
    subprocess.run(["bash", "-euc", command], cwd=tmp_path, env=environment, check=True)
    assert list(tmp_path.iterdir())


def test_the_example_lines_can_be_decoded():
    header, step = code_blocks(FORMAT, "json")
    assert decode_header(header.encode()).engine.num_blocks == 32
    assert isinstance(decode(step.encode()), StepRecord)


def test_all_kinds_of_lines_are_listed():
    assert set(re.findall(r"^\| `(\w+)` \|", FORMAT, re.M)) == ADAPTERS.keys()


def test_all_keys_of_the_page_are_listed():
    controls = read("src/minimal_vllm_lab/view/page/controls.js")
    (table,) = re.findall(r"const keys = \{(.*?)\};", controls, re.S)
    keys = {each.strip('"') for each in re.findall(r'("[^"]+"|\w+): "', table)}
    names = {
        " ": "space",
        "ArrowRight": "→",
        "ArrowLeft": "←",
        "Escape": "Esc",
        "-": "\N{MINUS SIGN}",
    }
    section = VIEW.partition("## Time")[2].partition("## Traffic")[0]
    shown = re.findall(r"^\| ([^|]+) \|", section, re.M)
    listed = {key for cell in shown for key in re.split(r"[, ]+", cell)}
    assert {names.get(key, key) for key in keys} <= listed
