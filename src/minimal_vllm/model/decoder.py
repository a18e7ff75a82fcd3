"""The network: token ids in, logits out. One class covers all supported architectures."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor, nn

from minimal_vllm.attention.interface import StepAttention
from minimal_vllm.cache.kv_cache import LayerCache
from minimal_vllm.model.config import ModelConfig
from minimal_vllm.model.deferred import computed
from minimal_vllm.model.experts import Experts
from minimal_vllm.model.layers import PLAIN_MODULES, DecoderLayer, Modules, make_norm
from minimal_vllm.model.linear import Projection, TypedParameter
from minimal_vllm.model.rope import Rotary


class Decoder(nn.Module):
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
        super().__init__()
        self.config = config
        self.vocab_size = config.vocab_size
        self.hidden_size = config.hidden_size
        self.dtype = dtype
        self.device = device
        with torch.device("meta"):  # shapes without memory, until dtype and device are set below
            self.embed_tokens = modules.embedding(
                config.vocab_rows, config.hidden_size, config.embedding_scale
            )
            self.layers = nn.ModuleList(
                DecoderLayer(config, layer, modules) for layer in config.layers
            )
            self.norm = make_norm(modules, "norm", config.hidden_size, config)
            make_head = modules.head or modules.linear
            self.lm_head = make_head(config.hidden_size, {"lm_head": config.vocab_rows}, False)
            for path, module in list(self.named_modules()):
                if isinstance(module, Projection):
                    self.set_submodule(path, modules.convert(path, module))
        self.has_tied_embeddings = config.tie_word_embeddings
        if self.has_tied_embeddings:
            self.lm_head.share_weight(self.embed_tokens.weight)
        _allocate(self, dtype, device)
        self.logits_divisor, self.logits_softcap = config.logits_divisor, config.logits_softcap
        num_positions = max_positions or config.max_positions
        ropes = [config.rope_of(layer) for layer in config.layers]
        self.rotaries = {
            rope: Rotary(rope, config.head_dim, num_positions, device)
            for rope in dict.fromkeys(ropes)
            if rope is not None
        }
        self.rotary_of_layer = [self.rotaries[rope] if rope else None for rope in ropes]

    def after_loading(self, approximate: bool = False) -> None:
        """Let each projection convert its weight; to be called once all parameters are filled.

        Args:
            approximate: whether the checkpoint's weights are quantized.
        """
        for module in self.modules():
            if isinstance(module, Experts):
                module.after_loading()
        projections = [module for module in self.modules() if isinstance(module, Projection)]
        with ThreadPoolExecutor(torch.get_num_threads()) as pool:  # PyTorch releases the GIL
            for done in [pool.submit(each.after_loading, approximate) for each in projections]:
                done.result()

    def forward(
        self,
        input_ids: Tensor,
        positions: Tensor,
        caches: Sequence[LayerCache],
        attend: Sequence[StepAttention],
        wanted: Tensor | None = None,
    ) -> Tensor:
        """Compute the final hidden states of a step's tokens, and cache their keys and values.

        Args:
            input_ids: ``[T]`` int64.
            positions: ``[T]`` int64: position of each token in its request, below
                ``max_positions``.
            caches: KV cache of each layer.
            attend: the step's attention for each layer.
            wanted: ``[N]`` int64: indices of the tokens whose hidden states are returned. Default:
                all tokens.

        Returns:
            ``[N, hidden]``, normalized, ready for ``logits``.
        """
        x, residual = self.embed_tokens.forward(input_ids), None
        rotations = {
            rotary: rotary.rotation(positions, self.dtype) for rotary in self.rotaries.values()
        }
        last = self.layers[-1]
        for layer, rotary, cache, attend_here in zip(
            self.layers, self.rotary_of_layer, caches, attend, strict=True
        ):
            rotation = rotations[rotary] if rotary else None
            # Only the last layer may drop tokens: later layers need keys and values of all tokens.
            wanted_here = wanted if layer is last else None
            x, residual = layer.forward(x, residual, rotation, attend_here, cache, wanted_here)
        return computed(self.norm.forward(x, residual)[0])

    def logits(self, hidden: Tensor, out: Tensor | None = None) -> Tensor:
        """Compute the logits of the next token over the whole vocabulary.

        Args:
            hidden: ``[N, hidden]``: final hidden states, from ``forward``.
            out: ``[N, V]``, overwritten with the logits. Default: newly allocated.

        Returns:
            ``[N, V]``.
        """
        logits = self.lm_head.forward(hidden, out)
        if self.logits_divisor != 1:
            logits.div_(self.logits_divisor)
        if self.logits_softcap is not None:
            logits.div_(self.logits_softcap).tanh_().mul_(self.logits_softcap)
        return logits


def _allocate(model: nn.Module, dtype: torch.dtype, device: torch.device) -> None:
    """Replace every parameter on the meta device by uninitialized memory; shared ones stay shared.

    ``Module.to_empty`` does the same, but imports sympy, which takes 36 MB and half a second.
    """
    allocated: dict[nn.Parameter, nn.Parameter] = {}
    for module in model.modules():
        for name, shaped in module.named_parameters(recurse=False):
            if shaped not in allocated:
                own = shaped.dtype if isinstance(shaped, TypedParameter) else dtype
                memory = torch.empty(shaped.shape, dtype=own, device=device)
                allocated[shaped] = nn.Parameter(memory, requires_grad=False)
            setattr(module, name, allocated[shaped])
