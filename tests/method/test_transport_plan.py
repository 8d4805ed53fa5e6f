"""The transport plan: 10,000 problems against two independent judges, and everything its docstring promises."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import numpy as np
import ot
import pytest
import torch
from certificates import dual_variables, linear_programming_optimum
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import padded_transport
from scipy.optimize import linear_sum_assignment

from bert_emd.method import transport_plan

# How many problems of each shape every family has.
SHAPES = {
    (1, 1): 10,
    (1, 5): 20,
    (5, 1): 20,
    (2, 2): 120,
    (2, 3): 110,
    (3, 3): 100,
    (3, 6): 120,
    (6, 3): 60,
    (4, 6): 80,
    (4, 12): 80,
    (6, 12): 50,
    (12, 12): 10,
    (12, 24): 6,
    (24, 48): 4,
}

Problems = tuple[np.ndarray, np.ndarray, np.ndarray]


def simplex(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.dirichlet(np.ones(shape[1]), shape[0])


def normalised(masses: np.ndarray) -> np.ndarray:
    return masses / masses.sum(axis=1, keepdims=True)


def random(rng: np.random.Generator, k: int, m: int, n: int) -> Problems:
    return rng.random((k, m, n)), simplex(rng, k, m), simplex(rng, k, n)


def uniform_weights(rng: np.random.Generator, k: int, m: int, n: int) -> Problems:
    return rng.random((k, m, n)), np.full((k, m), 1 / m), np.full((k, n), 1 / n)


def equal_costs(rng: np.random.Generator, k: int, m: int, n: int) -> Problems:
    return np.ones((k, m, n)) * rng.random((k, 1, 1)), simplex(rng, k, m), simplex(rng, k, n)


def all_zero(rng: np.random.Generator, k: int, m: int, n: int) -> Problems:
    return np.zeros((k, m, n)), simplex(rng, k, m), simplex(rng, k, n)


def zero_rows_and_columns(rng: np.random.Generator, k: int, m: int, n: int) -> Problems:
    cost = rng.random((k, m, n)) * (rng.random((k, m, 1)) < 0.6) * (rng.random((k, 1, n)) < 0.6)
    return cost, simplex(rng, k, m), simplex(rng, k, n)


def integers_and_ties(rng: np.random.Generator, k: int, m: int, n: int) -> Problems:
    cost = rng.integers(0, 4, (k, m, n)).astype(float)
    return cost, np.full((k, m), 1 / m), np.full((k, n), 1 / n)


def integer_masses(rng: np.random.Generator, k: int, m: int, n: int) -> Problems:
    """Partial sums coincide, so that basic solutions are degenerate."""
    rows = rng.integers(0, 5, (k, m)).astype(float)
    columns = rng.integers(0, 5, (k, n)).astype(float)
    rows[:, 0] += 1
    columns[:, -1] += 1
    return rng.integers(0, 10, (k, m, n)).astype(float), normalised(rows), normalised(columns)


def distances_on_a_line(rng: np.random.Generator, k: int, m: int, n: int) -> Problems:
    cost = np.abs(np.arange(1, m + 1)[:, None] / m - np.arange(1, n + 1)[None, :] / n)
    return np.repeat(cost[None], k, axis=0), simplex(rng, k, m), simplex(rng, k, n)


def nearly_equal_costs(rng: np.random.Generator, k: int, m: int, n: int) -> Problems:
    return 1 + 1e-9 * rng.random((k, m, n)), simplex(rng, k, m), simplex(rng, k, n)


def costs_over_many_decades(rng: np.random.Generator, k: int, m: int, n: int) -> Problems:
    return 10.0 ** rng.uniform(-12, 0, (k, m, n)), simplex(rng, k, m), simplex(rng, k, n)


def tiny_weights(rng: np.random.Generator, k: int, m: int, n: int) -> Problems:
    return (
        rng.random((k, m, n)),
        normalised(10.0 ** rng.uniform(-6, 0, (k, m))),
        normalised(10.0 ** rng.uniform(-6, 0, (k, n))),
    )


def zero_weights(rng: np.random.Generator, k: int, m: int, n: int) -> Problems:
    rows, columns = (rng.random((k, size)) * (rng.random((k, size)) < 0.5) for size in (m, n))
    rows[:, -1] += 0.1
    columns[:, 0] += 0.1
    return rng.random((k, m, n)), normalised(rows), normalised(columns)


def one_dominating_weight(rng: np.random.Generator, k: int, m: int, n: int) -> Problems:
    rows, columns = (np.full((k, size), 1e-6) for size in (m, n))
    rows[np.arange(k), rng.integers(0, m, k)] = 1
    columns[np.arange(k), rng.integers(0, n, k)] = 1
    return rng.random((k, m, n)), normalised(rows), normalised(columns)


def costs_at_any_scale(rng: np.random.Generator, k: int, m: int, n: int) -> Problems:
    cost, rows, columns = random(rng, k, m, n)
    return cost * 10.0 ** rng.uniform(-12, 12, (k, 1, 1)), rows, columns


def masses_at_any_scale(rng: np.random.Generator, k: int, m: int, n: int) -> Problems:
    cost, rows, columns = random(rng, k, m, n)
    scale = 10.0 ** rng.uniform(-9, 9, (k, 1))
    return cost, rows * scale, columns * scale


FAMILIES: list[Callable[..., Problems]] = [
    random,
    uniform_weights,
    equal_costs,
    all_zero,
    zero_rows_and_columns,
    integers_and_ties,
    integer_masses,
    distances_on_a_line,
    nearly_equal_costs,
    costs_over_many_decades,
    tiny_weights,
    zero_weights,
    one_dominating_weight,
    costs_at_any_scale,
    masses_at_any_scale,
]


def check(cost: np.ndarray, rows: np.ndarray, columns: np.ndarray, plan: np.ndarray) -> None:
    """Everything that makes a stack of plans right, each at the scale of its own problem."""
    _, m, n = cost.shape
    mass = rows.sum(axis=1)
    top = cost.max(axis=(1, 2))
    top[top == 0] = 1
    assert (plan >= 0).all()
    assert (np.count_nonzero(plan, axis=(1, 2)) <= m + n - 1).all()
    assert (np.abs(plan.sum(axis=2) - rows) <= 1e-12 * mass[:, None]).all()
    assert (np.abs(plan.sum(axis=1) - columns) <= 1e-12 * mass[:, None]).all()

    scaled_cost, scaled_plan = cost / top[:, None, None], plan / mass[:, None, None]
    value = (scaled_cost * scaled_plan).sum(axis=(1, 2))
    u, v = dual_variables(scaled_cost, scaled_plan)
    assert (u[:, :, None] + v[:, None, :] <= scaled_cost + 1e-14).all()
    bound = (u * rows).sum(axis=1) / mass + (v * columns).sum(axis=1) / mass
    assert np.abs(value - bound).max() <= 1e-12

    optimum = linear_programming_optimum(scaled_cost, rows / mass[:, None], columns / mass[:, None])
    assert np.abs(value - optimum).max() <= 1e-9


class TestManyProblems:
    def test_there_are_ten_thousand(self) -> None:
        assert len(FAMILIES) * sum(SHAPES.values()) >= 10_000

    @pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.__name__)
    def test_every_plan_is_feasible_sparse_certified_and_optimal(self, family: Callable[..., Problems]) -> None:
        rng = np.random.default_rng(20201006)
        for (m, n), count in SHAPES.items():
            cost, rows, columns = family(rng, count, m, n)
            assert cost.shape == (count, m, n)
            plan = np.stack([transport_plan(*problem) for problem in zip(cost, rows, columns, strict=True)])
            assert plan.dtype == np.float64
            check(cost, rows, columns, plan)

    @settings(max_examples=150, deadline=None, derandomize=True)
    @given(data=st.data())
    def test_integer_problems_equal_an_assignment_of_units(self, data: st.DataObject) -> None:
        """With integer masses each unit is a worker of its own, and the assignment problem is exact in integers."""
        m, n = data.draw(st.integers(1, 5)), data.draw(st.integers(1, 6))
        units = data.draw(st.integers(1, 12))
        cost = np.array(
            data.draw(st.lists(st.lists(st.integers(0, 9), min_size=n, max_size=n), min_size=m, max_size=m))
        )
        row_of = np.array(data.draw(st.lists(st.integers(0, m - 1), min_size=units, max_size=units)))
        column_of = np.array(data.draw(st.lists(st.integers(0, n - 1), min_size=units, max_size=units)))
        expanded = cost[row_of][:, column_of]
        best = expanded[linear_sum_assignment(expanded)].sum()
        plan = transport_plan(cost, np.bincount(row_of, minlength=m), np.bincount(column_of, minlength=n))
        assert (plan * cost).sum() == pytest.approx(best, rel=1e-12, abs=1e-12)
        assert plan.sum(axis=1) == pytest.approx(np.bincount(row_of, minlength=m), abs=1e-12 * units)

    def test_equals_the_padded_formulation(self) -> None:
        """Random costs have one optimal plan, so the plans themselves agree."""
        rng = np.random.default_rng(3)
        for m, n in [(2, 3), (4, 6), (4, 12)]:
            cost, rows, columns = rng.random((m, n)), rng.dirichlet(np.ones(m)), rng.dirichlet(np.ones(n))
            np.testing.assert_allclose(
                transport_plan(cost, rows, columns), padded_transport(cost, rows, columns), atol=1e-10
            )


class TestTheJudges:
    """A judge that accepts everything proves nothing."""

    COST = np.array([[[1.0, 2.0], [3.0, 3.5]]])
    HALF = np.full((1, 2), 0.5)
    BEST = np.array([[[0.5, 0.0], [0.0, 0.5]]])
    WORST = np.array([[[0.0, 0.5], [0.5, 0.0]]])
    SWAP = np.array([[[1.0, -1.0], [-1.0, 1.0]]])

    def test_both_know_the_optimum(self) -> None:
        check(self.COST, self.HALF, self.HALF, self.BEST)
        u, v = dual_variables(self.COST, self.BEST)
        assert (u * 0.5).sum() + (v * 0.5).sum() == pytest.approx(2.25, rel=1e-15)
        assert linear_programming_optimum(self.COST, self.HALF, self.HALF) == pytest.approx(2.25, rel=1e-12)

    def test_duals_refuse_a_plan_that_is_not_optimal(self) -> None:
        u, v = dual_variables(self.COST, self.WORST)
        assert (u[:, :, None] + v[:, None, :] <= self.COST + 1e-15).all()
        assert 2.5 - ((u * 0.5).sum() + (v * 0.5).sum()) >= 0.25

    @pytest.mark.parametrize(
        "plan",
        [
            pytest.param(WORST, id="not-optimal"),
            pytest.param(BEST + 1e-9 * SWAP, id="negative"),
            pytest.param(BEST - 1e-8 * SWAP, id="too-many-entries-and-off-by-1e-8"),
            pytest.param(BEST * (1 + 1e-11), id="marginals-off-by-1e-11"),
        ],
    )
    def test_the_check_refuses(self, plan: np.ndarray) -> None:
        with pytest.raises(AssertionError):
            check(self.COST, self.HALF, self.HALF, plan)


class TestInput:
    def test_worked_example(self) -> None:
        cost = [[1, 2], [3, 3.5]]
        plan = transport_plan(cost, [0.5, 0.5], [0.5, 0.5])
        assert isinstance(plan, np.ndarray)
        assert plan.tolist() == [[0.5, 0.0], [0.0, 0.5]]
        assert (plan * cost).sum() == 2.25

    def test_float32_tensors(self) -> None:
        rng = np.random.default_rng(0)
        cost = torch.tensor(rng.random((4, 12)), dtype=torch.float32, requires_grad=True)
        student, teacher = torch.full((4,), 1 / 4), torch.full((12,), 1 / 12)
        plan = transport_plan(cost, student, teacher)
        assert plan.dtype == np.float64
        exact = cost.detach().double().numpy()[None]
        check(exact, np.full((1, 4), 0.25), np.full((1, 12), 1 / 12), plan[None])

    def test_layout_does_not_matter_and_nothing_is_written(self) -> None:
        rng = np.random.default_rng(1)
        cost, rows, columns = rng.random((6, 3)), rng.dirichlet(np.ones(3)), rng.dirichlet(np.ones(6))
        copies = cost.copy(), rows.copy(), columns.copy()
        plan = transport_plan(cost.T, rows, columns)
        np.testing.assert_array_equal(plan, transport_plan(np.ascontiguousarray(cost.T), rows, columns))
        check(cost.T[None], rows[None], columns[None], plan[None])
        for before, after in zip(copies, (cost, rows, columns), strict=True):
            np.testing.assert_array_equal(before, after)

    @pytest.mark.parametrize("factor", [1 + 9e-7, 1 - 9e-7, 1 + 1e-9])
    @pytest.mark.parametrize("mass", [1.0, 1e-9, 1e9])
    def test_masses_that_nearly_agree_are_reconciled_on_the_teachers_side(self, factor: float, mass: float) -> None:
        rng = np.random.default_rng(2)
        cost, student, teacher = rng.random((4, 12)), rng.dirichlet(np.ones(4)), rng.dirichlet(np.ones(12))
        plan = transport_plan(cost, student * mass, teacher * mass * factor)
        np.testing.assert_allclose(plan.sum(axis=1), student * mass, rtol=0, atol=1e-12 * mass)
        np.testing.assert_allclose(plan.sum(axis=0), teacher * mass, rtol=0, atol=1e-12 * mass)

    @pytest.mark.parametrize("factor", [1 + 2e-6, 1 - 2e-6, 2.0, 0.5])
    def test_masses_that_differ_are_refused(self, factor: float) -> None:
        with pytest.raises(ValueError, match=r"student_weights sum to 1\.0 but teacher_weights to .*must agree"):
            transport_plan(np.ones((2, 2)), [0.5, 0.5], [0.5 * factor, 0.5 * factor])

    @pytest.mark.parametrize(
        ("cost", "student", "teacher", "message"),
        [
            (np.zeros((0, 2)), [], [0.5, 0.5], "cost is empty"),
            (np.zeros((2, 0)), [0.5, 0.5], [], "cost is empty"),
            ([[1.0]], [], [1.0], "student_weights is empty"),
            ([[1.0]], [1.0], [], "teacher_weights is empty"),
            ([1.0, 2.0], [1.0], [0.5, 0.5], "cost must have 2 dimensions, not 1"),
            ([[[1.0]]], [1.0], [1.0], "cost must have 2 dimensions, not 3"),
            ([[1.0]], [[1.0]], [1.0], "student_weights must have 1 dimension, not 2"),
            ([[1.0]], [1.0], 1.0, "teacher_weights must have 1 dimension, not 0"),
            (
                np.ones((2, 3)),
                [1 / 3] * 3,
                [1 / 2] * 2,
                r"cost has shape \(2, 3\), but there are 3 student weights and 2 teacher weights",
            ),
            ([[1.0, -2.0]], [1.0], [0.5, 0.5], r"cost has negative entries: -2\.0"),
            ([[1.0], [1.0]], [1.5, -0.5], [1.0], r"student_weights has negative entries: -0\.5"),
            ([[1.0, 1.0]], [1.0], [1.25, -0.25], r"teacher_weights has negative entries: -0\.25"),
            ([[1.0, float("nan")]], [1.0], [0.5, 0.5], "cost has entries that are not finite: nan"),
            ([[1.0, float("inf")]], [1.0], [0.5, 0.5], "cost has entries that are not finite: inf"),
            ([[1.0]], [float("nan")], [1.0], "student_weights has entries that are not finite: nan"),
            ([[1.0]], [1.0], [float("inf")], "teacher_weights has entries that are not finite: inf"),
            ([[1.0]], [0.0], [0.0], "at least one weight above zero"),
            ([[1.0]], [1.0], [0.0], "at least one weight above zero"),
            (np.ones((2, 2)), [1e308, 1e308], [1e308, 1e308], "too large to be summed"),
        ],
    )
    def test_what_is_wrong_is_named(self, cost: object, student: object, teacher: object, message: str) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            with pytest.raises(ValueError, match=message):
                transport_plan(cost, student, teacher)

    def test_not_finite_tensors_are_refused_too(self) -> None:
        with pytest.raises(ValueError, match="cost has entries that are not finite: nan"):
            transport_plan(torch.tensor([[float("nan")]]), torch.ones(1), torch.ones(1))

    @pytest.mark.parametrize("scale", [5e-324, 1e-300, 1e300, 1.7e308])
    def test_extreme_costs(self, scale: float) -> None:
        cost = np.array([[1.0, 0.0], [0.0, 1.0]]) * scale
        np.testing.assert_allclose(transport_plan(cost, [0.5, 0.5], [0.5, 0.5]), [[0, 0.5], [0.5, 0]], atol=1e-15)

    def test_a_solver_that_gives_up_is_an_error(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """The solver only warns when it runs out of iterations, and returns something that is not optimal."""
        solve = ot.emd
        monkeypatch.setattr(ot, "emd", lambda a, b, cost, **options: solve(a, b, cost, numItermax=1))
        rng = np.random.default_rng(5)
        with pytest.raises(UserWarning, match="numItermax"):
            transport_plan(rng.random((8, 16)), rng.dirichlet(np.ones(8)), np.full(16, 1 / 16))
