"""Exercise bytes-and-flops: compute the cost of a step before any code runs.

The idea. A step reads all weights from memory, and the keys and values of all tokens so far. It
also multiplies each weight once per token. Whichever of the two takes longer decides everything
(the *roofline* model: Williams et al., CACM 2009)::

    time of a product = max(bytes / bandwidth, operations / rate)

    one token:      2 operations per weight of 2 bytes: memory is the bottleneck
    1,000 tokens:   2,000 operations per weight, read once: arithmetic is the bottleneck

Each layer of a decoder has:

- query and output projections, ``hidden_size`` × ``num_heads * head_dim``,
- key and value projections, ``hidden_size`` × ``num_kv_heads * head_dim``,
- three matrices of the MLP, ``hidden_size`` × ``intermediate_size``,
- two norms of ``hidden_size``; with ``qk_norm`` two more, of ``head_dim``,
- biases if ``qkv_bias``, ``o_bias`` or ``mlp_bias`` is set, each as long as the output of its
  product (two outputs of the MLP have ``intermediate_size`` elements, one has ``hidden_size``).

For each token so far, each layer keeps a key and a value, of ``head_dim`` numbers, for each of its
kv heads (chapter 2 says what for). They are what a step reads beside the weights.

Outside the layers there are the embeddings, ``vocab_size`` × ``hidden_size``, an LM head of the
same size, which shares their weights if ``tie_word_embeddings`` is set, and one final norm.

What to write: ``num_parameters``, ``kv_bytes_per_token`` and ``_matmul``.

How it is checked: with the shapes of well-known models.

    minimal-vllm learn check bytes-and-flops
"""

from minimal_vllm.model.config import ModelConfig
from minimal_vllm.model.supported import DTYPE_BYTES
from minimal_vllm_lab.sim.cost_model import RooflineCostModel


class MyModel(ModelConfig):
    """The shape of a model: ``self.num_layers``, ``self.hidden_size`` and so on."""

    @property
    def num_parameters(self) -> int:
        """Number of elements of all weights. Tied embeddings count once."""
        raise NotImplementedError

    def kv_bytes_per_token(self, dtype: str) -> int:
        """Return the bytes of one token's keys and values, summed over all layers.

        Args:
            dtype: dtype of the cache. ``DTYPE_BYTES[dtype]`` is the size of one element in bytes.
        """
        raise NotImplementedError


class MyCostModel(RooflineCostModel):
    """Predicted time of a step on a GPU."""

    def _matmul(self, num_weights: int, num_rows: int) -> float:
        """Return the seconds for a product of ``num_weights`` weights with ``num_rows`` tokens.

        ``self._itemsize`` is the size of a weight in bytes, ``self._bandwidth`` is in bytes per
        second, and ``self._matmul_rate`` is in operations per second. One multiplication and one
        addition are two operations.
        """
        raise NotImplementedError
