"""Cost attention: layer weights that learn from the transport costs.

Shapes: M student layers, N teacher layers; all weights float64, each vector sums to 1.
"""

from __future__ import annotations

from typing import Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray

__all__ = ["CostAttention", "CostRule"]

CostRule = Literal["softmax", "double-softmax", "ratio", "fixed"]

_UNIT_COST_FLOOR = 1e-6  # of the largest unit cost: a layer that costs nothing would otherwise take 1/0
_WEIGHT_FLOOR = 1e-6  # a weight that underflows to zero could never come back

Vector = NDArray[np.float64]


class CostAttention:
    r"""The weights w of the layers in the transport problem; a cheaper layer gets more weight.

    With F a plan and D its costs, the unit cost of a layer is

    .. math:: c^S_i = \frac{\sum_j F_{ij} D_{ij}}{w^S_i}, \qquad c^T_j = \frac{\sum_i F_{ij} D_{ij}}{w^T_j}

    and the rules move a weight vector w by its unit costs c:

    ================  =====================================================================
    ``ratio``         w_i = (1/c_i) / Σ_k (1/c_k)
    ``softmax``       w = softmax(r / T_emd), r_i = Σ_k c_k / c_i
    ``double-softmax``  ``softmax``, then once more w = softmax(w) (after the joint mean)
    ``fixed``         w stays uniform
    ================  =====================================================================

    Args:
        num_student: M, at least 1.
        num_teacher: N, at least 1.
        rule: one of the four above.
        temperature: T_emd, above 0; without effect in ``ratio`` and ``fixed``.
        joint: after each update the attention and the hidden weights are both replaced by their mean
            (when both were updated).

    Unit costs are floored at 1e-6 of the largest one (all zero: uniform weights), weights at 1e-6 and
    renormalised, so that neither a layer that costs nothing nor an underflow gives NaN or a weight of zero.

    One step by hand: F = diag(1/2, 1/2), so c = [1, 3.5] and w = [1/1, 1/3.5] / (1/1 + 1/3.5) = [7/9, 2/9].

    >>> attention = CostAttention(2, 2)
    >>> attention.update([[1, 2], [3, 3.5]], [[0.5, 0], [0, 0.5]], [[1, 2], [3, 3.5]], [[0.5, 0], [0, 0.5]])
    >>> (9 * attention.hidden_student).round(12).tolist()
    [7.0, 2.0]

    Source: Li et al., EMNLP 2020, section 3.3 (``softmax``); the authors' code of 2020 (``double-softmax``) and of
    2022 (``ratio``).
    """

    def __init__(
        self,
        num_student: int,
        num_teacher: int,
        rule: CostRule = "ratio",
        temperature: float = 1.0,
        joint: bool = True,
    ) -> None:
        if num_student < 1 or num_teacher < 1:
            raise ValueError(f"num_student and num_teacher must be at least 1, not {num_student} and {num_teacher}")
        if rule not in get_args(CostRule):
            raise ValueError(f"rule must be one of {', '.join(get_args(CostRule))}, not {rule!r}")
        if not (np.isfinite(temperature) and temperature > 0):
            raise ValueError(f"temperature must be a number above 0, not {temperature!r}")
        self.rule = rule
        self.temperature = float(temperature)
        self.joint = joint
        self.attention_student: Vector = np.full(num_student, 1.0 / num_student)
        self.attention_teacher: Vector = np.full(num_teacher, 1.0 / num_teacher)
        self.hidden_student: Vector = self.attention_student.copy()
        self.hidden_teacher: Vector = self.attention_teacher.copy()

    def update(
        self,
        attention_cost: Any = None,
        attention_plan: Any = None,
        hidden_cost: Any = None,
        hidden_plan: Any = None,
    ) -> None:
        """Move the weights one step; a term whose cost is None is not in use and keeps its weights.

        Costs and plans are [M, N].

        Raises:
            ValueError: a cost or plan that is not finite or has another shape; no weight has moved then.
        """
        terms = []
        for name, cost, plan in (
            ("attention", attention_cost, attention_plan),
            ("hidden", hidden_cost, hidden_plan),
        ):
            if cost is not None:
                spent_MN = self._checked(f"{name}_cost", cost) * self._checked(f"{name}_plan", plan)
                terms.append((name, spent_MN))
        if self.rule == "fixed" or not terms:
            return
        sides = {"student": 1, "teacher": 0}
        for side, other_axis in sides.items():
            moved = {}
            for name, spent_MN in terms:
                weights = getattr(self, f"{name}_{side}")
                moved[name] = self._step(spent_MN.sum(axis=other_axis) / weights)
            if self.joint and len(moved) == 2:
                mean = (moved["attention"] + moved["hidden"]) / 2
                moved = {"attention": mean, "hidden": mean.copy()}
            for name, weights in moved.items():
                if self.rule == "double-softmax":
                    weights = _softmax(weights)
                setattr(self, f"{name}_{side}", _floored(weights))

    def _step(self, unit_cost: Vector) -> Vector:
        top = unit_cost.max()
        if top <= 0:
            return np.full(len(unit_cost), 1.0 / len(unit_cost), dtype=np.float64)
        # Relative to the largest cost nothing overflows, and every rule is blind to the scale.
        c: Vector = np.maximum(unit_cost / top, _UNIT_COST_FLOOR)
        if self.rule == "ratio":
            weights: Vector = (1 / c) / (1 / c).sum()
            return weights
        r: Vector = c.sum() / c
        with np.errstate(over="ignore"):  # a tiny temperature sends all but the largest to -inf, which exp takes
            return _softmax((r - r.max()) / self.temperature)

    def _checked(self, name: str, value: Any) -> Vector:
        if isinstance(value, torch.Tensor):
            value = value.detach().to("cpu", torch.float64).numpy()
        array: Vector = np.asarray(value, dtype=np.float64)
        shape = (len(self.hidden_student), len(self.hidden_teacher))
        if array.shape != shape:
            raise ValueError(f"{name} must have shape {shape}, not {array.shape}")
        if not np.isfinite(array).all():
            raise ValueError(f"{name} has entries that are not finite: {array[~np.isfinite(array)][0]}")
        return array


def _softmax(x: Vector) -> Vector:
    e: Vector = np.exp(x - x.max())
    weights: Vector = e / e.sum()
    return weights


def _floored(weights: Vector) -> Vector:
    floored: Vector = np.maximum(weights, _WEIGHT_FLOOR)
    floored /= floored.sum()
    return floored
