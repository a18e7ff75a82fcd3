"""The network: token ids in, logits out. All supported architectures are this one class."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding

from minimal_vllm.model.config import ModelConfig
from minimal_vllm.model.layers import DecoderLayer, Linear, RMSNorm, parameter
from minimal_vllm.model.rope import rope_table

if TYPE_CHECKING:
    from minimal_vllm.cache.kv_cache import LayerCache
    from minimal_vllm.model.ops import Ops
    from minimal_vllm.model.step import Step


class Embedding(nn.Module):
    """A vector per token of the vocabulary."""

    def __init__(self, num_tokens: int, size: int) -> None:
        super().__init__()
        self.weight = parameter(num_tokens, size)

    def forward(self, input_ids: Tensor) -> Tensor:
        """``[T]`` int64 -> ``[T, size]``; PyTorch's, on which ``launch`` relies."""
        return embedding(input_ids, self.weight)


class Decoder(nn.Module):
    """A stack of decoder layers between an embedding and its inverse.

    It knows tokens and positions, but nothing of requests: which token may see which is
    the business of attention, which gets the step's metadata handed through.

    Args:
        config: which network to build.
        dtype: of weights and activations: float32, bfloat16 or float16.
        device: where the weights will be; their memory is allocated, and left uninitialised.
        max_positions: the positions to prepare for; None: ``config.max_positions``.
    """

    def __init__(
        self,
        config: ModelConfig,
        dtype: torch.dtype,
        device: torch.device,
        max_positions: int | None = None,
    ) -> None:
        super().__init__()
        with torch.device("meta"):  # shapes without memory, until dtype and device are set below
            self.embed_tokens = Embedding(config.vocab_size, config.hidden_size)
            self.layers = nn.ModuleList(DecoderLayer(config, layer) for layer in config.layers)
            self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
            self.lm_head = (
                None
                if config.tie_word_embeddings
                else Linear(config.hidden_size, {"lm_head": config.vocab_size}, bias=False)
            )
        _allocate(self, dtype, device)
        num_positions = max_positions or config.max_positions
        self.rope_table = rope_table(config.rope, config.head_dim, num_positions).to(device)

    def forward(
        self,
        input_ids: Tensor,
        positions: Tensor,
        caches: Sequence["LayerCache"],
        step: "Step",
        wanted: Tensor | None = None,
    ) -> Tensor:
        """Compute the last hidden states of a step's tokens, and store their keys and values.

        Args:
            input_ids: ``[T]`` int64.
            positions: ``[T]`` int64: each token's position in its request, below max_positions.
            caches: the layers' keys and values.
            step: how to compute, and where the tokens belong.
            wanted: ``[N]`` int64: the tokens whose hidden states are wanted; None: all.

        Returns:
            ``[N, hidden]``, normalised: what ``logits`` wants.
        """
        residual, x = self.embed_tokens.forward(input_ids), None
        rotation = step.ops.rotation(self.rope_table, positions, residual.dtype)
        last = self.layers[-1]
        for layer, cache in zip(self.layers, caches, strict=True):
            # Behind the last layer nobody needs the other tokens any more.
            wanted_here = wanted if layer is last else None
            residual, x = layer.forward(residual, x, rotation, step, cache, wanted_here)
        return step.ops.add_norm(residual, x, self.norm)[1]

    def logits(self, hidden: Tensor, ops: "Ops", out: Tensor | None = None) -> Tensor:
        """``[N, hidden]`` -> ``[N, V]``: a score for each token of the vocabulary to come next."""
        return ops.linear(hidden, (self.lm_head or self.embed_tokens).weight, out=out)


def _allocate(model: nn.Module, dtype: torch.dtype, device: torch.device) -> None:
    """Put uninitialised memory in place of every parameter's shape.

    ``Module.to_empty`` would do, but goes through code that imports sympy: 36 MB and half a second.
    """
    for module in model.modules():
        for name, shaped in module.named_parameters(recurse=False):
            memory = torch.empty(shaped.shape, dtype=dtype, device=device)
            setattr(module, name, nn.Parameter(memory, requires_grad=False))
