"""The reference method as a plain research script: the oracle of the tests beside it.

Everything is written from the paper's formulas, one loop a sum, and shares nothing with the package. Legend as in the
package: B batch, L tokens, H heads, d head width, D width, M student layers, N teacher layers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from scipy.optimize import linprog
from torch import Tensor

QueryKey = tuple[Tensor, Tensor]


def normal(seed: int, *shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """Standard normal values, the same ones in every precision."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


# --- distances ----------------------------------------------------------------------------------------------------


def attention_scores(query: Tensor, key: Tensor) -> Tensor:
    """A = Q Kᵀ / sqrt(d), [B, H, L, L], before the softmax."""
    return torch.matmul(query, key.transpose(2, 3)) / math.sqrt(query.size(3))


def mean_squared_error(a: Tensor, b: Tensor, keep: Tensor | None) -> Tensor:
    """Over the entries that ``keep`` (of the same shape) marks, or over all."""
    squares = (a - b) ** 2
    return squares.mean() if keep is None else squares[keep].mean()


def hidden_costs(
    student: Sequence[Tensor], teacher: Sequence[Tensor], mask: Tensor | None = None, dtype: torch.dtype = torch.float64
) -> Tensor:
    """N·M separate mean squared errors, [M, N]; differentiable."""
    rows = []
    for s in student:
        row = []
        for t in teacher:
            keep = None if mask is None else mask.bool()[:, :, None].expand_as(s)
            row.append(mean_squared_error(s.to(dtype), t.to(dtype), keep))
        rows.append(torch.stack(row))
    return torch.stack(rows)


def attention_costs(
    student: Sequence[QueryKey],
    teacher: Sequence[QueryKey],
    mask: Tensor | None = None,
    dtype: torch.dtype = torch.float64,
) -> Tensor:
    """N·M separate mean squared errors over materialised score tensors, [M, N]; differentiable.

    Where head counts differ anywhere, head averages are compared.
    """
    average = len({q.size(1) for q, _ in [*student, *teacher]}) > 1
    rows = []
    for q_s, k_s in student:
        row = []
        for q_t, k_t in teacher:
            a_s = attention_scores(q_s.to(dtype), k_s.to(dtype))
            a_t = attention_scores(q_t.to(dtype), k_t.to(dtype))
            if average:
                a_s, a_t = a_s.mean(dim=1, keepdim=True), a_t.mean(dim=1, keepdim=True)
            keep = None
            if mask is not None:
                kept = mask.bool()
                keep = (kept[:, None, :, None] & kept[:, None, None, :]).expand_as(a_s)
            row.append(mean_squared_error(a_s, a_t, keep))
        rows.append(torch.stack(row))
    return torch.stack(rows)


# --- transport ----------------------------------------------------------------------------------------------------


def padded_transport(cost: np.ndarray, student_weights: np.ndarray, teacher_weights: np.ndarray) -> np.ndarray:
    """The plan by linear programming on two histograms over all M + N layers, as solvers for images want it."""
    m, n = cost.shape
    size = m + n
    first = np.concatenate([student_weights, np.zeros(n)])
    second = np.concatenate([np.zeros(m), teacher_weights])
    distance = np.zeros((size, size))
    distance[:m, m:] = cost
    equations = np.zeros((2 * size, size * size))
    for i in range(size):
        equations[i].reshape(size, size)[i, :] = 1
        equations[size + i].reshape(size, size)[:, i] = 1
    answer = linprog(
        distance.ravel() / (cost.max() or 1.0),
        A_eq=equations,
        b_eq=np.concatenate([first, second]),
        method="highs-ds",
        options={"primal_feasibility_tolerance": 1e-10, "dual_feasibility_tolerance": 1e-10},
    )
    assert answer.status == 0, answer.message
    return answer.x.reshape(size, size)[:m, m:]


# --- cost attention -----------------------------------------------------------------------------------------------


def softmax(values: Sequence[float]) -> list[float]:
    top = max(values)
    powers = [math.exp(v - top) for v in values]
    return [p / sum(powers) for p in powers]


def moved_weights(unit_costs: Sequence[float], rule: str, T_emd: float) -> list[float]:
    """One vector of weights from its unit costs, before the joint mean and the second softmax."""
    largest = max(unit_costs)
    if largest == 0:
        return [1 / len(unit_costs)] * len(unit_costs)
    c = [max(x, 1e-6 * largest) for x in unit_costs]
    if rule == "ratio":
        inverse = [1 / x for x in c]
        return [x / sum(inverse) for x in inverse]
    return softmax([sum(c) / x / T_emd for x in c])


@dataclass
class LayerWeights:
    """The four vectors, moved once per training step."""

    m: int
    n: int
    rule: str = "ratio"
    T_emd: float = 1.0
    joint: bool = True
    values: dict[tuple[str, str], list[float]] = field(init=False)

    def __post_init__(self) -> None:
        self.values = {}
        for term in ("attention", "hidden"):
            self.values[term, "student"] = [1 / self.m] * self.m
            self.values[term, "teacher"] = [1 / self.n] * self.n

    def step(self, costs_and_plans: dict[str, tuple[np.ndarray, np.ndarray]]) -> None:
        """``costs_and_plans`` holds (D, F) for each term in use."""
        if self.rule == "fixed":
            return
        new = {}
        for term, (D, F) in costs_and_plans.items():
            spent_student = [sum(F[i, j] * D[i, j] for j in range(self.n)) for i in range(self.m)]
            spent_teacher = [sum(F[i, j] * D[i, j] for i in range(self.m)) for j in range(self.n)]
            for side, spent in (("student", spent_student), ("teacher", spent_teacher)):
                unit = [s / w for s, w in zip(spent, self.values[term, side], strict=True)]
                new[term, side] = moved_weights(unit, self.rule, self.T_emd)
        if self.joint and len(costs_and_plans) == 2:
            for side in ("student", "teacher"):
                mean = [(a + b) / 2 for a, b in zip(new["attention", side], new["hidden", side], strict=True)]
                new["attention", side] = new["hidden", side] = mean
        for key, weights in new.items():
            if self.rule == "double-softmax":
                weights = softmax(weights)
            weights = [max(w, 1e-6) for w in weights]
            self.values[key] = [w / sum(weights) for w in weights]


# --- losses -------------------------------------------------------------------------------------------------------


def log_softmax(z: np.ndarray) -> np.ndarray:
    z = z - z.max(axis=1, keepdims=True)
    return z - np.log(np.exp(z).sum(axis=1, keepdims=True))


def soft_cross_entropy(student: np.ndarray, teacher: np.ndarray, T: float) -> float:
    """mean over batch and classes of −softmax(zᵀ/T) · log_softmax(zˢ/T)."""
    return float(np.mean(-np.exp(log_softmax(teacher / T)) * log_softmax(student / T)))


def cross_entropy(student: np.ndarray, labels: np.ndarray) -> float:
    return float(np.mean([-log_softmax(student)[row, label] for row, label in enumerate(labels)]))


def prediction_loss(student: np.ndarray, teacher: np.ndarray, labels: np.ndarray, alpha: float, T: float) -> float:
    if student.shape[1] == 1:
        soft = float(np.mean((student[:, 0] - teacher[:, 0]) ** 2))
        hard = float(np.mean((student[:, 0] - labels) ** 2))
        return alpha * soft + (1 - alpha) * hard
    return alpha * T**2 * soft_cross_entropy(student, teacher, T) + (1 - alpha) * cross_entropy(student, labels)


@dataclass
class Script:
    """Several training steps of the earth mover's mapping; each returns its differentiable terms."""

    weights: LayerWeights
    attention: bool = True
    hidden: bool = True
    embedding: bool = True

    def step(
        self,
        student_attention: Sequence[QueryKey],
        teacher_attention: Sequence[QueryKey],
        student_hidden: Sequence[Tensor],
        teacher_hidden: Sequence[Tensor],
        student_embedding: Tensor | None,
        teacher_embedding: Tensor | None,
        mask: Tensor | None,
    ) -> dict[str, Tensor]:
        costs: dict[str, Tensor] = {}
        if self.attention:
            costs["attention"] = attention_costs(student_attention, teacher_attention, mask)
        if self.hidden:
            costs["hidden"] = hidden_costs(student_hidden, teacher_hidden, mask)
        terms: dict[str, Tensor] = {}
        plans: dict[str, tuple[np.ndarray, np.ndarray]] = {}
        for term, cost in costs.items():
            D = cost.detach().numpy()
            F = padded_transport(
                D, np.array(self.weights.values[term, "student"]), np.array(self.weights.values[term, "teacher"])
            )
            terms[term] = sum(F[i, j] * cost[i, j] for i in range(D.shape[0]) for j in range(D.shape[1]))
            plans[term] = (D, F)
        if self.embedding:
            assert student_embedding is not None
            assert teacher_embedding is not None
            terms["embedding"] = hidden_costs([student_embedding], [teacher_embedding], mask)[0, 0]
        if plans:
            self.weights.step(plans)
        return terms
