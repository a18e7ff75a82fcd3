"""How large the core is: ``python -m benchmarks.core_lines``.

The core is what every request passes through from ``LLM.generate`` to the kernels and back, on a
CPU or on a GPU. Not in it: what runs at start-up only (loading, sizing, the recording of graphs),
what watches (``StepWatch``, traces), what only some requests have (grammars), what holds or
translates (options, outputs, the tokenizer around its library), and the plain attention that the
fast ones are held to, which nobody meets who doesn't ask for it. The kernels are counted on a line
of their own.

A line of code is one that holds code: no blank line, no comment, no docstring.
"""

import argparse
import ast
import io
import tokenize
from collections.abc import Iterable
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "src" / "minimal_vllm"
LIMIT = 3000

CORE = {
    "prompts become requests": (
        "llm.py",
        "text/prompt.py",
        "engine/admission.py",
        "step/request.py",
    ),
    "who computes what": (
        "engine/scheduler.py",
        "engine/scheduler.py",
        "cache/block_pool.py",
        "cache/prefix_hash.py",
        "cache/eviction.py",
    ),
    "a step": (
        "engine/engine.py",
        "step/batch.py",
        "runner/plain.py",
        "transfer.py",
        "runner/table.py",
        "step/shared_prefix.py",
        "runner/cuda.py",
        "runner/cuda_graph.py",
        "runner/mixed_graph.py",
    ),
    "the network": (
        "model/decoder.py",
        "model/layers.py",
        "model/rope.py",
        "model/ops.py",
        "model/triton_ops.py",
        "model/step.py",
        "launch.py",
    ),
    "attention": (
        "cache/kv_cache.py",
        "attention/metadata.py",
        "attention/tiled.py",
        "attention/triton_backend.py",
        "attention/library.py",
    ),
    "sampling": (
        "sampling/sampler.py",
        "sampling/row.py",
        "sampling/logit_rules.py",
        "sampling/filters.py",
        "sampling/draw.py",
        "sampling/draw.py",
        "sampling/logprobs.py",
    ),
    "tokens become text": (
        "text/detokenizer.py",
        "engine/output_processor.py",
    ),
}
"""By what they do, in the order in which a request passes through."""

AROUND = (
    "attention/reference.py",
    "config.py",
    "sampling_params.py",
    "outputs.py",
    "engine/step_watch.py",
    "text/tokenizer.py",
    "trace/step_record.py",
)
"""What a request meets beside the core."""


def kernels() -> tuple[str, ...]:
    """The files that hold GPU kernels."""
    return tuple(
        path.relative_to(PACKAGE).as_posix() for path in sorted(PACKAGE.glob("*/kernels/*.py"))
    )


def code_lines(source: str) -> int:
    """How many lines of a Python program hold code."""
    held: set[int] = set()
    blank = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT}
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in blank and token.type != tokenize.ENDMARKER:
            held.update(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):  # docstrings
            held.difference_update(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    return len(held)


def count(files: Iterable[str]) -> tuple[int, int]:
    """Lines of code, and all lines, of some files of the package."""
    sources = [(PACKAGE / file).read_text(encoding="utf-8") for file in files]
    return sum(map(code_lines, sources)), sum(len(source.splitlines()) for source in sources)


def main() -> None:
    """Print a line for each part of the core."""
    form = argparse.RawDescriptionHelpFormatter
    argparse.ArgumentParser(description=__doc__, formatter_class=form).parse_args()
    print(f"{'':24}  code   all lines")
    for part, files in CORE.items():
        print("{:24} {:5,} {:8,}".format(part, *count(files)))
    core = count(file for files in CORE.values() for file in files)
    print("{:24} {:5,} {:8,}   of {:,} at most".format("the core", *core, LIMIT))
    print("{:24} {:5,} {:8,}".format("the kernels", *count(kernels())))


if __name__ == "__main__":
    main()
