"""The fixtures of the engine's own commands."""

from tests.cli.conftest import llm, model, run

__all__ = ["llm", "model", "run"]
