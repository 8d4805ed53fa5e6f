"""Two independent judges of transport plans, for stacks of problems of one shape.

Shapes: K problems, M rows, N columns; cost and plan [K, M, N]; row masses [K, M], column masses [K, N].
"""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp
from scipy.optimize import linprog

__all__ = ["dual_variables", "linear_programming_optimum"]


def dual_variables(cost: np.ndarray, plan: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """u [K, M] and v [K, N] with u_i + v_j <= D_ij, tight wherever the plan moves mass, if the plan is optimal.

    They are shortest distances in the residual graph (every pair forwards at D_ij, pairs in use backwards at -D_ij),
    by Bellman and Ford. The last step makes them feasible whether or not the plan is optimal, so that their value is a
    lower bound on the optimum in any case: a plan that is not optimal shows as a gap.
    """
    in_use = plan > 1e-14 * plan.sum(axis=(1, 2), keepdims=True)
    to_row = np.zeros(cost.shape[:2])
    for _ in range(cost.shape[1] + cost.shape[2]):
        to_column = (to_row[:, :, None] + cost).min(axis=1)
        back = np.where(in_use, to_column[:, None, :] - cost, np.inf).min(axis=2)
        shorter = np.minimum(to_row, back)
        if np.array_equal(shorter, to_row):
            break
        to_row = shorter
    u = -to_row
    return u, (cost - u[:, :, None]).min(axis=1)


def linear_programming_optimum(cost: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """The K optimal values, [K], by HiGHS: many problems are one block-diagonal program.

    Costs should be at most 1 and masses sum to 1: the solver's tolerances are absolute.
    """
    count, m, n = cost.shape
    one = sp.vstack([sp.kron(sp.eye(m), np.ones((1, n))), sp.kron(np.ones((1, m)), sp.eye(n))])
    together = max(1, 2000 // (m * n))
    values = []
    for start in range(0, count, together):
        part = slice(start, start + together)
        answer = linprog(
            cost[part].ravel(),
            A_eq=sp.block_diag([one] * len(cost[part]), format="csr"),
            b_eq=np.concatenate([rows[part], columns[part]], axis=1).ravel(),
            method="highs-ds",
            options={"primal_feasibility_tolerance": 1e-10, "dual_feasibility_tolerance": 1e-10},
        )
        assert answer.status == 0, answer.message
        values.append((answer.x.reshape(-1, m, n) * cost[part]).sum(axis=(1, 2)))
    return np.concatenate(values)
