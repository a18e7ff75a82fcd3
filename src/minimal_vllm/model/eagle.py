"""An EAGLE-3 head: one layer that reads a model's own hidden states, and guesses what follows.

::

    the model's tokens          t0   t1   t2   t3
    its hidden states           h0   h1   h2           (t3 was sampled from h2)
    read by the head         t1,h0 t2,h1 t3,h2
    what the head guesses        -    -    t4          its own state takes the place of h3

``h`` is fused from the states after a low, a middle and a high layer. So the head has a key and a
value for each token but the last, at the token's own place in the cache.

Source: Li et al., "EAGLE-3: Scaling up Inference Acceleration of Large Language Models via
Training-Time Test", arXiv:2503.01840, 2025. The format is that of the authors' checkpoints.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import copy
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, cat, nn

from minimal_vllm.attention.interface import StepAttention
from minimal_vllm.cache.kv_cache import LayerCache, zeros
from minimal_vllm.model.decoder import Decoder
from minimal_vllm.model.deferred import Operand, computed
from minimal_vllm.model.eagle_config import NUM_READ, EagleConfig
from minimal_vllm.model.embedding import Embedding
from minimal_vllm.model.layers import MLP, Modules, make_norm
from minimal_vllm.model.linear import Linear
from minimal_vllm.model.network import Network, allocate
from minimal_vllm.model.rope import Rotary, Rotation


class EagleLayer(nn.Module):
    """The layer of a head, whose attention reads the token's embedding beside the hidden state."""

    def __init__(self, config: EagleConfig, modules: Modules) -> None:
        super().__init__()
        layer = config.layer
        wide = replace(modules, linear=partial(_twice_as_wide, modules.linear))
        norm = partial(make_norm, modules, size=layer.hidden_size, config=layer)
        self.input_layernorm = norm(name="input_layernorm")
        self.hidden_norm = norm(name="hidden_norm")
        self.self_attn = modules.attention(layer, layer.layers[0], wide)
        self.post_attention_layernorm = norm(name="post_attention_layernorm")
        self.mlp = MLP(layer, modules)
        self.norm_before_residual = config.norm_before_residual

    def forward(
        self,
        embedded: Tensor,
        state: Tensor,
        rotation: Rotation,
        attend: StepAttention,
        cache: LayerCache,
        wanted: Tensor | None,
    ) -> tuple[Operand, Operand]:
        """Compute the layer.

        Args:
            embedded: ``[T, hidden]``: embeddings of the tokens that follow.
            state: ``[T, hidden]``: fused hidden states, or the head's own; may be overwritten.
            rotation: see ``DecoderLayer.forward``.
            attend: see ``DecoderLayer.forward``.
            cache: see ``DecoderLayer.forward``.
            wanted: see ``DecoderLayer.forward``.

        Returns:
            The layer's output, not yet added to the residual stream, and the stream.
        """
        normed = self.hidden_norm.normalize(state)
        residual = normed if self.norm_before_residual else state
        both = cat((self.input_layernorm.normalize(embedded), normed), dim=-1)
        x = self.self_attn.forward(both, rotation, attend, cache, wanted)
        if wanted is not None:
            residual = residual[wanted]
        x, stream = self.post_attention_layernorm.forward(x, residual)
        return self.mlp.forward(x), stream


class EagleHead(Network):
    """Network of an EAGLE-3 head. ``HiddenStates`` writes the model's hidden states that it reads.

    Args:
        config: hyperparameters.
        vocab_size: number of the model's tokens.
        num_layers: number of the model's layers.
        dtype: see ``Decoder``.
        device: see ``Decoder``.
        max_positions: number of positions. It may exceed what the head was trained with: guesses
            at later positions may then be wrong more often.
        modules: classes to build the network from.
    """

    def __init__(
        self,
        config: EagleConfig,
        vocab_size: int,
        num_layers: int,
        dtype: torch.dtype,
        device: torch.device,
        max_positions: int,
        modules: Modules,
    ) -> None:
        layer = config.layer
        super().__init__(layer, vocab_size, dtype, device)
        self.eagle = config
        self.read_layers = config.layers_of(num_layers)
        with torch.device("meta"):
            sizes = layer.vocab_size, layer.hidden_size
            self.embed_tokens = modules.embedding(*sizes, 1.0) if config.has_embedding else None
            states = NUM_READ * config.target_hidden_size
            self.fc = modules.linear(states, {"fc": layer.hidden_size}, False)
            self.midlayer = EagleLayer(config, modules)
            self.norm = make_norm(modules, "norm", layer.hidden_size, layer)
            tokens = {"lm_head": config.draft_vocab_size}
            self.lm_head = modules.linear(layer.hidden_size, tokens, False)
        self.convert_projections(modules.convert)
        allocate(self, dtype, device)
        self.token_ids = torch.arange(config.draft_vocab_size, device=device)
        """The model's id of each token that the head can guess."""
        self.embed: Callable[[Tensor], Tensor] = _nothing
        """Returns the embeddings of tokens: its own, or the model's."""
        if self.embed_tokens is not None:
            self.embed = self.embed_tokens.forward
        self.states = torch.empty(0)
        """``[slots + 1, hidden]``: what the head reads of the token in each cache slot: the fused
        hidden states, or its own state if the token is a guess. The last row is for padding, whose
        slot is -1."""
        self.rotary = Rotary(layer.rope, layer.head_dim, max_positions, device)

    def share_embedding(self, embedding: Embedding) -> None:
        """Use the model's embedding, but without the factor that some models multiply it by."""
        unscaled = copy(embedding)
        unscaled.scale = 1.0
        self.embed = unscaled.forward

    def allocate_states(self, num_slots: int) -> None:
        """Allocate ``states`` for a number of cache slots."""
        self.states = zeros((num_slots + 1, self.hidden_size), self.dtype, self.device)

    def note_states(self, slots: Tensor, states: Tensor) -> None:
        """Write rows of ``states``, which the head reads when it computes the next tokens.

        Args:
            slots: ``[T]`` int64: the tokens' cache slots; -1 for padding.
            states: ``[T, hidden]``.
        """
        self.states[slots] = states

    def forward(
        self,
        input_ids: Tensor,
        positions: Tensor,
        caches: Sequence[LayerCache],
        attend: Sequence[StepAttention],
        wanted: Tensor | None = None,
    ) -> Tensor:
        """Compute the head's states; see ``Network.forward``.

        Positions and slots are those of the tokens *before* ``input_ids``.

        Returns:
            ``[N, hidden]``, not normalized.
        """
        (attend_here,), (cache,) = attend, caches
        embedded = self.embed(input_ids)
        state = self.states[attend_here.slots]
        rotation = self.rotary.rotation(positions, self.dtype)
        x, residual = self.midlayer.forward(embedded, state, rotation, attend_here, cache, wanted)
        return computed(x) + computed(residual)

    def logits(self, hidden: Tensor, out: Tensor | None = None) -> Tensor:
        """Compute the logits of the next token; -inf for tokens that the head can't guess."""
        logits = self.lm_head.forward(self.norm.forward(hidden)[0])
        if out is None:
            out = logits.new_empty(len(hidden), self.vocab_size)
        return out.fill_(-torch.inf).index_copy_(1, self.token_ids, logits)


class HiddenStates:
    """Writes a model's hidden states to where a head reads them; see ``Tap``.

    Those of all tokens are written, also of tokens for which the head computes nothing yet: a guess
    may follow any step. What the head reads of rejected guesses is overwritten with them.

    Args:
        head: the head, with states for all slots.
        layer: index of a layer in the first group, whose slots are those of the head.
        layers: numbers of layers after which the hidden states are taken.
    """

    def __init__(self, head: EagleHead, layer: int, layers: Sequence[int]) -> None:
        self._head = head
        self._layer = layer
        self.layers = layers

    def within(self, num_layers: int) -> "HiddenStates":
        """Return a tap for a decoder of only the first layers; see ``Tap``."""
        layers = [min(number, num_layers) for number in self.layers]
        return HiddenStates(self._head, min(self._layer, num_layers - 1), layers)

    def take(self, hidden: Mapping[int, Tensor], attend: Sequence[StepAttention]) -> None:
        """Fuse a step's hidden states, and write them to the tokens' slots."""
        states = cat([hidden[number] for number in self.layers], dim=-1)
        self._head.note_states(attend[self._layer].slots, self._head.fc.forward(states))


@contextmanager
def untapped(network: Network) -> Iterator[None]:
    """Keep a decoder's head from reading what is computed in this context."""
    if not isinstance(network, Decoder):
        yield
        return
    tap, network.tap = network.tap, None
    try:
        yield
    finally:
        network.tap = tap


def _nothing(input_ids: Tensor) -> Tensor:
    raise RuntimeError(f"no embedding was given to the head, to look {len(input_ids)} tokens up")


def _twice_as_wide(
    make: Callable[[int, dict[str, int], bool], Linear],
    in_size: int,
    parts: dict[str, int],
    bias: bool,
) -> Linear:
    return make(2 * in_size, parts, bias)
