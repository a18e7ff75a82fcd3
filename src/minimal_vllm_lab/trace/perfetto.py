"""Export of traces to Perfetto (ui.perfetto.dev) and chrome://tracing.

The export has two processes. The process "engine" holds the steps and the counters. The process
"requests" has one thread per request. Times are in microseconds since the start of the trace.

Source: "Trace Event Format", Google, 2016.
"""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, TextIO

from minimal_vllm.trace.lines import Header, Line
from minimal_vllm.trace.step_record import (
    AbortRecord,
    RequestRecord,
    ResetRecord,
    ScheduledRecord,
    StepRecord,
)

ENGINE, REQUESTS = 1, 2
"""Process ids of the exported trace."""
STEPS = 1
"""Thread id of the engine's steps."""

Event = dict[str, Any]
"""Event of the format: JSON object whose field ``ph`` names its kind."""


def export_perfetto(header: Header, lines: Iterable[Line], file: TextIO) -> int:
    """Write a trace's events to a file as one JSON object.

    Returns:
        Number of events written.
    """
    count = 0
    file.write('{"displayTimeUnit":"ms","traceEvents":[')
    for count, event in enumerate(Exporter(header).events(lines), 1):
        file.write(",\n" if count > 1 else "\n")
        json.dump(event, file, separators=(",", ":"))
    file.write("\n]}\n")
    return count


@dataclass(slots=True)
class _Track:
    """Thread of a request that has not ended."""

    thread: int
    num_prompt_tokens: int
    waits_since: float | None
    """Time since which the request has been waiting, in seconds; None while it runs."""


class Exporter:
    """Converter from the lines of one trace to events."""

    def __init__(self, header: Header) -> None:
        self._header = header
        self._tracks: dict[str, _Track] = {}
        self._now = header.started
        self._last_step_end = header.started
        self._has_guesses = False

    def events(self, lines: Iterable[Line]) -> Iterator[Event]:
        """Yield all events, including those that name processes and threads."""
        facts = self._header.engine
        yield _name("process_name", ENGINE, 0, f"engine: {facts.model} on {facts.device}")
        yield _name("process_name", REQUESTS, 0, "requests")
        yield _name("thread_name", ENGINE, STEPS, "steps")
        for line in lines:
            yield from self._events_of(line)

    def _events_of(self, line: Line) -> Iterator[Event]:
        match line:
            case RequestRecord():
                yield from self._arrive(line)
            case AbortRecord():
                yield from self._end(line.request_id, "abort")
            case ResetRecord():
                for request_id in list(self._tracks):
                    yield from self._end(request_id, "reset")
            case StepRecord():
                yield from self._step(line)

    def _arrive(self, record: RequestRecord) -> Iterator[Event]:
        num_prompt_tokens = len(record.prompt_token_ids)
        self._now = record.arrived
        self._tracks[record.request_id] = _Track(record.arrival, num_prompt_tokens, self._now)
        name = f"#{record.arrival} {record.request_id}"
        yield _name("thread_name", REQUESTS, record.arrival, name)

    def _step(self, record: StepRecord) -> Iterator[Event]:
        # With async scheduling a step starts before the previous one has ended: avoid an overlap.
        began = max(record.started, self._last_step_end)
        yield from self._step_slices(record, began)
        self._has_guesses |= any(entry.num_guesses for entry in record.scheduled)
        yield from self._counters(record)
        for request_id in record.preempted:
            if track := self._tracks.get(request_id):  # None: the request ended during the step
                track.waits_since = began
                yield self._instant("preempted", track.thread, began)
        for entry in record.scheduled:
            yield from self._scheduled(entry, began, self._now - began)
        for request_id, reason in record.finished[record.num_aborted :]:
            yield from self._end(request_id, reason)

    def _step_slices(self, record: StepRecord, began: float) -> Iterator[Event]:
        parts = {
            "schedule": record.schedule_seconds,
            "run": record.run_seconds,
            "update": record.update_seconds,
        }
        start = record.started
        self._now = self._last_step_end = start + sum(parts.values())
        facts = {
            "tokens": sum(entry.num_tokens for entry in record.scheduled),
            "requests": len(record.scheduled),
            "evicted blocks": list(record.evicted_blocks),
        }
        yield self._slice(f"step {record.step}", ENGINE, STEPS, began, self._now - began, facts)
        for name, seconds in parts.items():
            end = start + seconds
            start = max(start, began)
            yield self._slice(name, ENGINE, STEPS, start, max(end - start, 0), {})
            start = end

    def _counters(self, record: StepRecord) -> Iterator[Event]:
        referenced = record.num_blocks - record.num_free_blocks
        counters = {
            "requests": {"running": record.num_running, "waiting": record.num_waiting},
            "KV blocks": {"referenced": referenced, "free or evictable": record.num_free_blocks},
            "cached blocks": {"blocks": record.num_cached_blocks},
            "tokens in step": {"tokens": sum(entry.num_tokens for entry in record.scheduled)},
        }
        if self._has_guesses:
            right = sum(map(_num_right, record.scheduled))
            guessed = sum(entry.num_guesses for entry in record.scheduled)
            counters["guesses"] = {"right": right, "wrong": guessed - right}
        for name, values in counters.items():
            yield {
                "ph": "C",
                "name": name,
                "pid": ENGINE,
                "ts": self._micros(record.started),
                "args": values,
            }

    def _scheduled(self, entry: ScheduledRecord, began: float, seconds: float) -> Iterator[Event]:
        track = self._tracks.get(entry.request_id)
        if track is None:  # the request ended during the step
            return
        yield from self._stop_waiting(track, began)
        name = "decode" if entry.start >= track.num_prompt_tokens else "prompt"
        facts = {
            "first position": entry.start,
            "tokens": entry.num_tokens,
            "sampled tokens": len(entry.sampled_tokens),
            **_judged(entry),
            "blocks found in the cache": len(entry.cached_blocks),
            "new blocks": len(entry.new_blocks),
        }
        yield self._slice(name, REQUESTS, track.thread, began, seconds, facts)

    def _end(self, request_id: str, reason: str) -> Iterator[Event]:
        track = self._tracks.pop(request_id)
        yield from self._stop_waiting(track, self._now)
        yield self._instant(f"ended: {reason}", track.thread, self._now)

    def _stop_waiting(self, track: _Track, now: float) -> Iterator[Event]:
        since, track.waits_since = track.waits_since, None
        if since is not None:
            waited = max(now - since, 0)
            yield self._slice("waiting", REQUESTS, track.thread, since, waited, {})

    def _slice(
        self, name: str, process: int, thread: int, start: float, seconds: float, facts: Event
    ) -> Event:
        return {
            "ph": "X",
            "name": name,
            "pid": process,
            "tid": thread,
            "ts": self._micros(start),
            "dur": round(1e6 * seconds, 3),
            "args": facts,
        }

    def _instant(self, name: str, thread: int, moment: float) -> Event:
        return {
            "ph": "i",
            "s": "t",
            "name": name,
            "pid": REQUESTS,
            "tid": thread,
            "ts": self._micros(moment),
        }

    def _micros(self, moment: float) -> float:
        return round(1e6 * (moment - self._header.started), 3)


def _judged(entry: ScheduledRecord) -> dict[str, int]:
    """Return the number of a request's guesses in a step, and of those that were right, if any."""
    if not entry.num_guesses:
        return {}
    return {"guesses": entry.num_guesses, "right guesses": _num_right(entry)}


def _num_right(entry: ScheduledRecord) -> int:
    return max(len(entry.sampled_tokens) - 1, 0) if entry.num_guesses else 0


def _name(kind: str, process: int, thread: int, name: str) -> Event:
    return {"ph": "M", "name": kind, "pid": process, "tid": thread, "args": {"name": name}}
