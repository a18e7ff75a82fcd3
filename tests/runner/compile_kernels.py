"""Program of a test: other processes compile kernels, and this one finds them in the cache."""

import triton
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from minimal_vllm.model.kernels.activation import ACTIVATIONS
from minimal_vllm.model.kernels.gate import _act_and_mul_kernel
from minimal_vllm.runner.compile import KernelSource
from minimal_vllm.runner.compilers import Compilers
from minimal_vllm.sampling.kernels.filters import _limits_kernel
from minimal_vllm.sampling.kernels.sample import _weights_kernel


def submitted(function, pointers, constants):
    """Return a function like those that Triton submits: it would compile a kernel."""
    signature = pointers | dict.fromkeys(constants, "constexpr")
    src = ASTSource(function, signature, constants)
    target = GPUTarget("cuda", 90, 32)
    options = triton.compiler.make_backend(target).parse_options({"num_warps": 2})
    return lambda: triton.compile(src, target, vars(options))


def with_a_function_as_constant():
    constants = {"INNER": 64, "BLOCK": 64, "ACTIVATION": ACTIVATIONS["silu"], "EARLY": False}
    return submitted(_act_and_mul_kernel, {"gate_up": "*bf16", "out": "*bf16"}, constants)


def with_helpers_that_have_constants():
    assert _limits_kernel.cache_key  # so that some of them have been looked at
    pointers = {"logits": "*bf16", "peaks": "*fp32", "temperature": "*fp32", "limits": "*i64"}
    numbers = {"weights": "*i64", "vocab_size": "i32", "chunks": "i32"}
    constants = {"CHUNK": 1024, "CHUNKS": 2, "EARLY": False}
    return submitted(_weights_kernel, pointers | numbers, constants)


def tell(**event):
    print("found" if event["cache_hit"] else "compiled here")


if __name__ == "__main__":
    kernels = [with_a_function_as_constant(), with_helpers_that_have_constants()]
    compilers = Compilers()
    for each in kernels:
        compilers.compile(KernelSource.of(each))
    compilers.close()
    knobs.compilation.listener = tell
    for each in kernels:
        each()
