"""The engine never waits for a viewer, and a viewer that was too slow starts again."""

import asyncio
from contextlib import aclosing

from minimal_vllm_lab.view import feed as feed_module
from minimal_vllm_lab.view.feed import Feed


def make_feed():
    """Return a feed that numbers its greetings."""
    count = 0

    def greet(viewer):
        nonlocal count
        count += 1
        feed.admit(viewer, b"greeting %d\n" % count)

    feed = Feed(greet)
    return feed


def test_a_viewer_gets_its_greeting_and_all_that_is_published_after_it():
    async def run():
        feed = make_feed()
        feed.publish(b"too early\n")
        async with aclosing(feed.lines()) as lines:
            assert await anext(lines) == b"greeting 1\n"
            feed.publish(b"a\n")
            feed.publish(b"b\n")
            assert await anext(lines) == b"a\nb\n"

    asyncio.run(run())


def test_a_viewer_that_reads_too_slowly_gets_a_fresh_greeting(monkeypatch):
    monkeypatch.setattr(feed_module, "MAX_BYTES", 10)

    async def run():
        feed = make_feed()
        async with aclosing(feed.lines()) as slow, aclosing(feed.lines()) as quick:
            assert [await anext(slow), await anext(quick)] == [b"greeting 1\n", b"greeting 2\n"]
            for _ in range(5):
                feed.publish(b"a line\n")
                assert await anext(quick) == b"a line\n"
            assert await anext(slow) == b"greeting 3\n"
            feed.publish(b"again\n")
            assert await anext(slow) == b"again\n"

    asyncio.run(run())


def test_records_need_to_be_encoded_only_while_there_are_viewers():
    async def run():
        feed = make_feed()
        assert not feed.is_watched
        async with aclosing(feed.lines()) as lines:
            await anext(lines)
            assert feed.is_watched
        assert not feed.is_watched

    asyncio.run(run())


def test_all_viewers_end_when_the_server_does():
    async def run():
        feed = make_feed()
        lines = feed.lines()
        await anext(lines)
        feed.publish(b"last\n")
        feed.close()
        assert [each async for each in lines] == [b"last\n"]

    asyncio.run(run())
