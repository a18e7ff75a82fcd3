"""Experts whose matrices are quantized in the formats of other projections.

The matrices of all experts are one tall matrix, whose fused parts are theirs. So a format's reader
and its layout in memory serve experts as they serve projections::

    gate_up [E * 2 * inner, hidden]    0.gate_proj, 0.up_proj, 1.gate_proj, 1.up_proj, …
    down    [E * hidden, inner]        0.down_proj, 1.down_proj, …
"""

from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor

from minimal_vllm.model.config import ModelConfig
from minimal_vllm.model.experts import Experts
from minimal_vllm.model.quantization.staging import Reader, staged_tensors
from minimal_vllm.model.quantization.weight import QuantizedWeight
from minimal_vllm.model.stored_tensor import Destination

MakeWeight = Callable[[int, Mapping[str, int]], QuantizedWeight]
"""Makes a quantized matrix from the length of an input vector and its parts."""


class QuantizedExperts(Experts):
    """Experts whose matrices are quantized. Those of each expert with tokens are dequantized.

    Args:
        config: hyperparameters of a model that has experts.
        make_weight: makes the matrix of all experts.
        reader: reads one expert's matrix.
    """

    def __init__(self, config: ModelConfig, make_weight: MakeWeight, reader: Reader) -> None:
        super().__init__(config)
        hidden, inner, all_experts = config.hidden_size, self.config.inner_size, self.config.count
        parts = [f"{expert}.{name}" for expert in range(all_experts) for name in ("gate", "up")]
        self.gate_up = make_weight(hidden, {f"{part}_proj": inner for part in parts})
        self.down = make_weight(
            inner, {f"{expert}.down_proj": hidden for expert in range(all_experts)}
        )
        self.gate_up_reader = self.down_reader = reader

    def matrices(self, index: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Return an expert's matrices; see ``Experts.matrices``."""
        gate_up, down = (
            self._expert(weight, index).dequantized(dtype) for weight in (self.gate_up, self.down)
        )
        return gate_up, down

    def _expert(self, weight: QuantizedWeight, index: int) -> QuantizedWeight:
        height = weight.out_size // self.config.count
        return weight.rows(index * height, (index + 1) * height)

    def stored_matrices(self) -> Iterator[tuple[str, Tensor | Destination]]:
        """Yield names and destinations; see ``Experts.stored_matrices``."""
        for weight, reader in ((self.gate_up, self.gate_up_reader), (self.down, self.down_reader)):
            for part, out_size in weight.parts.items():
                for name, place in staged_tensors(reader, weight, part, out_size).items():
                    yield f"experts.{part}.{name}", place

    def after_loading(self) -> None:
        """Let the matrices convert themselves; see ``Experts.after_loading``."""
        self.gate_up.after_loading()
        self.down.after_loading()
