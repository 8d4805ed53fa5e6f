"""The exact transport plan between student layers and teacher layers.

Shapes: M student layers, N teacher layers; ``cost`` [M, N], ``plan`` [M, N].
"""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from bert_emd.pot import ot

__all__ = ["transport_plan"]

# Masses that are equal on paper differ by rounding: layer weights are renormalised in float64, users may pass float32.
_MASS_TOLERANCE = 1e-6


def transport_plan(cost: Any, student_weights: Any, teacher_weights: Any) -> NDArray[np.float64]:
    r"""Exact optimal transport from student layers to teacher layers.

    .. math::
        F = \arg\min_F \sum_{ij} F_{ij} D_{ij} \quad\text{with}\quad
        F \ge 0,\; \sum_j F_{ij} = w^S_i,\; \sum_i F_{ij} = w^T_j

    Args:
        cost: D, [M, N], finite and not negative; torch tensor, array or nested lists.
        student_weights: w^S, [M], not negative, any total mass above zero.
        teacher_weights: w^T, [N], the same total mass. A difference of at most 1e-6 relative is
            reconciled by rescaling the teacher's side.

    Returns:
        F, [M, N] float64. At most M + N - 1 entries are not zero. Marginals hold to 1e-12 of the total mass,
        optimality to 1e-12 of the largest cost, whatever the scale of cost and mass.

    Raises:
        ValueError: input that is empty, negative, not finite, of the wrong shape, or whose masses differ.

    >>> transport_plan([[1.0, 2.0], [3.0, 3.5]], [0.5, 0.5], [0.5, 0.5])
    array([[0.5, 0. ],
           [0. , 0.5]])

    Source: Li et al., EMNLP 2020, section 3.2; the solver is POT's network simplex.
    """
    d_MN = _checked("cost", cost, ndim=2)
    student_M = _checked("student_weights", student_weights, ndim=1)
    teacher_N = _checked("teacher_weights", teacher_weights, ndim=1)
    if d_MN.shape != (len(student_M), len(teacher_N)):
        raise ValueError(
            f"cost has shape {d_MN.shape}, but there are {len(student_M)} student weights "
            f"and {len(teacher_N)} teacher weights"
        )
    # Dividing by the largest entry first keeps sums finite and above the denormals at any scale.
    student_top, teacher_top = student_M.max(), teacher_N.max()
    if student_top == 0 or teacher_top == 0:
        raise ValueError("student_weights and teacher_weights each need at least one weight above zero")
    with np.errstate(over="ignore"):
        mass, mass_teacher = float(student_M.sum()), float(teacher_N.sum())
    if not np.isfinite(mass + mass_teacher):
        raise ValueError("the weights are too large to be summed")
    if abs(mass - mass_teacher) > _MASS_TOLERANCE * max(mass, mass_teacher):
        raise ValueError(
            f"student_weights sum to {mass!r} but teacher_weights to {mass_teacher!r}; the sums must agree"
        )
    a_M = student_M / student_top
    b_N = teacher_N / teacher_top
    a_M, b_N = a_M / a_M.sum(), b_N / b_N.sum()
    scale = d_MN.max() or 1.0  # where nothing costs anything, any plan will do
    with warnings.catch_warnings():
        # A plan that is not optimal must never pass silently: POT only warns when it gives up.
        warnings.simplefilter("error")
        plan_MN = ot.emd(a_M, b_N, np.ascontiguousarray(d_MN / scale), numItermax=10_000_000)
    return np.asarray(plan_MN, dtype=np.float64) * mass


def _checked(name: str, value: Any, *, ndim: int) -> NDArray[np.float64]:
    if isinstance(value, torch.Tensor):
        value = value.detach().to("cpu", torch.float64).numpy()
    array: NDArray[np.float64] = np.asarray(value, dtype=np.float64)
    if array.ndim != ndim:
        raise ValueError(f"{name} must have {ndim} dimension{'s' if ndim > 1 else ''}, not {array.ndim}")
    if array.size == 0:
        raise ValueError(f"{name} is empty")
    if not np.isfinite(array).all():
        raise ValueError(f"{name} has entries that are not finite: {array[~np.isfinite(array)][0]}")
    if (array < 0).any():
        raise ValueError(f"{name} has negative entries: {array.min()}")
    return array
