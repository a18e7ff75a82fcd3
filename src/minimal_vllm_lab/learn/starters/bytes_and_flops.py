"""Exercise bytes-and-flops: what a step costs, before any code runs.

The idea. A step has to read all weights, and the keys and values of all tokens so far, from memory;
and it multiplies each weight once for each of its tokens. Which of the two takes longer decides
everything (the *roofline*: Williams et al., CACM 2009)::

    time of a product = max(bytes / bandwidth, operations / rate)

    one token:      2 operations per weight of 2 bytes: memory is what one waits for
    1,000 tokens:   2,000 operations per weight, read once: arithmetic is

A decoder has, in each layer: query, key, value and output projections (the first and the last
``hidden_size`` × ``num_heads * head_dim``, the other two × ``num_kv_heads * head_dim``), three
matrices of the MLP (``hidden_size`` × ``intermediate_size``), and two norms of ``hidden_size``;
with ``qk_norm`` two more, of ``head_dim``. With ``qkv_bias``, ``o_bias`` and ``mlp_bias`` the
products have biases, as long as their results (of the MLP's three results, two are
``intermediate_size`` long). Beside the layers: the embeddings, ``vocab_size`` × ``hidden_size``;
the head, of the same size, but the same numbers if ``tie_word_embeddings``; one last norm.

What to write: ``num_parameters``, ``kv_bytes_per_token`` and ``_matmul``.

How it is checked: with the shapes of well-known models.

    minimal-vllm learn check bytes-and-flops
"""

from minimal_vllm.model.config import DTYPE_BYTES, ModelConfig
from minimal_vllm_lab.sim.cost_model import RooflineCostModel


class MyModel(ModelConfig):
    """A model's shape: ``self.num_layers``, ``self.hidden_size`` and so on."""

    @property
    def num_parameters(self) -> int:
        """How many numbers the weights hold; tied embeddings count once."""
        raise NotImplementedError("add up the layers, the embeddings, the head and the norms")

    def kv_bytes_per_token(self, dtype: str) -> int:
        """Bytes that one token's keys and values take over all layers, in ``dtype``.

        ``DTYPE_BYTES[dtype]`` are the bytes of one number.
        """
        raise NotImplementedError("keys and values, in each layer, of each kv head")


class MyCostModel(RooflineCostModel):
    """How long a step takes on a GPU."""

    def _matmul(self, num_weights: int, num_rows: int) -> float:
        """Seconds that a product of so many weights with ``num_rows`` tokens takes.

        ``self._itemsize`` bytes per weight, ``self._bandwidth`` bytes per second,
        ``self._matmul_rate`` operations per second: a multiplication and an addition are two.
        """
        raise NotImplementedError("each weight is read once, and used once for each row")
