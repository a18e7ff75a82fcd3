"""Reading a profile of steps: which kernels ran, in which part of which layer, and for how long.

A profile is what ``torch.profiler`` exports for Chrome: a list of events. Ranges on the CPU, made
by ``layer_marks``, say which part of which layer launches a kernel. A launch and its kernel have
the same ``correlation``; all kernels of a replayed graph have that of the graph's launch. No torch.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import SequenceMatcher
from itertools import groupby
from typing import Any

Event = Mapping[str, Any]

STEP, LAYER, PART = "step", "layer", "part"
"""Kinds of ranges. A range's name is its kind, a colon, and the number or the name."""
ON_GPU = {"kernel", "gpu_memcpy", "gpu_memset"}
"""Categories of what runs on a GPU."""
LAUNCHES = {"cuda_runtime", "cuda_driver"}
"""Categories of calls that launch it."""
UNKNOWN = "unknown"
"""Part of a replayed kernel that has no counterpart among those that were launched one by one."""


@dataclass(frozen=True)
class Kernel:
    """A kernel, or a copy, of one step. Times are in microseconds."""

    name: str
    begin: float
    end: float
    layer: int | None
    """Number of its layer, from 0; None if it is in none."""
    part: str | None
    """Innermost marked part; None if it is in none."""


@dataclass(frozen=True)
class TimedKernel:
    """A kernel, and the time that it adds to the kernels before it, in microseconds."""

    kernel: Kernel
    pause: float
    """Time before it in which the GPU does nothing."""
    microseconds: float
    """Its duration, without the time in which an earlier kernel still ran."""


@dataclass(frozen=True)
class Steps:
    """The kernels of each step, in order, and what was left out."""

    steps: list[list[Kernel]]
    notes: list[str]


# ---- events -------------------------------------------------------------------------------------


def read_steps(events: Sequence[Event]) -> Steps:
    """Return the kernels of each marked step.

    What runs on another stream than most kernels is left out, and so is what has no launch in the
    profile. Notes say so.

    Raises:
        ValueError: there is no kernel whose launch is in a marked step.
    """
    timed = [event for event in events if event.get("ph") == "X"]
    on_gpu = [event for event in timed if event.get("cat") in ON_GPU]
    streams = Counter(_stream(event) for event in on_gpu)
    stream = max(streams, key=lambda each: streams[each], default=None)
    ranges = _ranges_of_launches(timed)
    steps: dict[str, list[Kernel]] = {}
    elsewhere, lost, outside = list[Event](), list[Event](), list[Event]()
    for event in sorted(on_gpu, key=lambda each: float(each["ts"])):
        around = ranges.get(_correlation(event))
        if _stream(event) != stream:
            elsewhere.append(event)
        elif around is None:
            lost.append(event)
        elif STEP not in around:
            outside.append(event)
        else:
            steps.setdefault(around[STEP], []).append(_kernel(event, around))
    if not steps:
        raise ValueError(f"no kernel was launched in a marked step: {_found(timed, lost, outside)}")
    notes = [
        f"{len(left_out)} kernels {why} are left out, such as {left_out[0]['name']!r}"
        for left_out, why in ((elsewhere, "on another stream"), (lost, "without a launch"))
        if left_out
    ]
    return Steps([steps[number] for number in sorted(steps, key=int)], notes)


def _ranges_of_launches(timed: Sequence[Event]) -> dict[int, dict[str, str]]:
    """Return the innermost range of each kind around each launch, by its correlation."""
    marks = [event for event in timed if event.get("cat") == "user_annotation" and _kind(event)]
    launches = [event for event in timed if event.get("cat") in LAUNCHES]
    open_marks: list[Event] = []
    ranges: dict[int, dict[str, str]] = {}
    # Of a range and a launch that begin at the same time, the range comes first.
    for event in sorted([*marks, *launches], key=lambda each: float(each["ts"])):
        while open_marks and _end(open_marks[-1]) <= float(event["ts"]):
            open_marks.pop()
        if event.get("cat") == "user_annotation":
            open_marks.append(event)
        else:
            names = (str(mark["name"]).partition(": ") for mark in open_marks)
            ranges[_correlation(event)] = {kind: name for kind, _, name in names}
    return ranges


def _kernel(event: Event, around: Mapping[str, str]) -> Kernel:
    layer = int(around[LAYER]) if LAYER in around else None
    return Kernel(str(event["name"]), float(event["ts"]), _end(event), layer, around.get(PART))


def _kind(event: Event) -> str | None:
    kind, colon, _ = str(event["name"]).partition(": ")
    return kind if colon and kind in (STEP, LAYER, PART) else None


def _end(event: Event) -> float:
    return float(event["ts"]) + float(event["dur"])


def _stream(event: Event) -> object:
    return event.get("args", {}).get("stream")


def _correlation(event: Event) -> int:
    return int(event.get("args", {}).get("correlation", -1))


def _found(timed: Sequence[Event], lost: Sequence[Event], outside: Sequence[Event]) -> str:
    """Say what a profile has instead of launches in marked steps."""
    categories = Counter(str(event.get("cat")) for event in timed)
    calls = Counter(str(event["name"]) for event in timed if event.get("cat") in LAUNCHES)
    marks = sum(event.get("cat") == "user_annotation" and bool(_kind(event)) for event in timed)
    return (
        f"the profile has {dict(categories)}, {marks} marked ranges, calls {dict(calls)}; "
        f"{len(lost)} kernels have no launch, and {len(outside)} were launched outside of steps"
    )


# ---- replayed kernels ---------------------------------------------------------------------------


def is_marked(step: Sequence[Kernel]) -> bool:
    """Return whether a step's kernels were launched one by one, so that their layers are known."""
    return any(kernel.layer is not None for kernel in step)


def carry_over(
    launched: Sequence[Kernel], replayed: Sequence[Kernel]
) -> tuple[list[Kernel], str | None]:
    """Give replayed kernels the layers and parts of those that were launched one by one.

    A graph replays the kernels that were launched while it was recorded, in the same order. Copies
    count as equal, because a graph names them otherwise.

    Returns:
        The replayed kernels, and what differs between the two sequences; None if nothing does.
    """
    before, after = ([_comparable(kernel.name) for kernel in step] for step in (launched, replayed))
    marked = [replace(kernel, layer=None, part=UNKNOWN) for kernel in replayed]
    num_equal = 0
    for block in SequenceMatcher(None, before, after, autojunk=False).get_matching_blocks():
        num_equal += block.size
        for offset in range(block.size):
            source = launched[block.a + offset]
            index = block.b + offset
            marked[index] = replace(marked[index], layer=source.layer, part=source.part)
    if num_equal == len(before) == len(after):
        return marked, None
    first = next(
        (
            index
            for index, pair in enumerate(zip(before, after, strict=False))
            if len(set(pair)) > 1
        ),
        min(len(before), len(after)),
    )
    return _with_layers_around(marked), (
        f"the graph replays {len(after)} kernels, of which {num_equal} are among the {len(before)} "
        f"that are launched without it; kernel {first} is {_name(after, first)} instead of "
        f"{_name(before, first)}"
    )


def _comparable(name: str) -> str:
    """Return what a kernel has in common with what a graph replays instead of it."""
    return next((kind for kind in ("memcpy", "memset") if name.lower().startswith(kind)), name)


def _with_layers_around(kernels: Sequence[Kernel]) -> list[Kernel]:
    """Put unknown kernels into a layer if the known kernels before and after are in it."""
    result = list(kernels)
    for is_unknown, run in groupby(
        range(len(kernels)), lambda index: result[index].part == UNKNOWN
    ):
        indices = list(run)
        if is_unknown and indices[0] > 0 and indices[-1] + 1 < len(result):
            layer = result[indices[0] - 1].layer
            if layer == result[indices[-1] + 1].layer:
                for index in indices:
                    result[index] = replace(result[index], layer=layer)
    return result


def _name(names: Sequence[str], index: int) -> str:
    return repr(names[index]) if index < len(names) else "missing"


# ---- times --------------------------------------------------------------------------------------


def time_kernels(step: Sequence[Kernel]) -> list[TimedKernel]:
    """Return the time that each kernel adds. The sum of pauses and times is the step's duration.

    A kernel may start while the one before it still runs (see ``device.launch``).
    """
    result = []
    busy_until = step[0].begin
    for kernel in step:
        pause = max(0.0, kernel.begin - busy_until)
        begin = max(kernel.begin, busy_until)
        result.append(TimedKernel(kernel, pause, max(0.0, kernel.end - begin)))
        busy_until = max(busy_until, kernel.end)
    return result


def layers_of(step: Sequence[TimedKernel]) -> dict[int, list[TimedKernel]]:
    """Return the kernels of each layer, by its number."""
    layers: dict[int, list[TimedKernel]] = {}
    for each in step:
        if each.kernel.layer is not None:
            layers.setdefault(each.kernel.layer, []).append(each)
    return layers


def short_name(name: str) -> str:
    """Return a kernel's name without its return type, namespaces, template and parameters."""
    bare = name.removeprefix("void ").replace("(anonymous namespace)::", "")
    if name.startswith(("Memcpy", "Memset")):
        return name
    for opening in "<(":
        bare = bare.partition(opening)[0] or bare
    return bare.rpartition("::")[2][:40]
