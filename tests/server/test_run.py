"""How many processes speak HTTP, unless that is said."""

import pytest
import torch

from minimal_vllm.server import run
from minimal_vllm.server.config import ServerConfig


@pytest.mark.parametrize(
    ("device", "cores", "options", "expected"),
    [
        ("cpu", 64, {}, 0),
        ("cuda", 64, {}, 4),
        ("cuda", 8, {}, 2),
        ("cuda", 2, {}, 1),
        ("cuda", None, {}, 1),
        ("cuda", 64, {"view": True}, 0),
        ("cpu", 2, {"api_server_count": 3}, 3),
        ("cuda", 64, {"api_server_count": 0}, 0),
    ],
)
def test_a_gpu_s_engine_has_its_process_to_itself_and_a_cpu_s_shares_it(
    monkeypatch, device, cores, options, expected
):
    monkeypatch.setattr(run, "choose_device", torch.device)
    monkeypatch.setattr(run.os, "cpu_count", lambda: cores)
    assert run.choose_num_processes(ServerConfig(**options), device) == expected
