"""What waits for a reader is one output per request, and nothing of it is lost."""

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minimal_vllm.outputs import CompletionOutput, FlatLogprobs, FlatPromptLogprobs, RequestOutput
from minimal_vllm.server.mailbox import Mailbox


def output(request_id, number, finish_reason=None):
    """The ``number``-th token of a request, with all that belongs to it."""
    completion = CompletionOutput(
        index=0,
        text=f"<{number}>",
        token_ids=[number],
        cumulative_logprob=-float(number),
        logprobs=FlatLogprobs(1, [number], [-1.0], [1]),
        finish_reason=finish_reason,
    )
    prompt_logprobs = FlatPromptLogprobs(FlatLogprobs()) if number == 0 else None  # given once
    finished = finish_reason is not None
    return RequestOutput(request_id, None, [7], prompt_logprobs, [completion], finished)


async def read_all(mailbox):
    """Outputs until one waits in vain."""
    outputs = []
    while mailbox._outputs or mailbox._error:
        outputs.append(await mailbox.get())
    return outputs


@given(st.lists(st.sampled_from(["a", "b", "read"]), max_size=30))
def test_each_request_s_tokens_come_once_in_their_order_whenever_one_reads(events):
    async def run():
        mailbox, sent, got = Mailbox(), {"a": 0, "b": 0}, {"a": [], "b": []}
        for event in [*events, "read"]:
            if event in sent:
                mailbox.put(output(event, sent[event]))
                sent[event] += 1
                continue
            outputs = await read_all(mailbox)
            assert len({each.request_id for each in outputs}) == len(outputs), "two of one request"
            for each in outputs:
                got[each.request_id].append(each)
        for request_id, count in sent.items():
            parts = [each.outputs[0] for each in got[request_id]]
            numbers = list(range(count))
            assert [token for part in parts for token in part.token_ids] == numbers
            assert "".join(part.text for part in parts) == "".join(f"<{n}>" for n in numbers)
            assert [list(entry) for part in parts for entry in part.logprobs] == [
                [n] for n in numbers
            ]
            given = [each.prompt_logprobs for each in got[request_id] if each.prompt_logprobs]
            assert given == ([[None]] if count else [])

    asyncio.run(run())


def test_the_end_is_merged_with_unread_outputs_before_it():
    async def run():
        mailbox = Mailbox()
        mailbox.put(output("a", 0))
        mailbox.put(output("a", 1, "length"))
        (only,) = await read_all(mailbox)
        assert only.finished
        assert only.outputs[0].finish_reason == "length"
        assert only.outputs[0].cumulative_logprob == -1

    asyncio.run(run())


def test_an_error_comes_after_all_that_was_computed_and_again_and_again():
    async def run():
        mailbox = Mailbox()
        mailbox.put(output("a", 0))
        mailbox.fail(ValueError("the first"))
        mailbox.fail(ValueError("the second"))
        assert (await mailbox.get()).outputs[0].token_ids == [0]
        for _ in range(2):
            with pytest.raises(ValueError, match="the first"):
                await mailbox.get()

    asyncio.run(run())


def test_a_reader_who_comes_first_waits():
    async def run():
        mailbox = Mailbox()
        reader = asyncio.create_task(mailbox.get())
        await asyncio.sleep(0)
        assert not reader.done()
        mailbox.put(output("a", 0))
        assert (await reader).request_id == "a"

    asyncio.run(run())
