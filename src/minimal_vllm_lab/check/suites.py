"""The check for each replaceable class of the engine."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from minimal_vllm.plugin import Part, load_class

if TYPE_CHECKING:
    from collections.abc import Callable

    from minimal_vllm_lab.check.lesson import Lesson


@dataclass(frozen=True)
class Suite:
    """A kind of replaceable class, and how to check it."""

    title: str
    """The kind of class, with its article, such as ``a block pool``."""
    find: "Callable[[], tuple[type, Callable[[Any], Lesson | None]]]"
    """Function that returns the interface and the check of a class. It is called only when a class
    is checked, because some checks import torch.
    """

    def check(self, part: Part) -> "Lesson | None":
        """Load a class, check it, and return a lesson about a broken rule, or None if all hold.

        Args:
            part: the class, or a string such as ``my_file.py:MyClass``.

        Raises:
            ValueError: the class can't be found, or lacks methods of the interface.
            ModuleNotFoundError: Hypothesis is not installed.
        """
        from minimal_vllm_lab.check.returned import no_return_forgotten, results_of

        interface, check = self.find()
        cls: Any = load_class(part, interface)
        with no_return_forgotten(cls, results_of(interface)):
            return check(cls)


def _scheduler() -> "tuple[type, Callable[[Any], Lesson | None]]":
    from minimal_vllm.engine.scheduler import Scheduler
    from minimal_vllm_lab.check.scheduler import check_scheduler

    return Scheduler, check_scheduler


def _block_pool() -> "tuple[type, Callable[[Any], Lesson | None]]":
    from minimal_vllm.cache.block_pool import BlockPool
    from minimal_vllm_lab.check.pool import check_pool

    return BlockPool, check_pool


def _eviction_policy() -> "tuple[type, Callable[[Any], Lesson | None]]":
    from minimal_vllm.cache.eviction import EvictionStrategy
    from minimal_vllm_lab.check.eviction import check_eviction

    return EvictionStrategy, check_eviction


def _attention_backend() -> "tuple[type, Callable[[Any], Lesson | None]]":
    from minimal_vllm.attention.interface import Attention
    from minimal_vllm_lab.check.attention import check_attention

    return Attention, check_attention


def _sampler() -> "tuple[type, Callable[[Any], Lesson | None]]":
    from minimal_vllm.sampling.sampler import Sampler
    from minimal_vllm_lab.check.sampler import check_sampler

    return Sampler, check_sampler


def _guesser() -> "tuple[type, Callable[[Any], Lesson | None]]":
    from minimal_vllm.speculation.interface import Guesser
    from minimal_vllm_lab.check.guesser import check_guesser

    return Guesser, check_guesser


SUITES = {
    "scheduler": Suite("a scheduler", _scheduler),
    "block_pool": Suite("a block pool", _block_pool),
    "eviction_policy": Suite("an eviction strategy", _eviction_policy),
    "attention_backend": Suite("an attention backend", _attention_backend),
    "sampler": Suite("a sampler", _sampler),
    "guesser": Suite("a guesser", _guesser),
}
"""Suites by the name of the engine option that replaces the built-in class; a guesser is the
``method`` of ``speculative_config``."""
