"""The network: token ids in, logits out. One class covers all supported architectures."""

from collections.abc import Collection, Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor

from minimal_vllm.attention.interface import StepAttention
from minimal_vllm.cache.kv_cache import LayerCache
from minimal_vllm.model.config import ModelConfig
from minimal_vllm.model.deferred import computed
from minimal_vllm.model.layer_stack import Layers
from minimal_vllm.model.layers import PLAIN_MODULES, DecoderLayer, Modules, make_norm
from minimal_vllm.model.network import Network, allocate
from minimal_vllm.model.rope import Rotary


class Tap(Protocol):
    """Taker of hidden states between a decoder's layers."""

    @property
    def layers(self) -> Collection[int]:
        """Numbers of layers after which the hidden states are taken, counted from 1."""
        ...

    def within(self, num_layers: int) -> "Tap":
        """Return a tap that launches the same kernels in a decoder of only the first layers."""
        ...

    def take(self, hidden: Mapping[int, Tensor], attend: Sequence[StepAttention]) -> None:
        """Take a step's hidden states, before the next step overwrites them.

        Args:
            hidden: ``[T, hidden]`` by the number of layers that have computed it.
            attend: the step's attention for each layer, which knows the tokens' cache slots.
        """
        ...


class Decoder(Network):
    """Stack of decoder layers between a token embedding and an output projection.

    The decoder knows tokens and positions but not requests: the step's attention, an object that
    the caller passes to ``forward``, decides which tokens each token attends to.

    Args:
        config: hyperparameters of the network.
        dtype: dtype of weights and activations: float32, bfloat16 or float16.
        device: device of the weights. Their memory is allocated but not initialized.
        max_positions: number of positions to precompute rotary angles for. Default:
            ``config.max_positions``.
        modules: classes to build the network from.
    """

    def __init__(
        self,
        config: ModelConfig,
        dtype: torch.dtype,
        device: torch.device,
        max_positions: int | None = None,
        modules: Modules = PLAIN_MODULES,
    ) -> None:
        super().__init__(config, config.vocab_size, dtype, device)
        self.tap: Tap | None = None
        with torch.device("meta"):  # shapes without memory, until dtype and device are set below
            self.embed_tokens = modules.embedding(
                config.vocab_rows, config.hidden_size, config.embedding_scale
            )
            make_layers = modules.layers or Layers
            self.layers = make_layers(DecoderLayer(config, each, modules) for each in config.layers)
            self.norm = make_norm(modules, "norm", config.hidden_size, config)
            make_head = modules.head or modules.linear
            self.lm_head = make_head(config.hidden_size, {"lm_head": config.vocab_rows}, False)
            self.convert_projections(modules.convert)
        self.has_tied_embeddings = config.tie_word_embeddings
        if self.has_tied_embeddings:
            self.lm_head.share_weight(self.embed_tokens.weight)
        allocate(self, dtype, device)
        self.logits_divisor, self.logits_softcap = config.logits_divisor, config.logits_softcap
        num_positions = max_positions or config.max_positions
        ropes = [config.rope_of(layer) for layer in config.layers]
        self.rotaries = {
            rope: Rotary(rope, config.head_dim, num_positions, device)
            for rope in dict.fromkeys(ropes)
            if rope is not None
        }
        self.rotary_of_layer = [self.rotaries[rope] if rope else None for rope in ropes]

    def forward(
        self,
        input_ids: Tensor,
        positions: Tensor,
        caches: Sequence[LayerCache],
        attend: Sequence[StepAttention],
        wanted: Tensor | None = None,
    ) -> Tensor:
        """Compute the final hidden states of a step's tokens; see ``Network.forward``.

        Positions must be below ``max_positions``. The hidden states are normalized.
        """
        by_rotary = {
            rotary: rotary.rotation(positions, self.dtype) for rotary in self.rotaries.values()
        }
        rotations = [by_rotary[rotary] if rotary else None for rotary in self.rotary_of_layer]
        x, residual, hidden = self.layers.forward(
            self.embed_tokens.forward(input_ids),
            rotations,
            attend,
            caches,
            wanted,
            kept=self.tap.layers if self.tap else (),
        )
        if self.tap:
            self.tap.take(hidden, attend)
        return computed(self.norm.forward(x, residual)[0])

    def logits(self, hidden: Tensor, out: Tensor | None = None) -> Tensor:
        """Compute the logits of the next token; see ``Network.logits``."""
        logits = self.lm_head.forward(hidden, out)
        if self.logits_divisor != 1:
            logits.div_(self.logits_divisor)
        if self.logits_softcap is not None:
            logits.div_(self.logits_softcap).tanh_().mul_(self.logits_softcap)
        return logits
