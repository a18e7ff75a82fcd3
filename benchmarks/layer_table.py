"""Tables of where the time of a step goes, from the kernels of some steps. No torch."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise
from statistics import median

from benchmarks.layer_trace import Kernel, TimedKernel, layers_of, short_name, time_kernels

Row = list[str]
LAYER_HEADER = ["part", "kernel", "µs", "floor", "floor / µs", "pause before"]
STEP_HEADER = ["part", "kernels", "µs", "pauses", "floor", "floor / µs"]


@dataclass(frozen=True)
class Facts:
    """What is known about profiled steps besides their kernels. Times are in microseconds."""

    title: str
    kinds: list[str]
    """Kind of each layer."""
    floors: dict[str, dict[str, float]]
    """Floors of a layer's parts, by its kind."""
    head_floor: float
    unprofiled: float
    """Duration of such a step without the profiler."""


@dataclass(frozen=True)
class LayerTable:
    """Where the time of the layers of a kind goes, for those that launch the same kernels."""

    title: str
    rows: list[Row]
    others: list[str]
    """Sentences on layers of this kind that launch other kernels."""


# ---- a layer ------------------------------------------------------------------------------------

Instance = tuple[int, list[TimedKernel]]
"""Number and kernels of a layer in one of the steps."""


def layer_tables(steps: Sequence[Sequence[Kernel]], facts: Facts) -> list[LayerTable]:
    """Return a table for each kind of layers: medians over these layers and all steps."""
    by_kind: dict[str, list[Instance]] = {}
    for step in steps:
        for number, kernels in layers_of(time_kernels(step)).items():
            by_kind.setdefault(facts.kinds[number], []).append((number, kernels))
    return [_layer_table(kind, layers, facts.floors[kind]) for kind, layers in by_kind.items()]


def _layer_table(kind: str, instances: Sequence[Instance], floors: dict[str, float]) -> LayerTable:
    alike: dict[tuple[tuple[str | None, str], ...], list[Instance]] = {}
    for instance in instances:
        alike.setdefault(_signature(instance[1]), []).append(instance)
    most, *rest = sorted(alike.values(), key=len, reverse=True)
    layers = [kernels for _, kernels in most]
    return LayerTable(
        f"A layer ({kind}), median of {len({number for number, _ in most})}",
        _layer_rows(layers, floors),
        [_describe(other) for other in rest],
    )


def _signature(kernels: Sequence[TimedKernel]) -> tuple[tuple[str | None, str], ...]:
    return tuple((each.kernel.part, each.kernel.name) for each in kernels)


def _layer_rows(layers: Sequence[Sequence[TimedKernel]], floors: dict[str, float]) -> list[Row]:
    """Return a row per kernel; a part's floor stands in the row of its first kernel."""
    kernels = [each.kernel for each in layers[0]]
    times = [median(column) for column in zip(*map(_times, layers), strict=True)]
    pauses = [median(column) for column in zip(*map(_pauses, layers), strict=True)]
    rows: list[Row] = []
    total = 0.0
    for part, run in groupby(range(len(kernels)), lambda index: kernels[index].part):
        indices = list(run)
        floor = floors.get(part or "")
        total += floor or 0
        for index in indices:
            is_first = index == indices[0]
            spent = sum(times[each] for each in indices)
            rows.append(
                [
                    (part or "other") if is_first else "",
                    short_name(kernels[index].name),
                    f"{times[index]:.1f}",
                    *(_floor(floor, spent) if is_first else ["", ""]),
                    f"{pauses[index]:.1f}",
                ]
            )
    whole = median(sum(_times(layer)) + sum(_pauses(layer)) for layer in layers)
    rows.append(
        ["all, with pauses", "", f"{whole:.1f}", *_floor(total, whole), f"{sum(pauses):.1f}"]
    )
    return rows


def _describe(instances: Sequence[Instance]) -> str:
    numbers = sorted({number for number, _ in instances})
    whole = median(sum(_times(layer)) + sum(_pauses(layer)) for _, layer in instances)
    parts = Counter(each.kernel.part or "other" for each in instances[0][1])
    return (
        f"Layers {', '.join(map(str, numbers))} launch other kernels and take {whole:.1f} µs: "
        + ", ".join(f"{count} x {part}" if count > 1 else part for part, count in parts.items())
    )


# ---- a step -------------------------------------------------------------------------------------


def step_rows(steps: Sequence[Sequence[Kernel]], facts: Facts) -> list[Row]:
    """Return a row per part of a step, in order, where all layers are one part."""
    timed = [time_kernels(step) for step in steps]
    names = list(dict.fromkeys(_part(each.kernel) for step in timed for each in step))
    of_layers = median(_layers_floor(step, facts) for step in timed)
    floors = {"layers": of_layers, "head": facts.head_floor}
    rows = [
        _step_row(
            name,
            [[each for each in step if _part(each.kernel) == name] for step in timed],
            floors.get(name),
        )
        for name in names
    ]
    rows.append(_step_row("whole step", timed, sum(floors.values())))
    return rows


def between_steps(steps: Sequence[Sequence[Kernel]]) -> float | None:
    """Return the median pause between two steps in microseconds; None if there is only one."""
    pauses = [
        later[0].begin - max(kernel.end for kernel in earlier) for earlier, later in pairwise(steps)
    ]
    return median(pauses) if pauses else None


def _part(kernel: Kernel) -> str:
    return "layers" if kernel.layer is not None else kernel.part or "other"


def _layers_floor(step: Sequence[TimedKernel], facts: Facts) -> float:
    """Return the sum of the floors of all parts of all layers, as often as they occur."""
    return sum(
        facts.floors[facts.kinds[number]].get(part or "", 0.0)
        for number, kernels in layers_of(step).items()
        for part, _ in groupby(each.kernel.part for each in kernels)
    )


def _step_row(name: str, by_step: Sequence[Sequence[TimedKernel]], floor: float | None) -> Row:
    times = median(sum(_times(kernels)) for kernels in by_step)
    pauses = median(sum(_pauses(kernels)) for kernels in by_step)
    count = median(len(kernels) for kernels in by_step)
    return [name, f"{count:.0f}", f"{times:.1f}", f"{pauses:.1f}", *_floor(floor, times + pauses)]


def _times(kernels: Sequence[TimedKernel]) -> list[float]:
    return [each.microseconds for each in kernels]


def _pauses(kernels: Sequence[TimedKernel]) -> list[float]:
    return [each.pause for each in kernels]


def _floor(floor: float | None, microseconds: float) -> Row:
    """Return a floor and the share of it that is reached, or nothing where there is no floor."""
    if floor is None:
        return ["", ""]
    return [f"{floor:.1f}", f"{floor / microseconds:.2f}" if microseconds else ""]
