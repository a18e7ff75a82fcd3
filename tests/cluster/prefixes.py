"""16 prompts over 4 long prefixes, and what the simulator says about them."""

from array import array
from random import Random

from minimal_vllm.cache.block_pool import BlockPool
from minimal_vllm.cache.eviction import LRU
from minimal_vllm.config import SchedulerConfig
from minimal_vllm.routing import ROUTERS
from minimal_vllm_lab.sim.cluster import Cluster
from minimal_vllm_lab.sim.cost_model import LinearCostModel
from minimal_vllm_lab.sim.job import Job
from minimal_vllm_lab.sim.metrics import Metrics
from minimal_vllm_lab.sim.replica import Replica

MODEL = "minimal-vllm-demo"
COSTS = LinearCostModel(1e-3, 1e-5, 1e-5, 1e-5, 1e-7, 1e-9)


def prefix_prompts(seed):
    """Prompts as token ids, in random order."""
    random = Random(seed)
    prefixes = [[random.randint(10, 2000) for _ in range(320)] for _ in range(4)]
    prompts = [prefix + [random.randint(10, 2000)] * 20 for prefix in prefixes for _ in range(4)]
    random.shuffle(prompts)
    return prompts


def simulated_hits(prompts, routing):
    """Number of prompts that find their prefix in a cache, if they come one after the other."""
    config = SchedulerConfig(max_model_len=2048, max_num_seqs=8)
    hits = []

    def note(record):
        hits.extend(entry for entry in record.scheduled if entry.start and entry.cached_blocks)

    replicas = [Replica(config, BlockPool(600, LRU()), COSTS, [note]) for _ in range(2)]
    router = ROUTERS[routing](range(2), config.block_size)
    jobs = [Job(float(index), array("i", prompt), 2) for index, prompt in enumerate(prompts)]
    Cluster(replicas, router, Metrics(None)).run(jobs)
    return len(hits)
