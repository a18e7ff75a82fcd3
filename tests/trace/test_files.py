"""Traces are written within their bound, and what can't be read is explained."""

import json
import logging

import pytest

from minimal_vllm.trace.lines import EndRecord, Header, encode_header
from minimal_vllm.trace.step_record import (
    AbortRecord,
    PlanRecord,
    RequestRecord,
    ScheduledRecord,
)
from minimal_vllm.trace.writer import TraceWriter
from minimal_vllm_lab.trace.reader import TraceError, open_trace
from tests.trace.records import FACTS, step_record


def read(path):
    with open_trace(path) as (_, lines):
        return list(lines)


def write(path, records, max_bytes=10**6):
    writer = TraceWriter(path, max_bytes)
    writer.begin(FACTS, None)
    for record in records:
        writer(record)
    writer.close()


def test_what_is_recorded_is_what_is_read(tmp_path):
    path = tmp_path / "trace.jsonl"
    records = [RequestRecord("a", 1, 2.5, (3,)), step_record(0), step_record(1)]
    write(path, records)
    with open_trace(path) as (header, lines):
        assert header.engine == FACTS
        assert list(lines) == records


def test_a_full_trace_says_so_once_and_stays_within_its_bound(tmp_path, caplog):
    path = tmp_path / "trace.jsonl"
    with caplog.at_level(logging.WARNING):
        write(path, map(step_record, range(100)), max_bytes=5000)
    assert path.stat().st_size < 5200
    *records, end = read(path)
    assert isinstance(end, EndRecord)
    assert [record.step for record in records] == list(range(len(records)))
    assert [record.message for record in caplog.records] == [
        f"{path} is full: the trace ends here, the engine goes on"
    ]


def test_a_line_that_a_killed_process_left_unfinished_is_passed_over(tmp_path):
    path = tmp_path / "trace.jsonl"
    write(path, [step_record(0), step_record(1)])
    path.write_bytes(path.read_bytes()[:-20])
    assert [record.step for record in read(path)] == [0]


def entry(request_id, start, num_tokens):
    return ScheduledRecord(request_id, start, num_tokens)


A, B = (RequestRecord(name, number, 2.5, (3, 4, 5)) for number, name in enumerate("ab", 1))
RUN = [
    A,
    step_record(0, scheduled=(entry("a", 0, 2),)),
    step_record(1, scheduled=(entry("a", 2, 1),)),
    B,
    step_record(2, preempted=("a",), scheduled=(entry("b", 0, 3),)),
    step_record(3, scheduled=(entry("b", 3, 1),), finished=(("b", "length"),)),
    step_record(4, scheduled=(entry("a", 0, 4),)),
    AbortRecord("a"),
    step_record(5, finished=(("a", "abort"),), num_aborted=1),
]


def test_a_run_with_all_that_can_happen_is_in_order(tmp_path):
    write(tmp_path / "trace.jsonl", RUN)
    assert read(tmp_path / "trace.jsonl") == RUN


def test_a_request_goes_on_where_its_rejected_guesses_began(tmp_path):
    guessed = ScheduledRecord("a", 0, 6, sampled_tokens=(7,), num_rejected=3, num_freed_blocks=1)
    run = [A, step_record(0, scheduled=(guessed,)), step_record(1, scheduled=(entry("a", 3, 1),))]
    write(tmp_path / "trace.jsonl", run)
    assert read(tmp_path / "trace.jsonl") == run


@pytest.mark.parametrize(
    ("records", "complaint"),
    [
        (RUN[1:], "line 2: no earlier line records the arrival of request a"),
        (RUN[:3] + RUN[4:], "line 5: no earlier line records the arrival of request b"),
        ([*RUN[:2], *RUN[6:]], "line 4: step 4 continues request a at token 0, but 2 of its"),
        ([*RUN[:2], RUN[1]], "line 4: step 0 comes after step 0"),
        ([AbortRecord("c")], "line 2: no earlier line records the arrival of request c"),
        ([A, PlanRecord(0, (entry("b", 0, 1),))], "line 3: no earlier line records"),
        ([step_record(0, preempted=("a",))], "line 2: no earlier line records"),
        ([A, step_record(0, finished=(("b", "stop"),))], "line 3: no earlier line records"),
    ],
)
def test_lines_that_are_missing_or_in_disorder_are_noticed(tmp_path, records, complaint):
    path = tmp_path / "trace.jsonl"
    write(path, records)
    with pytest.raises(TraceError) as caught:
        read(path)
    assert f"{path} is broken in {complaint}" in str(caught.value)


def header(**changes):
    return json.dumps(json.loads(encode_header(Header(engine=FACTS))) | changes)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", 'its first line should hold "format": "minimal-vllm-trace"'),
        ("Call me Ishmael.\n", 'its first line should hold "format": "minimal-vllm-trace"'),
        ('{"format": "pcap"}\n', 'its first line should hold "format": "minimal-vllm-trace"'),
        (
            header(version=3),
            "it has version 3 of the format, but this program reads version 2: read it with the",
        ),
        (
            header(version=1),
            "it has version 1 of the format, but this program reads version 2: record it again",
        ),
        (header(engine={}), "engine.program"),
        (header() + '\n{"kind": "step"\n', "broken in line 2"),
        (header() + '\n{"kind": "abort"}\n', "broken in line 2: request_id: field required"),
        (header() + '\n{"kind": "dance"}\n', "broken in line 2: its kind should be one of request"),
    ],
)
def test_what_can_not_be_read_is_explained(tmp_path, text, complaint):
    path = tmp_path / "trace.jsonl"
    path.write_text(text)
    with pytest.raises(TraceError, match=r"trace\.jsonl") as caught:
        read(path)
    assert complaint in str(caught.value)
