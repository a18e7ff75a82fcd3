"""Counting the experts that a step uses, if an observer reads their number.

An observer asks for it with ``Listener.reads_experts``. Only then is the model built of mixtures of
experts that note what their routers choose. Otherwise nothing in this file runs.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor, nn

from minimal_vllm.engine.reporter import tell
from minimal_vllm.model.config import ModelConfig
from minimal_vllm.model.deferred import Operand
from minimal_vllm.model.experts import choose_experts
from minimal_vllm.model.layer_config import LayerConfig
from minimal_vllm.model.layers import MLP, Modules, MoE
from minimal_vllm.trace.step_record import Listener, Observer, Record, StepRecord


class WatchedMoE(MoE):
    """Mixture of experts that notes which of its experts compute a token."""

    def __init__(self, config: ModelConfig, modules: Modules) -> None:
        super().__init__(config, modules)
        self.used = torch.zeros(self.experts.config.count, dtype=torch.bool, device="cpu")

    def forward(self, x: Operand) -> Operand:
        """Return what ``MoE.forward`` returns."""
        self._note(self.router.forward(x))
        return super().forward(x)

    def _note(self, logits: Tensor) -> None:
        rules = self.experts.config
        experts, _ = choose_experts(logits, rules.per_token, rules.normalized)
        self.used[experts.flatten()] = True


@contextmanager
def unwatched(model: nn.Module) -> Iterator[None]:
    """Restore afterward what was noted before, whatever the model computes meanwhile."""
    noted = [(each, each.used.clone()) for each in model.modules() if isinstance(each, WatchedMoE)]
    yield
    for each, used in noted:
        each.used.copy_(used)


class ExpertTally:
    """Numbers of experts that were used, by layer."""

    def __init__(self) -> None:
        self._layers: list[WatchedMoE] = []

    def watch(self, modules: Modules) -> Modules:
        """Return modules whose mixtures of experts are watched."""
        make = modules.mlp

        def make_watched(config: ModelConfig, layer: LayerConfig, modules: Modules) -> MLP | MoE:
            if not layer.is_sparse:
                return make(config, layer, modules)
            self._layers.append(WatchedMoE(config, modules))
            return self._layers[-1]

        return replace(modules, mlp=make_watched)

    def take(self) -> tuple[int, ...]:
        """Return how many experts each layer has used since this was last called."""
        counts = tuple(int(layer.used.sum()) for layer in self._layers)
        for layer in self._layers:
            layer.used.zero_()
        return counts


class ExpertReporter(Listener):
    """Passes records on to observers, and adds the numbers of used experts to those of steps.

    Args:
        observers: observers that get the records of steps; a ``Listener`` gets all records.
        tally: the numbers.
    """

    def __init__(self, observers: Sequence[Observer], tally: ExpertTally) -> None:
        self._observers = observers
        self._listeners = [each for each in observers if isinstance(each, Listener)]
        self._tally = tally

    def __call__(self, record: Record) -> None:
        """Pass on a record."""
        if isinstance(record, StepRecord):
            tell(self._observers, replace(record, experts_used=self._tally.take()))
        else:
            tell(self._listeners, record)


def make_tally(
    model: ModelConfig, device: torch.device, observers: Sequence[Observer]
) -> ExpertTally | None:
    """Return a tally if the model has experts, and an observer reads how many a step uses.

    On a GPU nothing is counted: steps overlap, so their numbers could only be separated by waiting
    for each step.
    """
    is_read = any(isinstance(each, Listener) and each.reads_experts for each in observers)
    if model.experts is None or device.type != "cpu" or not is_read:
        return None
    return ExpertTally()
