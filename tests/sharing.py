"""A fixture that lets small batches share prefixes too, which a real engine leaves alone."""

import pytest

from minimal_vllm.step import shared_prefix


@pytest.fixture(autouse=True)
def sharing_pays_always(monkeypatch):
    monkeypatch.setattr(shared_prefix, "MIN_TOKENS", 0)
