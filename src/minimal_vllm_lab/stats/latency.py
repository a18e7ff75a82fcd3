"""Summary statistics of latencies, under the names used by ``vllm bench``."""

from collections.abc import Sequence

import numpy as np


def distribution(
    name: str,
    seconds: Sequence[float],
    percentiles: Sequence[float],
    counts: Sequence[int] | None = None,
) -> dict[str, float | None]:
    """Return mean, median, standard deviation and percentiles in ms, by keys like ``p99_ttft_ms``.

    Args:
        name: name of the latency, such as ``ttft``.
        seconds: measured values. If there are none, each statistic is None.
        percentiles: percentiles to compute, between 0 and 100.
        counts: how often each value was seen. With counts, a percentile is one of the values.
            Default: each value was seen once, and percentiles are interpolated.
    """
    names = ["mean", "median", "std", *(f"p{each:g}" for each in percentiles)]
    if not seconds:
        return {f"{each}_{name}_ms": None for each in names}
    ms = 1e3 * np.asarray(seconds)
    mean = np.average(ms, weights=counts)
    std = np.sqrt(np.average((ms - mean) ** 2, weights=counts))
    median, *others = np.percentile(
        ms,
        [50, *percentiles],
        weights=counts,
        method="linear" if counts is None else "inverted_cdf",
    )
    values = [mean, median, std, *others]
    return {f"{each}_{name}_ms": float(value) for each, value in zip(names, values, strict=True)}
