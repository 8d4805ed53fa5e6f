"""Mean squares of teacher layers against plain loops, and relative costs in the earth mover's mapping."""

from __future__ import annotations

import math

import numpy as np
import pytest
import reference
import torch
from layer_features import MASK, features, options, total, with_gradient, worst_relative
from torch import Tensor

from bert_emd.method import build_mapping
from bert_emd.method.distances import attention_costs, hidden_costs

SHAPES = {"short rows": (3, 2, 6, 4), "long rows": (2, 3, 40, 4), "one": (1, 1, 1, 1)}


def drawn(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def a_mask(batch: int, length: int) -> Tensor:
    """Rows of different lengths, one with a hole."""
    mask = torch.zeros(batch, length, dtype=torch.long)
    for row in range(batch):
        mask[row, : max(1, length - 2 * row)] = 1
    if length > 3:
        mask[0, 1] = 0
    return mask


def loop_over_scores(q: Tensor, k: Tensor, mask: Tensor | None, average: bool) -> float:
    total, count = 0.0, 0
    batch, heads, length, width = q.shape
    for b in range(batch):
        per_head = [(q[b, h] @ k[b, h].T / math.sqrt(width)).tolist() for h in range(heads)]
        for p in range(length):
            for r in range(length):
                if mask is None or (mask[b, p] and mask[b, r]):
                    values = [scores[p][r] for scores in per_head]
                    values = [sum(values) / heads] if average else values
                    total += sum(v * v for v in values)
                    count += len(values)
    return total / count


def loop_over_states(layer: Tensor, mask: Tensor | None) -> float:
    batch, length, width = layer.shape
    kept = [layer[b, p].double() for b in range(batch) for p in range(length) if mask is None or mask[b, p]]
    return sum(math.fsum((row * row).tolist()) for row in kept) / (width * len(kept))


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("average", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-12), ("float32", 2e-6), ("bfloat16", 2e-6)])
def test_attention_scores(shape: str, average: bool, masked: bool, dtype: str, tolerance: float) -> None:
    kind = getattr(torch, dtype)
    layers = [((1 + j) * drawn(j, *SHAPES[shape]).to(kind), drawn(j + 9, *SHAPES[shape]).to(kind)) for j in range(3)]
    batch, heads, length, width = SHAPES[shape]
    student = drawn(5, batch, heads + average, length, width).to(kind)
    mask = a_mask(batch, length) if masked else None
    found = attention_costs([(student, student)], layers, mask, squares=True).squares
    expected = [loop_over_scores(q.double(), k.double(), mask, average) for q, k in layers]
    assert found.dtype == torch.float64
    np.testing.assert_allclose(found.numpy(), expected, rtol=tolerance)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("average", [False, True])
@pytest.mark.parametrize("students", [1, 3])
@pytest.mark.parametrize("shape", [(2, 4, 200, 8), (60, 4, 40, 8)], ids=["d x d products", "scores"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_attention_scores_of_large_batches(
    shape: tuple[int, ...], students: int, average: bool, masked: bool, dtype: str
) -> None:
    """The routes that only large tensors take."""
    kind = getattr(torch, dtype)
    layers = [((1 + j) * drawn(j, *shape).to(kind), drawn(j + 9, *shape).to(kind)) for j in range(3)]
    batch, heads, length, width = shape
    student = drawn(5, batch, heads + average, length, width).to(kind)
    mask = a_mask(batch, length) if masked else None
    found = attention_costs([(student, student)] * students, layers, mask, squares=True).squares
    keep = torch.ones(batch, length) if mask is None else mask
    pairs = keep[:, None, :, None] * keep[:, None, None, :]
    for q, k, mean_square in zip(*zip(*layers, strict=True), found.tolist(), strict=True):
        scores = q.double() @ k.double().transpose(2, 3) / math.sqrt(width)
        if average:
            scores = scores.mean(1, keepdim=True)
        expected = (scores.square() * pairs).sum() / (pairs.sum() * scores.shape[1])
        assert mean_square == pytest.approx(expected.item(), rel=2e-6)


@pytest.mark.parametrize("students", [1, 3])
@pytest.mark.parametrize("shape", [(3, 6, 5), (8, 40, 1024)], ids=["small", "large"])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-12), ("float32", 2e-6), ("bfloat16", 2e-6)])
def test_hidden_states(masked: bool, dtype: str, tolerance: float, shape: tuple[int, ...], students: int) -> None:
    layers = [((1 + j) * drawn(j, *shape)).to(getattr(torch, dtype)) for j in range(3)]
    mask = a_mask(*shape[:2]) if masked else None
    expected = [loop_over_states(layer, mask) for layer in layers]
    student = [drawn(7, *shape).to(layers[0].dtype)] * students
    found = hidden_costs(student, layers, mask, squares=True).squares
    np.testing.assert_allclose(found.numpy(), expected, rtol=tolerance)


def test_nothing_is_learnt_through_the_scale() -> None:
    layer, query = drawn(0, 2, 3, 4).requires_grad_(), drawn(1, 2, 2, 3, 4).requires_grad_()
    for costs in (
        hidden_costs([layer], [layer.detach()], squares=True),
        attention_costs([(query, query)], [(query.detach(), query.detach())], squares=True),
    ):
        assert costs.D.requires_grad
        assert not costs.squares.requires_grad


def test_the_mean_squares_are_not_made_unless_asked() -> None:
    layer, query = drawn(0, 2, 3, 4), drawn(1, 2, 2, 3, 4)
    assert hidden_costs([layer], [layer]).squares is None
    assert attention_costs([(query, query)], [(query, query)]).squares is None


def test_a_layer_of_zeros_leaves_its_costs_as_they_are() -> None:
    for name in ("emd", "uniform"):
        student, teacher = with_gradient(features(2, 0)), features(2, 1)
        teacher.hidden[1].zero_()
        teacher.embedding.zero_()
        mapping = build_mapping(name, options(2, 2, cost_scale="relative", attention=False))
        loss = mapping(student, teacher, MASK)
        assert total(loss).isfinite()
        cost = reference.hidden_costs(student.hidden, teacher.hidden, MASK).detach()
        assert loss.record["hidden"]["cost"][1, 1] == pytest.approx(cost[1, 1].item(), rel=1e-12)
        assert loss.embedding.item() == pytest.approx(
            reference.hidden_costs([student.embedding], [teacher.embedding], MASK).item(), rel=1e-12
        )


@pytest.mark.parametrize("heads", [(2, 2), (3, 2)])
@pytest.mark.parametrize("masked", [False, True])
def test_the_earth_movers_plan_weights_and_loss_see_relative_costs(masked: bool, heads: tuple[int, int]) -> None:
    """Three steps of the reference script whose costs were divided by a loop's mean squares."""
    mask, (m, n) = MASK if masked else None, (3, 5)
    mapping = build_mapping("emd", options(m, n, cost_scale="relative")).train()
    weights = reference.LayerWeights(m, n)
    average = heads[0] != heads[1]
    for step in range(3):
        student, teacher = with_gradient(features(m, 10 * step, heads=heads[0])), features(n, 10 * step + 1)
        exact = with_gradient(student)
        scales = {
            "attention": [loop_over_scores(q, k, mask, average) for q, k in teacher.attention],
            "hidden": [loop_over_states(layer, mask) for layer in teacher.hidden],
        }
        costs = {
            "attention": reference.attention_costs(exact.attention, teacher.attention, mask),
            "hidden": reference.hidden_costs(exact.hidden, teacher.hidden, mask),
        }
        loss, plans, expected = mapping(student, teacher, mask), {}, {}
        for term, cost in costs.items():
            relative = cost / torch.tensor(scales[term], dtype=torch.float64)
            D = relative.detach().numpy()
            F = reference.padded_transport(
                D, np.array(weights.values[term, "student"]), np.array(weights.values[term, "teacher"])
            )
            expected[term] = (torch.from_numpy(F) * relative).sum()
            plans[term] = (D, F)
            np.testing.assert_allclose(loss.record[term]["cost"], D, rtol=1e-9)
            np.testing.assert_allclose(loss.record[term]["plan"], F, rtol=0, atol=1e-9)
            assert worst_relative(getattr(loss, term), expected[term]) < 1e-9
        weights.step(plans)
        (loss.attention + loss.hidden).backward()
        (expected["attention"] + expected["hidden"]).backward()
        for ours, truth in zip(student.hidden, exact.hidden, strict=True):
            torch.testing.assert_close(ours.grad, truth.grad, rtol=1e-8, atol=1e-12)
        for (q, k), (q_true, k_true) in zip(student.attention, exact.attention, strict=True):
            torch.testing.assert_close(q.grad, q_true.grad, rtol=1e-8, atol=1e-12)
            torch.testing.assert_close(k.grad, k_true.grad, rtol=1e-8, atol=1e-12)
        for side in ("student", "teacher"):
            np.testing.assert_allclose(
                getattr(mapping.cost_attention, f"hidden_{side}"), weights.values["hidden", side], rtol=1e-8
            )


@pytest.mark.parametrize("name", ["emd", "uniform", "all-to-one"])
def test_the_loss_does_not_change_with_the_unit_of_the_states(name: str) -> None:
    """What makes one beta mean the same on every encoder."""

    def loss(unit: float) -> float:
        student, teacher = features(2, 0), features(4, 1)
        for side in (student, teacher):
            side.embedding *= unit
            side.hidden = [h * unit for h in side.hidden]
            side.attention = [(q * unit, k) for q, k in side.attention]
        return total(build_mapping(name, options(cost_scale="relative"))(student, teacher, MASK)).item()

    assert loss(7.0) == pytest.approx(loss(1.0), rel=1e-9)
