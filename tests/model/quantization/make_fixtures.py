"""Write the checkpoints in ``fixtures/`` with the tools that publish such checkpoints.

    pip install compressed-tensors==0.20.0 gptqmodel==7.7.0
    PYTHONPATH=tests python tests/model/quantization/make_fixtures.py

Each fixture holds the quantized tensors of a tiny model, its config.json, and what transformers
computes with the matrices that the tool itself dequantizes: greedy tokens and logits, in float32.
The other tensors are those of ``checkpoints.random_weights``.
"""

import json
import sys
from pathlib import Path

import torch
from checkpoints import random_weights
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM

FIXTURES = Path(__file__).parent / "fixtures"
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 288,
    "hidden_size": 128,
    "intermediate_size": 128,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "hidden_act": "silu",
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    "torch_dtype": "float32",
    "eos_token_id": 0,
}
PROMPT = list(range(5, 45, 3))
NUM_TOKENS = 24


def compressed(scheme_arguments, storage, activations=None, ordered=False):
    """Quantize with compressed-tensors; return the config, and a function for one matrix."""
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
    from compressed_tensors.quantization.utils import calculate_qparams

    weights = QuantizationArgs(**scheme_arguments)
    inputs = QuantizationArgs(**activations) if activations else None
    scheme = QuantizationScheme(
        targets=["Linear"], weights=weights, input_activations=inputs, format=storage
    )
    compressor = BaseCompressor.get_value_from_registry(storage)

    def quantize(weight):
        columns = weight.shape[1]
        size = scheme_arguments.get("group_size") or columns
        if ordered:
            order = torch.randperm(columns, generator=torch.Generator().manual_seed(columns))
            groups = torch.empty(columns, dtype=torch.int32)
            groups[order] = (torch.arange(columns) // size).int()
            weight = weight[:, order]
        flat = weight.reshape(len(weight), -1, size)
        if scheme_arguments["strategy"] == "tensor":
            flat = weight.reshape(1, 1, -1)
        scale, zero = calculate_qparams(flat.amin(-1), flat.amax(-1), weights)
        state = {"weight": weight, "weight_scale": scale}
        if scheme_arguments["strategy"] == "tensor":
            state["weight_scale"] = scale.reshape(1)
        if not scheme_arguments.get("symmetric", True):
            state["weight_zero_point"] = zero.to(torch.int8)
        stored = dict(compressor.compress(state, scheme))
        if activations and not activations["dynamic"]:
            stored["input_scale"] = torch.tensor([0.01])
        back = compressor.decompress(stored, scheme)["weight"].float()
        if ordered:
            stored, back = unordered(stored, back, order)
            stored["weight_g_idx"] = groups
        return stored, back

    def unordered(stored, back, order):
        """Move the columns, which were quantized group by group, back to their own places."""
        from compressed_tensors.compressors import pack_to_int32, unpack_from_int32

        shape = torch.Size(stored["weight_shape"].tolist())
        numbers = unpack_from_int32(stored["weight_packed"], 4, shape)
        original, restored = torch.empty_like(numbers), torch.empty_like(back)
        original[:, order], restored[:, order] = numbers, back
        return {**stored, "weight_packed": pack_to_int32(original, 4)}, restored

    if ordered:  # the library no longer writes this, but many checkpoints have it
        scheme_arguments = scheme_arguments | {"actorder": "group"}
    group = {"targets": ["Linear"], "weights": scheme_arguments, "input_activations": activations}
    config = {
        "quant_method": "compressed-tensors",
        "format": storage,
        "config_groups": {"group_0": group},
        "ignore": ["lm_head"],
        "quantization_status": "compressed",
    }
    return config, quantize


def fp8_blocks():
    """Quantize with transformers' own FP8, in blocks."""
    from types import SimpleNamespace

    from transformers.integrations.finegrained_fp8 import Fp8Quantize

    settings = SimpleNamespace(weight_block_size=[128, 128], scale_fmt="float")
    quantizer = SimpleNamespace(quantization_config=settings)

    def quantize(weight):
        rows = -len(weight) % 128
        padded = torch.nn.functional.pad(weight, (0, 0, 0, rows))
        stored = Fp8Quantize(quantizer).convert({"weight": padded})
        wide = stored["weight"].float().view(-1, 128, padded.shape[1] // 128, 128)
        back = wide * stored["weight_scale_inv"][:, None, :, None]
        stored["weight"] = stored["weight"][: len(weight)].contiguous()
        return stored, back.view(padded.shape)[: len(weight)]

    config = {
        "quant_method": "fp8",
        "activation_scheme": "dynamic",
        "weight_block_size": [128, 128],
        "modules_to_not_convert": ["lm_head"],
    }
    return config, quantize


def group_parameters(weight, size, symmetric):
    """Return scales and zero points, ``[out, groups]``, as GPTQ computes them for 4 bits."""
    flat = weight.reshape(len(weight), -1, size)
    low, high = flat.amin(-1).clamp(max=0), flat.amax(-1).clamp(min=0)
    if symmetric:
        high = torch.maximum(-low, high)
        return (2 * high / 15).half().float(), torch.full_like(high, 8)
    scale = ((high - low) / 15).half().float()
    return scale, (-low / scale).round().clamp(0, 15)


def gptq(size, *, symmetric, ordered, v2):
    """Quantize with GPTQModel's packing."""
    from gptqmodel.nn_modules.qlinear.torch import TorchLinear

    def quantize(weight):
        out_size, in_size = weight.shape
        group = size if size > 0 else in_size
        order = torch.arange(in_size)
        if ordered:
            order = torch.randperm(in_size, generator=torch.Generator().manual_seed(in_size))
        g_idx = torch.empty(in_size, dtype=torch.int32)
        g_idx[order] = (torch.arange(in_size) // group).int()
        scale, zero = group_parameters(weight[:, order], group, symmetric)
        module = TorchLinear(
            bits=4, group_size=size, sym=symmetric, desc_act=ordered, in_features=in_size,
            out_features=out_size, bias=False, register_buffers=True,
        )  # fmt: skip
        linear = torch.nn.Linear(in_size, out_size, bias=False)
        linear.weight.data = weight
        module.pack_original(linear, scale, zero, g_idx)
        stored = {name: getattr(module, name) for name in ("qweight", "qzeros", "scales", "g_idx")}
        back = module.dequantize_weight().T.float()
        if not v2:
            stored["qzeros"] = stored["qzeros"] - 0b00010001000100010001000100010001
        return stored, back

    config = {
        "quant_method": "gptq",
        "bits": 4,
        "group_size": size,
        "sym": symmetric,
        "desc_act": ordered,
        "lm_head": False,
        "checkpoint_format": "gptq_v2" if v2 else "gptq",
    }
    return config, quantize


def awq(size):
    """Quantize with GPTQModel's implementation of AutoAWQ's layout."""
    from gptqmodel.nn_modules.qlinear.gemm_awq import AwqGEMMLinear
    from gptqmodel.nn_modules.qlinear.torch_awq import dequantize_gemm

    def quantize(weight):
        in_size = weight.shape[1]
        scale, zero = group_parameters(weight, size, symmetric=False)
        module = torch.nn.Module()  # the class itself can only be made on a GPU
        module.bits, module.group_size, module.in_features = 4, size, in_size
        linear = torch.nn.Linear(in_size, len(weight), bias=False)
        linear.weight.data = weight
        AwqGEMMLinear.pack(module, linear, scale, zero)
        stored = {name: getattr(module, name) for name in ("qweight", "qzeros", "scales")}
        back = dequantize_gemm(*stored.values(), 4, size).T.float()
        return stored, back

    config = {
        "quant_method": "awq",
        "bits": 4,
        "group_size": size,
        "zero_point": True,
        "version": "gemm",
        "modules_to_not_convert": None,
    }
    return config, quantize


DYNAMIC = {"num_bits": 8, "type": "float", "strategy": "token", "dynamic": True}
STATIC = {"num_bits": 8, "type": "float", "strategy": "tensor", "dynamic": False}
FP8 = {"num_bits": 8, "type": "float", "symmetric": True}
INT4 = {"num_bits": 4, "type": "int", "strategy": "group"}
MAKERS = {
    "fp8-blocks": fp8_blocks,
    "ct-fp8-channel": lambda: compressed(FP8 | {"strategy": "channel"}, "float-quantized", DYNAMIC),
    "ct-fp8-tensor": lambda: compressed(FP8 | {"strategy": "tensor"}, "float-quantized", STATIC),
    "ct-int4": lambda: compressed(INT4 | {"group_size": 32, "symmetric": True}, "pack-quantized"),
    "ct-int4-ordered": lambda: compressed(
        INT4 | {"group_size": 64, "symmetric": False},
        "pack-quantized",
        ordered=True,
    ),
    "ct-int4-channel": lambda: compressed(
        {"num_bits": 4, "type": "int", "strategy": "channel", "symmetric": True}, "pack-quantized"
    ),
    "awq": lambda: awq(64),
    "gptq": lambda: gptq(128, symmetric=True, ordered=False, v2=False),
    "gptq-ordered": lambda: gptq(32, symmetric=False, ordered=True, v2=False),
    "gptq-v2-column": lambda: gptq(-1, symmetric=False, ordered=False, v2=True),
}


def reference(weights):
    """Return transformers' greedy tokens and the logits of the prompt."""
    torch.set_grad_enabled(False)
    model = AutoModelForCausalLM.from_config(
        AutoConfig.for_model(**CONFIG), attn_implementation="eager", dtype=torch.float32
    )
    model.load_state_dict(weights)
    prompt = torch.tensor([PROMPT])
    tokens = model.generate(
        prompt, max_new_tokens=NUM_TOKENS, do_sample=False, eos_token_id=None, pad_token_id=0
    )
    return {"tokens": tokens[0, len(PROMPT) :], "logits": model(prompt).logits[0]}


def make(name):
    config, quantize = MAKERS[name]()
    weights, stored = random_weights(CONFIG), {}
    for path in list(weights):
        if path.endswith("_proj.weight"):
            tensors, weights[path] = quantize(weights[path])
            module = path.removesuffix(".weight")
            stored |= {f"{module}.{kind}": tensor.contiguous() for kind, tensor in tensors.items()}
    expected = {f"expected.{kind}": each.clone() for kind, each in reference(weights).items()}
    save_file({**stored, **expected}, FIXTURES / f"{name}.safetensors")
    text = json.dumps({**CONFIG, "quantization_config": config}, indent=1)
    (FIXTURES / f"{name}.json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    for each in sys.argv[1:] or MAKERS:
        print(each, flush=True)
        make(each)
