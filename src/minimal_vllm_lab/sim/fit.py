"""Fit of a linear cost model to the records of real steps."""

import math
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from minimal_vllm.trace.step_record import StepRecord
from minimal_vllm_lab.sim.cost_model import LinearCostModel
from minimal_vllm_lab.sim.load import load_of_record
from minimal_vllm_lab.trace.reader import open_trace


def fit_cost_model(records: Iterable[StepRecord]) -> LinearCostModel:
    """Fit non-negative coefficients that predict the steps' durations, by least squares.

    *Relative* errors are squared, so that the many short decode steps count as much as the few long
    steps with prompts, and a step that the machine delayed counts little.

    A step's duration is the sum of its schedule, run and update times. With asynchronous
    scheduling, a step may begin before the previous step has ended. In that case only the time
    since the previous step's end counts.

    Raises:
        ValueError: there are too few steps for a fit.
    """
    steps = list(records)
    seconds = np.array(list(_own_seconds(steps)))
    num_coefficients = 6
    loads = np.array(
        [[1, *load_of_record(each)[: num_coefficients - 1]] for each in steps], dtype=float
    )
    if len(steps) < 2 * num_coefficients or not (seconds > 0).all():
        raise ValueError(
            f"fitting a cost model needs at least {2 * num_coefficients} steps, each longer than "
            f"0 s, and this trace has {np.count_nonzero(seconds > 0)}: record a longer run"
        )
    return LinearCostModel(*_least_squares(loads / seconds[:, None]).tolist())


def read_cost_model(path: Path) -> LinearCostModel:
    """Read coefficients from a JSON file, or fit them to the steps of a ``.jsonl`` trace.

    Raises:
        OSError: the trace can't be read.
        ValueError: the file is malformed; the message names what is wrong.
    """
    if path.suffix != ".jsonl":
        return LinearCostModel.load(path)
    with open_trace(path) as (_, lines):
        return fit_cost_model(line for line in lines if isinstance(line, StepRecord))


def _own_seconds(steps: Iterable[StepRecord]) -> Iterator[float]:
    """Yield each step's duration, without the time in which the previous step still ran."""
    last_end = -math.inf
    for each in steps:
        took = each.schedule_seconds + each.run_seconds + each.update_seconds
        end = each.started + took
        yield min(took, end - last_end)
        last_end = end


def _least_squares(rows: "np.ndarray[tuple[int, int], np.dtype[np.float64]]") -> np.ndarray:
    """Return the non-negative x for which ``rows @ x`` is nearest to 1 in every row.

    While a coefficient is negative, the most negative one is fixed at 0 and the rest fitted again.

    Args:
        rows: array of shape [steps, coefficients].
    """
    scale = np.abs(rows).max(axis=0)  # magnitudes differ widely between columns
    scale[scale == 0] = 1
    kept = np.arange(rows.shape[1])
    while True:
        found = np.linalg.lstsq((rows / scale)[:, kept], np.ones(len(rows)))[0]
        if found.min() >= 0:
            break
        kept = np.delete(kept, found.argmin())
    result = np.zeros(rows.shape[1])
    result[kept] = found / scale[kept]
    return result
