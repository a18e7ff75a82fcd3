"""The stack of decoder layers between a token embedding and the final norm."""

from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import cast

from torch import Tensor, nn

from minimal_vllm.attention.interface import StepAttention
from minimal_vllm.cache.kv_cache import LayerCache
from minimal_vllm.model.deferred import Operand, computed
from minimal_vllm.model.layers import DecoderLayer
from minimal_vllm.model.rope import Rotation


class Layers(nn.ModuleList):
    """Stack of decoder layers.

    Args:
        layers: the layers, from the first to the last.
    """

    def __init__(self, layers: Iterable[DecoderLayer]) -> None:
        super().__init__(layers)

    def __iter__(self) -> Iterator[DecoderLayer]:
        """Iterate over the layers, from the first to the last."""
        return cast("Iterator[DecoderLayer]", super().__iter__())

    def forward(
        self,
        x: Operand,
        rotations: Sequence[Rotation | None],
        attend: Sequence[StepAttention],
        caches: Sequence[LayerCache],
        wanted: Tensor | None = None,
        kept: Collection[int] = (),
    ) -> tuple[Operand, Operand | None, dict[int, Tensor]]:
        """Compute all layers.

        Args:
            x: ``[T, hidden]``: embedded tokens.
            rotations: rotary angles of the tokens' positions for each layer, or None.
            attend: the step's attention for each layer.
            caches: keys and values of each layer.
            wanted: ``[N]`` int64: indices of the tokens to return. Default: all tokens.
            kept: numbers of layers after which hidden states are kept, counted from 1.

        Returns:
            The last layer's output and the residual stream, each ``[N, hidden]``, which aren't
            added yet. If they are, the stream is None. Then the hidden states that are kept, by the
            layer's number.
        """
        residual: Operand | None = None
        hidden = dict[int, Tensor]()
        inputs = zip(self, rotations, attend, caches, strict=True)
        for number, (layer, rotation, attend_here, cache) in enumerate(inputs, start=1):
            # Only the last layer may drop tokens: later layers need keys and values of all tokens.
            wanted_here = wanted if number == len(self) else None
            x, residual = layer.forward(x, residual, rotation, attend_here, cache, wanted_here)
            if number in kept:
                x = computed(x)
                hidden[number] = x + computed(residual)
        return x, residual, hidden
