"""The request router that Ray calls. A router of ``minimal_vllm.routing`` chooses for it."""

from array import array
from dataclasses import dataclass, field
from typing import Any

from ray.serve.request_router import PendingRequest, ReplicaID, RequestRouter, RunningReplica

from minimal_vllm.cluster.evictions import EvictionReader
from minimal_vllm.cluster.replica import Survey
from minimal_vllm.routing import ROUTERS, Router

CallKey = tuple[str, str]
"""The id of an HTTP request, which all its calls have, and the replica."""

MAX_ENDED_EARLY = 1000
"""Maximum number of ended calls that are remembered, because Ray may yet report that they were
routed."""


@dataclass
class RoutedPrompt:
    """A prompt on its way to a replica."""

    token_ids: "array[int]"
    block_hashes: list[bytes] = field(default_factory=list)
    cache_salt: bytes = b""


class ClusterRouter(RequestRouter):  # type: ignore[misc] # Ray's classes are untyped here
    """Lets a router of ``minimal_vllm.routing`` choose a replica for each call.

    A call with several requests goes to one replica, for its first prompt. A ``Survey`` goes to a
    replica that has not answered it.
    """

    def initialize_state(self, routing: str, block_size: int) -> None:
        """Make the router; Ray passes on ``request_router_kwargs``."""
        self._router: Router[str] = ROUTERS[routing]((), block_size)
        self._evictions = EvictionReader(self._router)
        self._calls: set[CallKey] = set()
        """Calls that have not ended."""
        self._ended_early: dict[CallKey, None] = {}
        """Calls that ended before Ray reported that they were routed; short ones do."""

    def update_replicas(self, replicas: list[RunningReplica]) -> None:
        """Add new replicas, drop those that are gone, and read what replicas report."""
        found = {each.replica_id.unique_id: each for each in replicas}
        for gone in self._router.loads.keys() - found.keys():
            self._drop(gone)
        for name, replica in found.items():
            self._router.add(name)
            if replica.routing_stats:
                self._evictions.read(name, replica.routing_stats["evictions"])
        super().update_replicas(replicas)

    def on_replica_actor_died(self, replica_id: ReplicaID) -> None:
        """Stop choosing a replica that has died."""
        self._drop(replica_id.unique_id)
        super().on_replica_actor_died(replica_id)

    async def choose_replicas(
        self,
        candidate_replicas: list[RunningReplica],
        pending_request: PendingRequest | None = None,
    ) -> list[list[RunningReplica]]:
        """Return the replica for a call."""
        by_name = {each.replica_id.unique_id: each for each in candidate_replicas}
        if not by_name.keys() & self._router.loads.keys():
            return []
        match pending_request.args if pending_request else ():
            case (Survey(asked), *_):
                left = [name for name in by_name if name not in asked]
                return [[by_name[name]] for name in left or by_name][:1]
            case ([first, *_], *_):
                prompt = RoutedPrompt(
                    array("i", first.prompt_token_ids), [], (first.cache_salt or "").encode()
                )
                return [[by_name[self._router.choose(prompt)]]]
        return [list(by_name.values())]

    def on_request_routed(
        self,
        pending_request: PendingRequest,
        replica_id: ReplicaID,
        result: Any,  # noqa: ARG002
    ) -> None:
        """Count a call that a replica has accepted."""
        name = replica_id.unique_id
        is_counted = pending_request.args and not isinstance(pending_request.args[0], Survey)
        if not is_counted or name not in self._router.loads:
            return
        call = (pending_request.metadata.internal_request_id, name)
        if call in self._ended_early:
            del self._ended_early[call]
        else:
            self._calls.add(call)
            self._router.loads[name] += 1

    def on_request_completed(self, replica_id: ReplicaID, internal_request_id: str) -> None:
        """Note the end of a call, successful or not."""
        call = (internal_request_id, replica_id.unique_id)
        if call in self._calls:
            self._calls.remove(call)
            if replica_id.unique_id in self._router.loads:
                self._router.loads[replica_id.unique_id] -= 1
        else:  # or a call that is never counted, such as a survey
            self._ended_early[call] = None
            if len(self._ended_early) > MAX_ENDED_EARLY:
                del self._ended_early[next(iter(self._ended_early))]

    def _drop(self, name: str) -> None:
        self._router.remove(name)
        self._evictions.drop(name)
