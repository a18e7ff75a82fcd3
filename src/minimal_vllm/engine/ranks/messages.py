"""Messages between ranks, beside tensors."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minimal_vllm.config import EngineConfig
from minimal_vllm.runner.failures import RankFailedError, RankLostError


@dataclass(frozen=True)
class Setup:
    """First message to a rank: what it is to build."""

    config: EngineConfig
    index: int
    """Number of the rank."""
    folder: Path
    """Folder through which the ranks find each other."""
    num_threads: int
    """Number of threads that it may compute with."""


@dataclass(frozen=True)
class Call:
    """Further message to a rank: a method of the engine to call, and its arguments."""

    method: str
    arguments: dict[str, Any]


@dataclass(frozen=True)
class Decided:
    """Further message to a rank: what rank 0 has decided, in the call that was last sent."""

    result: Any


@dataclass(frozen=True)
class Started:
    """First message of a rank: it has imported everything, and is about to meet the others."""


@dataclass(frozen=True)
class Built:
    """Second message of a rank: its engine is ready."""


@dataclass(frozen=True)
class Failed:
    """Last message of a rank: why it ends."""

    reason: str
    is_users: bool = False
    """Whether the reason is a setting or a file, not a fault of the program."""
    is_consequence: bool = False
    """Whether the reason is that another rank is gone."""

    @classmethod
    def because_of(cls, error: Exception) -> "Failed":
        """Return the message that tells of an error."""
        if isinstance(error, RankLostError):
            return cls(str(error), is_consequence=True)
        if isinstance(error, ValueError):
            return cls(str(error), is_users=True)
        if isinstance(error, RankFailedError):
            return cls(str(error))
        return cls(f"{type(error).__name__}: {error}")

    def as_error(self, rank: int) -> Exception:
        """Return the error to raise in rank 0."""
        kind = ValueError if self.is_users else RankFailedError
        return kind(f"rank {rank} of those that compute the model has failed: {self.reason}")
