"""A model with fewer layers, which launches the same kernels.

Layers of one kind launch the same kernels. To know which ones have to be compiled, it is enough to
see one layer of each kind behind each kind that it follows, because a layer may leave its result in
parts or its norm to the next (see ``deferred``)::

    layers   A A A B A A A B …      seen   A A A B A
"""

from collections.abc import Hashable, Sequence
from copy import copy
from dataclasses import replace
from itertools import pairwise

from minimal_vllm.model.decoder import Decoder
from minimal_vllm.runner.interface import CachedModel


def shortened(model: CachedModel) -> CachedModel:
    """Return a model of the first layers only: as many as launch all kernels of the whole model."""
    decoder = model.decoder
    if not isinstance(decoder, Decoder):
        return model  # an EAGLE-3 head, of one layer
    count = num_to_see([_kind(decoder, index) for index in range(len(decoder.layers))])
    short = copy(decoder)
    short._modules = {**decoder._modules, "layers": decoder.layers[:count]}  # the copy shares it
    short.rotary_of_layer = decoder.rotary_of_layer[:count]
    short.tap = decoder.tap.within(count) if decoder.tap else None
    groups, caches = model.groups, model.caches[:count]
    return replace(
        model,
        decoder=short,
        caches=caches,
        groups=replace(groups, of_layer=groups.of_layer[:count], places=groups.places[:count]),
    )


def num_to_see(kinds: Sequence[Hashable]) -> int:
    """Return the number of layers to begin with that show each kind behind each that it follows.

    The last of them is of the kind that the model ends with, since the final norm follows it.

    Args:
        kinds: kind of each layer of a model.
    """
    pairs = list(pairwise([None, *kinds]))
    count = 1 + max(pairs.index(pair) for pair in set(pairs))
    return count + kinds[count - 1 :].index(kinds[-1])


def _kind(decoder: Decoder, index: int) -> Hashable:
    """Return all that decides which kernels a layer launches."""
    layer = decoder.layers[index]
    return (
        decoder.config.layers[index],
        tuple(type(module) for module in layer.modules()),
        tuple((name, each.shape, each.dtype) for name, each in layer.named_parameters()),
    )
