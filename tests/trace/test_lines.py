import json

import pytest

from minimal_vllm.trace.lines import (
    EndRecord,
    Header,
    LineEncoder,
    TextsRecord,
    decode,
    decode_header,
    encode,
    encode_header,
)
from minimal_vllm.trace.step_record import (
    AbortRecord,
    PlanRecord,
    RequestRecord,
    ResetRecord,
    ScheduledRecord,
    StepRecord,
)
from tests.trace.records import FACTS, step_record

RECORDS = [
    RequestRecord("a", 1, 2.5, (3, 4), -1, {"max_tokens": 8}),
    AbortRecord("a"),
    ResetRecord(),
    PlanRecord(3, (ScheduledRecord("a", 0, 2, (1,), (2,)),), ("a",)),
    step_record(scheduled=(ScheduledRecord("a", 0, 2, (1,), (2,), (9, 8), ("ff",), 1, 2, 1),)),
    TextsRecord({3: " the", 4: "\n"}),
    EndRecord("full"),
]


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: type(record).__name__)
def test_a_record_survives_being_written_and_read(record):
    line = encode(record)
    assert line.count(b"\n") == 1
    assert decode(line) == record


def test_the_header_survives_being_written_and_read():
    header = Header(engine=FACTS)
    assert decode_header(encode_header(header)) == header


def test_the_format_and_version_come_first_in_the_file():
    assert encode_header(Header(engine=FACTS)).startswith(
        b'{"format":"minimal-vllm-trace","version":2'
    )


def test_fields_that_have_their_default_take_no_room():
    assert json.loads(encode(RequestRecord("a", 1, 2.5, ()))).keys() == {
        *("kind", "request_id", "arrival", "arrived", "prompt_token_ids")
    }


def test_fields_of_a_later_program_are_passed_over():
    line = json.loads(encode(AbortRecord("a"))) | {"why": "later"}
    assert decode(json.dumps(line).encode()) == AbortRecord("a")


@pytest.mark.parametrize("line", [b"", b"[]", b"{}", b'{"kind": "else"}', b'{"kind": "abort"}'])
def test_what_is_no_record_is_refused(line):
    with pytest.raises(ValueError):
        decode(line)


def test_each_tokens_text_is_written_once_and_before_its_use():
    encoder = LineEncoder(lambda token_id: f"<{token_id}>")
    first = encoder.encode(RequestRecord("a", 1, 2.5, (3, 4, 3))).splitlines()
    assert decode(first[0]) == TextsRecord({3: "<3>", 4: "<4>"})
    scheduled = (ScheduledRecord("a", 0, 3, sampled_tokens=(4,)), ScheduledRecord("b", 0, 3))
    assert len(encoder.encode(step_record(scheduled=scheduled)).splitlines()) == 1
    encoder.forget()
    assert len(encoder.encode(step_record(scheduled=scheduled)).splitlines()) == 2


def test_without_a_tokenizer_no_texts_are_written():
    assert LineEncoder(None).encode(RequestRecord("a", 1, 2.5, (3,))).count(b"\n") == 1


def test_a_step_record_on_its_own_is_small():
    entries = tuple(ScheduledRecord(str(i), 100, 1, sampled_tokens=(i,)) for i in range(100))
    assert len(encode(step_record(scheduled=entries))) < 100 * 80 + 500
    assert isinstance(decode(encode(step_record(scheduled=entries))), StepRecord)
