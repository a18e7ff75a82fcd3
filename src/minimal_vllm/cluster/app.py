"""The application that Ray Serve runs: replicas, their router and the ingress.

``serve deploy`` imports ``minimal_vllm.cluster.app:build``.
"""

from dataclasses import fields
from typing import Any

from ray import serve
from ray.serve.config import AutoscalingConfig, RequestRouterConfig

from minimal_vllm.cluster.config import ClusterConfig
from minimal_vllm.cluster.ingress import Ingress
from minimal_vllm.cluster.replica import EngineReplica
from minimal_vllm.cluster.router import ClusterRouter
from minimal_vllm.config import EngineConfig
from minimal_vllm.engine.sizing import choose_device
from minimal_vllm.server.config import ServerConfig

MAX_CALLS = 100_000
"""Maximum number of calls that Ray gives a replica at once: more than ever come, so that calls wait
in the engine's queue and not in Ray's."""

STATS_PERIOD = 1.0
"""Seconds between two reports of a replica to the routers."""


def build(arguments: dict[str, Any]) -> serve.Application:
    """Return an application, as ``serve deploy`` needs it.

    Args:
        arguments: ``model``, and fields of ``ClusterConfig``, ``ServerConfig`` and
            ``EngineConfig``.

    Raises:
        ValueError: an argument is unknown, or has an impossible value.
    """
    given = dict(arguments)
    model = given.pop("model", None)
    cluster = ClusterConfig(**_take(given, ClusterConfig))
    server = ServerConfig(**_take(given, ServerConfig))
    return make_application(cluster, server, model, given)


def _take(given: dict[str, Any], settings: type) -> dict[str, Any]:
    """Remove the fields of a dataclass from the arguments, and return them."""
    return {each.name: given.pop(each.name) for each in fields(settings) if each.name in given}


def make_application(
    cluster: ClusterConfig, server: ServerConfig, model: str | None, options: dict[str, Any]
) -> serve.Application:
    """Return the application: the ingress, which calls the replicas through a handle.

    Args:
        cluster: number of replicas, and how one is chosen.
        server: the server's options.
        model: as in ``LLM``.
        options: engine options, as in ``LLM``.

    Raises:
        ValueError: an option can't be used with replicas.
    """
    check_options(server, options)
    engine = EngineConfig(model=model or "", **options)
    replicas = serve.deployment(EngineReplica).options(
        name="EngineReplica",
        max_ongoing_requests=MAX_CALLS,
        graceful_shutdown_timeout_s=server.shutdown_timeout,
        graceful_shutdown_wait_loop_s=0.5,
        health_check_period_s=2,
        ray_actor_options=_resources(cluster, engine),
        request_router_config=RequestRouterConfig(
            request_router_class=ClusterRouter,
            request_router_kwargs={"routing": cluster.routing, "block_size": engine.block_size},
            request_routing_stats_period_s=STATS_PERIOD,
        ),
        **_number(cluster),
    )
    ingress = serve.deployment(Ingress).options(
        name="Ingress",
        max_ongoing_requests=MAX_CALLS,
        graceful_shutdown_timeout_s=server.shutdown_timeout,
        ray_actor_options={"num_cpus": 0},
    )
    return ingress.bind(replicas.bind(server, model, options), server, model)


def check_options(server: ServerConfig, options: dict[str, Any]) -> None:
    """Refuse options that only one server with one engine has.

    Raises:
        ValueError: one is set; the message says what to do instead.
    """
    if server.view:
        raise ValueError("view shows one engine in its own process: leave out ray")
    if server.ssl_certfile:
        raise ValueError("ssl_certfile: with ray, put a proxy that speaks https before the cluster")
    if server.port == 0:
        raise ValueError("port: with ray, choose one that is free; 0 chooses none")
    if server.api_server_count:
        raise ValueError("api_server_count: with ray, HTTP is spoken by the ingress")
    if options.get("kv_events_config"):
        raise ValueError(
            "kv_events_config: with ray, replicas would share an endpoint; their own router is "
            "told of evictions anyway"
        )


def _number(cluster: ClusterConfig) -> dict[str, Any]:
    if cluster.min_replicas == cluster.max_replicas:
        return {"num_replicas": cluster.max_replicas}
    return {
        "autoscaling_config": AutoscalingConfig(
            min_replicas=cluster.min_replicas,
            max_replicas=cluster.max_replicas,
            target_ongoing_requests=cluster.target_ongoing_requests,
            upscale_delay_s=2,
            downscale_delay_s=10,
            metrics_interval_s=1,
            look_back_period_s=3,
        )
    }


def _resources(cluster: ClusterConfig, engine: EngineConfig) -> dict[str, Any]:
    gpus = engine.tensor_parallel_size if choose_device(engine.device).type == "cuda" else 0
    return {"num_cpus": cluster.cpus_per_replica, "num_gpus": gpus}
