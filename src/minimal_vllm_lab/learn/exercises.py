"""The exercises, in the order of the course."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from importlib.resources import files
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from minimal_vllm_lab.check.lesson import Lesson


Check = Callable[[ModuleType, int | None], "Lesson | None"]
"""Checks a learner's module, with the seed of its random cases, or None for those of every run."""


@dataclass(frozen=True)
class Exercise:
    """One exercise: functions or methods to write, and how to check them."""

    name: str
    chapter: str
    """Chapter of the course, such as ``03-paging``."""
    title: str
    """Task of the exercise, in a few words."""
    points: int
    """Points for a solution, from 1 to 3."""
    find_mistake: Check
    """Looks for a broken rule in the learner's module. ``check`` calls it."""
    solutions: Mapping[str, str]
    """The names to write, and for each the engine's own code as ``module:name``, or an empty string
    if the engine has none."""
    run: tuple[str, ...] = ()
    """Command that runs the engine with the solution; ``{file}`` stands for the learner's file.
    Default: the exercise can't be run by itself."""
    needs_triton: bool = False

    @property
    def file_name(self) -> str:
        """Name of the learner's file."""
        return self.name.replace("-", "_") + ".py"

    @property
    def starter(self) -> str:
        """Text of the file that ``learn start`` writes."""
        folder = files("minimal_vllm_lab.learn.starters")
        return folder.joinpath(self.file_name).read_text(encoding="utf-8")

    @property
    def hints(self) -> list[str]:
        """Hints, each of which says more than the one before it."""
        file = files("minimal_vllm_lab.learn").joinpath("hints", f"{self.name}.txt")
        return file.read_text(encoding="utf-8").strip().split("\n---\n")

    def check(self, module: ModuleType, seed: int | None) -> "Lesson | None":
        """Check a learner's module, and return a lesson about a broken rule, or None.

        Args:
            module: the module.
            seed: seed of the random cases. None: those of every run.
        """
        from minimal_vllm_lab.check.returned import no_return_forgotten, results_in

        with no_return_forgotten(module, results_in(self.starter, self.solutions)):
            return self.find_mistake(module, seed)


# Checks import torch and other heavy modules, so they are imported only when one is run.


def _function(path: str) -> Check:
    """Return the check at ``module:function`` in this package, to be imported when it is called."""

    def check(module: ModuleType, seed: int | None) -> "Lesson | None":
        file, _, name = path.partition(":")
        found: Check = getattr(import_module(f"minimal_vllm_lab.learn.{file}"), name)
        return found(module, seed)

    return check


def _pool(module: ModuleType, seed: int | None) -> "Lesson | None":
    from minimal_vllm_lab.check.pool import check_pool

    return check_pool(module.MyPool, seed=seed, cached=False)


def _eviction(module: ModuleType, seed: int | None) -> "Lesson | None":
    from minimal_vllm_lab.check.eviction import check_eviction

    return check_eviction(module.MyLRU, least_recently_used=True, seed=seed)


def _scheduler(module: ModuleType, seed: int | None) -> "Lesson | None":
    from minimal_vllm.engine.scheduler import Scheduler
    from minimal_vllm_lab.check.scheduler import check_scheduler

    return check_scheduler(module.MyScheduler, like=Scheduler, seed=seed)


def _unchunked_scheduler(module: ModuleType, seed: int | None) -> "Lesson | None":
    from minimal_vllm.engine.scheduler import Scheduler
    from minimal_vllm_lab.check.scheduler import check_scheduler

    return check_scheduler(module.MyScheduler, like=Scheduler, seed=seed, chunked=False)


def _attention(module: ModuleType, seed: int | None) -> "Lesson | None":
    from minimal_vllm_lab.check.attention import check_attention

    return check_attention(module.MyAttention, seed=seed, plain=True)


POOL = "minimal_vllm.cache.block_pool:BlockPool"
LRU = "minimal_vllm.cache.eviction:LRU"
SCHEDULER = "minimal_vllm.engine.scheduler:Scheduler"
BLOCKS = "minimal_vllm.engine.block_manager:BlockManager"
MODEL = "minimal_vllm.model.config:ModelConfig"
REFERENCE = "minimal_vllm.attention.reference"
FILTERS = "minimal_vllm.sampling.filters"
KERNELS = "minimal_vllm.attention.kernels"
DIVIDED = "minimal_vllm.model.divided_modules"
INT4 = "minimal_vllm.model.quantization.int4"
DETOKENIZER = "minimal_vllm.text.detokenizer:Detokenizer"
METHODS = ("__init__", "insert", "remove", "evict", "in_order", "__contains__", "__len__")
"""Methods of an eviction strategy."""

EXERCISES = {
    exercise.name: exercise
    for exercise in (
        Exercise(
            "bytes-and-flops",
            "01-one-step",
            "count what a step reads and computes",
            1,
            _function("check_costs:check_costs"),
            {
                "MyModel.num_parameters": f"{MODEL}.num_parameters",
                "MyModel.kv_bytes_per_token": f"{MODEL}.kv_bytes_per_token",
                "MyCostModel._matmul": "minimal_vllm_lab.sim.cost_model:RooflineCostModel._matmul",
            },
        ),
        Exercise(
            "kv-cache",
            "02-kv-cache",
            "compute attention of new tokens over all earlier ones",
            2,
            _function("check_attend:check_attend"),
            {"attend": f"{REFERENCE}:attend"},
        ),
        Exercise(
            "allocate-and-free",
            "03-paging",
            "allocate blocks and release them",
            1,
            _pool,
            {
                "MyPool.allocate": f"{POOL}.allocate",
                "MyPool.release": f"{POOL}.release",
            },
            ("view", "--block-pool", "{file}:MyPool", "--no-enable-prefix-caching"),
        ),
        Exercise(
            "block-table",
            "04-block-tables",
            "map a position in a text to a slot in memory",
            1,
            _function("check_tables:check_tables"),
            {
                "pad_block_tables": "minimal_vllm.step.batch:_pad_block_tables",
                "slots": "minimal_vllm.step.batch:slots",
                "write_to_cache": "minimal_vllm.attention.paged:write_to_cache",
            },
        ),
        Exercise(
            "paged-attention",
            "05-paged-attention",
            "compute attention over scattered blocks",
            2,
            _attention,
            {
                "gather_pages": f"{REFERENCE}:gather_pages",
                "MyStep.__call__": f"{REFERENCE}:ReferenceStep.__call__",
            },
            ("view", "--attention-backend", "{file}:MyAttention"),
        ),
        Exercise(
            "decode-kernel",
            "05-paged-attention",
            "write the inner loop of a decode kernel in Triton",
            3,
            _function("check_kernels:check_decode_kernel"),
            {"take_keys": f"{KERNELS}.softmax:take_keys"},
            needs_triton=True,
        ),
        Exercise(
            "prefix-hash",
            "06-prefix-caching",
            "find a prompt's longest cached prefix",
            2,
            _function("check_hashes:check_hashes"),
            {
                "extend_block_hashes": "minimal_vllm.cache.prefix_hash:extend_block_hashes",
                "MyPool.find_prefix": f"{POOL}.find_prefix",
                "MyPool.share": f"{POOL}.share",
            },
            ("view", "--block-pool", "{file}:MyPool"),
        ),
        Exercise(
            "eviction",
            "06-prefix-caching",
            "evict the least recently used block",
            1,
            _eviction,
            {f"MyLRU.{name}": f"{LRU}.{name}" for name in METHODS},
            ("view", "--eviction-policy", "{file}:MyLRU"),
        ),
        Exercise(
            "continuous-batching",
            "07-continuous-batching",
            "choose a new batch for every step",
            3,
            _unchunked_scheduler,
            {
                "MyScheduler.schedule": f"{SCHEDULER}.schedule",
                "MyScheduler.admit_waiting": f"{SCHEDULER}.admit_waiting",
            },
            (
                *("view", "--scheduler", "{file}:MyScheduler", "--no-enable-chunked-prefill"),
                *("--max-num-batched-tokens", "256"),
            ),
        ),
        Exercise(
            "chunked-prefill",
            "08-chunked-prefill",
            "split long prompts so that decodes never stall",
            2,
            _scheduler,
            {"MyScheduler.schedule_running": f"{SCHEDULER}.schedule_running"},
            ("view", "--scheduler", "{file}:MyScheduler"),
        ),
        Exercise(
            "preemption",
            "09-preemption",
            "preempt requests when blocks run out",
            2,
            _scheduler,
            {
                "MyScheduler.make_room": f"{SCHEDULER}.make_room",
                "MyScheduler.preempt": f"{SCHEDULER}.preempt",
            },
            ("view", "--scheduler", "{file}:MyScheduler"),
        ),
        Exercise(
            "sampler",
            "10-sampling",
            "filter logits and draw a token",
            2,
            _function("check_filters:check_filters"),
            {
                "keep_min_p": f"{FILTERS}:keep_min_p",
                "keep_top_k": f"{FILTERS}:keep_top_k",
                "keep_top_p": f"{FILTERS}:keep_top_p",
                "draw": "minimal_vllm.sampling.draw:draw",
            },
        ),
        Exercise(
            "run-ahead",
            "11-cuda-graphs",
            "launch a step before the previous one's tokens arrive",
            2,
            _function("check_ahead:check_ahead"),
            {"MyEngine.step": "minimal_vllm.engine.engine:Engine.step"},
        ),
        Exercise(
            "merge",
            "12-shared-prefix",
            "merge attention over parts of a context in Triton",
            3,
            _function("check_kernels:check_merge"),
            {"merge_part": f"{KERNELS}.softmax:merge_part"},
            needs_triton=True,
        ),
        Exercise(
            "stream-text",
            "13-serving",
            "stream text, but hold back possible stop strings",
            2,
            _function("check_stream:check_stream"),
            {
                f"MyDetokenizer.{name}": f"{DETOKENIZER}.{name}"
                for name in ("_add", "_num_undecided")
            },
        ),
        Exercise(
            "beat-fcfs",
            "14-capacity",
            "find a better order than first come, first served",
            3,
            _function("check_order:check_order"),
            {"order_key": ""},
            (
                *("simulate", "--scheduler", "{file}:MyScheduler", "--model", "qwen3-8b"),
                *("--gpu", "h100", "--request-rate", "10", "--num-prompts", "600"),
                *("--input-len", "3000", "--output-len", "60"),
                *("--max-num-seqs", "64", "--max-num-batched-tokens", "2048"),
            ),
        ),
        Exercise(
            "free-behind",
            "15-windows",
            "release the blocks that a sliding window has left behind",
            3,
            _function("check_windows:check_windows"),
            {
                "first_seen_block": "minimal_vllm.cache.layer_groups:first_seen_block",
                "MyBlocks.release_passed": f"{BLOCKS}.release_passed",
            },
        ),
        Exercise(
            "four-bits",
            "16-quantization",
            "turn a matrix of 4-bit integers back into numbers",
            1,
            _function("check_four_bits:check_four_bits"),
            {
                "unpack": f"{INT4}:unpack",
                "MyInt4Weight.dequantized": f"{INT4}:Int4Weight.dequantized",
            },
        ),
        Exercise(
            "experts",
            "17-experts",
            "route tokens to experts, and compute each expert once",
            2,
            _function("check_experts:check_experts"),
            {
                "choose_experts": "minimal_vllm.model.experts:choose_experts",
                "mix_experts": "minimal_vllm.model.experts:mix_experts",
            },
        ),
        Exercise(
            "prefix-router",
            "18-routing",
            "send a prompt to the replica that holds its beginning",
            2,
            _function("check_routes:check_routes"),
            {
                f"MyRouter.{name}": f"minimal_vllm.routing:PrefixAware.{name}"
                for name in ("pick", "forget", "_longest_match", "_remember")
            },
        ),
        Exercise(
            "guess-and-check",
            "19-speculation",
            "guess tokens by n-gram lookup, and keep the right ones",
            2,
            _function("check_guesses:check_guesses"),
            {
                "MyIndex.extend": "minimal_vllm.speculation.ngram:NgramIndex.extend",
                "MyIndex.find": "minimal_vllm.speculation.ngram:NgramIndex.find",
                "count_kept": "minimal_vllm.speculation.rows:count_kept",
            },
        ),
        Exercise(
            "two-ranks",
            "20-ranks",
            "divide a model between two processes",
            2,
            _function("check_ranks:check_ranks"),
            {
                "ranges": "minimal_vllm.model.divided_weights:_ranges",
                "MyEmbedding.forward": f"{DIVIDED}:DividedEmbedding.forward",
                "mlp": "",
            },
        ),
    )
}
