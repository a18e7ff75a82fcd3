"""A cost model from the records of real steps."""

import math
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from minimal_vllm.trace.step_record import StepRecord
from minimal_vllm_lab.sim.cost_model import LinearCostModel
from minimal_vllm_lab.sim.load import load_of_record
from minimal_vllm_lab.trace.reader import open_trace


def fit_cost_model(records: Iterable[StepRecord]) -> LinearCostModel:
    """The non-negative coefficients that predict the records' times best, by least squares.

    *Relative* errors are squared, so that the many short steps of decoding count as much as the
    few long ones with prompts, and a step that the machine held up counts little. A step's time
    is that of schedule, run and update together; if it began while the one before it still ran, as
    with asynchronous scheduling, then only what passed since that one's end.

    Raises:
        ValueError: there are too few steps to fit anything to.
    """
    steps = list(records)
    seconds = np.array(list(_own_seconds(steps)))
    num_coefficients = 6
    loads = np.array(
        [[1, *load_of_record(each)[: num_coefficients - 1]] for each in steps], dtype=float
    )
    if len(steps) < 2 * num_coefficients or not (seconds > 0).all():
        raise ValueError(
            f"a cost model is fitted to at least {2 * num_coefficients} steps that took time, not "
            f"to {np.count_nonzero(seconds > 0)}: record a longer run"
        )
    return LinearCostModel(*_least_squares(loads / seconds[:, None]).tolist())


def read_cost_model(path: Path) -> LinearCostModel:
    """The coefficients in a file, or those fitted to the steps of a trace, a ``.jsonl`` file.

    Raises:
        OSError: the trace can't be read.
        ValueError: naming what is wrong with the file.
    """
    if path.suffix != ".jsonl":
        return LinearCostModel.load(path)
    with open_trace(path) as (_, lines):
        return fit_cost_model(line for line in lines if isinstance(line, StepRecord))


def _own_seconds(steps: Iterable[StepRecord]) -> Iterator[float]:
    last_end = -math.inf
    for each in steps:
        took = each.schedule_seconds + each.run_seconds + each.update_seconds
        end = each.started + took
        yield min(took, end - last_end)
        last_end = end


def _least_squares(rows: "np.ndarray[tuple[int, int], np.dtype[np.float64]]") -> np.ndarray:
    """The non-negative x for which ``rows @ x`` is nearest to 1 everywhere.

    A coefficient that would be negative is left out, the most negative first, until none is.
    """
    scale = np.abs(rows).max(axis=0)  # the columns' sizes differ by orders of magnitude
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
