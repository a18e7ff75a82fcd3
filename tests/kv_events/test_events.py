"""What a router of others learns: a reader of vLLM's format follows the prefix cache."""

import logging
from contextlib import closing
from hashlib import sha256
from random import Random
from typing import Any

import msgspec
import pytest
import zmq

from minimal_vllm import LLM, SamplingParams
from minimal_vllm.engine.scheduler import Scheduler
from minimal_vllm.kv_events.source import KvEventSource, external_hash
from tests.engine.test_traffic import add_windows, random_config, run_randomly
from tests.engine.traffic import Traffic, guessing_scheduler

GREEDY = SamplingParams(max_tokens=4, temperature=0)


# The reader's own idea of the format, from vLLM's documentation of it.
class Event(msgspec.Struct, omit_defaults=True, tag=True):
    pass


class BlockStored(Event):
    block_hashes: list[bytes | int]
    parent_block_hash: bytes | int | None
    token_ids: list[int]
    block_size: int
    lora_id: int | None
    medium: str | None
    lora_name: str | None
    extra_keys: list[tuple[Any, ...] | None] | None = None
    group_idx: int | None = None
    kv_cache_spec_kind: str | None = None
    kv_cache_spec_sliding_window: int | None = None


class BlockRemoved(Event):
    block_hashes: list[bytes | int]
    medium: str | None
    group_idx: int | None = None


class AllBlocksCleared(Event):
    pass


class Batch(msgspec.Struct, array_like=True, omit_defaults=True):
    ts: float
    events: list[BlockStored | BlockRemoved | AllBlocksCleared]
    data_parallel_rank: int | None = None


class Index:
    """The blocks of one server, as a router keeps them: by group and hash."""

    def __init__(self):
        self.held = set()
        self.contents = {}
        """(salt, tokens) of the whole prefix up to a block, by group and hash."""

    def take(self, payload):
        for event in msgspec.msgpack.decode(payload, type=Batch).events:
            match event:
                case BlockStored():
                    self._store(event)
                case BlockRemoved():
                    self.held -= {(event.group_idx, each) for each in event.block_hashes}
                case AllBlocksCleared():
                    self.held.clear()

    def _store(self, event):
        assert len(event.token_ids) == len(event.block_hashes) * event.block_size
        assert len(event.extra_keys) == len(event.block_hashes)
        salt, tokens = self.contents.get((0, event.parent_block_hash), ("", ()))
        for index, name in enumerate(event.block_hashes):
            start = index * event.block_size
            salt = (event.extra_keys[index] or (salt,))[0]
            tokens = (*tokens, *event.token_ids[start : start + event.block_size])
            self.held.add((event.group_idx, name))
            self.contents[event.group_idx, name] = salt, tokens


def names_in(pool):
    """What the pool really holds, under the names of the events."""
    hashes = pool.hashes.values()
    return {((each[32:] or b"\0")[0], external_hash(each[:32])) for each in hashes}


def watched(seed, scheduler, async_scheduling, has_windows):
    random = Random(seed)
    config = random_config(random)
    if has_windows:
        config = add_windows(random, config)
    index, payloads = Index(), []
    traffic = Traffic(scheduler=scheduler, async_scheduling=async_scheduling, **config)
    source = KvEventSource(traffic.config, lambda batch: payloads.append(encode(batch)))
    traffic.pool.watchers.append(source)
    run_randomly(random, traffic)
    source(None)  # what happened after the last step
    for payload in payloads:
        index.take(payload)
    return traffic, index


encode = msgspec.msgpack.encode


@pytest.mark.parametrize("has_windows", [False, True])
@pytest.mark.parametrize(
    ("scheduler", "ahead"), [(Scheduler, False), (Scheduler, True), (guessing_scheduler, False)]
)
def test_a_reader_knows_what_the_pool_holds_whatever_happens(scheduler, ahead, has_windows, caplog):
    caplog.set_level(logging.CRITICAL, "minimal_vllm")
    num_removed = 0
    for seed in range(25):
        traffic, index = watched(seed, scheduler, ahead, has_windows)
        assert index.held == names_in(traffic.pool)
        num_removed += len(index.contents) - len(index.held)
    assert num_removed > 50


def test_a_reader_can_compute_the_hashes_from_the_tokens_and_the_salt():
    num_blocks = 0
    for seed in range(20):
        traffic, index = watched(seed, Scheduler, async_scheduling=False, has_windows=False)
        size = traffic.config.block_size
        for (_, name), (salt, tokens) in index.contents.items():
            digest = sha256(salt.encode()).digest()
            for start in range(0, len(tokens), size):
                block = b"".join(
                    each.to_bytes(4, "little") for each in tokens[start : start + size]
                )
                digest = sha256(digest + block).digest()
            assert name == int.from_bytes(digest[-8:], "big")
            num_blocks += 1
    assert num_blocks > 100


def test_a_reset_clears_everything():
    payloads = []
    traffic = Traffic(8, block_size=2, max_model_len=16)
    source = KvEventSource(traffic.config, lambda batch: payloads.append(encode(batch)))
    traffic.pool.watchers.append(source)
    traffic.add([1, 2, 3, 4, 5], max_tokens=1)
    traffic.step()
    traffic.engine.reset()
    source(None)
    assert msgspec.msgpack.decode(payloads[-1])[1][-1] == {"type": "AllBlocksCleared"}
    assert traffic.engine.scheduler.pool.watchers == [source]  # in the new pool, too


# ---- over ZeroMQ ---------------------------------------------------------------------------------


def events_to(folder, **options):
    return {
        "enable_kv_cache_events": True,
        "endpoint": f"ipc://{folder}/events",
        "replay_endpoint": f"ipc://{folder}/replay",
        "topic": "kv@here",
        **options,
    }


def small_llm(checkpoint, **options):
    return LLM(str(checkpoint("llama")), num_gpu_blocks_override=8, max_model_len=64, **options)


def test_batches_arrive_in_vllms_form_and_missed_ones_are_replayed(checkpoint, tmp_path):
    llm = small_llm(checkpoint, block_size=8, kv_events_config=events_to(tmp_path))
    prompts = [{"prompt_token_ids": [first, *range(5, 35)]} for first in range(2, 5)]
    llm.generate(prompts[0], GREEDY, use_tqdm=False)  # before anyone listens
    with zmq.Context() as context, context.socket(zmq.SUB) as reader:
        reader.connect(f"ipc://{tmp_path}/events")
        reader.subscribe("kv@")
        wait_for_subscription(reader, llm, prompts[1])
        llm.generate(prompts[2], GREEDY, use_tqdm=False)
        messages = drain(reader)
        with closing(context.socket(zmq.DEALER)) as asking:
            asking.connect(f"ipc://{tmp_path}/replay")
            replayed = replay(asking, first=0)
            later = replay(asking, first=2)
    topics, numbers, payloads = zip(*messages, strict=True)
    assert set(topics) == {b"kv@here"}
    first = int.from_bytes(numbers[0], "big")
    assert [int.from_bytes(each, "big") for each in numbers] == [
        *range(first, first + len(numbers))
    ]
    assert first > 0
    assert [number for number, _ in replayed] == [*range(first + len(numbers))]
    assert replayed[2:] == later
    assert [payload for _, payload in replayed[first:]] == list(payloads)
    assert_like_vllms(msgspec.msgpack.decode(replayed[0][1]))
    index = Index()
    for _, payload in replayed:
        index.take(payload)
    assert index.held == names_in(llm.engine.scheduler.pool)
    assert len(index.contents) > len(index.held)  # some were evicted


def assert_like_vllms(batch):
    """As vLLM 0.26 was seen to send it."""
    seconds, events, rank = batch
    assert seconds > 1.7e9
    assert rank == 0
    (event,) = events
    assert {name: event[name] for name in event if name not in ("block_hashes", "token_ids")} == {
        "type": "BlockStored",
        "parent_block_hash": None,
        "block_size": 8,
        "lora_id": None,
        "medium": "GPU",
        "lora_name": None,
        "extra_keys": [None] * 3,
        "group_idx": 0,
        "kv_cache_spec_kind": "full_attention",
    }


def wait_for_subscription(reader, llm, prompt):
    """A publisher learns of its readers in time, and sends them nothing before."""
    for salt in range(100):
        llm.generate({**prompt, "cache_salt": str(salt)}, GREEDY, use_tqdm=False)
        if reader.poll(50):
            return
    raise AssertionError("no event arrived")


def drain(reader):
    messages = []
    while reader.poll(300):
        messages.append(reader.recv_multipart())
    return messages


def replay(asking, first):
    """All batches from a number on, as a DEALER asks: a REQ socket would take one answer only."""
    asking.send_multipart((b"", first.to_bytes(8, "big")))
    batches = []
    while asking.poll(5000):
        _, topic, number, payload = asking.recv_multipart()
        if int.from_bytes(number, "big", signed=True) == -1:
            assert (topic, payload) == (b"", b"")
            return batches
        batches.append((int.from_bytes(number, "big"), payload))
    raise AssertionError("the replay did not end")


@pytest.mark.parametrize("off", [None, {}, {"enable_kv_cache_events": False}])
def test_nothing_watches_the_pool_while_events_are_off(checkpoint, off):
    assert small_llm(checkpoint, kv_events_config=off).engine.scheduler.pool.watchers == []


def test_the_null_publisher_publishes_nothing(checkpoint, tmp_path):
    llm = small_llm(checkpoint, kv_events_config=events_to(tmp_path, publisher="null"))
    assert llm.engine.scheduler.pool.watchers == []


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"enable_prefix_caching": False}, "kv_events_config needs enable_prefix_caching"),
        ({"block_pool": "x.py:Pool"}, "needs the built-in block_pool and scheduler"),
        ({"kv_events_config": {"enabled": True}}, "kv_events_config.enabled is not a known"),
        ({"kv_events_config": {"publisher": "kafka"}}, "publisher: should be 'null' or 'zmq'"),
        (
            {"kv_events_config": {"enable_kv_cache_events": True, "endpoint": "*:1"}},
            r"kv_events_config: \*:1 can't be used",
        ),
    ],
)
def test_what_can_t_be_published_is_refused_in_one_sentence(
    checkpoint, tmp_path, options, sentence
):
    with pytest.raises(ValueError, match=sentence) as caught:
        small_llm(checkpoint, **{"kv_events_config": events_to(tmp_path), **options})
    assert "\n" not in str(caught.value)


def test_an_endpoint_can_be_used_again_once_its_engine_is_gone(checkpoint, tmp_path):
    config = events_to(tmp_path, endpoint="tcp://127.0.0.1:*", replay_endpoint="tcp://127.0.0.1:*")
    for _ in range(2):
        small_llm(checkpoint, kv_events_config=config)
