"""Size of a model's weights in memory. Nothing here imports torch."""

from minimal_vllm.model.config import ModelConfig
from minimal_vllm.model.experts_config import ExpertsConfig
from minimal_vllm.model.quantized_experts import experts_format
from minimal_vllm.model.supported import DTYPE_BYTES


def weight_bytes(model: ModelConfig, dtype: str) -> int:
    """Return the bytes that a model's weights take, quantized as its checkpoint is.

    Args:
        model: hyperparameters.
        dtype: dtype of the weights that are not quantized.
    """
    itemsize = DTYPE_BYTES[dtype]
    total = model.num_parameters * itemsize
    if model.quantization is None:
        return total
    for layer, settings in enumerate(model.layers):
        for name, (out_size, in_size) in projections(model).items():
            is_here = not (settings.is_sparse and name.startswith("mlp."))
            if is_here and model.quantization.covers(f"model.layers.{layer}.{name}"):
                total -= out_size * in_size * itemsize
                total += model.quantization.format.num_bytes(out_size, in_size, itemsize)
    if model.quantization.covers("lm_head"):
        total -= 0 if model.tie_word_embeddings else model.vocab_rows * model.hidden_size * itemsize
        total += model.quantization.format.num_bytes(model.vocab_rows, model.hidden_size, itemsize)
    if model.experts:
        of_expert = model.experts.expert_parameters(model.hidden_size) * itemsize
        saved = of_expert - _expert_bytes(model, model.experts, itemsize)
        total -= model.num_sparse_layers * model.experts.count * saved
    return total


def idle_expert_bytes(model: ModelConfig, dtype: str, num_tokens: int) -> float:
    """Return the bytes of the experts that are expected to compute none of ``num_tokens`` tokens.

    A step doesn't read them.
    """
    if model.experts is None:
        return 0
    idle = model.experts.count - model.experts.expected_hit(num_tokens)
    return model.num_sparse_layers * idle * _expert_bytes(model, model.experts, DTYPE_BYTES[dtype])


def _expert_bytes(model: ModelConfig, experts: ExpertsConfig, itemsize: int) -> int:
    """Return the bytes of one expert."""
    total = experts.expert_parameters(model.hidden_size) * itemsize
    form = experts_format(model)
    if form is not None:
        for out_size, in_size in experts.matrices(model.hidden_size).values():
            total -= out_size * in_size * itemsize
            total += form.num_bytes(out_size, in_size, itemsize)
    return total


def projections(model: ModelConfig) -> dict[str, tuple[int, int]]:
    """Return the output and input size of each projection of a layer, by its name in the file."""
    hidden, inner = model.hidden_size, model.intermediate_size
    q_size, kv_size = model.num_heads * model.head_dim, model.num_kv_heads * model.head_dim
    return {
        "self_attn.q_proj": (q_size, hidden),
        "self_attn.k_proj": (kv_size, hidden),
        "self_attn.v_proj": (kv_size, hidden),
        "self_attn.o_proj": (hidden, q_size),
        "mlp.gate_proj": (inner, hidden),
        "mlp.up_proj": (inner, hidden),
        "mlp.down_proj": (hidden, inner),
    }
