"""Layers that are projected inside the distances, against torch.nn.Linear and plain loops in float64."""

from __future__ import annotations

import dataclasses
import math
import sys
from typing import Any

import pytest
import reference
import torch
from layer_features import MASK, features, only_needed, options, total, with_gradient
from projected_layers import (
    BATCH,
    KINDS,
    LENGTH,
    MASKS,
    NARROW,
    SIZES,
    WIDE,
    Seen,
    Setting,
    masks,
    normal,
    setting,
    teacher_of,
)
from torch import Tensor, nn
from torch.nn.functional import linear

from bert_emd.method import MAPPINGS, Projected, build_mapping, hidden_distances


def worst_relative(found: Tensor, expected: Tensor) -> float:
    return float(((found.double() - expected).abs() / expected.abs()).max().detach())


def assert_as_exact_as_the_loop(ours: Setting, loop: Setting, exact: Setting) -> None:
    """Gradients at most three times as far off as the plain float32 loop's, plus a millionth of the largest entry."""
    for found, plain, truth in zip(ours.gradients, loop.gradients, exact.gradients, strict=True):
        assert found.dtype == torch.float32
        assert truth.abs().max() > 0
        slack = 1e-6 * truth.abs().max()
        assert (found.double() - truth).abs().max() <= 3 * (plain.double() - truth).abs().max() + slack


def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules["bert_emd.method.hidden_pieces"], "_PIECE", {"cpu": 200, "other": 200})


class TestCostsAndGradients:
    @pytest.mark.parametrize("mask", MASKS)
    @pytest.mark.parametrize("noise", [None, 1e-1, 1e-3])
    @pytest.mark.parametrize("kind", KINDS)
    def test_equal_linear_layers_and_loops(self, kind: str, noise: float | None, mask: str, route: str) -> None:
        self.check(setting(kind), noise, MASKS[mask], route)

    @pytest.mark.parametrize("mask", ["none", "ragged"])
    @pytest.mark.parametrize("noise", [None, 1e-3])
    @pytest.mark.parametrize("kind", ["shared", "own"])
    def test_of_large_tensors(self, kind: str, noise: float | None, mask: str, route: str) -> None:
        size = SIZES["large"]
        self.check(setting(kind, size), noise, masks(*size[:2])[mask], route)

    @pytest.mark.parametrize("mask", MASKS)
    def test_over_many_pieces(self, mask: str, route: str, monkeypatch: pytest.MonkeyPatch) -> None:
        small_pieces(monkeypatch)
        self.check(setting("first-and-last"), None, MASKS[mask], route)

    def test_without_bias(self) -> None:
        self.check(setting(bias=False), None, MASKS["ragged"], "cpu")

    @staticmethod
    def check(ours: Setting, noise: float | None, mask: Tensor | None, route: str) -> None:
        loop, exact, teacher = ours.copy(torch.float32), ours.copy(torch.float64), teacher_of(ours, noise)
        found = hidden_distances(ours.inside(), teacher, mask)
        plain = reference.hidden_costs(loop.outside(), teacher, mask, torch.float32)
        truth = reference.hidden_costs(exact.outside(), teacher, mask)
        assert found.dtype == torch.float32
        # Elsewhere than on a CPU nothing is looked at: as exact as the layer of torch.
        slack = 0.0 if route == "cpu" else 3 * worst_relative(plain, truth.detach())
        assert worst_relative(found, truth) < 1e-6 + slack
        weights = torch.randn(found.shape, generator=torch.Generator().manual_seed(3))
        weights[0, 0] = 0
        for cost in (found, plain, truth):
            (weights.to(cost.dtype) * cost).sum().backward()
        assert_as_exact_as_the_loop(ours, loop, exact)

    @pytest.mark.parametrize("kind", ["shared", "one-is-wide"])
    def test_gradcheck(self, kind: str, route: str) -> None:
        exact = setting(kind).copy(torch.float64)
        teacher = [t.double() for t in teacher_of(exact, None)]

        def costs(*flat: Tensor) -> Tensor:
            states, rest = flat[:3], flat[3:]
            return hidden_distances([
                s if k is None else Projected(s, rest[2 * k], rest[2 * k + 1])
                for k, s in zip(exact.kind, states, strict=True)
            ], teacher, MASKS["holes"])  # fmt: skip

        assert costs(*exact.leaves).dtype == torch.float64
        assert torch.autograd.gradcheck(costs, exact.leaves, fast_mode=False)

    def test_one_state_twice_and_one_projection_for_two_losses(self) -> None:
        ours = setting()
        ours.states[2] = ours.states[0]
        exact, teacher = ours.copy(torch.float64), teacher_of(ours, None)
        exact.states[2] = exact.states[0]
        (one, two, three), (x, y, z) = ours.inside(), exact.outside()
        found = hidden_distances([one, two, three], teacher[:2]).sum() + hidden_distances([two], teacher[2:]).sum()
        truth = reference.hidden_costs([x, y, z], teacher[:2]).sum() + reference.hidden_costs([y], teacher[2:]).sum()
        (found + 0.5 * ours.states[0].square().mean()).backward()
        (truth + 0.5 * exact.states[0].square().mean()).backward()
        for ours_, truth_ in zip(ours.gradients, exact.gradients, strict=True):
            torch.testing.assert_close(ours_.double(), truth_, rtol=1e-5, atol=1e-7)

    @pytest.mark.parametrize("asked", range(5))
    def test_only_where_asked(self, asked: int) -> None:
        """Of three states, weight and bias one alone."""
        ours, teacher = setting(), teacher_of(setting(), None)
        everything = ours.copy(torch.float64)
        reference.hidden_costs(everything.outside(), teacher).sum().backward()
        for i, leaf in enumerate(ours.leaves):
            leaf.requires_grad_(i == asked)
        hidden_distances(ours.inside(), teacher).sum().backward()
        for i, (found, truth) in enumerate(zip(ours.gradients, everything.gradients, strict=True)):
            if i == asked:
                torch.testing.assert_close(found.double(), truth, rtol=1e-5, atol=1e-6)
            else:
                assert found is None

    def test_without_any_the_costs_ask_for_none(self) -> None:
        ours, teacher = setting(), teacher_of(setting(), None)
        assert hidden_distances(ours.inside(), teacher).requires_grad
        for leaf in ours.leaves:
            leaf.requires_grad_(False)
        assert not hidden_distances(ours.inside(), teacher).requires_grad

    @pytest.mark.parametrize("where", ["student", "teacher"])
    def test_what_padding_holds_does_not_matter(self, where: str, route: str) -> None:
        keep = MASKS["holes"]
        assert keep is not None
        ours, exact = setting(), setting().copy(torch.float64)
        teacher = teacher_of(ours, None)
        reference.hidden_costs(exact.outside(), teacher, keep).sum().backward()
        with torch.no_grad():
            for tensor in ours.states if where == "student" else teacher:
                tensor[~keep] = math.nan
        hidden_distances(ours.inside(), teacher, keep).sum().backward()
        for found, truth in zip(ours.gradients, exact.gradients, strict=True):
            torch.testing.assert_close(found.double(), truth, rtol=1e-5, atol=1e-6)

    def test_layouts(self) -> None:
        """A state cut out of a larger tensor and one with batch and tokens swapped; a weight that is a transpose."""
        whole, swapped = normal(1, BATCH, LENGTH + 2, 2 * NARROW), normal(2, LENGTH, BATCH, NARROW)
        weight = normal(3, NARROW, WIDE)
        teacher = [normal(4, BATCH, LENGTH, WIDE)]

        def states(a: Tensor, b: Tensor) -> list[Tensor]:
            return [a[:, 1:-1, ::2], b.transpose(0, 1)]

        ours = [x.clone().requires_grad_() for x in (whole, swapped, weight)]
        exact = [x.double().requires_grad_() for x in (whole, swapped, weight)]
        hidden_distances([Projected(s, ours[2].t()) for s in states(*ours[:2])], teacher).sum().backward()
        reference.hidden_costs([s @ exact[2] for s in states(*exact[:2])], teacher).sum().backward()
        for found, truth in zip(ours, exact, strict=True):
            torch.testing.assert_close(found.grad.double(), truth.grad, rtol=1e-5, atol=1e-6)


class TestPrecisions:
    @pytest.mark.parametrize("kind", ["shared", "own"])
    def test_autocast_is_what_it_is_for_a_linear_layer(self, kind: str, route: str) -> None:
        ours = setting(kind, SIZES["large"])
        theirs, exact = ours.copy(torch.float32), ours.copy(torch.float64)
        teacher, mask = teacher_of(ours, None), masks(*SIZES["large"][:2])["ragged"]
        with torch.autocast("cpu", torch.bfloat16):
            found = hidden_distances(ours.inside(), teacher, mask)
            wide = theirs.outside()
        assert all(y.dtype == torch.bfloat16 for y in wide)
        expected = reference.hidden_costs(wide, teacher, mask)
        truth = reference.hidden_costs(exact.outside(), teacher, mask)
        assert found.dtype == torch.float32
        # The same rounding of what is multiplied and of the product, so far closer to each other than to the truth.
        assert worst_relative(found, expected.detach()) < 1e-5
        assert worst_relative(found, truth.detach()) > 1e-6
        for cost in (found, expected, truth):
            cost.sum().backward()
        for a, b, c in zip(ours.gradients, theirs.gradients, exact.gradients, strict=True):
            assert a.dtype == torch.float32
            assert (a - c).norm() <= 1.5 * (b - c).norm()
            assert (a - c).norm() < 1e-2 * c.norm()

    def test_the_products_are_taken_in_the_precision_of_autocast(self, monkeypatch: pytest.MonkeyPatch) -> None:
        small_pieces(monkeypatch)
        ours, teacher = setting(), teacher_of(setting(), None)
        seen = Seen()
        with seen, torch.autocast("cpu", torch.bfloat16):
            hidden_distances(ours.inside(), teacher).sum().backward()
        assert seen.products == {torch.bfloat16}
        seen = Seen()
        with seen:
            hidden_distances(ours.inside(), teacher).sum().backward()
        assert seen.products == {torch.float32}

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_16_bit_tensors_are_multiplied_in_float32(self, dtype: torch.dtype) -> None:
        """Exact before the last rounding, and each gradient in its tensor's precision."""
        ours = setting().copy(dtype)
        exact, teacher = ours.copy(torch.float64), [t.to(dtype) for t in teacher_of(setting(), None)]
        found = hidden_distances(ours.inside(), teacher, MASKS["ragged"])
        truth = reference.hidden_costs(exact.outside(), teacher, MASKS["ragged"])
        assert found.dtype == torch.float32
        assert worst_relative(found, truth) < 1e-6
        found.sum().backward()
        truth.sum().backward()
        for a, b in zip(ours.gradients, exact.gradients, strict=True):
            assert a.dtype == dtype
            torch.testing.assert_close(a.double(), b, rtol=torch.finfo(dtype).eps, atol=1e-6)


class TestTheClass:
    def test_all_of_it_and_chosen_positions(self) -> None:
        state, layer = normal(1, BATCH, LENGTH, NARROW), nn.Linear(NARROW, WIDE)
        projected = Projected(state, layer.weight, layer.bias)
        expected = linear(state, layer.weight, layer.bias)
        assert projected.shape == expected.shape
        torch.testing.assert_close(projected.full(), expected)
        torch.testing.assert_close(projected[:, 0], expected[:, 0])
        torch.testing.assert_close(projected[1:, 2:4], expected[1:, 2:4])

    def test_the_first_position_is_chosen_before_it_is_projected(self) -> None:
        state, layer = normal(1, BATCH, LENGTH, NARROW), nn.Linear(NARROW, WIDE)
        seen = Seen(state)
        with seen:
            first = Projected(state, layer.weight, layer.bias)[:, 0]
        assert seen.largest == max(first.untyped_storage().nbytes(), layer.weight.untyped_storage().nbytes())

    def test_a_width_that_does_not_fit_is_refused(self) -> None:
        projected = Projected(torch.zeros(2, 3, 4), torch.zeros(6, 4))
        assert hidden_distances([projected], [torch.ones(2, 3, 6)]).item() == 1
        with pytest.raises(ValueError, match="a teacher layer is 5 wide but another is 6; project the student's first"):
            hidden_distances([projected], [torch.zeros(2, 3, 5)])
        with pytest.raises(ValueError, match=r"a teacher layer has shape \(2, 4, 6\)"):
            hidden_distances([projected], [torch.zeros(2, 4, 6)])


CASES: dict[str, dict[str, Any]] = {
    **{name: {} for name in MAPPINGS},
    "manual": {"layer_map": "1:2,2:4,2:1"},
    **{f"{name}+cls": {"state_loss": "cls"} for name in ("uniform", "random")},
    **{f"{name}+relative": {"cost_scale": "relative"} for name in ("emd", "uniform")},
}


@pytest.mark.parametrize("share", [True, False], ids=["one projection", "one a layer"])
@pytest.mark.parametrize("case", CASES)
def test_every_mapping_takes_them_as_it_takes_what_linear_layers_make(case: str, share: bool) -> None:
    name = case.partition("+")[0]
    layers = [nn.Linear(8, 8, dtype=torch.float64) for _ in range(1 if share else 3)]
    teacher, results = features(4, 2), []
    for project in (lambda layer, x: Projected(x, layer.weight, layer.bias), lambda layer, x: layer(x)):
        mapping = build_mapping(name, options(2, 4, **CASES[case]))
        given = with_gradient(features(2, 1))
        student = dataclasses.replace(
            given,
            embedding=project(layers[0], given.embedding),
            hidden=[project(layers[(i + 1) % len(layers)], h) for i, h in enumerate(given.hidden)],
        )
        loss = total(mapping(only_needed(student, mapping), teacher, MASK))
        leaves = [given.embedding, *given.hidden, *(p for layer in layers for p in layer.parameters())]
        results.append((loss, torch.autograd.grad(loss, leaves, allow_unused=True)))
    (found, ours), (expected, theirs) = results
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)
    assert name == "minilm" or any(grad is not None for grad in theirs)
    for a, b in zip(ours, theirs, strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)
