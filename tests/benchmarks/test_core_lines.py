"""The core stays small enough to read, and nothing that belongs to it is left uncounted."""

import subprocess
import sys

import pytest

from benchmarks.core_lines import AROUND, CORE, LIMIT, PACKAGE, code_lines, count, kernels
from tests.markdown import ROOT, read

FILES = [file for files in CORE.values() for file in files]


def test_the_core_stays_below_its_limit():
    assert count(FILES)[0] < LIMIT


def test_no_file_is_counted_twice():
    everything = [*FILES, *AROUND, *kernels()]
    assert len(set(everything)) == len(everything)


def test_all_files_of_the_tour_are_counted():
    tour = read("ARCHITECTURE.md").partition("## The tour of an evening")[2].partition("\n## ")[0]
    rows = [line.split("`")[1] for line in tour.splitlines() if line.startswith("| `")]
    assert len(rows) > 10
    assert set(rows) - {*FILES, *AROUND} == set()


PROGRAM = """
import sys
from minimal_vllm import LLM, SamplingParams
llm, entered = LLM(num_gpu_blocks_override=64, attention_backend=sys.argv[1]), set()
sys.setprofile(lambda frame, event, argument: entered.add(frame.f_code.co_filename))
every = dict(temperature=0.7, top_p=0.9, stop=["!"], logprobs=2, presence_penalty=0.1)
llm.generate(["The sea", "A storm"], SamplingParams(**every, max_tokens=8), use_tqdm=False)
sys.setprofile(None)
print(*entered, sep="\\n")
"""


@pytest.mark.parametrize("backend", ["reference", "tiled"])
def test_a_request_enters_no_file_that_is_not_counted(backend):
    command = [sys.executable, "-c", PROGRAM, backend]
    entered = subprocess.check_output(command, encoding="utf-8", cwd=ROOT).splitlines()
    package = {
        file.removeprefix(f"{PACKAGE}/") for file in entered if file.startswith(str(PACKAGE))
    }
    assert len(package) > 20
    assert package - {*FILES, *AROUND} == set()


@pytest.mark.parametrize(
    ("source", "lines"),
    [
        ("a = 1\n\n\nb = 2  # more\n", 2),
        ("# nothing\n", 0),
        ('def f():\n    """One.\n\n    Two.\n    """\n    return 1\n', 2),
        ('a = """1\n2\n"""\n', 3),
        ("f(\n    1,\n\n    2,\n)\n", 4),
    ],
)
def test_a_line_of_code_is_one_that_holds_code(source, lines):
    assert code_lines(source) == lines
