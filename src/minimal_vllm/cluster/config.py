"""Options of a cluster of replicas."""

import re
from typing import Annotated, Literal

from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass

from minimal_vllm.settings import SETTINGS, clear_errors


@clear_errors
@dataclass(frozen=True, config=SETTINGS)
class ClusterConfig:
    """Options of replicas on Ray Serve."""

    replicas: str = "1"
    """Number of engines, or MIN:MAX to let it follow the load."""
    routing: Literal["round-robin", "least-loaded", "prefix-aware"] = "prefix-aware"
    """Policy that chooses a replica for each request."""
    ray_address: str | None = None
    """Address of a running Ray cluster; auto is the one on this machine. Default: a cluster is
    started on this machine, and stopped at the end."""
    target_ongoing_requests: Annotated[float, Field(gt=0)] = 16.0
    """With MIN:MAX replicas: number of unanswered requests per replica to aim at."""
    cpus_per_replica: Annotated[float, Field(ge=0)] = 1.0
    """Number of CPU cores that Ray sets aside for each replica."""

    @model_validator(mode="after")
    def _replicas_are_a_number_or_a_range(self) -> "ClusterConfig":
        found = re.fullmatch(r"(\d+)(?::(\d+))?", self.replicas)
        if not found or not 1 <= self.min_replicas <= self.max_replicas:
            raise ValueError(
                f"replicas should be a number, as 2, or a range, as 1:4, not {self.replicas!r}"
            )
        return self

    @property
    def min_replicas(self) -> int:
        """Minimum number of replicas."""
        return int(self.replicas.partition(":")[0])

    @property
    def max_replicas(self) -> int:
        """Maximum number of replicas."""
        return int(self.replicas.rpartition(":")[2])
