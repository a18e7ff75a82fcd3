import os
import subprocess
import sys
from pathlib import Path

import pytest

from minimal_vllm.runner import compilers
from minimal_vllm.runner.compilers import (
    Compilers,
    end_compilers,
    running_compilers,
    start_compilers,
)

PROGRAM = Path(__file__).parent / "compile_kernels.py"


def test_what_other_processes_compile_is_found_in_the_cache(tmp_path):
    pytest.importorskip("triton")
    variables = {"TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)}
    output = subprocess.run(
        [sys.executable, str(PROGRAM)],
        env={**os.environ, **variables},
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    ).stdout
    assert output.splitlines() == ["found", "found"]


class NoKernel:
    def compile(self):
        raise NotImplementedError


@pytest.fixture
def without_program(monkeypatch):
    monkeypatch.setattr(compilers.sys, "executable", "/bin/false")
    yield
    end_compilers()


@pytest.mark.usefixtures("without_program")
def test_nobody_waits_for_a_program_that_has_ended():
    program = Compilers()
    for _ in range(2):
        program.compile(NoKernel())
    program.close()
    program.compile(NoKernel())


@pytest.mark.usefixtures("without_program")
@pytest.mark.parametrize("variable", ["TRITON_CACHE_DIR", "TRITON_HOME"])
def test_a_start_is_the_first_while_triton_has_no_kernels(variable, tmp_path, monkeypatch):
    monkeypatch.delenv("TRITON_CACHE_DIR", raising=False)
    monkeypatch.setenv(variable, str(tmp_path))
    start_compilers()
    assert running_compilers() is not None
    end_compilers()
    assert running_compilers() is None
    (tmp_path / ".triton" / "cache" / "a kernel").mkdir(parents=True)
    start_compilers()
    assert running_compilers() is None
