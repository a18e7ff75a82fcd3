"""Choosing each projection's weight: the table of formats, and what a decoder is built with."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from minimal_vllm.model.config import ModelConfig
from minimal_vllm.model.experts import Experts
from minimal_vllm.model.layers import Modules
from minimal_vllm.model.linear import Projection
from minimal_vllm.model.quantization.experts import QuantizedExperts
from minimal_vllm.model.quantization.fp8 import (
    Fp8BlockReader,
    Fp8Quantizer,
    Fp8RowReader,
    Fp8Weight,
)
from minimal_vllm.model.quantization.int4 import Int4Weight
from minimal_vllm.model.quantization.int4_readers import AwqReader, GptqReader, PackedReader
from minimal_vllm.model.quantization.int8 import Int8Quantizer, Int8Weight
from minimal_vllm.model.quantization.mxfp4 import Mxfp4Experts
from minimal_vllm.model.quantization.staging import Reader
from minimal_vllm.model.quantization.weight import QuantizedWeight, quantize
from minimal_vllm.model.quantization_config import (
    AwqInt4,
    Fp8Blocks,
    Fp8OnTheFly,
    Fp8Rows,
    GptqInt4,
    Int4,
    Int8OnTheFly,
    Mxfp4,
    PackedInt4,
    Quantization,
    WeightFormat,
)
from minimal_vllm.model.quantized_experts import experts_format

Parts = Mapping[str, int]


@dataclass(frozen=True)
class Layouts:
    """Classes of quantized weights. The defaults dequantize the matrix and multiply by it."""

    fp8: type[Fp8Weight] = Fp8Weight
    int4: type[Int4Weight] = Int4Weight
    int8: type[Int8Weight] = Int8Weight
    mxfp4: type[Experts] = Mxfp4Experts
    fp8_experts: type[QuantizedExperts] = QuantizedExperts
    int4_experts: type[QuantizedExperts] = QuantizedExperts


def _fp8_blocks(stored: Fp8Blocks, layouts: Layouts, in_size: int, parts: Parts) -> QuantizedWeight:
    return layouts.fp8(in_size, parts, (stored.rows, stored.columns))


def _fp8_rows(stored: Fp8Rows, layouts: Layouts, in_size: int, parts: Parts) -> QuantizedWeight:  # noqa: ARG001
    return layouts.fp8(in_size, parts)


def _int4(stored: Int4, layouts: Layouts, in_size: int, parts: Parts) -> QuantizedWeight:
    return layouts.int4(in_size, parts, stored)


def _int8(stored: Int8OnTheFly, layouts: Layouts, in_size: int, parts: Parts) -> QuantizedWeight:  # noqa: ARG001
    return layouts.int8(in_size, parts)


FORMATS: dict[
    type[WeightFormat], tuple[Callable[[Any], Reader], Callable[..., QuantizedWeight]]
] = {
    Fp8Blocks: (Fp8BlockReader, _fp8_blocks),
    Fp8Rows: (Fp8RowReader, _fp8_rows),
    Fp8OnTheFly: (Fp8Quantizer, _fp8_rows),
    Int8OnTheFly: (Int8Quantizer, _int8),
    PackedInt4: (PackedReader, _int4),
    AwqInt4: (AwqReader, _int4),
    GptqInt4: (GptqReader, _int4),
}
"""Reader and weight of each storage format of projections."""


def quantized(modules: Modules, quantization: Quantization | None, layouts: Layouts) -> Modules:
    """Return modules for a model whose weights are quantized; the same ones if they aren't."""
    if quantization is None:
        return modules
    if isinstance(quantization.format, Mxfp4):
        return replace(modules, experts=layouts.mxfp4)
    return replace(
        modules,
        convert=quantizer(quantization, layouts),
        experts=_experts_maker(modules.experts, quantization, layouts),
    )


def _experts_maker(
    plain: Callable[[ModelConfig], Experts], quantization: Quantization, layouts: Layouts
) -> Callable[[ModelConfig], Experts]:
    """Return the function that makes a layer's experts, quantized unless they are ignored."""
    make_reader, make_weight = FORMATS[type(quantization.format)]

    def make(config: ModelConfig) -> Experts:
        form = experts_format(replace(config, quantization=quantization))
        if form is None:
            return plain(config)
        kind = layouts.int4_experts if isinstance(form, Int4) else layouts.fp8_experts
        return kind(config, partial(make_weight, form, layouts), make_reader(form))

    return make


def quantizer(
    quantization: Quantization, layouts: Layouts
) -> Callable[[str, Projection], Projection]:
    """Return the function that quantizes a decoder's projections; see ``Modules.convert``."""
    make_reader, make_weight = FORMATS[type(quantization.format)]

    def convert(path: str, projection: Projection) -> Projection:
        if not _is_covered(quantization, path, projection):
            return projection
        weight = make_weight(quantization.format, layouts, projection.in_size, projection.parts)
        return quantize(projection, weight, make_reader(quantization.format))

    return convert


def _is_covered(quantization: Quantization, path: str, projection: Projection) -> bool:
    """Return whether a projection is quantized, which its fused parts must agree on.

    Raises:
        ValueError: they don't.
    """
    parent, _, own = path.rpartition(".")
    if own == "router":  # so small that no format has it
        return False
    names = [".".join(filter(None, ["model", parent, part])) for part in projection.parts]
    if path == "lm_head":
        names = ["lm_head"]
    covered = {name: quantization.covers(name) for name in names}
    if len(set(covered.values())) > 1:
        raise ValueError(
            f"config.json: quantization_config quantizes only some of {', '.join(names)}, which "
            "are computed in one product here: choose a checkpoint that treats them alike"
        )
    return all(covered.values())
