"""The engine of rank 0, whose every act the other ranks repeat."""

import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from threading import current_thread, main_thread
from types import FrameType
from typing import Any
from weakref import WeakMethod

from minimal_vllm.engine.engine import Engine
from minimal_vllm.engine.ranks.followers import Followers
from minimal_vllm.model.ranks import Ranks
from minimal_vllm.outputs import OutputKind, RequestOutput
from minimal_vllm.runner.failures import RankFailedError, RankLostError
from minimal_vllm.sampling_params import SamplingParams


class LeadingEngine(Engine):
    """Engine of rank 0; see ``Engine``.

    Args:
        *args: arguments of ``Engine``.
        followers: processes of the other ranks.
        ranks: this rank's way to them.
        **kwargs: arguments of ``Engine``.
    """

    def __init__(self, *args: Any, followers: Followers, ranks: Ranks, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._followers = followers
        self._ranks = ranks
        self._failure: Exception | None = None

    def add_request(
        self,
        request_id: str,
        prompt_token_ids: Sequence[int],
        params: SamplingParams,
        *,
        prompt: str | None = None,
        output_kind: OutputKind = OutputKind.CUMULATIVE,
        priority: int = 0,
        cache_salt: str | None = None,
    ) -> None:
        """Add a request in all ranks; see ``Engine.add_request``."""
        with self._together():
            super().add_request(
                request_id,
                prompt_token_ids,
                params,
                prompt=prompt,
                output_kind=output_kind,
                priority=priority,
                cache_salt=cache_salt,
            )
            # A request that was refused here may have drawn a seed, so seeds are not drawn there.
            seed = self._outputs.requests(request_id)[0].seed
            self._followers.tell(
                "add_request",
                request_id=request_id,
                prompt_token_ids=list(prompt_token_ids),
                params=replace(params, seed=seed),
                output_kind=OutputKind.FINAL_ONLY,
                priority=priority,
                cache_salt=cache_salt,
            )

    def abort(self, request_id: str) -> RequestOutput | None:
        """Abort a request in all ranks; see ``Engine.abort``."""
        with self._together():
            self._followers.tell("abort", request_id=request_id)
            return super().abort(request_id)

    def step(self) -> list[RequestOutput]:
        """Compute one step in all ranks; see ``Engine.step``."""
        if not self.has_unfinished_requests:
            return []
        with self._together():
            self._followers.tell("step")
            return super().step()

    def begin_early(self) -> list[RequestOutput]:
        """Launch a step in all ranks; see ``Engine.begin_early``."""
        with self._together():
            self._followers.tell("begin_early")
            return super().begin_early()

    def watch(self, put: Callable[[Callable[[], None]], None]) -> None:
        """Let a rank that ends by itself be noticed even if no step runs; see ``Engine.watch``."""
        give_up = WeakMethod(self._give_up)  # or the watching threads would keep this engine

        def notice() -> None:
            if method := give_up():
                put(method)

        self._followers.call_when_one_ends(notice)

    def reset(self) -> None:
        """Drop all requests and all cached blocks, in all ranks that still run."""
        super().reset()
        if self._failure is None:
            with self._together():
                self._followers.tell("reset")

    def _give_up(self) -> None:
        with self._together():
            raise RankLostError

    @contextmanager
    def _together(self) -> Iterator[None]:
        """Make sure that all ranks do the same, or none does anything any more.

        Raises:
            RankFailedError: they don't, or no longer do.
        """
        if self._failure is not None:
            raise self._failure
        try:
            with _without_interruption():
                yield
        except ValueError:  # a request was refused, before any rank was told
            raise
        except Exception as error:
            self._failure = self._explain(error)
            self._ranks.give_up()
            self._followers.end()
            raise self._failure from error

    def _explain(self, error: Exception) -> Exception:
        """Return the error of the rank that failed first, if this one has only lost it."""
        if isinstance(error, RankLostError):
            return RankFailedError(str(self._followers.failure()))
        return error


@contextmanager
def _without_interruption() -> Iterator[None]:
    """Let Ctrl-C interrupt only afterward: a rank that stops halfway leaves the others waiting."""
    if current_thread() is not main_thread():  # to which alone it comes
        yield
        return
    interrupted = False

    def note(_number: int, _frame: FrameType | None) -> None:
        nonlocal interrupted
        interrupted = True

    before = signal.signal(signal.SIGINT, note)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        if interrupted:
            raise KeyboardInterrupt
