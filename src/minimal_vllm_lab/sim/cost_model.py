"""How long a step takes: reckoned from a datasheet, or fitted to what was measured.

The roofline (Williams et al., CACM 2009): a kernel takes as long as its arithmetic or its memory
traffic, whichever is longer. A step is a sequence of such kernels, and what it costs to launch
them.
"""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Protocol

from pydantic import ConfigDict
from pydantic.dataclasses import dataclass

from minimal_vllm.model.config import DTYPE_BYTES, ModelConfig, read_json
from minimal_vllm_lab.sim.config import Achieved, NonNegative
from minimal_vllm_lab.sim.hardware import Gpu
from minimal_vllm_lab.sim.load import StepLoad

_CONFIG = ConfigDict(extra="forbid", allow_inf_nan=False)

LOGITS_PASSES = 4
"""The LM head writes them; the sampler reads them for the peak, for the sum and for the choice."""


class CostModel(Protocol):
    """Predicts a step's time from its load alone."""

    def seconds(self, load: StepLoad) -> float:
        """How long the step takes, from its schedule to its update."""


class RooflineCostModel:
    """A decoder's step on a GPU, kernel by kernel.

    Args:
        model: whose weights are read; without sliding windows.
        gpu: the datasheet.
        achieved: how much of it is had.
        itemsize: bytes of a weight and of an activation.
        kv_itemsize: bytes of a number in the KV cache.

    Raises:
        ValueError: some of the model's layers have a sliding window.
    """

    def __init__(
        self, model: ModelConfig, gpu: Gpu, achieved: Achieved, itemsize: int, kv_itemsize: int
    ) -> None:
        if any(layer.window for layer in model.layers):
            raise ValueError("the cost model knows no sliding windows, and this model has some")
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
        self._layer_weights = model.num_parameters - embeddings
        self._head_weights = head
        self._itemsize = itemsize
        self._kv_bytes = kv_bytes_per_token(model, kv_itemsize)
        self._activation_bytes = activation_numbers(model) * itemsize
        self._logits_bytes = LOGITS_PASSES * model.vocab_size * itemsize
        # Two products, of queries with keys and of weights with values, each a multiplication
        # and an addition per head dimension.
        self._pair_flops = 4 * model.num_layers * model.num_heads * model.head_dim

    def seconds(self, load: StepLoad) -> float:
        """The CPU's work, and the kernels; without graphs, prompts wait for their launches, too."""
        cpu = self._overhead
        if load.admitted:
            cpu += self._idle_start + load.admitted * self._admission
        has_prompts = load.num_tokens > load.num_samples
        return cpu + max(self._kernels(load), self._launches if has_prompts else 0)

    def _kernels(self, load: StepLoad) -> float:
        """Products, attention, what is moved in between, and the pauses from kernel to kernel."""
        moved = load.num_tokens * self._activation_bytes + load.num_samples * self._logits_bytes
        return (
            self._matmul(self._layer_weights, load.num_tokens)
            + self._attention(load)
            + (self._matmul(self._head_weights, load.num_samples) if load.num_samples else 0)
            + moved / self._bandwidth
            # One token may have kernels of its own, which begin before the last one has ended.
            + (self._pauses if load.num_tokens > 1 else 0)
        )

    def _attention(self, load: StepLoad) -> float:
        """Keys and values are read once; a kernel of its own multiplies what several share."""
        memory = (load.kv_tokens + load.num_tokens) * self._kv_bytes / self._bandwidth
        shared = load.shared * self._pair_flops / self._attention_rate
        own = (load.attended - load.shared) * self._pair_flops / self._attention_rate
        return shared + max(memory, own)

    def _matmul(self, num_weights: int, num_rows: int) -> float:
        """Each weight is read once, and multiplied and added once for each row."""
        return max(
            num_weights * self._itemsize / self._bandwidth,
            2 * num_weights * num_rows / self._matmul_rate,
        )


def kv_bytes_per_token(model: ModelConfig, kv_itemsize: int) -> int:
    """Bytes of one token's keys and values over all layers, if each number takes so many."""
    return model.kv_bytes_per_token("float16") // DTYPE_BYTES["float16"] * kv_itemsize


def activation_numbers(model: ModelConfig) -> int:
    """Numbers that one token moves between memory and kernels, over all layers.

    Each vector is written once and read once: the residual and its normalised copy, before
    attention and before the MLP; queries, keys, values and attention's result; gate, up and
    their product.
    """
    queries, keys = model.num_heads * model.head_dim, model.num_kv_heads * model.head_dim
    widths = 4 * model.hidden_size + 2 * queries + 2 * keys + 3 * model.intermediate_size
    return 2 * model.num_layers * widths


@dataclass(frozen=True, config=_CONFIG)
class LinearCostModel:
    """Seconds, linear in the load; ``fit_cost_model`` finds the coefficients."""

    per_step: NonNegative
    per_request: NonNegative
    per_token: NonNegative
    per_sample: NonNegative
    per_kv_token: NonNegative
    per_attended: NonNegative

    def seconds(self, load: StepLoad) -> float:
        """The sum of what each part of the load costs."""
        return (
            self.per_step
            + self.per_request * load.num_requests
            + self.per_token * load.num_tokens
            + self.per_sample * load.num_samples
            + self.per_kv_token * load.kv_tokens
            + self.per_attended * load.attended
        )

    def save(self, path: Path) -> None:
        """Write the coefficients as JSON."""
        path.write_text(json.dumps(asdict(self), indent=1) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> "LinearCostModel":
        """Read what ``save`` wrote.

        Raises:
            ValueError: naming what is wrong with the file.
        """
        return cls(**read_json(path))
