"""Small simulations for the tests: a tiny engine, artificial step times and random jobs."""

from array import array
from random import Random

from minimal_vllm.cache.block_pool import BlockPool
from minimal_vllm.cache.eviction import EVICTION_STRATEGIES
from minimal_vllm.config import SchedulerConfig
from minimal_vllm.routing import ROUTERS
from minimal_vllm_lab.sim.cluster import Cluster
from minimal_vllm_lab.sim.cost_model import LinearCostModel
from minimal_vllm_lab.sim.job import Job
from minimal_vllm_lab.sim.metrics import Metrics
from minimal_vllm_lab.sim.replica import Replica

COSTS = LinearCostModel(
    per_step=1e-3,
    per_request=1e-5,
    per_token=3e-6,
    per_sample=1e-5,
    per_kv_token=1e-7,
    per_attended=1e-9,
)


def make_replica(num_blocks=64, eviction="lru", observers=(), costs=COSTS, cascade=False, **config):
    limits = {"max_model_len": 256, "max_num_batched_tokens": 64, "max_num_seqs": 8} | config
    pool = BlockPool(num_blocks, EVICTION_STRATEGIES[eviction]())
    return Replica(SchedulerConfig(**limits), pool, costs, observers, cascade=cascade)


def run(jobs, replicas, routing="round-robin", slo=None):
    """Let the replicas serve the jobs; return the report."""
    metrics = Metrics(slo)
    block_size = replicas[0].scheduler.config.block_size
    Cluster(replicas, ROUTERS[routing](range(len(replicas)), block_size), metrics).run(jobs)
    return metrics.report(replicas)


def make_jobs(seed, count=30, longest=200, rate=100.0, num_turns=1):
    """Return jobs with random prompts, many of which share a prefix."""
    random = Random(seed)
    heads = [_tokens(random, random.randint(0, longest // 2)) for _ in range(3)]
    now = 0.0
    for _ in range(count):
        now += random.choice([0, random.expovariate(rate)])
        prompt = random.choice(heads) + _tokens(random, random.randint(1, longest // 2))
        pauses = [random.choice([0.0, 0.01, 0.5]) for _ in range(num_turns - 1)]
        yield Job(now, prompt, random.randint(1, longest), _conversation(pauses))


def _conversation(pauses):
    if not pauses:
        return None

    def follow_up(said, now):
        return Job(now + pauses[0], said + array("i", [7] * 5), 9, _conversation(pauses[1:]))

    return follow_up


def _tokens(random, count):
    return array("i", (random.randrange(1000) for _ in range(count)))
