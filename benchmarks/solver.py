"""(3) The transport plan: exact, on the M x N costs themselves, against the padded (M+N) x (M+N) problem."""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from benchmarks.harness import summary
from bert_emd import transport_plan
from bert_emd.pot import ot

__all__ = ["solver"]


def _padded(cost: np.ndarray, w_s: np.ndarray, w_t: np.ndarray) -> np.ndarray:
    m, n = cost.shape
    square = np.zeros((m + n, m + n))
    square[:m, m:], square[m:, :m] = cost, cost.T
    plan: np.ndarray = ot.emd(np.concatenate([w_s, np.zeros(n)]), np.concatenate([np.zeros(m), w_t]), square)[:m, m:]
    return plan


def solver(repeats: int = 200) -> list[dict[str, Any]]:
    """Microseconds a plan, the two ways taking turns on the same random problems, and how far their costs differ."""
    found = []
    chance = np.random.default_rng(1)
    for m, n in ((4, 12), (6, 12), (12, 24), (24, 48)):
        seconds: dict[str, list[float]] = {"bert-emd": [], "padded": []}
        apart = 0.0
        for _ in range(repeats):
            cost, w_s, w_t = chance.random((m, n)), chance.random(m) + 0.1, chance.random(n) + 0.1
            w_s, w_t = w_s / w_s.sum(), w_t / w_t.sum()
            totals = []
            for name, solve in (("bert-emd", transport_plan), ("padded", _padded)):
                start = time.perf_counter()
                plan = solve(cost, w_s, w_t)
                seconds[name].append(time.perf_counter() - start)
                totals.append(float((np.asarray(plan) * cost).sum()))
            apart = max(apart, abs(totals[0] - totals[1]) / totals[1])
        microseconds = {k: {x: 1e6 * y for x, y in summary(v).items()} for k, v in seconds.items()}
        found.append({"layers": f"{m}x{n}", "microseconds": microseconds, "largest relative difference in cost": apart})
    return found
