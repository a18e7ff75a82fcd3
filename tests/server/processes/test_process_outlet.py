"""The engine loop's connection to an HTTP process, without the process."""

from concurrent.futures import Future
from types import SimpleNamespace

import pytest

from minimal_vllm.outputs import OutputKind
from minimal_vllm.sampling_params import SamplingParams, StructuredOutputsParams
from minimal_vllm.server.engine_client import EngineRequest
from minimal_vllm.server.processes.messages import AbortCall, AddCall
from minimal_vllm.server.processes.process_outlet import ProcessOutlet

CONSTRAINED = SamplingParams(structured_outputs=StructuredOutputsParams(regex="a"))


class Loop:
    """An engine loop that only remembers what it was told."""

    def __init__(self):
        self.told = []

    def add(self, requests, outlet, call):
        self.told.append(("add", call))

    def abort(self, request_ids, outlet, call):
        self.told.append(("abort", call))


class Compilers:
    """Threads that compile at once, before ``submit`` returns, or when ``work`` is called."""

    def __init__(self, at_once):
        self.at_once, self.todo = at_once, []

    def submit(self, function):
        future = Future()
        self.todo.append(lambda: future.set_result(function()))
        if self.at_once:
            self.work()
        return future

    def work(self):
        while self.todo:
            self.todo.pop(0)()


def fail(constraint):
    raise OverflowError


@pytest.mark.parametrize("at_once", [True, False], ids=["at once", "later"])
@pytest.mark.parametrize("start", [lambda constraint: None, fail], ids=["good", "bad"])
def test_a_call_with_a_grammar_is_added_before_it_is_aborted_and_nothing_is_left_of_it(
    at_once, start
):
    loop, compilers = Loop(), Compilers(at_once)
    outlet = ProcessOutlet(loop, None, SimpleNamespace(start=start), compilers, None)
    outlet.take(AddCall(3, [EngineRequest("a", [1], CONSTRAINED, OutputKind.DELTA)]))
    outlet.take(AbortCall(3, ["a"]))
    compilers.work()
    assert loop.told == [("add", 3), ("abort", 3)]
    assert outlet._compiling == {}
