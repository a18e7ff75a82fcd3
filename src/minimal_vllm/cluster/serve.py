"""Serving on Ray until a signal arrives."""

import os
import signal
import socket
from collections.abc import Callable
from threading import Event
from typing import Any

import ray
from ray import serve

from minimal_vllm.cluster.app import make_application
from minimal_vllm.cluster.config import ClusterConfig
from minimal_vllm.server.config import ServerConfig
from minimal_vllm.server.http_server import bind

APPLICATION = "minimal-vllm"
OBJECT_STORE_BYTES = 200 * 2**20
"""Memory for objects in a cluster of our own. Requests and answers are small."""
SECONDS_TO_LISTEN = 10
"""Seconds in which a connection to Ray's proxy has to be accepted."""


def serve_on_ray(
    cluster: ClusterConfig,
    server: ServerConfig,
    model: str | None,
    options: dict[str, Any],
    on_ready: Callable[[], None],
) -> None:
    """Serve until SIGTERM or SIGINT, then let running requests finish.

    Args:
        cluster: number of replicas, and how one is chosen.
        server: the server's options.
        model: as in ``LLM``.
        options: engine options, as in ``LLM``.
        on_ready: called when clients can connect.

    Raises:
        ValueError: an option can't be used with replicas.
        OSError: the port is taken, or there is no cluster at the address.
        RuntimeError: the replicas can't be started.
    """
    application = make_application(cluster, server, model, options)
    own = cluster.ray_address is None
    if own:  # in a running cluster, Ray's proxy may listen already
        bind(server.host, server.port).close()
    limits = {"object_store_memory": OBJECT_STORE_BYTES} if own else {}
    cpus = {"num_cpus": _cpus(cluster)} if own else {}
    ray.init(
        address="local" if own else cluster.ray_address,
        include_dashboard=False if own else None,
        logging_level="warning",
        **limits,
        **cpus,
    )
    ended = Event()
    for number in (signal.SIGTERM, signal.SIGINT):  # Ray has set handlers of its own
        signal.signal(number, lambda *_: ended.set())
    try:
        serve.start(http_options={"host": server.host, "port": server.port})
        if APPLICATION in serve.status().applications:
            raise RuntimeError("this cluster serves a model already: end that server first")
        serve.run(application, name=APPLICATION, route_prefix="/")
        try:
            _check_port(server.host, server.port)
            on_ready()
            ended.wait()
        finally:
            serve.delete(APPLICATION)
    finally:
        if own:
            serve.shutdown()
        ray.shutdown()


def _check_port(host: str, port: int) -> None:
    """Raise an error unless somebody listens: a cluster's proxies keep their first port."""
    reachable = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104
    try:
        socket.create_connection((reachable, port), timeout=SECONDS_TO_LISTEN).close()
    except OSError as error:
        raise RuntimeError(
            f"nothing listens on {host}, port {port}: this cluster's proxies were started before, "
            "with another host or port; give theirs, or end them with 'serve shutdown'"
        ) from error


def _cpus(cluster: ClusterConfig) -> int:
    """Return the number of cores to promise: enough for all replicas, even on a small machine."""
    wanted = -(-int(100 * cluster.max_replicas * cluster.cpus_per_replica) // 100)
    return max(os.cpu_count() or 1, wanted, 1)
