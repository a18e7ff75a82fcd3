from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from minimal_vllm import LLM
from minimal_vllm.cli.main import main

FEW_BLOCKS = "--num-gpu-blocks-override=64"
"""1,024 tokens: all that the tests need, and made at once."""


@pytest.fixture(scope="session")
def model(checkpoint) -> Path:
    return checkpoint("llama")


@pytest.fixture(scope="session")
def llm(model):
    """The same model, to compare with."""
    return LLM(str(model), num_gpu_blocks_override=64)


@pytest.fixture
def run(model):
    """Run a command on the tiny model, in this process."""

    def run(command: str, *arguments: str, stdin: str | bytes | None = None) -> Result:
        options = [f"--model={model}", FEW_BLOCKS]
        return CliRunner().invoke(main, [command, *options, *arguments], input=stdin)

    return run
