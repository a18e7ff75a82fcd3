"""Cost models: predict how long a step takes, from a datasheet or from measured steps.

The roofline (Williams et al., CACM 2009): a kernel takes as long as its arithmetic or its memory
traffic, whichever takes longer. A step is a sequence of such kernels, plus the cost of launching
them.
"""

import json
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Protocol

from pydantic import ConfigDict
from pydantic.dataclasses import dataclass

from minimal_vllm.model.config import ModelConfig, read_json
from minimal_vllm.model.quantization_config import Fp8Blocks, Fp8Rows
from minimal_vllm.model.supported import DTYPE_BYTES
from minimal_vllm.model.weight_bytes import idle_expert_bytes, weight_bytes
from minimal_vllm_lab.sim.config import Achieved, NonNegative
from minimal_vllm_lab.sim.hardware import Gpu
from minimal_vllm_lab.sim.load import StepLoad

_CONFIG = ConfigDict(extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)

LOGITS_PASSES = 4
"""Number of times that logits move to or from memory: the LM head writes them, and the sampler
reads them for the maximum, for the sum and for the choice."""


class CostModel(Protocol):
    """Predictor of a step's duration from its load alone."""

    def seconds(self, load: StepLoad) -> float:
        """Return the duration of a step, from its schedule to its update."""


class RooflineCostModel:
    """Roofline of a decoder's step on a GPU, kernel by kernel.

    Args:
        model: model whose weights are read.
        gpu: datasheet of the GPU.
        achieved: fractions of the datasheet's rates that are achieved.
        itemsize: bytes per weight and per activation.
        kv_itemsize: bytes per number in the KV cache.
    """

    def __init__(
        self, model: ModelConfig, gpu: Gpu, achieved: Achieved, itemsize: int, kv_itemsize: int
    ) -> None:
        head = model.vocab_size * model.hidden_size
        embeddings = head if model.tie_word_embeddings else 2 * head
        self._bandwidth = gpu.bandwidth * 1e12 * achieved.bandwidth_fraction
        self._matmul_rate = gpu.tflops * 1e12 * achieved.matmul_fraction
        self._attention_rate = gpu.tflops * 1e12 * achieved.attention_fraction
        self._overhead = achieved.step_overhead_ms / 1000
        self._launches = achieved.launch_ms_per_layer / 1000 * model.num_layers
        self._pauses = achieved.batch_us_per_layer / 1e6 * model.num_layers
        self._admission = achieved.admission_us_per_token / 1e6
        self._idle_start = achieved.idle_start_ms / 1000
        self._model = model
        self._layer_bytes = weight_bytes(model, "float16") - embeddings * itemsize
        self._active_weights = model.expected_parameters(1) - embeddings
        self._layer_rate = self._matmul_rate * _speedup(model)
        self._head_weights = head
        self._itemsize = itemsize
        self._kv_bytes = kv_bytes_per_token(model, kv_itemsize)
        self._activation_bytes = activation_numbers(model) * itemsize
        self._logits_bytes = LOGITS_PASSES * model.vocab_size * itemsize
        # Two products, of queries with keys and of weights with values, each a multiplication
        # and an addition per head dimension.
        self._pair_flops = 4 * model.num_layers * model.num_heads * model.head_dim
        counts = Counter(layer.window for layer in model.layers)
        self._shares = {window: count / model.num_layers for window, count in counts.items()}

    def seconds(self, load: StepLoad) -> float:
        """Return the CPU's time plus the kernels' time.

        Without CUDA graphs, a step with prompts takes at least as long as its kernel launches.
        """
        cpu = self._overhead
        if load.admitted:
            cpu += self._idle_start + load.admitted * self._admission
        has_prompts = load.num_tokens > load.num_samples
        return cpu + max(self._kernels(load), self._launches if has_prompts else 0)

    def _kernels(self, load: StepLoad) -> float:
        """Return the time of products, attention, other memory traffic and gaps between kernels."""
        moved = load.num_tokens * self._activation_bytes + load.num_samples * self._logits_bytes
        return (
            self._layers(load.num_tokens)
            + self._attention(load)
            + (self._matmul(self._head_weights, load.num_samples) if load.num_samples else 0)
            + moved / self._bandwidth
            # A step of one token may use other kernels, which start before their predecessor ends.
            + (self._pauses if load.num_tokens > 1 else 0)
        )

    def _attention(self, load: StepLoad) -> float:
        """Return the time of attention over all layers."""
        return sum(
            share * self._attention_if_all_layers_were_alike(load.within(window))
            for window, share in self._shares.items()
        )

    def _attention_if_all_layers_were_alike(self, load: StepLoad) -> float:
        """Return the time of attention, if all layers had the load of this one.

        Keys and values are read once per request. A separate kernel multiplies those that requests
        share.
        """
        memory = (load.kv_tokens + load.num_tokens) * self._kv_bytes / self._bandwidth
        shared = load.shared * self._pair_flops / self._attention_rate
        own = (load.attended - load.shared) * self._pair_flops / self._attention_rate
        return shared + max(memory, own)

    def _layers(self, num_tokens: int) -> float:
        """Return the time of the layers' products.

        In a mixture of experts a token is multiplied with its own experts' weights only, but the
        experts of all tokens are read.
        """
        read = self._layer_bytes - idle_expert_bytes(self._model, "float16", num_tokens)
        return max(
            read / self._bandwidth,
            2 * self._active_weights * num_tokens / self._layer_rate,
        )

    def _matmul(self, num_weights: int, num_rows: int) -> float:
        """Return the time of a product: each weight is read once, and multiplied with each row."""
        return max(
            num_weights * self._itemsize / self._bandwidth,
            2 * num_weights * num_rows / self._matmul_rate,
        )


def _speedup(model: ModelConfig) -> int:
    """Return how many times as fast as 16-bit numbers the layers' weights can be multiplied."""
    is_fp8 = model.quantization and isinstance(model.quantization.format, Fp8Blocks | Fp8Rows)
    return 2 if is_fp8 else 1


def kv_bytes_per_token(model: ModelConfig, kv_itemsize: int) -> int:
    """Return the bytes of one token's keys and values over all layers."""
    return model.kv_bytes_per_token("float16") // DTYPE_BYTES["float16"] * kv_itemsize


def activation_numbers(model: ModelConfig) -> int:
    """Return how many numbers one token moves between memory and kernels, over all layers.

    Each vector is written once and read once: the residual and its normalized copy, before
    attention and before the MLP; queries, keys, values and the output of attention; gate, up and
    their product.
    """
    queries, keys = model.num_heads * model.head_dim, model.num_kv_heads * model.head_dim
    widths = 4 * model.hidden_size + 2 * queries + 2 * keys
    return 2 * (model.num_layers * widths + 3 * model.active_inner_sizes)


@dataclass(frozen=True, config=_CONFIG)
class LinearCostModel:
    """Cost model linear in the load, in seconds; ``fit_cost_model`` finds its coefficients."""

    per_step: NonNegative
    """Seconds of each step, whatever its load."""
    per_request: NonNegative
    """Seconds per request in the step."""
    per_token: NonNegative
    """Seconds per computed token."""
    per_sample: NonNegative
    """Seconds per sampled row of logits."""
    per_kv_token: NonNegative
    """Seconds per token whose keys and values are read."""
    per_attended: NonNegative
    """Seconds per pair of a computed token and a token that it attends to."""

    def seconds(self, load: StepLoad) -> float:
        """Return the sum of the costs of each part of the load."""
        return (
            self.per_step
            + self.per_request * load.num_requests
            + self.per_token * load.num_tokens
            + self.per_sample * load.num_samples
            + self.per_kv_token * load.kv_tokens
            + self.per_attended * load.attended
        )

    def save(self, path: Path) -> None:
        """Write the coefficients to a JSON file."""
        path.write_text(json.dumps(asdict(self), indent=1) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> "LinearCostModel":
        """Read a file written by ``save``.

        Raises:
            ValueError: the file is malformed; the message names what is wrong.
        """
        return cls(**read_json(path))
