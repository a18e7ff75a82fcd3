"""The format in which the experts of a mixture are quantized, if they are. No torch here."""

from functools import lru_cache

from minimal_vllm.model.config import ModelConfig
from minimal_vllm.model.quantization_config import Int4, Int8OnTheFly, Mxfp4, WeightFormat
from minimal_vllm.model.registry import FAMILIES

MATRICES = ("gate_proj", "up_proj", "down_proj")
"""Names of an expert's matrices."""


@lru_cache
def experts_format(model: ModelConfig) -> WeightFormat | None:
    """Return the format of the experts' matrices; None: they keep the model's dtype.

    Raises:
        ValueError: experts can't be in the model's format, or only some of them are.
    """
    if model.experts is None or model.quantization is None:
        return None
    form = model.quantization.format
    if isinstance(form, Mxfp4):
        return form
    covered = {name: model.quantization.covers(name) for name in _names(model)}
    if len(set(covered.values())) > 1:
        kept = min(name for name, is_covered in covered.items() if not is_covered)
        raise ValueError(
            f"config.json: quantization_config quantizes some experts, but not {kept}: choose a "
            "checkpoint that treats them alike"
        )
    if not all(covered.values()):
        return None
    if model.experts.interleaved:
        raise ValueError(
            f"the experts of {model.architecture} can be quantized only in MXFP4, as gpt-oss is "
            "published: load the checkpoint as it is"
        )
    if isinstance(form, Int8OnTheFly):
        raise ValueError(
            "quantization 'int8' is not for mixtures of experts: load the checkpoint as it is, or "
            "with 'fp8'"
        )
    if isinstance(form, Int4) and form.ordered:
        raise ValueError(
            "config.json: quantization_config: experts whose columns are grouped in an order of "
            "their own are not supported; choose a checkpoint without desc_act or actorder"
        )
    return form


def _names(model: ModelConfig) -> list[str]:
    """Return the names of the first and the last expert's matrices in all layers.

    Those in between must be alike, or the loader finds tensors that are missing.
    """
    if model.experts is None:
        return []
    family = FAMILIES[model.architecture]
    names = [
        f"model.layers.{layer}.mlp.experts.{expert}.{name}."
        for layer, settings in enumerate(model.layers)
        if settings.is_sparse
        for expert in (0, model.experts.count - 1)
        for name in MATRICES
    ]
    return [family.checkpoint_name(name).removesuffix(".") for name in names]
