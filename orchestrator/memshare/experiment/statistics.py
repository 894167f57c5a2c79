# SPDX-License-Identifier: GPL-2.0-or-later
"""What repeats say together: medians, intervals, and whether two sides differ. Pure; scipy does the resampling."""

import statistics
from collections.abc import Sequence
from typing import Any

from memshare.errors import HostError
from memshare.experiment.record import Record

CONFIDENCE = 0.95
# Fewer values leave no room: even from the least to the greatest of five holds the true median in 94% of cases only.
LEAST_VALUES = 6
RESAMPLES = 9999
SEED = 0  # the same recordings give the same report


class Summary(Record, frozen=True, kw_only=True):
    """Values of one figure: their median, the least and the greatest, and the median's 95% interval where there can be one."""

    count: int
    median: float
    least: float
    greatest: float
    low: float | None
    high: float | None


class Difference(Record, frozen=True, kw_only=True):
    """B less A: of the medians, its 95% interval, and p of the two being alike (None with fewer than two values a side).

    With few values p cannot be small: three against three give no less than 0.1.
    """

    median: float
    low: float | None
    high: float | None
    p: float | None


def scipy_stats() -> Any:
    """Import it late: it takes a second, and only reports need it."""
    try:
        from scipy import stats
    except ImportError as error:
        raise HostError(
            f"{error.name} is not installed", "pip install 'memshare[bench]'"
        ) from error
    return stats


def summarise(values: Sequence[float]) -> Summary | None:
    """Sum values up; None when there are none."""
    if not values:
        return None
    low = high = None
    if len(values) >= LEAST_VALUES:
        low, high = _interval([values], _median)
    return Summary(
        count=len(values),
        median=statistics.median(values),
        least=min(values),
        greatest=max(values),
        low=low,
        high=high,
    )


def difference(a: Sequence[float], b: Sequence[float]) -> Difference | None:
    """Compare two sides that were measured apart; None when one has no value."""
    if not a or not b:
        return None
    low = high = p = None
    if min(len(a), len(b)) >= LEAST_VALUES:
        low, high = _interval([a, b], _median_difference)
    if min(len(a), len(b)) >= 2:
        p = _chance(a, b)
    return Difference(median=statistics.median(b) - statistics.median(a), low=low, high=high, p=p)


def _interval(samples: Sequence[Sequence[float]], statistic: Any) -> tuple[float, float]:
    """Bootstrap; percentiles, because medians of few values jump."""
    found = scipy_stats().bootstrap(
        samples,
        statistic,
        n_resamples=RESAMPLES,
        confidence_level=CONFIDENCE,
        method="percentile",
        vectorized=True,
        rng=SEED,
    )
    return float(found.confidence_interval.low), float(found.confidence_interval.high)


def _chance(a: Sequence[float], b: Sequence[float]) -> float:
    """Permutation test, exact while there are few enough permutations. Of means: medians of few values tie."""
    if set(a) == set(b) and len(set(a)) == 1:
        return 1.0
    found = scipy_stats().permutation_test(
        (a, b), _mean_difference, n_resamples=RESAMPLES, vectorized=True, rng=SEED
    )
    return float(found.pvalue)


def _median(values: Any, axis: int) -> Any:
    import numpy as np

    return np.median(values, axis=axis)


def _median_difference(a: Any, b: Any, axis: int) -> Any:
    return _median(b, axis) - _median(a, axis)


def _mean_difference(a: Any, b: Any, axis: int) -> Any:
    import numpy as np

    return np.mean(b, axis=axis) - np.mean(a, axis=axis)
