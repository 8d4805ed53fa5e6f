"""Mean, spread and paired intervals over seeds."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from scipy import stats

__all__ = ["LEVEL", "over_seeds", "over_tasks", "paired_difference"]

LEVEL = 0.95
_FEWEST = 3


def over_seeds(scores: Mapping[int, float]) -> dict[str, Any]:
    """Number, mean and standard deviation (n - 1; null below 2) of one score a seed.

    >>> over_seeds({1: 0.5, 2: 1.0, 3: 1.5})
    {'n': 3, 'mean': 1.0, 'sd': 0.5}
    """
    values = list(scores.values())
    return {
        "n": len(values),
        "mean": statistics.fmean(values) if values else None,
        "sd": statistics.stdev(values) if len(values) > 1 else None,
    }


def paired_difference(scores: Mapping[int, float], others: Mapping[int, float]) -> dict[str, Any]:
    r"""The mean difference over the seeds that both have, with its 95 % t interval.

    .. math:: \bar d \pm t_{0.975,\,n-1} \frac{s_d}{\sqrt n}

    Below 3 seeds the interval is null.
    """
    differences = [scores[seed] - others[seed] for seed in scores if seed in others]
    n = len(differences)
    mean = statistics.fmean(differences) if n else None
    low = high = None
    if mean is not None and n >= _FEWEST:
        half = float(stats.t.ppf((1 + LEVEL) / 2, n - 1)) * statistics.stdev(differences) / math.sqrt(n)
        low, high = mean - half, mean + half
    return {"n": n, "mean": mean, "low": low, "high": high}


def over_tasks(by_task: Sequence[Mapping[int, float]]) -> dict[int, float]:
    """The mean over the tasks of each seed that all of them have.

    >>> over_tasks([{1: 0.25, 2: 0.5}, {1: 0.75}])
    {1: 0.5}
    """
    first = by_task[0] if by_task else {}
    return {
        seed: statistics.fmean([scores[seed] for scores in by_task])
        for seed in first
        if all(seed in scores for scores in by_task)
    }
