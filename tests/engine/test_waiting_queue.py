from array import array
from random import Random

import pytest

from minimal_vllm.engine.request import Request, Status
from minimal_vllm.engine.waiting_queue import SCHEDULING_POLICIES, WaitingQueue
from minimal_vllm.sampling_params import SamplingParams

PARAMS = SamplingParams()


def make_request(arrival, priority=0):
    return Request(str(arrival), array("i", [1]), 1, PARAMS, arrival, priority=priority)


@pytest.mark.parametrize(
    ("policy", "expected"), [("fcfs", ["0", "1", "2", "3"]), ("priority", ["2", "1", "3", "0"])]
)
def test_who_is_next_is_the_policys_choice(policy, expected):
    queue = WaitingQueue(SCHEDULING_POLICIES[policy])
    for arrival, priority in enumerate([2, 0, -1, 0]):
        queue.push(make_request(arrival, priority))
    assert [queue.pop().request_id for _ in range(4)] == expected


def test_who_comes_back_goes_before_all_who_arrived_later():
    queue = WaitingQueue(SCHEDULING_POLICIES["fcfs"])
    for arrival in range(3):
        queue.push(make_request(arrival))
    first = queue.pop()
    first.status = Status.RUNNING
    queue.push(first)
    assert queue.peek() is first


@pytest.mark.parametrize("seed", range(5))
def test_the_ended_are_neither_served_nor_counted(seed):
    random, queue = Random(seed), WaitingQueue(SCHEDULING_POLICIES["priority"])
    requests = [make_request(arrival, random.randint(0, 3)) for arrival in range(50)]
    for request in requests:
        queue.push(request)
    for request in random.sample(requests, 30):
        request.status = Status.FINISHED
        queue.discard()
    left = [request for request in requests if request.status is Status.WAITING]
    assert len(queue) == 20
    served = []
    for _ in range(20):
        served.append(queue.pop())
        served[-1].status = Status.RUNNING
    assert served == sorted(left, key=SCHEDULING_POLICIES["priority"])
    assert len(queue) == 0


def test_the_ended_do_not_pile_up_behind_one_who_waits():
    queue = WaitingQueue(SCHEDULING_POLICIES["fcfs"])
    queue.push(make_request(0))
    for arrival in range(1, 1000):
        request = make_request(arrival)
        queue.push(request)
        request.status = Status.FINISHED
        queue.discard()
    assert len(queue._heap) < 100
    assert queue.pop().arrival == 0
