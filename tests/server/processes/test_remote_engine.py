"""The engine's process as an HTTP process sees it, when it is gone."""

import asyncio
import socket

import pytest

from minimal_vllm.server.engine_client import EngineFailedError
from minimal_vllm.server.processes.remote_engine import RemoteEngine
from tests.server.harness import PATIENCE


@pytest.mark.parametrize("asked", ["before", "after"])
def test_who_asks_for_metrics_is_told_that_the_engine_s_process_has_ended(asked):
    async def run():
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        engine = RemoteEngine(ours, None)
        await engine.start()
        if asked == "before":
            question = asyncio.create_task(engine.render())
            await asyncio.sleep(0)
        theirs.close()
        await engine.wait_until_dead()
        if asked == "after":
            question = asyncio.create_task(engine.render())
        with pytest.raises(EngineFailedError, match="process has ended"):
            await asyncio.wait_for(question, PATIENCE)

    asyncio.run(run())
