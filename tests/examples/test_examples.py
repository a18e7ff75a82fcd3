"""Each example runs as its docstring says, and shows what it is there to show."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.commands import PATIENCE

EXAMPLES = Path(__file__).parents[2] / "examples"

# What follows from the code alone, not from the machine or the model's words.
SHOWN = {
    "01_kv_cache.py": [
        "B: 65 tokens  [ 0 shared] [ 1 shared] [ 2 shared] [ 4       ] [ 5       ]",
        "found 48, computed 17",
        "lru   s2 s1 s0 t2 t1 t0 u1 u0",
        "lfu   t2 t1 t0 u1 u0 s2 s1 s0",
        "fifo  u1 u0 s2 s1 s0 t2 t1 t0",
        "in blocks of 16                      2,224",
    ],
    "02_continuous_batching.py": [
        "A  15 in, 30 out █─────────────────────────────",
        "E  62 in, 10 out         ▓▓█───────✗  ▒─",
        "chunks of 21, 21, 20",
        "continuous   37 steps",
        "static       49 steps",
        "The output tokens are equal: yes",
    ],
    "03_paged_attention.py": [
        "A's new token is at position 699 = 43 * 16 + 11",
        "bit for bit: yes",
        "padded to the longest   2,800",
    ],
    "04_serving.py": [
        "step 12  D joins",
        "step 16  B ends: abort",
        "step 19  A ends: length",
        "Seed 7, alone and in a batch of 16: equal tokens: yes",
    ],
}


def test_every_example_is_tested():
    assert {path.name for path in EXAMPLES.glob("*.py")} == SHOWN.keys()


@pytest.mark.parametrize("name", SHOWN)
def test_an_example_runs_and_shows_what_it_teaches(name, tmp_path):
    result = subprocess.run(
        [sys.executable, "-X", "utf8", EXAMPLES / name],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        encoding="utf-8",
        timeout=PATIENCE,
    )
    assert result.returncode == 0, result.stderr
    assert [line for line in SHOWN[name] if line not in result.stdout] == []


@pytest.mark.parametrize("name", SHOWN)
def test_an_example_says_how_it_is_run_and_what_to_read_next(name):
    source = (EXAMPLES / name).read_text(encoding="utf-8")
    docstring = source.split('"""')[1]
    assert f"Run: python examples/{name}" in docstring
    package = EXAMPLES.parent / "src" / "minimal_vllm"
    named = docstring.partition("Read next: ")[2].partition("\nRun:")[0].split()
    files = [word.strip(",.") for word in named if word.strip(",.").endswith(".py")]
    assert files
    assert [file for file in files if not (package / file).is_file()] == []
