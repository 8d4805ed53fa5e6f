"""Cost attention against the worked example and a plain script that carries its own weights."""

from __future__ import annotations

import math
import warnings
from typing import get_args

import numpy as np
import pytest
import torch
from reference import LayerWeights

from bert_emd.method import CostAttention, CostRule, transport_plan

VECTORS = ("attention_student", "attention_teacher", "hidden_student", "hidden_teacher")
RULES = get_args(CostRule)

COST = [[1, 2], [3, 3.5]]
PLAN = [[0.5, 0], [0, 0.5]]


def vectors(attention: CostAttention) -> dict[str, np.ndarray]:
    return {name: getattr(attention, name).copy() for name in VECTORS}


def step(attention: CostAttention, D_attention: np.ndarray, D_hidden: np.ndarray) -> dict[str, np.ndarray]:
    """One update as in training: the plans are solved under the present weights."""
    plans = {
        "attention_plan": transport_plan(D_attention, attention.attention_student, attention.attention_teacher),
        "hidden_plan": transport_plan(D_hidden, attention.hidden_student, attention.hidden_teacher),
    }
    attention.update(attention_cost=D_attention, hidden_cost=D_hidden, **plans)
    return plans


def assert_weights_are_sound(attention: CostAttention) -> None:
    for name, weights in vectors(attention).items():
        assert weights.dtype == np.float64, name
        assert np.isfinite(weights).all(), name
        assert abs(weights.sum() - 1) < 1e-14, name
        # 1e-6 before the renormalisation, whose divisor is at most 1 + n/1e6
        assert weights.min() >= 1e-6 / (1 + 1e-6 * len(weights)), name


def test_rules() -> None:
    assert set(RULES) == {"softmax", "double-softmax", "ratio", "fixed"}


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize(("m", "n"), [(1, 1), (2, 2), (4, 12)])
def test_weights_start_uniform(rule: CostRule, m: int, n: int) -> None:
    for name, weights in vectors(CostAttention(m, n, rule)).items():
        size = m if name.endswith("student") else n
        assert weights.tolist() == [1 / size] * size
    assert_weights_are_sound(CostAttention(m, n, rule))


class TestByHand:
    """F = diag(½, ½), D = [[1, 2], [3, 3.5]]: unit costs [1, 3.5] on both sides."""

    def test_ratio(self) -> None:
        attention = CostAttention(2, 2)
        attention.update(COST, PLAN, COST, PLAN)
        for weights in vectors(attention).values():
            np.testing.assert_allclose(weights, [7 / 9, 2 / 9], rtol=1e-15)

    def test_softmax(self) -> None:
        """r = [4.5/1, 4.5/3.5]."""
        attention = CostAttention(2, 2, "softmax", temperature=2.0)
        attention.update(COST, PLAN, COST, PLAN)
        first = 1 / (1 + math.exp((4.5 / 3.5 - 4.5) / 2))
        for weights in vectors(attention).values():
            np.testing.assert_allclose(weights, [first, 1 - first], rtol=1e-14)

    def test_double_softmax(self) -> None:
        attention = CostAttention(2, 2, "double-softmax")
        attention.update(COST, PLAN, COST, PLAN)
        first = 1 / (1 + math.exp(4.5 / 3.5 - 4.5))
        again = 1 / (1 + math.exp((1 - first) - first))
        for weights in vectors(attention).values():
            np.testing.assert_allclose(weights, [again, 1 - again], rtol=1e-14)

    def test_fixed(self) -> None:
        attention = CostAttention(2, 2, "fixed")
        attention.update(COST, PLAN, COST, PLAN)
        for weights in vectors(attention).values():
            assert weights.tolist() == [0.5, 0.5]

    def test_the_teachers_unit_costs_are_column_sums(self) -> None:
        """c of the student [1, 1/2], of the teacher [0, 2, 1/4] by hand; the plan need not be optimal here."""
        attention = CostAttention(2, 3)
        cost = [[4.0, 1.0, 0.25], [1.0, 3.0, 0.0]]
        plan = [[0.0, 5 / 12, 1 / 3], [0.25, 1 / 12, 0.0]]
        attention.update(hidden_cost=cost, hidden_plan=plan)
        student = np.array([2 * (5 / 12 + 1 / 12), 2 * (1 / 4 + 1 / 4)])
        teacher = np.array([3 * 1 / 4, 3 * (5 / 12 + 3 / 12), 3 * 1 / 12])
        np.testing.assert_allclose(attention.hidden_student, (1 / student) / (1 / student).sum(), rtol=1e-14)
        np.testing.assert_allclose(attention.hidden_teacher, (1 / teacher) / (1 / teacher).sum(), rtol=1e-14)

    def test_the_unit_cost_divides_by_the_present_weight(self) -> None:
        """From [7/9, 2/9], spending [1/2, 7/4] again: c = [9/14, 63/8], w = [49/53, 4/53]."""
        attention = CostAttention(2, 2)
        attention.update(COST, PLAN, COST, PLAN)
        attention.update(COST, PLAN, COST, PLAN)
        np.testing.assert_allclose(attention.hidden_student, [49 / 53, 4 / 53], rtol=1e-14)

    def test_joint_is_the_mean_and_separate_is_not(self) -> None:
        other, other_plan = [[2, 9], [9, 2]], [[0.5, 0], [0, 0.5]]
        joint, separate = CostAttention(2, 2), CostAttention(2, 2, joint=False)
        for attention in (joint, separate):
            attention.update(COST, PLAN, other, other_plan)
        np.testing.assert_allclose(separate.attention_student, [7 / 9, 2 / 9], rtol=1e-15)
        np.testing.assert_allclose(separate.hidden_student, [1 / 2, 1 / 2], rtol=1e-15)
        mean = [(7 / 9 + 1 / 2) / 2, (2 / 9 + 1 / 2) / 2]
        for name in VECTORS:
            np.testing.assert_allclose(getattr(joint, name), mean, rtol=1e-15)

    def test_the_joint_vectors_do_not_share_memory(self) -> None:
        attention = CostAttention(2, 2)
        attention.update(COST, PLAN, COST, PLAN)
        attention.hidden_student[0] = 0.25
        assert attention.attention_student[0] != 0.25


@pytest.mark.parametrize("joint", [True, False])
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("temperature", [0.1, 1.0, 10.0])
@pytest.mark.parametrize(("m", "n"), [(2, 2), (3, 6), (4, 12)])
def test_updates_equal_the_script(m: int, n: int, temperature: float, rule: CostRule, joint: bool) -> None:
    rng = np.random.default_rng(m * n)
    attention = CostAttention(m, n, rule, temperature, joint)
    script = LayerWeights(m, n, rule, temperature, joint)
    for _ in range(8):
        D_attention, D_hidden = rng.gamma(2.0, 1.0, (m, n)), rng.gamma(0.5, 1.0, (m, n))
        plans = step(attention, D_attention, D_hidden)
        script.step({"attention": (D_attention, plans["attention_plan"]), "hidden": (D_hidden, plans["hidden_plan"])})
        for name, weights in vectors(attention).items():
            np.testing.assert_allclose(weights, script.values[tuple(name.split("_"))], rtol=1e-9)
        assert_weights_are_sound(attention)
    if rule != "fixed":
        assert not np.allclose(attention.attention_student, 1 / m)
    assert np.allclose(attention.attention_student, attention.hidden_student) is (joint or rule == "fixed")


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("joint", [True, False])
@pytest.mark.parametrize("term", ["attention", "hidden"])
def test_one_term_alone_moves_alone(term: str, joint: bool, rule: CostRule) -> None:
    attention, script = CostAttention(2, 2, rule, 1.0, joint), LayerWeights(2, 2, rule, 1.0, joint)
    attention.update(**{f"{term}_cost": COST, f"{term}_plan": PLAN})
    script.step({term: (np.array(COST), np.array(PLAN))})
    for name, weights in vectors(attention).items():
        np.testing.assert_allclose(weights, script.values[tuple(name.split("_"))], rtol=1e-12)
        if rule != "fixed":
            assert (weights.tolist() != [0.5, 0.5]) is name.startswith(term)


def test_nothing_in_use_moves_nothing() -> None:
    attention = CostAttention(2, 2)
    attention.update()
    assert all(weights.tolist() == [0.5, 0.5] for weights in vectors(attention).values())


def test_tensors_and_lists_are_the_same() -> None:
    lists, tensors = CostAttention(2, 2), CostAttention(2, 2)
    lists.update(COST, PLAN, COST, PLAN)
    cost = torch.tensor(COST, dtype=torch.float32, requires_grad=True)
    tensors.update(cost, torch.tensor(PLAN), cost, np.array(PLAN))
    for name in VECTORS:
        np.testing.assert_array_equal(getattr(lists, name), getattr(tensors, name))


def test_temperature_has_no_part_in_ratio_and_fixed() -> None:
    for rule in ("ratio", "fixed"):
        cold, warm = CostAttention(2, 2, rule, 0.01), CostAttention(2, 2, rule, 100.0)
        for attention in (cold, warm):
            attention.update(COST, PLAN, COST, PLAN)
        np.testing.assert_array_equal(cold.hidden_student, warm.hidden_student)


def test_a_hot_softmax_is_nearly_uniform_and_a_cold_one_picks_the_cheapest() -> None:
    hot, cold = CostAttention(2, 2, "softmax", 1e6), CostAttention(2, 2, "softmax", 0.1)
    for attention in (hot, cold):
        attention.update(COST, PLAN, COST, PLAN)
    np.testing.assert_allclose(hot.hidden_student, [0.5, 0.5], atol=1e-5)
    np.testing.assert_allclose(cold.hidden_student, [1, 0], atol=1e-5)


class TestGuards:
    @pytest.mark.parametrize("rule", RULES)
    @pytest.mark.parametrize("joint", [True, False])
    def test_a_layer_that_costs_nothing(self, rule: CostRule, joint: bool) -> None:
        """A student that starts as a copy: its first layer agrees exactly with a teacher layer."""
        cost = np.array([[0.0, 2.0, 3.0], [4.0, 5.0, 6.0]])
        attention, script = CostAttention(2, 3, rule, 1.0, joint), LayerWeights(2, 3, rule, 1.0, joint)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            for _ in range(5):
                plans = step(attention, cost, cost)
                script.step({"attention": (cost, plans["attention_plan"]), "hidden": (cost, plans["hidden_plan"])})
                assert_weights_are_sound(attention)
                for name, weights in vectors(attention).items():
                    np.testing.assert_allclose(weights, script.values[tuple(name.split("_"))], rtol=1e-9)
        if rule != "fixed":
            assert attention.hidden_student[0] > attention.hidden_student[1]

    def test_the_floor_of_a_free_layer(self) -> None:
        """c = [2e-6, 2] times 2: w = [1, 1e-6] up to the renormalisation."""
        attention = CostAttention(2, 2, joint=False)
        attention.update(hidden_cost=[[0, 5], [5, 2]], hidden_plan=PLAN)
        np.testing.assert_allclose(attention.hidden_student, [1, 1e-6], rtol=2e-6)

    @pytest.mark.parametrize("rule", RULES)
    def test_nothing_costs_anything(self, rule: CostRule) -> None:
        attention = CostAttention(2, 3, rule)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            step(attention, np.zeros((2, 3)), np.zeros((2, 3)))
        for name, weights in vectors(attention).items():
            np.testing.assert_allclose(weights, 1 / (2 if name.endswith("student") else 3), rtol=1e-15)

    def test_nothing_costs_anything_any_more(self) -> None:
        """Uniform again, wherever the weights were."""
        attention = CostAttention(2, 2)
        attention.update(COST, PLAN, COST, PLAN)
        step(attention, np.zeros((2, 2)), np.zeros((2, 2)))
        assert all(weights.tolist() == [0.5, 0.5] for weights in vectors(attention).values())

    @pytest.mark.parametrize("temperature", [1e-2, 1e-6, 1e-300, 5e-324])
    @pytest.mark.parametrize("rule", ["softmax", "double-softmax"])
    @pytest.mark.parametrize("joint", [True, False])
    def test_underflow(self, temperature: float, rule: CostRule, joint: bool) -> None:
        """All weight on the cheapest layer, and the others can still come back."""
        rng = np.random.default_rng(0)
        attention = CostAttention(3, 6, rule, temperature, joint)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            for _ in range(10):
                step(attention, rng.random((3, 6)), rng.random((3, 6)))
                assert_weights_are_sound(attention)
        if rule == "softmax" and not joint:
            assert attention.hidden_student.max() > 1 - 1e-4
            winner = int(attention.hidden_student.argmax())
            cost = np.full((3, 6), 1e-3)
            cost[winner] = 1e3
            step(attention, cost, cost)
            assert attention.hidden_student[winner] < 1e-5

    @pytest.mark.parametrize("rule", RULES)
    @pytest.mark.parametrize("scale", [1e-300, 1e-30, 1e30, 1e300])
    def test_the_scale_of_the_costs_does_not_matter(self, rule: CostRule, scale: float) -> None:
        rng = np.random.default_rng(1)
        costs = [(rng.random((3, 6)), rng.random((3, 6))) for _ in range(5)]
        plain, scaled = CostAttention(3, 6, rule), CostAttention(3, 6, rule)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            for D_attention, D_hidden in costs:
                step(plain, D_attention, D_hidden)
                step(scaled, D_attention * scale, D_hidden * scale)
        assert_weights_are_sound(scaled)
        for name in VECTORS:
            np.testing.assert_allclose(getattr(scaled, name), getattr(plain, name), rtol=1e-9)

    def test_the_largest_finite_costs(self) -> None:
        top = np.finfo(np.float64).max
        attention = CostAttention(2, 2)
        attention.update(hidden_cost=[[top, top], [top, top]], hidden_plan=PLAN)
        assert attention.hidden_student.tolist() == [0.5, 0.5]

    @pytest.mark.parametrize("n", [1, 2, 4, 12])
    @pytest.mark.parametrize("joint", [True, False])
    def test_the_second_softmax_confines_the_weights(self, n: int, joint: bool) -> None:
        low, high = 1 / (math.e + n - 1), math.e / (math.e + n - 1)
        rng = np.random.default_rng(n)
        attention = CostAttention(n, n, "double-softmax", 1e-3, joint)
        extremes = []
        for _ in range(10):
            step(attention, 10.0 ** rng.uniform(-6, 3, (n, n)), 10.0 ** rng.uniform(-6, 3, (n, n)))
            for weights in vectors(attention).values():
                assert weights.min() >= low * (1 - 1e-12)
                assert weights.max() <= high * (1 + 1e-12)
                extremes += [weights.min(), weights.max()]
        if n > 1 and not joint:  # and the bounds are reached: all of the first softmax on one layer
            np.testing.assert_allclose([min(extremes), max(extremes)], [low, high], rtol=1e-9)

    @pytest.mark.parametrize("rule", RULES)
    @pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
    @pytest.mark.parametrize("position", range(4))
    @pytest.mark.parametrize("as_tensor", [False, True])
    def test_what_is_not_finite_is_refused_and_moves_nothing(
        self, rule: CostRule, bad: float, position: int, as_tensor: bool
    ) -> None:
        attention = CostAttention(2, 2, rule)
        attention.update(COST, PLAN, COST, PLAN)
        before = vectors(attention)
        arguments = [np.array(value, dtype=float) for value in (COST, PLAN, COST, PLAN)]
        arguments[position][1, 0] = bad
        name = ("attention_cost", "attention_plan", "hidden_cost", "hidden_plan")[position]
        with pytest.raises(ValueError, match=rf"{name} has entries that are not finite: {bad}"):
            attention.update(*(torch.tensor(a) if as_tensor else a for a in arguments))
        for vector, weights in vectors(attention).items():
            np.testing.assert_array_equal(weights, before[vector])

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"hidden_cost": [[1, 2, 3]], "hidden_plan": PLAN}, r"hidden_cost must have shape \(2, 2\), not \(1, 3\)"),
            ({"hidden_cost": COST, "hidden_plan": [0.5, 0.5]}, r"hidden_plan must have shape \(2, 2\), not \(2,\)"),
            ({"attention_cost": COST}, r"attention_plan must have shape \(2, 2\), not \(\)"),
        ],
    )
    def test_other_shapes_are_refused(self, arguments: dict[str, object], message: str) -> None:
        attention = CostAttention(2, 2)
        with pytest.raises(ValueError, match=message):
            attention.update(**arguments)
        assert all(weights.tolist() == [0.5, 0.5] for weights in vectors(attention).values())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, 2), "num_student and num_teacher must be at least 1, not 0 and 2"),
        ((2, 0), "num_student and num_teacher must be at least 1, not 2 and 0"),
        ((2, 2, "Ratio"), "rule must be one of softmax, double-softmax, ratio, fixed, not 'Ratio'"),
        ((2, 2, "softmax", 0.0), r"temperature must be a number above 0, not 0\.0"),
        ((2, 2, "softmax", -1.0), r"temperature must be a number above 0, not -1\.0"),
        ((2, 2, "softmax", float("nan")), "temperature must be a number above 0, not nan"),
        ((2, 2, "softmax", float("inf")), "temperature must be a number above 0, not inf"),
    ],
)
def test_bad_settings_are_refused(arguments: tuple[object, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CostAttention(*arguments)
