"""Reading how a checkpoint's weights are quantized. Nothing here imports torch.

``METHODS`` maps each ``quant_method`` of a config.json to the function that reads the rest of its
``quantization_config``. The result is a ``Quantization``: a storage format, and the modules that
keep the model's dtype. ``model/quantization/`` fills the projections from tensors in that format.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import lcm
from typing import Any, ClassVar

from minimal_vllm.model.json_fields import flag, mapping, names, objects

Raw = Mapping[str, Any]


@dataclass(frozen=True)
class Fp8Blocks:
    """FP8 (e4m3) weights with one scale per block, as in DeepSeek-V3 and Qwen3-FP8."""

    rows: int = 128
    columns: int = 128
    name: ClassVar[str] = "FP8 in blocks"

    @property
    def kept_together(self) -> tuple[int, int]:
        """Rows and columns of a block, which is not divided."""
        return self.rows, self.columns

    def num_bytes(self, out_size: int, in_size: int, itemsize: int) -> int:  # noqa: ARG002
        """Return the bytes of a projection's matrix; ``itemsize`` is the model dtype's."""
        return out_size * in_size + 4 * -(-out_size // self.rows) * -(-in_size // self.columns)


@dataclass(frozen=True)
class Fp8Rows:
    """FP8 (e4m3) weights with one scale per row of the matrix, that is, per output channel."""

    scales: int | None = None
    """Number of scales per matrix in the checkpoint. None: one per row."""
    name: ClassVar[str] = "FP8"
    kept_together: ClassVar[tuple[int, int]] = (1, 1)

    def num_bytes(self, out_size: int, in_size: int, itemsize: int) -> int:  # noqa: ARG002
        """Return the bytes of a projection's matrix; ``itemsize`` is the model dtype's."""
        return out_size * in_size + 4 * out_size


@dataclass(frozen=True)
class Fp8OnTheFly(Fp8Rows):
    """Weights stored in a 16-bit or 32-bit type, which the loader quantizes to FP8."""


@dataclass(frozen=True)
class Int8OnTheFly:
    """Weights stored in another type, which the loader rounds to 8-bit integers, for CPUs.

    Each row of a matrix has one scale. The output head is quantized, too: in a small model, it is a
    large part of the bytes that a step reads.
    """

    name: ClassVar[str] = "8-bit integers"
    kept_together: ClassVar[tuple[int, int]] = (1, 1)

    def num_bytes(self, out_size: int, in_size: int, itemsize: int) -> int:  # noqa: ARG002
        """Return the bytes of a projection's matrix; ``itemsize`` is the model dtype's."""
        return out_size * in_size + 4 * out_size


INT4_ROWS, INT4_COLUMNS = 8, 32
"""Rows whose 4-bit numbers may be stored in one integer; columns that are packed in memory."""


@dataclass(frozen=True)
class Int4:
    """4-bit integers with one scale, and possibly one zero point, per group of a row's columns."""

    group_size: int | None
    """Number of columns per group. None: the whole row is one group."""
    symmetric: bool
    """Whether 8 always stands for zero. False: each group has its own zero point."""
    ordered: bool = False
    """Whether the columns are grouped in an order of their own (GPTQ's ``desc_act``)."""
    name: ClassVar[str] = "4-bit integers"

    @property
    def kept_together(self) -> tuple[int, int]:
        """Rows that are stored in one integer, and columns of a group and of one in memory."""
        return INT4_ROWS, lcm(INT4_COLUMNS, self.group_size or 1)

    def num_bytes(self, out_size: int, in_size: int, itemsize: int) -> int:
        """Return the bytes of a projection's matrix; ``itemsize`` is the model dtype's."""
        groups = out_size * (in_size // (self.group_size or in_size))
        return out_size * in_size // 2 + groups * (itemsize + (not self.symmetric))


@dataclass(frozen=True)
class PackedInt4(Int4):
    """4-bit integers as compressed-tensors stores them (``pack-quantized``)."""


@dataclass(frozen=True)
class AwqInt4(Int4):
    """4-bit integers as AutoAWQ stores them (``gemm``)."""


@dataclass(frozen=True)
class GptqInt4(Int4):
    """4-bit integers as AutoGPTQ and GPTQModel store them."""

    zero_offset: int = 1
    """Number to add to a stored zero point: 1 in the original format, 0 in ``gptq_v2``."""


MXFP4_GROUP = 32
"""Numbers that share a scale in MXFP4."""


@dataclass(frozen=True)
class Mxfp4:
    """4-bit floating-point numbers with an 8-bit scale per group, for the matrices of experts.

    All other projections keep the model's dtype.
    """

    name: ClassVar[str] = "experts in MXFP4"
    kept_together: ClassVar[tuple[int, int]] = (1, MXFP4_GROUP)

    def num_bytes(self, out_size: int, in_size: int, itemsize: int) -> int:  # noqa: ARG002
        """Return the bytes of an expert's matrix; ``itemsize`` is the model dtype's."""
        return out_size * (in_size // 2 + in_size // MXFP4_GROUP)


WeightFormat = Fp8Blocks | Fp8Rows | Int8OnTheFly | Int4 | Mxfp4


@dataclass(frozen=True)
class Quantization:
    """Quantization of a model's projections."""

    method: str
    """Value of ``quant_method`` in config.json, or of the option ``quantization``."""
    format: WeightFormat
    ignored: tuple[str, ...] = ()
    """Regular expressions; the projections whose full name one of them matches keep their dtype."""

    def covers(self, name: str) -> bool:
        """Return whether the projection of that name, as in the checkpoint, is quantized.

        The output head is only in 8-bit integers: it decides between all tokens, and in a large
        model it is a small part of the work.
        """
        if isinstance(self.format, Mxfp4):  # only experts are
            return False
        is_head = name == "lm_head" or name.endswith(".lm_head")
        if is_head and not isinstance(self.format, Int8OnTheFly):
            return False
        return not any(re.fullmatch(each, name) for each in self.ignored)


def read_quantization(raw: Raw | None) -> Quantization | None:
    """Return the quantization that a config.json's ``quantization_config`` describes, if any.

    Raises:
        ValueError: the method or one of its settings is not supported. The message says what to do.
    """
    if not raw:
        return None
    method = str(raw.get("quant_method", "")).lower()
    if method not in METHODS:
        instead = UNSUPPORTED_METHODS.get(method, f"choose a checkpoint in {_listing(METHODS)}")
        raise _unsupported(f"quant_method = {raw.get('quant_method')!r}", instead)
    return METHODS[method](raw)


def quantization_of(config_json: Raw) -> Quantization | None:
    """Return the quantization that a config.json describes, under either of its names."""
    return read_quantization(
        mapping(config_json, "quantization_config") or mapping(config_json, "compression_config")
    )


def choose_quantization(asked: str | None, found: Quantization | None) -> Quantization | None:
    """Return the quantization to load a model with.

    Args:
        asked: value of ``EngineConfig.quantization``.
        found: quantization of the checkpoint.

    Raises:
        ValueError: the checkpoint is quantized in another way, or isn't and can't be here.
    """
    if asked is None or (found is not None and asked == found.method):
        return found
    if found is not None:
        raise ValueError(
            f"quantization is {asked!r}, but the checkpoint is already quantized with "
            f"{found.method!r}: leave the option out"
        )
    if asked not in ON_THE_FLY:
        raise ValueError(
            f"quantization is {asked!r}, but the checkpoint isn't quantized; only "
            f"{_listing(ON_THE_FLY)} can be applied while loading"
        )
    return ON_THE_FLY[asked]


def _read_fp8(raw: Raw) -> Quantization:
    """Read transformers' and AutoFP8's format."""
    _expect(raw, "fmt", ("e4m3", "float8_e4m3fn"), default="e4m3")
    skipped = names(raw, "modules_to_not_convert") or names(raw, "ignored_layers")
    ignored = tuple(rf"(.*\.)?{re.escape(name)}(\..*)?" for name in skipped)
    block = raw.get("weight_block_size")
    if block is None:
        return Quantization("fp8", Fp8Rows(scales=1), ignored)
    return Quantization("fp8", _blocks(block), ignored)


def _blocks(block: object) -> Fp8Blocks:
    if block != [128, 128]:
        raise _unsupported(
            f"weight_block_size = {block!r}", "only blocks of [128, 128], or none, are"
        )
    return Fp8Blocks()


def _read_compressed_tensors(raw: Raw) -> Quantization:
    groups = mapping(raw, "config_groups")
    if len(groups) != 1:
        raise _unsupported(
            f"a quantization with {len(groups)} config_groups",
            "choose a checkpoint whose layers are all quantized in one way",
        )
    (name,) = groups
    group = mapping(groups, name)
    _expect(group, "targets", (["Linear"],))
    _expect(group, "output_activations", (None,), default=None)
    _refuse_transforms(raw)
    storage = group.get("format") or raw.get("format")
    if not isinstance(storage, str) or storage not in _COMPRESSED_FORMATS:
        instead = f"choose a checkpoint in {_listing(_COMPRESSED_FORMATS)}"
        raise _unsupported(f"the format {storage!r} of compressed-tensors", instead)
    weights, activations = mapping(group, "weights"), mapping(group, "input_activations")
    ignored = tuple(map(_ignored_pattern, names(raw, "ignore")))
    return Quantization(
        "compressed-tensors", _COMPRESSED_FORMATS[storage](weights, activations), ignored
    )


def _refuse_transforms(raw: Raw) -> None:
    """Check that no activations are multiplied by Hadamard matrices; stored weights may be."""
    groups = mapping(mapping(raw, "transform_config"), "config_groups")
    for name in groups:
        for transform in objects(mapping(groups, name), "apply"):
            if not str(transform.get("location")).startswith("weight_"):
                raise _unsupported("a transform of activations", "choose a checkpoint without it")


def _ignored_pattern(name: str) -> str:
    """Return the regular expression for an entry of ``ignore``: a name, or ``re:`` and a pattern.

    The library matches the beginning of a name with a pattern.
    """
    if not name.startswith("re:"):
        return re.escape(name)
    pattern = name.removeprefix("re:")
    try:
        re.compile(pattern)
    except re.error as error:
        raise _unsupported(f"the pattern {name!r} in ignore", str(error)) from error
    return f"(?:{pattern}).*"


def _read_float_quantized(weights: Raw, activations: Raw) -> WeightFormat:
    _expect(weights, "num_bits", (8,))
    _expect(weights, "type", ("float",))
    if activations:
        _expect(activations, "num_bits", (8,))
        _expect(activations, "type", ("float",))
    strategy = _expect(weights, "strategy", ("tensor", "channel", "block"))
    if strategy == "block":
        return _blocks(weights.get("block_structure"))
    return Fp8Rows(scales=1 if strategy == "tensor" else None)


def _read_pack_quantized(weights: Raw, activations: Raw) -> WeightFormat:
    _expect(weights, "num_bits", (4,))
    _expect(weights, "type", ("int",))
    if activations:
        raise _unsupported(
            "quantized activations beside 4-bit weights", "choose a checkpoint in W4A16"
        )
    strategy = _expect(weights, "strategy", ("group", "channel"))
    group_size = _group_size(weights) if strategy == "group" else None
    ordered = _expect(
        weights, "actorder", (None, "static", "weight", "group", False, True), default=None
    )
    symmetric = flag(weights, "symmetric", default=True)
    return PackedInt4(group_size, symmetric, ordered=ordered in ("group", True))


_COMPRESSED_FORMATS: dict[str, Callable[[Raw, Raw], WeightFormat]] = {
    "float-quantized": _read_float_quantized,
    "pack-quantized": _read_pack_quantized,
}


def _read_awq(raw: Raw) -> Quantization:
    _expect(raw, "bits", (4,))
    _expect({"version": str(raw.get("version", "gemm")).lower()}, "version", ("gemm",))
    _expect(raw, "zero_point", (True,), default=True)
    stored = AwqInt4(_group_size(raw), symmetric=False)
    skipped = names(raw, "modules_to_not_convert")
    return Quantization("awq", stored, tuple(f".*{re.escape(name)}.*" for name in skipped))


def _read_gptq(raw: Raw) -> Quantization:
    _expect(raw, "bits", (4,))
    _expect(raw, "dynamic", (None, {}), default=None)
    _expect(raw, "modules_in_block_to_quantize", (None, []), default=None)
    named = raw.get("checkpoint_format", raw.get("format")) or "gptq"
    stored = _expect({"checkpoint_format": named}, "checkpoint_format", tuple(_GPTQ_OFFSETS))
    # Symmetric checkpoints store their zero points too, but those are all 8.
    return Quantization(
        "gptq",
        GptqInt4(
            _group_size(raw),
            symmetric=flag(raw, "sym", default=True),
            ordered=flag(raw, "desc_act"),
            zero_offset=_GPTQ_OFFSETS[stored],
        ),
    )


_GPTQ_OFFSETS = {"gptq": 1, "gptq_v2": 0}


def _read_mxfp4(raw: Raw) -> Quantization:
    kept = [name for name in names(raw, "modules_to_not_convert") if "experts" in name]
    if kept:
        raise _unsupported(
            f"modules_to_not_convert with {kept[0]!r}",
            "choose a checkpoint all of whose experts are quantized, or none",
        )
    return Quantization("mxfp4", Mxfp4())


def _group_size(raw: Raw) -> int | None:
    """Return the number of columns per group; -1 in the file stands for whole rows."""
    size = _expect(raw, "group_size", (32, 64, 128, -1))
    return None if size == -1 else int(size)


def _expect(raw: Raw, key: str, supported: Any, **default: Any) -> Any:
    """Return the value under ``key``, which must be one of those supported."""
    value = raw.get(key, default.get("default"))
    if value not in supported:
        choices = ", ".join(repr(each) for each in supported if each is not None)
        raise _unsupported(
            f"{key} = {value!r}", f"only {choices} {'is' if len(supported) == 1 else 'are'}"
        )
    return value


def _unsupported(what: str, instead: str) -> ValueError:
    return ValueError(f"config.json: quantization_config: {what} is not supported; {instead}")


def _listing(names: Mapping[str, object]) -> str:
    return ", ".join(map(repr, names))


METHODS: dict[str, Callable[[Raw], Quantization]] = {
    "fp8": _read_fp8,
    "compressed-tensors": _read_compressed_tensors,
    "awq": _read_awq,
    "gptq": _read_gptq,
    "mxfp4": _read_mxfp4,
}
"""Readers of a ``quantization_config``, by its ``quant_method``."""

ON_THE_FLY: dict[str, Quantization] = {
    "fp8": Quantization("fp8", Fp8OnTheFly()),
    "int8": Quantization("int8", Int8OnTheFly()),
}
"""Quantizations that can be applied to a checkpoint in 16 bits, or in GGUF, while it is loaded."""

UNSUPPORTED_METHODS = {
    "bitsandbytes": "load the original checkpoint, with --quantization fp8",
    "modelopt": "choose the model's compressed-tensors or fp8 checkpoint",
    "nvfp4": "choose the model's compressed-tensors or fp8 checkpoint",
    "torchao": "load the original checkpoint, with --quantization fp8",
    "hqq": "load the original checkpoint, with --quantization fp8",
}
"""Advice for checkpoints in unsupported formats, by their ``quant_method``."""
