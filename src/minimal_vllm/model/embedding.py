"""The table of token vectors."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding

from minimal_vllm.model.linear import parameter


class Embedding(nn.Module):
    """Table with one vector per token of the vocabulary.

    Args:
        num_tokens: number of tokens in the vocabulary.
        size: length of a vector.
        scale: factor of the vectors; rounded to their dtype.
    """

    def __init__(self, num_tokens: int, size: int, scale: float = 1.0) -> None:
        super().__init__()
        self.weight = parameter(num_tokens, size)
        self.scale = scale

    def forward(self, input_ids: Tensor) -> Tensor:
        """Return the vectors of ``input_ids`` (``[T]`` int64) as ``[T, size]``.

        The lookup is a PyTorch kernel; ``device.launch`` relies on that.
        """
        vectors = embedding(input_ids, self.weight)
        if self.scale == 1:
            return vectors
        return vectors.mul_(torch.tensor(self.scale, dtype=vectors.dtype).item())

    def checkpoint_tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Yield the name and the destination of the tensor that a checkpoint has for the table."""
        yield "embed_tokens.weight", self.weight
