"""Check of the exercise bytes-and-flops: sizes of known models, and times of their products."""

from random import Random
from types import ModuleType
from typing import Any

from minimal_vllm.model.config import ModelConfig
from minimal_vllm_lab.check.lesson import Broken, Lesson, Rule
from minimal_vllm_lab.check.search import History, find_mistake
from minimal_vllm_lab.sim.config import Achieved
from minimal_vllm_lab.sim.cost_model import RooflineCostModel
from minimal_vllm_lab.sim.hardware import GPUS
from minimal_vllm_lab.sim.presets import PRESETS

CHAPTER = "01-one-step"
PARAMETERS = Rule(
    "num_parameters counts each element of the weights once.",
    "It gives the minimum number of bytes that a step reads, and the memory that is left for the "
    "cache.",
    CHAPTER,
)
KV_BYTES = Rule(
    "A token has a key and a value, each with one number per layer, kv head and head dimension.",
    "This gives the number of tokens that fit into the cache, and the cost of reading each of "
    "them.",
    CHAPTER,
)
MATMUL = Rule(
    "A product takes as long as its memory traffic or its arithmetic, whichever takes longer.",
    "With few rows the memory is the bottleneck, with many rows the arithmetic. Up to that point "
    "more rows are nearly free, which is why requests are batched.",
    CHAPTER,
)


def check_costs(module: ModuleType, seed: int | None = None) -> Lesson | None:
    """Compare ``MyModel`` and ``MyCostModel`` with the engine's classes.

    Args:
        module: the learner's module.
        seed: seed of the shape of an unknown model. Default: the same shape in every run.

    Returns:
        A lesson about the first difference, or None.
    """
    dense = {name: shape for name, shape in PRESETS.items() if "num_experts" not in shape}
    shapes = {**dense, "a model with biases": _odd_shape(Random(seed or 0))}

    def run(history: History) -> None:
        for name, shape in shapes.items():
            _check_model(
                module.MyModel.from_dict(shape), ModelConfig.from_dict(shape), name, history
            )
        _check_matmul(module.MyCostModel, history)

    return find_mistake(run)


def _odd_shape(random: Random) -> dict[str, Any]:
    return {
        **PRESETS["llama-3.2-1b"],
        "attention_bias": True,
        "mlp_bias": True,
        "head_dim": 16 * random.randint(1, 12),
        "num_hidden_layers": random.randint(3, 50),
        "intermediate_size": 64 * random.randint(10, 200),
    }


def _check_model(mine: ModelConfig, model: ModelConfig, name: str, history: History) -> None:
    history.lines = [
        f"{name}: {model.num_layers} layers, hidden_size {model.hidden_size}, "
        f"intermediate_size {model.intermediate_size},",
        f"{model.num_heads} heads, {model.num_kv_heads} kv heads, head_dim {model.head_dim}, "
        f"vocab_size {model.vocab_size},",
        f"qk_norm={model.qk_norm}, qkv_bias={model.qkv_bias}, o_bias={model.o_bias}, "
        f"mlp_bias={model.mlp_bias}, tie_word_embeddings={model.tie_word_embeddings}",
    ]
    _compare(mine.num_parameters, model.num_parameters, PARAMETERS, "num_parameters")
    for dtype in ("bfloat16", "float32"):
        _compare(
            mine.kv_bytes_per_token(dtype),
            model.kv_bytes_per_token(dtype),
            KV_BYTES,
            f"kv_bytes_per_token({dtype!r})",
        )


def _check_matmul(cost_model: type[RooflineCostModel], history: History) -> None:
    arguments: Any = (ModelConfig.from_dict(PRESETS["qwen3-8b"]), GPUS["h100"], Achieved(), 2, 2)
    mine, reference = cost_model(*arguments), RooflineCostModel(*arguments)
    history.lines = ["an H100, bfloat16, 10 million weights"]
    for rows in (1, 100, 1000, 8000):
        _compare(
            mine._matmul(10_000_000, rows) * 1e6,
            reference._matmul(10_000_000, rows) * 1e6,
            MATMUL,
            f"_matmul(10_000_000, {rows}), in microseconds,",
        )


def _compare(found: float, expected: float, rule: Rule, name: str) -> None:
    if abs(found - expected) > 1e-9 * expected:
        difference = f"{found - expected:+,.10g}, {found / expected:.4g} times the expected value"
        raise Broken(rule, f"{name} is {found:,.10g}\n({difference})", f"{expected:,.10g}")
