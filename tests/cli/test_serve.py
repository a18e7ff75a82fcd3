"""``minimal-vllm serve``: what a server's process does before it serves."""

import gc

from click.testing import CliRunner

from minimal_vllm.cli.serve import run_service, serve
from minimal_vllm.server import http_server, run


def test_the_garbage_collector_does_not_walk_what_was_there_before_the_server(monkeypatch):
    counts = []

    async def count_frozen(service, listener, on_ready):
        counts.append(gc.get_freeze_count())

    monkeypatch.setattr(http_server, "serve", count_frozen)
    run_service(None, None, lambda: None)
    assert counts[0] > 10_000
    assert gc.get_freeze_count() == 0


def test_garbage_is_collected_while_it_serves_and_not_before(monkeypatch):
    collected = []

    async def note(service, listener, on_ready):
        collected.append(gc.isenabled())

    def load(*args, **options):
        collected.append(gc.isenabled())
        raise ValueError("no model")

    monkeypatch.setattr(http_server, "serve", note)
    gc.disable()
    run_service(None, None, lambda: None)
    monkeypatch.setattr(run, "make_service", load)
    assert str(CliRunner().invoke(serve, ["--port=0", "--device=cpu"]).exception) == "no model"
    assert collected == [True, False]
    assert gc.isenabled()
