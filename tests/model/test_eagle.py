"""A head of the GPU's modules against one of plain modules; without a GPU, in the interpreter."""

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

pytest.importorskip("triton")

from minimal_vllm.cache.kv_cache import LayerCache
from minimal_vllm.model.eagle import EagleHead
from minimal_vllm.model.eagle_config import EagleConfig
from minimal_vllm.model.layers import PLAIN_MODULES
from minimal_vllm.model.loader import init_random
from minimal_vllm.model.triton_modules import TRITON_MODULES

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
SHAPE = {
    "architectures": ["LlamaForCausalLMEagle3"],
    "vocab_size": 100,
    "draft_vocab_size": 40,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 64,
}
NUM_SLOTS = 32


class Alone:
    """Attention of consecutive tokens to each other."""

    def __init__(self, slots):
        self.slots = slots

    def __call__(self, q, k, v, cache, options):
        heads = (each.transpose(0, 1)[None] for each in (q, k, v))
        out = scaled_dot_product_attention(*heads, is_causal=True, enable_gqa=True)
        return out[0].transpose(0, 1).contiguous()


@pytest.mark.parametrize("num_tokens", [1, 5])
@pytest.mark.parametrize("is_normed_first", [False, True])
def test_a_head_of_our_kernels_computes_what_a_plain_one_computes(num_tokens, is_normed_first):
    config = EagleConfig.from_dict({**SHAPE, "norm_before_residual": is_normed_first}, "head")
    slots = torch.arange(3, 3 + num_tokens, device=DEVICE)
    generator = torch.Generator().manual_seed(0)
    states, table = (
        torch.randn(size, 64, generator=generator).to(DEVICE) for size in (NUM_SLOTS + 1, 100)
    )
    results = []
    for modules in (PLAIN_MODULES, TRITON_MODULES):
        head = EagleHead(config, 100, 9, torch.float32, DEVICE, 64, modules)
        init_random(head, seed=1)
        for weight in head.parameters():
            if weight.ndim == 2:
                weight.mul_(50 * weight.shape[1] ** -0.5)
        head.allocate_states(NUM_SLOTS)
        head.states.copy_(states)
        head.embed = table.__getitem__
        cache = LayerCache(*torch.zeros(2, NUM_SLOTS // 8, 2, 8, 16, device=DEVICE))
        tokens = torch.arange(7, 7 + num_tokens, device=DEVICE)
        hidden = head.forward(tokens, slots, [cache], [Alone(slots)])
        results.append((hidden, head.logits(hidden), cache.key, cache.value))
        assert torch.equal(head.states, states), "what it reads stays as it is"
    for plain, ours in zip(*results, strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-3, atol=1e-3)
    logits = results[0][1]
    assert logits.isfinite().sum(1).tolist() == [40] * num_tokens
