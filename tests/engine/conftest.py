"""Small batches share, too: what they would save is less than a real engine begins with."""

import pytest

from minimal_vllm.engine import shared_prefix


@pytest.fixture(autouse=True)
def sharing_pays_always(monkeypatch):
    monkeypatch.setattr(shared_prefix, "LEAST_TOKENS", 0)
