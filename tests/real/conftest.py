"""SmolLM2-135M-Instruct's real weights, and what transformers makes of them.

The models are large, so they go when the tests of a module have ended.
"""

import copy
import socket
from pathlib import Path

import gguf
import pytest
import torch
from filelock import FileLock
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM

from minimal_vllm import LLM
from minimal_vllm.model.fetch import FETCHABLE, fetch
from minimal_vllm.model.packed_linear import can_pack

TENSORS = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def is_online():
    try:
        socket.create_connection(("pypi.org", 443), timeout=5).close()
    except OSError:
        return False
    return True


@pytest.fixture(scope="session")
def smollm2():
    """The .gguf file, fetched once for all: not downloaded again if it is in the user's cache."""
    lock = FileLock(Path("/tmp") / "minimal-vllm-tests-fetch.lock")
    try:
        with lock:
            folder = fetch("smollm2")
    except ValueError as error:
        if is_online():
            raise
        pytest.skip(f"NO NETWORK: {error}")
    return folder / FETCHABLE["smollm2"].file_name


@pytest.fixture(scope="module")
def reader(smollm2):
    """The file, read by llama.cpp's own package."""
    return gguf.GGUFReader(smollm2)


@pytest.fixture(scope="module")
def llm(smollm2):
    return LLM(str(smollm2), dtype="float32", max_model_len=2048)


@pytest.fixture(scope="module")
def transformers_model(reader):
    """The same weights in transformers, converted here by hand."""
    config = LlamaConfig(
        vocab_size=49152,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        max_position_embeddings=8192,
        rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": 100_000.0},
        tie_word_embeddings=True,
    )
    weights = {}
    for tensor in reader.tensors:
        numbers = torch.from_numpy(gguf.dequantize(tensor.data, tensor.tensor_type).copy())
        *layer, part, kind = tensor.name.split(".")
        if part in ("attn_q", "attn_k"):  # neighbors are rotated there, halves here
            heads, columns = len(numbers) // 64, numbers.shape[-1]
            numbers = numbers.view(heads, 32, 2, columns).transpose(1, 2).reshape(-1, columns)
        prefix = f"model.layers.{layer[1]}." if layer else ""
        weights[f"{prefix}{TENSORS[part]}.{kind}"] = numbers
    model = LlamaForCausalLM(config).eval()
    left_out = model.load_state_dict(weights, strict=False)
    assert left_out.missing_keys == ["lm_head.weight"]  # tied
    assert not left_out.unexpected_keys
    model.tie_weights()
    return model


@pytest.fixture(scope="module")
def rounded_transformers_model(transformers_model):
    """The same with its projections rounded as the engine rounds them on this CPU."""
    model = copy.deepcopy(transformers_model)
    if can_pack(torch.float32):
        for module in model.modules():
            if isinstance(module, torch.nn.Linear):  # the last is no longer tied to the embedding
                module.weight = torch.nn.Parameter(module.weight.half().float())
    return model


@pytest.fixture(scope="module")
def original_tokenizer(reader):
    """The tokens and merges of the file in what SmolLM2's tokenizer.json puts around them."""
    fields = {key: field.contents() for key, field in reader.fields.items() if "tokenizer" in key}
    tokens = fields["tokenizer.ggml.tokens"]
    merges = [tuple(merge.split(" ")) for merge in fields["tokenizer.ggml.merges"]]
    backend = Backend(models.BPE({token: i for i, token in enumerate(tokens)}, merges))
    backend.add_special_tokens(tokens[:17])
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    return backend
