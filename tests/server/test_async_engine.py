"""The bridge between event loop and engine thread, without HTTP."""

import asyncio
from contextlib import aclosing, asynccontextmanager
from threading import Event, get_ident

import pytest

from minimal_vllm import SamplingParams
from minimal_vllm.outputs import OutputKind
from minimal_vllm.server.engine_client import (
    EngineFailedError,
    EngineRequest,
    EngineStoppedError,
    RequestRefusedError,
)
from tests.server.harness import FEW_BLOCKS, PATIENCE, Gate, make_demo_service, metric, until

LONG = SamplingParams(temperature=0, max_tokens=1000, ignore_eos=True)
MEDIUM = SamplingParams(temperature=0, max_tokens=200, ignore_eos=True)
SHORT = SamplingParams(temperature=0, max_tokens=5, ignore_eos=True)


def request(name="a", params=SHORT, tokens=(5, 6, 7), kind=OutputKind.DELTA):
    return EngineRequest(name, list(tokens), params, kind)


@asynccontextmanager
async def started(gate=None, **options):
    service = make_demo_service(gate, **options)
    await service.engine.start()
    try:
        yield service
    finally:
        if gate:
            gate.open()
        await service.engine.stop()
        assert not service.engine._engine_loop._thread.is_alive()


def scheduler_of(service):
    return service.llm.engine.scheduler


async def until_clean(service):
    """Wait until nothing runs, and prove that nothing is left of it."""
    scheduler = scheduler_of(service)
    await until(lambda: not scheduler.has_work and service.engine.num_waiting == 0)
    scheduler.check()
    assert scheduler.pool.num_free == FEW_BLOCKS
    assert service.engine._engine_loop._owners == {}
    assert service.metrics._timelines == {}


def num_aborted(service):
    text = service.metrics.text().decode()
    return metric(text, "vllm:request_success_total", finished_reason="abort")


async def collect(service, *requests):
    tokens = {place: [] for place in range(len(requests))}
    async for place, output in service.engine.generate(requests):
        tokens[place] += output.outputs[0].token_ids
    return tokens


def test_outputs_of_several_requests_come_with_their_places(llm):
    async def run():
        async with started() as service:
            tokens = await collect(service, request("a"), request("b", tokens=[9, 8]))
            await until_clean(service)
            alone = llm.generate([[5, 6, 7], [9, 8]], SHORT, use_tqdm=False)
            assert list(tokens.values()) == [each.outputs[0].token_ids for each in alone]

    asyncio.run(run())


def test_the_event_loop_is_called_once_a_step_however_many_tokens_it_gave():
    async def run():
        async with started() as service:
            calls = []
            loop = service.engine._outlet._loop
            original = loop.call_soon_threadsafe

            def count(function, *arguments):
                if function.__name__ == "_put_all":
                    calls.append(len(arguments[0]))
                return original(function, *arguments)

            counting = type("Loop", (), {"call_soon_threadsafe": staticmethod(count)})
            service.engine._outlet._loop = counting
            await collect(service, *(request(str(number)) for number in range(20)))
            assert calls == [20] * 5

    asyncio.run(run())


def test_requests_of_a_client_that_is_gone_are_not_added():
    """An HTTP process may be killed while a grammar is compiled for its request."""

    async def run():
        async with started() as service:
            loop, outlet = service.engine._engine_loop, service.engine._outlet
            seen = asyncio.get_running_loop().create_future()

            def look():
                outlet._loop.call_soon_threadsafe(seen.set_result, loop.num_waiting)

            loop.disconnect(outlet)
            loop.add([request(params=LONG)], outlet, "call")
            loop.between_steps(look)
            assert await seen == 0
            await until_clean(service)

    asyncio.run(run())


def test_the_engine_runs_in_one_thread_that_is_not_the_event_loop_s():
    async def run():
        threads = set()
        async with started() as service:
            step = service.llm.engine.step
            service.llm.engine.step = lambda: threads.add(get_ident()) or step()
            await collect(service, request())
        assert len(threads) == 1
        assert get_ident() not in threads

    asyncio.run(run())


def test_an_idle_engine_waits_and_does_not_spin():
    async def run():
        async with started() as service:
            steps = []
            step = service.llm.engine.step
            service.llm.engine.step = lambda: steps.append(1) or step()
            await collect(service, request())
            await until_clean(service)
            before = len(steps)
            await asyncio.sleep(0.2)
            assert len(steps) == before <= 7

    asyncio.run(run())


@pytest.mark.parametrize("kind", [OutputKind.DELTA, OutputKind.FINAL_ONLY])
def test_an_abandoned_request_is_aborted_in_every_state(kind):
    """In the inbox, in the queue, while its prompt is computed, and while it decodes."""

    async def run():
        gate = Gate()
        options = {"max_num_seqs": 2, "max_num_batched_tokens": 16}
        async with started(gate, **options) as service:
            scheduler = scheduler_of(service)

            def start(*requests):
                return asyncio.create_task(collect(service, *requests))

            gate.shut()
            decoding = start(request("decoding", LONG, kind=kind))
            await gate.wait_until_held()
            prefilling = start(request("prefilling", LONG, range(100, 900), kind))
            await until(lambda: service.engine.num_waiting == 1)
            await gate.step()
            assert len(scheduler.running) == 2
            assert 0 < scheduler.running[1].num_computed_tokens < 800
            queued = start(request("queued", LONG, kind=kind))
            await until(lambda: service.engine.num_waiting == 1)
            await gate.step()
            assert len(scheduler.waiting) == 1
            in_inbox = start(request("in inbox", LONG, kind=kind))
            await until(lambda: service.engine.num_waiting == 2)
            for task in (in_inbox, queued, prefilling, decoding):
                task.cancel()
            await asyncio.gather(in_inbox, queued, prefilling, decoding, return_exceptions=True)
            gate.open()
            await until_clean(service)
            assert num_aborted(service) == 4
            assert len((await collect(service, request()))[0]) == 5

    asyncio.run(run())


def test_a_reader_that_stops_early_aborts_the_rest():
    async def run():
        gate = Gate()
        async with started(gate) as service:
            gate.shut()
            async with aclosing(
                service.engine.generate([request("a", LONG), request("b", LONG)])
            ) as outputs:
                first = asyncio.create_task(anext(outputs))
                await gate.wait_until_held()
                await gate.step()
                await first
            gate.open()
            await until_clean(service)
            assert num_aborted(service) == 2

    asyncio.run(run())


def test_a_slow_reader_delays_no_other_and_misses_nothing():
    async def run():
        async with started() as service:
            slow = service.engine.generate([request("slow", MEDIUM)])
            first = await anext(slow)
            tokens = [*first[1].outputs[0].token_ids]
            await collect(service, request("quick"))
            await until(lambda: not scheduler_of(service).has_work)  # though nobody reads
            async for _, output in slow:
                tokens += output.outputs[0].token_ids
            assert len(tokens) == 200

    asyncio.run(run())


def test_of_a_batch_all_are_refused_or_none():
    async def run():
        async with started() as service:
            with pytest.raises(RequestRefusedError, match="prompt is empty"):
                await collect(service, request("good", LONG), request("bad", tokens=[]))
            await until_clean(service)

    asyncio.run(run())


def test_a_request_that_can_t_be_added_ends_with_the_reason_and_the_engine_goes_on():
    async def run():
        async with started() as service:
            admission = service.llm.engine._admission

            def fail(*arguments):
                del admission.make_requests
                raise RuntimeError("out of luck")

            admission.make_requests = fail
            with pytest.raises(EngineFailedError, match="RuntimeError: out of luck"):
                await collect(service, request())
            await until_clean(service)
            assert service.engine.refusal is None
            assert len((await collect(service, request()))[0]) == 5

    asyncio.run(run())


def test_an_id_is_free_again_at_once():
    async def run():
        async with started() as service:
            for _ in range(20):
                async with aclosing(service.engine.generate([request("same", LONG)])) as outputs:
                    await anext(outputs)
                assert len((await collect(service, request("same")))[0]) == 5
            with pytest.raises(RequestRefusedError, match="the same id"):
                await collect(service, request("same"), request("same"))

    asyncio.run(run())


def test_a_late_abort_does_not_hit_the_next_request_of_that_id():
    async def run():
        gate = Gate()
        async with started(gate) as service:
            gate.shut()
            one_token = SamplingParams(max_tokens=1)
            first = asyncio.create_task(collect(service, request("same", one_token)))
            await gate.wait_until_held()  # the first has ended, but does not know it yet
            second = asyncio.create_task(collect(service, request("same")))
            await until(lambda: service.engine.num_waiting == 1)
            first.cancel()
            await asyncio.wait({first})
            gate.open()
            assert len((await asyncio.wait_for(second, PATIENCE))[0]) == 5

    asyncio.run(run())


def test_a_failed_step_ends_its_requests_with_the_reason_and_the_engine_goes_on():
    async def run():
        async with started() as service:
            runner = service.llm.engine._runner
            original = runner.launch

            def fail(plan):
                runner.launch = original
                raise RuntimeError("out of luck")

            runner.launch = fail
            with pytest.raises(EngineFailedError, match="RuntimeError: out of luck"):
                await collect(service, request())
            await until_clean(service)
            assert service.engine.refusal is None
            assert len((await collect(service, request()))[0]) == 5

    asyncio.run(run())


def test_if_the_loop_dies_its_requests_end_and_no_more_are_taken():
    async def run():
        async with started() as service:

            def fail():
                raise RuntimeError("all is lost")

            scheduler_of(service).schedule = fail
            with pytest.raises(EngineFailedError, match="has died: RuntimeError: all is lost"):
                await collect(service, request())
            await asyncio.wait_for(service.engine.wait_until_dead(), PATIENCE)
            with pytest.raises(EngineFailedError, match="all is lost"):
                await collect(service, request())

    asyncio.run(run())


def test_draining_takes_no_more_and_tells_when_the_last_has_ended():
    async def run():
        gate = Gate()
        async with started(gate) as service:
            gate.shut()
            running = asyncio.create_task(collect(service, request(params=MEDIUM)))
            await gate.wait_until_held()
            service.engine.refuse(EngineStoppedError("closing"))
            with pytest.raises(EngineStoppedError, match="closing"):
                await collect(service, request("late"))
            gate.open()
            await asyncio.wait_for(service.engine.wait_until_idle(), PATIENCE)
            assert len((await running)[0]) == 200

    asyncio.run(run())


def test_those_that_do_not_end_in_time_are_ended_with_the_reason():
    async def run():
        gate = Gate()
        async with started(gate) as service:
            gate.shut()
            running = asyncio.create_task(collect(service, request(params=LONG)))
            await gate.wait_until_held()
            service.engine.end_all(EngineStoppedError("time is up"))
            with pytest.raises(EngineStoppedError, match="time is up"):
                await running
            gate.open()
            await until_clean(service)
            assert num_aborted(service) == 1

    asyncio.run(run())


def test_the_event_loop_runs_while_a_step_does():
    async def run():
        gate = Gate()
        async with started(gate) as service:
            gate.shut()
            task = asyncio.create_task(collect(service, request()))
            await gate.wait_until_held()  # the engine's thread is held: this coroutine goes on
            assert not task.done()
            gate.open()
            await task

    asyncio.run(run())


def test_a_long_text_is_tokenized_while_others_are_served():
    async def run():
        async with started() as service:
            tokenizer = service.llm.tokenizer
            begun, may_end = Event(), Event()
            encode = tokenizer.encode_batch

            def slow(texts, **options):
                begun.set()
                assert may_end.wait(PATIENCE)
                return encode(texts, **options)

            tokenizer.encode_batch = slow
            tokenizing = asyncio.create_task(service.encode(["text"], add_special_tokens=True))
            await until(begun.is_set)
            assert len((await collect(service, request()))[0]) == 5
            assert not tokenizing.done()
            may_end.set()
            assert await tokenizing == encode(["text"])

    asyncio.run(run())


def test_token_ids_wait_for_no_tokenizer():
    async def run():
        service = make_demo_service()

        def fail(texts, **options):
            raise AssertionError("there is no text to tokenize")

        service.llm.tokenizer.encode_batch = fail
        prompts = [[5, 6, 7], [9, 8]]
        assert await service.encode(prompts, add_special_tokens=True) == prompts

    asyncio.run(run())


def test_idle_work_is_done_while_no_request_is_there():
    done, seen = [], []

    def idle_work():
        for piece in range(3):
            done.append(piece)
            yield

    async def run():
        service = make_demo_service()
        loop = service.engine._engine_loop
        loop._idle_work = idle_work()
        loop.between_steps(lambda: seen.append(len(done)))  # comes before the first piece
        loop.between_steps(lambda: seen.append(len(done)))
        await service.engine.start()
        try:
            tokens = await collect(service, request())
            assert len(tokens[0]) == SHORT.max_tokens
            await until(lambda: len(done) == 3)
        finally:
            await service.engine.stop()

    asyncio.run(run())
    assert seen[1] - seen[0] <= 1  # a command waits for one piece
