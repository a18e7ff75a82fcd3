"""Ranks that are threads of one process, on a CPU or on one GPU."""

from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import torch

from minimal_vllm.model.deferred import computed
from minimal_vllm.model.ranks import side_by_side


class Meeting:
    """Where threads put what the others need."""

    def __init__(self, count):
        self.barrier = Barrier(count, timeout=30)
        self.parts = [None] * count


class ThreadRanks:
    """A rank that is a thread; see ``Ranks``."""

    def __init__(self, meeting, index):
        self.count, self.index, self._meeting = len(meeting.parts), index, meeting

    def _exchange(self, part):
        self._meeting.parts[self.index] = computed(part).clone()
        if torch.cuda.is_available():  # each thread may have a stream of its own
            torch.cuda.synchronize()
        self._meeting.barrier.wait()
        parts = list(self._meeting.parts)
        self._meeting.barrier.wait()
        return parts

    def add(self, part):
        return sum(self._exchange(part))

    def concatenate(self, part, out=None):
        return side_by_side(torch.stack(self._exchange(part)), out)

    def least(self, number):
        return min(int(each) for each in self._exchange(torch.tensor(number)))

    def raise_if_lost(self):
        pass

    def give_up(self):
        pass


def in_ranks(count, function):
    """What the function returns in each of so many ranks."""
    meeting = Meeting(count)

    def run(index):
        try:
            return function(ThreadRanks(meeting, index))
        except BaseException:
            meeting.barrier.abort()
            raise

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(run, range(count)))
