"""The base of networks: a whole decoder, or a head that guesses for one."""

from abc import abstractmethod
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor, nn

from minimal_vllm.attention.interface import StepAttention
from minimal_vllm.cache.kv_cache import LayerCache
from minimal_vllm.model.config import ModelConfig
from minimal_vllm.model.experts import Experts
from minimal_vllm.model.linear import Projection, TypedParameter


class Network(nn.Module):
    """Layers between token ids and logits, which know tokens and positions but not requests.

    Args:
        config: hyperparameters.
        vocab_size: number of tokens that have logits.
        dtype: dtype of weights and activations.
        device: device of the weights.
    """

    def __init__(
        self, config: ModelConfig, vocab_size: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        super().__init__()
        self.config = config
        self.vocab_size = vocab_size
        self.hidden_size = config.hidden_size
        self.dtype = dtype
        self.device = device

    @abstractmethod
    def forward(
        self,
        input_ids: Tensor,
        positions: Tensor,
        caches: Sequence[LayerCache],
        attend: Sequence[StepAttention],
        wanted: Tensor | None = None,
    ) -> Tensor:
        """Compute the hidden states of a step's tokens, and cache their keys and values.

        Args:
            input_ids: ``[T]`` int64.
            positions: ``[T]`` int64: position of each token in its request.
            caches: KV cache of each layer.
            attend: the step's attention for each layer.
            wanted: ``[N]`` int64: indices of the tokens whose hidden states are returned. Default:
                all tokens.

        Returns:
            ``[N, hidden]``, ready for ``logits``.
        """

    @abstractmethod
    def logits(self, hidden: Tensor, out: Tensor | None = None) -> Tensor:
        """Compute the logits of the next token over the whole vocabulary.

        Args:
            hidden: ``[N, hidden]``: hidden states, from ``forward``.
            out: ``[N, V]``, overwritten with the logits. Default: newly allocated.

        Returns:
            ``[N, V]``, contiguous.
        """

    def convert_projections(self, convert: Callable[[str, Projection], Projection]) -> None:
        """Put what ``convert`` returns in place of each projection; see ``layers.Modules.convert``.

        Args:
            convert: returns the replacement of a projection, given its path in the network.
        """
        for path, module in list(self.named_modules()):
            if isinstance(module, Projection):
                self.set_submodule(path, convert(path, module))

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


def allocate(model: nn.Module, dtype: torch.dtype, device: torch.device) -> None:
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
