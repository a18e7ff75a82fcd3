"""Reading the config.json of an EAGLE-3 head. Nothing here imports torch.

A head is published as a folder of its own, and says little of the model that it guesses for.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from minimal_vllm.model.config import ModelConfig, read_json
from minimal_vllm.model.json_fields import flag, integer
from minimal_vllm.model.supported import DTYPE_BYTES

NUM_READ = 3
"""Number of layers of the model whose outputs a head reads."""
LAYER_IDS = "eagle_aux_hidden_state_layer_ids"


@dataclass(frozen=True)
class EagleConfig:
    """Hyperparameters of an EAGLE-3 head."""

    layer: ModelConfig
    """Hyperparameters of its layer, as of a model that has only this one."""
    target_hidden_size: int
    """Hidden size of the model that it guesses for."""
    read_layers: tuple[int, ...] | None
    """Numbers of layers of that model after which it reads the hidden state. None: see
    ``layers_of``."""
    draft_vocab_size: int
    """Number of tokens that it can guess."""
    norm_before_residual: bool
    """Whether its residual stream starts with the normalized hidden state."""
    has_embedding: bool = False
    """Whether it has an embedding of its own. Otherwise it uses the model's."""

    @classmethod
    def from_checkpoint(cls, folder: Path) -> "EagleConfig":
        """Read the ``config.json`` in a head's folder.

        Raises:
            ValueError: it is missing or damaged, is not an EAGLE-3 head's, or asks for a feature
                that isn't supported.
        """
        return cls.from_dict(read_json(folder / "config.json"), folder.name)

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any], name: str) -> "EagleConfig":
        """Read a config.json.

        Raises:
            ValueError: see ``from_checkpoint``.
        """
        if "draft_vocab_size" not in raw and "eagle3" not in str(raw.get("architectures")).lower():
            raise ValueError(
                f"{name} is not an EAGLE-3 head: its config.json has no draft_vocab_size (heads of "
                f"EAGLE-1 and 2, Medusa and MTP are not supported; for a small model, use the "
                f"method draft_model)"
            )
        if raw.get("num_hidden_layers", 1) != 1:
            raise ValueError(
                f"the EAGLE-3 head {name} has {raw['num_hidden_layers']} layers, but only heads of "
                f"one layer are supported"
            )
        changes = {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "tie_word_embeddings": False,
            "num_hidden_layers": 1,
            "layer_types": None,
        }
        try:
            layer = ModelConfig.from_dict({**raw, **changes})
            given = {key: value for key, value in raw.items() if value is not None}
            return cls(
                layer=layer,
                target_hidden_size=integer(given, "target_hidden_size", layer.hidden_size),
                read_layers=_read_layers(given),
                draft_vocab_size=integer(given, "draft_vocab_size", layer.vocab_size),
                norm_before_residual=flag(given, "norm_before_residual"),
            )
        except ValueError as error:
            raise ValueError(f"the EAGLE-3 head {name}: {error}") from error

    def layers_of(self, num_layers: int) -> tuple[int, ...]:
        """Return the numbers of layers after which a head reads a model's hidden state.

        By default they are those of the authors' heads: a low, a middle and a high one.

        Args:
            num_layers: number of the model's layers.
        """
        return self.read_layers or (2, num_layers // 2, num_layers - 3)

    @property
    def num_parameters(self) -> int:
        """Number of parameters, without an embedding that is the model's."""
        layer, hidden = self.layer, self.layer.hidden_size
        of_layer = layer.num_parameters - (2 * layer.vocab_size + 1) * hidden
        heads = (layer.num_heads + 2 * layer.num_kv_heads) * layer.head_dim
        # Queries, keys and values are projected from two vectors, each with a norm of its own.
        of_layer += hidden * heads + hidden
        fused = NUM_READ * self.target_hidden_size * hidden
        logits = (self.draft_vocab_size + 1) * hidden
        return of_layer + fused + logits + self.has_embedding * layer.vocab_size * hidden

    @property
    def as_model(self) -> ModelConfig:
        """Hyperparameters of an ordinary model whose steps cost as much as the head's passes.

        Its MLP is wider, by as many parameters as the projections of the second vector have.
        """
        layer = self.layer
        wider = (layer.num_heads + 2 * layer.num_kv_heads) * layer.head_dim // 3
        return replace(
            layer,
            vocab_size=self.draft_vocab_size,
            intermediate_size=layer.intermediate_size + wider,
        )

    def weight_bytes(self, dtype: str) -> int:
        """Return the bytes that its weights take."""
        return self.num_parameters * DTYPE_BYTES[dtype]

    def bytes_per_token(self, itemsize: int, kv_itemsize: int) -> int:
        """Return the bytes that a token takes: key and value, and the fused hidden state.

        Args:
            itemsize: bytes of a number of the model.
            kv_itemsize: bytes of a number of the KV cache.
        """
        layer = self.layer
        return 2 * layer.num_kv_heads * layer.head_dim * kv_itemsize + layer.hidden_size * itemsize


def _read_layers(raw: Mapping[str, Any]) -> tuple[int, ...] | None:
    """Return the numbers of layers that config.json names, in the way of vLLM or of SGLang.

    vLLM counts the layers before the hidden state, and SGLang gives the index of the last of them.
    """
    nested = raw.get("eagle_config")
    inner = nested.get(LAYER_IDS) if isinstance(nested, Mapping) else None
    outer = raw.get(LAYER_IDS)
    named = outer or inner
    if not named:
        return None
    is_list = isinstance(named, list) and len(named) == NUM_READ
    if not is_list or any(type(each) is not int for each in named):
        raise ValueError(f"config.json: {LAYER_IDS} must list {NUM_READ} layers, not {named!r}")
    return tuple(each if outer else each + 1 for each in named)
