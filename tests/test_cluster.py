"""The parts of a cluster that do without Ray; ``tests/cluster`` has it."""

from array import array
from random import Random

import pytest
from click.testing import CliRunner
from prometheus_client.parser import text_string_to_metric_families

from minimal_vllm.cache.block_pool import BlockPool
from minimal_vllm.cache.eviction import LRU
from minimal_vllm.cli.main import main
from minimal_vllm.cluster.config import ClusterConfig
from minimal_vllm.cluster.evictions import EvictionLog, EvictionReader
from minimal_vllm.cluster.labels import join_metrics
from minimal_vllm.routing import PrefixAware
from minimal_vllm.server.metrics import HttpMetrics, Metrics
from minimal_vllm_lab.sim.job import Job, make_request

BLOCK_SIZE = 4


def prompt(token, num_blocks=2):
    return make_request(Job(0.0, array("i", [token] * BLOCK_SIZE * num_blocks), 1), 0)


class Cached:
    """A pool with one block for each hash that is stored in it, and its log of evictions."""

    def __init__(self, num_blocks, max_kept):
        self.pool = BlockPool(num_blocks, LRU())
        self.log = EvictionLog(max_kept)
        self.pool.watchers.append(self.log)

    def compute(self, request):
        cached = self.pool.find_prefix(request.block_hashes)
        self.pool.share(cached)
        blocks = [*cached, *self.pool.allocate(len(request.block_hashes) - len(cached))]
        for block, block_hash in zip(blocks, request.block_hashes, strict=True):
            self.pool.store(block, block_hash)
        self.log.stored(request, len(cached), len(blocks))
        self.pool.release(blocks)


@pytest.mark.parametrize("max_kept", [1000, 5])
@pytest.mark.parametrize("seed", range(5))
def test_a_router_that_looks_in_at_times_believes_in_no_block_that_is_gone(seed, max_kept):
    random = Random(seed)
    router = PrefixAware(["only"], BLOCK_SIZE)
    reader, replica = EvictionReader(router), Cached(num_blocks=12, max_kept=max_kept)
    for _ in range(300):
        request = prompt(random.randrange(12))
        router.choose(request)
        replica.compute(request)
        if max_kept < 1000 and random.random() < 0.02:
            replica.pool.forget_all()
        if random.random() < 0.2:
            reader.read("only", replica.log.report())
            remembered = set(router._holders)
            held = set(replica.pool.hashes.values())
            assert remembered <= held
            if max_kept == 1000:
                assert remembered == held


def test_a_report_is_read_once():
    router = PrefixAware(["a"], BLOCK_SIZE)
    reader, log = EvictionReader(router), EvictionLog()
    request = prompt(1)
    router.choose(request)
    log.removed(request.block_hashes[0])
    reader.read("a", log.report())
    router.choose(prompt(1))  # it is computed again, which the replica has not told yet
    reader.read("a", log.report())
    assert request.block_hashes[0] in router._holders


def test_metrics_of_several_processes_make_one_page():
    replicas = {name: Metrics("model") for name in ("a", "b")}
    http = HttpMetrics("model")
    http.answered("/v1/completions", "POST", 200, 0.1)
    pages = {name: each.text().decode() for name, each in replicas.items()}
    page = join_metrics({"ingress": http.text().decode(), **pages}).decode()
    families = {family.name: family for family in text_string_to_metric_families(page)}
    assert len(families) == page.count("# TYPE")
    running = families["vllm:num_requests_running"].samples
    assert [sample.labels["replica"] for sample in running] == ["a", "b"]
    assert 'http_requests_total{handler="/v1/completions",method="POST",replica="ingress"' in page
    before = pages["a"].count("vllm:e2e_request_latency_seconds_bucket{")
    assert page.count("vllm:e2e_request_latency_seconds_bucket{") == 2 * before


@pytest.mark.parametrize(
    ("given", "fewest", "most"), [("1", 1, 1), ("3", 3, 3), ("1:4", 1, 4), ("2:2", 2, 2)]
)
def test_replicas_are_a_number_or_a_range(given, fewest, most):
    config = ClusterConfig(replicas=given)
    assert (config.min_replicas, config.max_replicas) == (fewest, most)


@pytest.mark.parametrize("given", ["0", "2:1", "x", "1:", ":2", "-1", "1:2:3", ""])
def test_other_numbers_of_replicas_are_refused(given):
    with pytest.raises(ValueError, match="replicas should be a number, as 2, or a range, as 1:4"):
        ClusterConfig(replicas=given)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--replicas=2"], "--replicas needs --ray, which serves with several engines"),
        (["--routing=least-loaded"], "--routing needs --ray"),
        (["--ray", "--replicas=none"], "replicas should be a number"),
    ],
)
def test_options_that_make_no_sense_are_refused_in_one_sentence(arguments, sentence):
    result = CliRunner().invoke(main, ["serve", *arguments])
    assert result.exit_code != 0
    assert sentence in result.output
