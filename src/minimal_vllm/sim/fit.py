"""A cost model from the records of real steps."""

from collections.abc import Iterable

import numpy as np

from minimal_vllm.sim.cost_model import LinearCostModel
from minimal_vllm.sim.load import load_of_record
from minimal_vllm.trace.step_record import StepRecord


def fit_cost_model(records: Iterable[StepRecord]) -> LinearCostModel:
    """The non-negative coefficients that predict the records' times best, by least squares.

    *Relative* errors are squared, so that the many short steps of decoding count as much as the
    few long ones with prompts, and a step that the machine held up counts little. A step's time
    is that of schedule, run and update together.

    Raises:
        ValueError: there are too few steps to fit anything to.
    """
    steps = list(records)
    seconds = np.array(
        [each.schedule_seconds + each.run_seconds + each.update_seconds for each in steps]
    )
    loads = np.array([[1, *load_of_record(each)] for each in steps], dtype=float)
    num_coefficients = 6
    if len(steps) < 2 * num_coefficients or not seconds.all():
        raise ValueError(
            f"a cost model is fitted to at least {2 * num_coefficients} steps that took time, not "
            f"to {np.count_nonzero(seconds)}: record a longer run"
        )
    return LinearCostModel(*_least_squares(loads / seconds[:, None]).tolist())


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
