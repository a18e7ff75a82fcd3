"""``minimal-vllm serve``: what a server's process does before it serves."""

import gc

from minimal_vllm.cli.serve import run_service
from minimal_vllm.server import http_server


def test_the_garbage_collector_does_not_walk_what_was_there_before_the_server(monkeypatch):
    counts = []

    async def serve(service, listener, on_ready):
        counts.append(gc.get_freeze_count())

    monkeypatch.setattr(http_server, "serve", serve)
    run_service(None, None, lambda: None)
    assert counts[0] > 10_000
    assert gc.get_freeze_count() == 0
