"""All-pairs distances against the plain loop over materialised tensors, in float64."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence

import pytest
import reference
import torch
from reference import normal
from torch import Tensor

from bert_emd.method import attention_distances, hidden_distances

QueryKey = tuple[Tensor, Tensor]

# Head counts and head widths of two student layers and three teacher layers.
HEADS = {
    "same": [(2, 5), (2, 5), (2, 5), (2, 5), (2, 5)],
    "other-widths": [(2, 3), (2, 3), (2, 5), (2, 5), (2, 5)],
    "widths-differ-everywhere": [(3, 1), (3, 2), (3, 4), (3, 8), (3, 5)],
    "other-head-counts": [(2, 5), (2, 5), (3, 4), (3, 4), (3, 4)],
    "one-layer-has-other-heads": [(4, 3), (4, 3), (4, 3), (2, 6), (4, 3)],
    "student-layers-differ": [(1, 6), (4, 2), (2, 3), (2, 3), (2, 3)],
}

BATCH, LENGTH = 3, 7


def masks() -> dict[str, Tensor | None]:
    prefix = torch.arange(LENGTH) < torch.tensor([[7], [4], [1]])
    holes = torch.tensor([[0, 1, 1, 0, 1, 0, 1], [1, 0, 0, 0, 0, 0, 1], [0, 0, 0, 0, 0, 0, 0]])
    return {"none": None, "full": torch.ones(BATCH, LENGTH), "ragged": prefix, "holes": holes}


MASKS = masks()


def hidden_layers(
    m: int = 2, n: int = 3, shape: Sequence[int] = (BATCH, LENGTH, 10), dtype: torch.dtype = torch.float32
) -> tuple[list[Tensor], list[Tensor]]:
    layers = [normal(i, *shape, dtype=dtype) * (1 + i / 2) for i in range(m + n)]
    return layers[:m], layers[m:]


def attention_layers(
    heads: str = "same", dtype: torch.dtype = torch.float32, m: int = 2
) -> tuple[list[QueryKey], list[QueryKey]]:
    layers = [
        (normal(2 * i, BATCH, h, LENGTH, d, dtype=dtype), normal(2 * i + 1, BATCH, h, LENGTH, d, dtype=dtype) * (1 + i))
        for i, (h, d) in enumerate(HEADS[heads])
    ]
    return layers[:m], layers[m:]


def noisy(tensor: Tensor, noise: float, seed: int) -> Tensor:
    return tensor * (1 + noise * normal(seed, *tensor.shape, dtype=tensor.dtype))


def worst_relative(found: Tensor, expected: Tensor) -> float:
    return float(((found.double() - expected).abs() / expected.abs()).max().detach())


def leaves(layers: Sequence[Tensor] | Sequence[QueryKey], dtype: torch.dtype | None = None) -> list[Tensor]:
    """Fresh leaves that ask for a gradient, in order (query, key, query, key, … for pairs)."""
    flat = [t for layer in layers for t in (layer if isinstance(layer, tuple) else (layer,))]
    return [t.detach().clone().to(dtype or t.dtype).requires_grad_() for t in flat]


def paired(flat: Sequence[Tensor]) -> list[QueryKey]:
    return list(zip(flat[::2], flat[1::2], strict=True))


def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("hidden_pieces", "attention_pieces"):
        monkeypatch.setattr(sys.modules[f"bert_emd.method.{module}"], "_PIECE", {"cpu": 1 << 16, "other": 1 << 16})
    monkeypatch.setattr(sys.modules["bert_emd.method.attention_pieces"], "_PIECE_OF_ROW", 1 << 16)


def weights_of_pairs(m: int, n: int) -> Tensor:
    """What the cost matrix is weighted with before backward: positive, zero and negative entries."""
    weights = normal(99, m, n)
    weights[0, 0] = 0
    return weights


class TestHiddenCosts:
    @pytest.mark.parametrize("mask", MASKS)
    @pytest.mark.parametrize(("m", "n"), [(1, 1), (2, 3), (4, 12)])
    def test_equal_the_loop(self, mask: str, m: int, n: int) -> None:
        student, teacher = hidden_layers(m, n)
        found = hidden_distances(student, teacher, MASKS[mask])
        assert found.shape == (m, n)
        assert found.dtype == torch.float32
        assert worst_relative(found, reference.hidden_costs(student, teacher, MASKS[mask])) < 1e-6

    def test_by_hand(self) -> None:
        student = [torch.tensor([[[1.0, 2.0], [5.0, 5.0]]])]
        teacher = [torch.tensor([[[0.0, 4.0], [5.0, 9.0]]])]
        assert hidden_distances(student, teacher).item() == (1 + 4 + 0 + 16) / 4
        assert hidden_distances(student, teacher, torch.tensor([[True, False]])).item() == (1 + 4) / 2

    @pytest.mark.parametrize("noise", [1e-1, 1e-2, 1e-3, 1e-4])
    def test_keep_their_digits_where_student_and_teacher_nearly_agree(self, noise: float) -> None:
        _, teacher = hidden_layers(1, 4, (4, 16, 64))
        student = [noisy(t, noise, seed) for seed, t in enumerate(teacher[:2])]
        found = hidden_distances(student, teacher)
        assert worst_relative(found, reference.hidden_costs(student, teacher)) < 1e-6

    def test_equal_layers_cost_nothing(self) -> None:
        student, teacher = hidden_layers()
        found = hidden_distances([teacher[1], student[0]], teacher)
        assert found[0, 1] == 0
        assert (found[1] > 0).all()

    @pytest.mark.parametrize("mask", ["none", "holes"])
    def test_over_many_pieces(self, mask: str, monkeypatch: pytest.MonkeyPatch) -> None:
        """More rows than are taken at once, and not a multiple of that."""
        small_pieces(monkeypatch)
        student, teacher = hidden_layers(2, 2, (37, 131, 48))
        keep = None if mask == "none" else normal(5, 37, 131) > 0.3
        expected = reference.hidden_costs(student, teacher, keep)
        assert worst_relative(hidden_distances(student, teacher, keep), expected) < 1e-6

    def test_rows_wider_than_a_piece(self) -> None:
        student, teacher = hidden_layers(1, 2, (2, 3, 70_001))
        assert worst_relative(hidden_distances(student, teacher), reference.hidden_costs(student, teacher)) < 1e-6

    def test_what_padding_holds_does_not_matter(self) -> None:
        student, teacher = hidden_layers()
        keep = MASKS["holes"].bool()
        expected = hidden_distances(student, teacher, keep)
        for layer in (*student, *teacher):
            layer[~keep] = math.nan
        assert torch.equal(hidden_distances(student, teacher, keep), expected)

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
    def test_other_precisions(self, dtype: torch.dtype) -> None:
        student, teacher = hidden_layers(dtype=dtype)
        found = hidden_distances(student, teacher, MASKS["ragged"])
        assert found.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        tolerance = 1e-13 if dtype == torch.float64 else 1e-6
        assert worst_relative(found, reference.hidden_costs(student, teacher, MASKS["ragged"])) < tolerance

    def test_mixed_precisions(self) -> None:
        student, teacher = hidden_layers()
        student = [s.bfloat16() for s in student]
        found = hidden_distances(student, teacher)
        assert worst_relative(found, reference.hidden_costs(student, teacher)) < 1e-6


class TestAttentionCosts:
    @pytest.mark.parametrize("mask", MASKS)
    @pytest.mark.parametrize("heads", HEADS)
    def test_equal_the_loop(self, mask: str, heads: str) -> None:
        student, teacher = attention_layers(heads)
        found = attention_distances(student, teacher, MASKS[mask])
        assert found.shape == (2, 3)
        assert found.dtype == torch.float32
        assert worst_relative(found, reference.attention_costs(student, teacher, MASKS[mask])) < 1e-6

    def test_by_hand(self) -> None:
        """Two positions, d = 4: scores [[2, 4], [6, 12]] against zero."""
        query = torch.tensor([1.0, 3.0])[None, None, :, None].expand(1, 1, 2, 4)
        key = torch.tensor([1.0, 2.0])[None, None, :, None].expand(1, 1, 2, 4)
        zero = torch.zeros(1, 1, 2, 4)
        assert attention_distances([(query, key)], [(zero, zero)]).item() == (4 + 16 + 36 + 144) / 4
        only_second = torch.tensor([[0, 1]])
        assert attention_distances([(query, key)], [(zero, zero)], only_second).item() == 144

    @pytest.mark.parametrize("noise", [1e-1, 1e-2, 1e-3, 1e-4])
    def test_where_student_and_teacher_nearly_agree(self, noise: float) -> None:
        """The plain float32 loop is 1e-5 off here."""
        teacher = [(normal(i, 4, 2, 16, 8, dtype=torch.float32), normal(50 + i, 4, 2, 16, 8).float()) for i in range(4)]
        student = [(noisy(q, noise, 7 + i), noisy(k, noise, 70 + i)) for i, (q, k) in enumerate(teacher[:2])]
        exact = reference.attention_costs(student, teacher)
        assert worst_relative(attention_distances(student, teacher), exact) < 1e-6

    def test_equal_layers_cost_nothing(self) -> None:
        student, teacher = attention_layers()
        found = attention_distances([teacher[1], student[0]], teacher)
        assert found[0, 1] == 0
        assert (found[1] > 0).all()

    @pytest.mark.parametrize("length", [64, 512])
    def test_over_many_and_over_large_pieces(self, length: int) -> None:
        """Twelve heads of 512 positions are three million entries in one sum."""
        batch = 5 if length == 64 else 1
        q_s, k_s, q_t, k_t = (normal(i, batch, 12, length, 8, dtype=torch.float32) for i in range(4))
        found = attention_distances([(q_s, k_s)], [(q_t, k_t)])
        assert worst_relative(found, reference.attention_costs([(q_s, k_s)], [(q_t, k_t)])) < 1e-6

    @pytest.mark.parametrize("heads", ["same", "other-head-counts"])
    def test_what_padding_holds_does_not_matter(self, heads: str) -> None:
        student, teacher = attention_layers(heads)
        keep = MASKS["holes"].bool()
        expected = attention_distances(student, teacher, keep)
        for tensor in (t for pair in (*student, *teacher) for t in pair):
            tensor.transpose(1, 2)[~keep] = math.nan
        flat = leaves(student)
        found = attention_distances(paired(flat), teacher, keep)
        assert torch.equal(found, expected)
        found.sum().backward()
        for leaf in flat:
            assert (leaf.grad.transpose(1, 2)[~keep] == 0).all()
            assert leaf.grad.isfinite().all()
            assert leaf.grad.abs().sum() > 0

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
    def test_other_precisions(self, dtype: torch.dtype) -> None:
        student, teacher = attention_layers("other-widths", dtype)
        found = attention_distances(student, teacher, MASKS["ragged"])
        assert found.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        tolerance = 1e-13 if dtype == torch.float64 else 1e-6
        assert worst_relative(found, reference.attention_costs(student, teacher, MASKS["ragged"])) < tolerance

    def test_mixed_precisions(self) -> None:
        student, teacher = attention_layers()
        student = [(q.bfloat16(), k.bfloat16()) for q, k in student]
        found = attention_distances(student, teacher)
        assert worst_relative(found, reference.attention_costs(student, teacher)) < 1e-6


def assert_as_exact_as_the_loop(ours: Sequence[Tensor], loop: Sequence[Tensor], exact: Sequence[Tensor]) -> None:
    """At most three times as far off as the plain float32 loop, plus a millionth of the largest entry."""
    for found, plain, truth in zip(ours, loop, exact, strict=True):
        assert found.dtype == torch.float32
        assert truth.abs().max() > 0
        slack = 1e-6 * truth.abs().max()
        assert (found.double() - truth).abs().max() <= 3 * (plain.double() - truth).abs().max() + slack


class TestGradients:
    @pytest.mark.parametrize("mask", MASKS)
    @pytest.mark.parametrize("noise", [None, 1e-1, 1e-3])
    def test_hidden(self, mask: str, noise: float | None) -> None:
        student, teacher = hidden_layers()
        if noise is not None:
            student = [noisy(t, noise, seed) for seed, t in enumerate(teacher[:2])]
        weights = weights_of_pairs(2, 3)
        ours, loop, exact = leaves(student), leaves(student), leaves(student, torch.float64)
        (weights * hidden_distances(ours, teacher, MASKS[mask])).sum().backward()
        (weights.float() * reference.hidden_costs(loop, teacher, MASKS[mask], torch.float32)).sum().backward()
        (weights * reference.hidden_costs(exact, teacher, MASKS[mask])).sum().backward()
        assert_as_exact_as_the_loop(*([leaf.grad for leaf in each] for each in (ours, loop, exact)))

    @pytest.mark.parametrize("mask", MASKS)
    @pytest.mark.parametrize("heads", HEADS)
    def test_attention(self, mask: str, heads: str) -> None:
        student, teacher = attention_layers(heads)
        self.attention_gradients(student, teacher, MASKS[mask])

    @pytest.mark.parametrize("noise", [1e-1, 1e-3])
    def test_attention_where_student_and_teacher_nearly_agree(self, noise: float) -> None:
        _, teacher = attention_layers()
        student = [(noisy(q, noise, 7 + i), noisy(k, noise, 70 + i)) for i, (q, k) in enumerate(teacher[:2])]
        self.attention_gradients(student, teacher, MASKS["ragged"])

    @staticmethod
    def attention_gradients(student: list[QueryKey], teacher: list[QueryKey], mask: Tensor | None) -> None:
        weights = weights_of_pairs(2, 3)
        ours, loop, exact = leaves(student), leaves(student), leaves(student, torch.float64)
        (weights * attention_distances(paired(ours), teacher, mask)).sum().backward()
        (weights.float() * reference.attention_costs(paired(loop), teacher, mask, torch.float32)).sum().backward()
        (weights * reference.attention_costs(paired(exact), teacher, mask)).sum().backward()
        assert_as_exact_as_the_loop(*([leaf.grad for leaf in each] for each in (ours, loop, exact)))

    def test_over_many_pieces(self, monkeypatch: pytest.MonkeyPatch) -> None:
        small_pieces(monkeypatch)
        student, teacher = hidden_layers(1, 2, (19, 131, 48))
        keep = normal(5, 19, 131) > 0.3
        ours, exact = leaves(student), leaves(student, torch.float64)
        hidden_distances(ours, teacher, keep)[0, 1].backward()
        reference.hidden_costs(exact, teacher, keep)[0, 1].backward()
        torch.testing.assert_close(ours[0].grad.double(), exact[0].grad, rtol=1e-5, atol=1e-10)

        pairs = [tuple(normal(2 * i + side, 5, 12, 64, 8, dtype=torch.float32) for side in (0, 1)) for i in range(2)]
        ours, exact = leaves(pairs[:1]), leaves(pairs[:1], torch.float64)
        attention_distances(paired(ours), pairs[1:]).sum().backward()
        reference.attention_costs(paired(exact), pairs[1:]).sum().backward()
        for found, truth in zip(ours, exact, strict=True):
            torch.testing.assert_close(found.grad.double(), truth.grad, rtol=1e-4, atol=1e-9)

    @pytest.mark.parametrize("mask", ["none", "holes"])
    def test_gradcheck_hidden(self, mask: str) -> None:
        student, teacher = hidden_layers(2, 2, (BATCH, LENGTH, 2), torch.float64)
        assert torch.autograd.gradcheck(
            lambda *layers: hidden_distances(layers, teacher, MASKS[mask]), leaves(student), fast_mode=False
        )

    @pytest.mark.parametrize("mask", ["none", "holes"])
    @pytest.mark.parametrize("heads", ["other-widths", "other-head-counts"])
    def test_gradcheck_attention(self, mask: str, heads: str) -> None:
        student, teacher = attention_layers(heads, torch.float64)
        assert torch.autograd.gradcheck(
            lambda *flat: attention_distances(paired(flat), teacher, MASKS[mask]), leaves(student), fast_mode=False
        )

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_of_16_bit_tensors_are_16_bit(self, dtype: torch.dtype) -> None:
        """Exact before the last rounding."""
        resolution = torch.finfo(dtype).eps
        student, teacher = hidden_layers(dtype=dtype)
        ours, exact = leaves(student), leaves(student, torch.float64)
        hidden_distances(ours, teacher).sum().backward()
        reference.hidden_costs(exact, teacher).sum().backward()
        for found, truth in zip(ours, exact, strict=True):
            assert found.grad.dtype == dtype
            torch.testing.assert_close(found.grad.double(), truth.grad, rtol=resolution, atol=1e-6)
        student, teacher = attention_layers(dtype=dtype)
        ours, exact = leaves(student), leaves(student, torch.float64)
        attention_distances(paired(ours), teacher).sum().backward()
        reference.attention_costs(paired(exact), teacher).sum().backward()
        for found, truth in zip(ours, exact, strict=True):
            assert found.grad.dtype == dtype
            torch.testing.assert_close(found.grad.double(), truth.grad, rtol=resolution, atol=1e-6)

    def test_only_where_asked(self) -> None:
        """The first layer's query, nothing else: no gradient appears anywhere else, and its own is unchanged."""
        student, teacher = attention_layers()
        everything = leaves(student)
        attention_distances(paired(everything), teacher).sum().backward()
        only = [t.detach().clone() for t in everything]
        only[0].requires_grad_()
        found = attention_distances(paired(only), teacher)
        found.sum().backward()
        assert torch.equal(only[0].grad, everything[0].grad)
        assert all(t.grad is None for t in only[1:])

        only = [t.detach().clone() for t in everything]
        only[3].requires_grad_()  # the second layer's key
        attention_distances(paired(only), teacher).sum().backward()
        assert torch.equal(only[3].grad, everything[3].grad)

        student_hidden, teacher_hidden = hidden_layers()
        both = leaves(student_hidden)
        hidden_distances(both, teacher_hidden).sum().backward()
        second = student_hidden[1].clone().requires_grad_()
        hidden_distances([student_hidden[0], second], teacher_hidden).sum().backward()
        assert torch.equal(second.grad, both[1].grad)

    def test_without_any_the_costs_ask_for_none(self) -> None:
        student, teacher = hidden_layers()
        assert not hidden_distances(student, teacher).requires_grad
        with torch.no_grad():
            assert not hidden_distances(leaves(student), teacher).requires_grad
        assert hidden_distances(leaves(student), teacher).requires_grad

    def test_teacher_is_a_constant(self) -> None:
        student, teacher = hidden_layers()
        ours, theirs = leaves(student), leaves(teacher)
        hidden_distances(ours, theirs).sum().backward()
        assert all(t.grad is None for t in theirs)
        assert all(s.grad is not None for s in ours)
        student, teacher = attention_layers()
        ours, theirs = leaves(student), leaves(teacher)
        attention_distances(paired(ours), paired(theirs)).sum().backward()
        assert all(t.grad is None for t in theirs)
        assert all(s.grad is not None for s in ours)

    def test_one_tensor_as_two_layers(self) -> None:
        """As in a model that shares its blocks: the gradients of both uses add up."""
        _, teacher = hidden_layers()
        shared, exact = leaves([normal(7, BATCH, LENGTH, 10).float()] * 2)[0], normal(7, BATCH, LENGTH, 10).float()
        exact = exact.double().requires_grad_()
        weights = weights_of_pairs(2, 3)
        (weights * hidden_distances([shared, shared], teacher)).sum().backward()
        (weights * reference.hidden_costs([exact, exact], teacher)).sum().backward()
        torch.testing.assert_close(shared.grad.double(), exact.grad, rtol=1e-5, atol=1e-8)

        _, teacher = attention_layers()
        tensor = normal(8, BATCH, 2, LENGTH, 5)
        shared, exact = tensor.float().requires_grad_(), tensor.float().double().requires_grad_()
        (weights * attention_distances([(shared, shared)] * 2, teacher)).sum().backward()
        (weights * reference.attention_costs([(exact, exact)] * 2, teacher)).sum().backward()
        torch.testing.assert_close(shared.grad.double(), exact.grad, rtol=1e-4, atol=1e-7)

    def test_layouts(self) -> None:
        """Heads split by a transposed view and hidden states cut out of a larger tensor, as models hand them on."""
        wide = normal(1, BATCH, LENGTH + 2, 20).float().requires_grad_()
        exact = wide.detach().double().requires_grad_()
        keys, teacher_key = normal(2, BATCH, 2, LENGTH, 5).float(), normal(3, BATCH, 2, LENGTH, 5).float()

        def split(x: Tensor) -> Tensor:
            return x[:, 1:-1, ::2].unflatten(-1, (2, 5)).transpose(1, 2)

        assert not split(wide).is_contiguous()
        found = attention_distances([(split(wide), keys)], [(split(wide).detach(), teacher_key)], MASKS["ragged"])
        truth = reference.attention_costs(
            [(split(exact), keys)], [(split(exact.detach()), teacher_key)], MASKS["ragged"]
        )
        assert worst_relative(found, truth) < 1e-6
        teacher = [normal(4, LENGTH, BATCH, 10).float().transpose(0, 1)]
        hidden = hidden_distances([wide[:, 1:-1, ::2]], teacher)
        hidden_truth = reference.hidden_costs([exact[:, 1:-1, ::2]], teacher)
        assert worst_relative(hidden, hidden_truth) < 1e-6
        (found.sum() + hidden.sum()).backward()
        (truth.sum() + hidden_truth.sum()).backward()
        torch.testing.assert_close(wide.grad.double(), exact.grad, rtol=1e-4, atol=1e-7)

    def test_expanded_input(self) -> None:
        student = normal(1, 1, LENGTH, 10).float().expand(BATCH, -1, -1)
        _, teacher = hidden_layers()
        assert worst_relative(hidden_distances([student], teacher), reference.hidden_costs([student], teacher)) < 1e-6

    def test_inputs_are_left_as_they_were(self) -> None:
        student, teacher = attention_layers()
        flat = leaves(student)
        before = [t.detach().clone() for t in (*flat, *(t for pair in teacher for t in pair))]
        attention_distances(paired(flat), teacher, MASKS["holes"]).sum().backward()
        for tensor, copy in zip((*flat, *(t for pair in teacher for t in pair)), before, strict=True):
            assert torch.equal(tensor, copy)


class TestAutocast:
    @pytest.mark.parametrize("heads", ["same", "other-head-counts"])
    def test_attention_is_the_same_inside(self, heads: str) -> None:
        student, teacher = attention_layers(heads)
        outside, inside = leaves(student), leaves(student)
        expected = attention_distances(paired(outside), teacher, MASKS["ragged"])
        expected.sum().backward()
        with torch.autocast("cpu", torch.bfloat16):
            # The context does what it should: a plain product is in 16 bits here.
            assert (inside[0] @ inside[1].mT).dtype == torch.bfloat16
            found = attention_distances(paired(inside), teacher, MASKS["ragged"])
            found.sum().backward()
        assert found.dtype == torch.float32
        assert torch.equal(found, expected)
        for ours, theirs in zip(inside, outside, strict=True):
            assert torch.equal(ours.grad, theirs.grad)

    def test_hidden_is_the_same_inside(self) -> None:
        student, teacher = hidden_layers()
        outside, inside = leaves(student), leaves(student)
        expected = hidden_distances(outside, teacher, MASKS["ragged"])
        expected.sum().backward()
        with torch.autocast("cpu", torch.bfloat16):
            found = hidden_distances(inside, teacher, MASKS["ragged"])
            found.sum().backward()
        assert torch.equal(found, expected)
        for ours, theirs in zip(inside, outside, strict=True):
            assert torch.equal(ours.grad, theirs.grad)


class TestRefusals:
    ONE = torch.zeros(2, 3, 4)
    PAIR = (torch.zeros(2, 1, 3, 4), torch.zeros(2, 1, 3, 4))

    @pytest.mark.parametrize(
        ("student", "teacher", "mask", "message"),
        [
            ([], [ONE], None, "there is no student layer"),
            ([ONE], [], None, "there is no teacher layer"),
            ([ONE], [torch.zeros(2, 3, 5)], None, "a teacher layer is 5 wide but another is 4; project the student's"),
            ([ONE, torch.zeros(2, 3, 6)], [ONE], None, "a student layer is 6 wide but another is 4"),
            ([ONE], [torch.zeros(2, 7, 4)], None, r"a teacher layer has shape \(2, 7, 4\) but another has \(2, 3, 4\)"),
            ([ONE], [torch.zeros(1, 3, 4)], None, r"a teacher layer has shape \(1, 3, 4\)"),
            ([torch.zeros(3, 4)], [ONE], None, "a student layer has 2 dimensions"),
            ([ONE], [torch.zeros(2, 1, 3, 4)], None, "a teacher layer has 4 dimensions"),
            ([ONE], [ONE], torch.ones(2, 4), r"mask has shape \(2, 4\), the layers have \(2, 3\)"),
            ([ONE], [ONE], torch.ones(3), r"mask has shape \(3,\)"),
            ([ONE], [ONE], torch.zeros(2, 3), "mask keeps no position at all"),
            ([torch.zeros(0, 3, 4)], [torch.zeros(0, 3, 4)], None, "no position at all"),
            ([torch.zeros(2, 0, 4)], [torch.zeros(2, 0, 4)], None, "no position at all"),
        ],
    )
    def test_hidden(self, student: list[Tensor], teacher: list[Tensor], mask: Tensor | None, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            hidden_distances(student, teacher, mask)

    @pytest.mark.parametrize(
        ("student", "teacher", "mask", "message"),
        [
            ([], [PAIR], None, "there is no student layer"),
            ([PAIR], [], None, "there is no teacher layer"),
            (
                [(torch.zeros(2, 2, 3, 4), torch.zeros(2, 1, 3, 4))],
                [PAIR],
                None,
                r"a student query has shape \(2, 2, 3, 4\) but its key \(2, 1, 3, 4\)",
            ),
            ([PAIR], [(torch.zeros(2, 1, 3, 4), torch.zeros(2, 1, 3, 5))], None, "a teacher query has shape"),
            (
                [PAIR],
                [(torch.zeros(2, 1, 5, 4),) * 2],
                None,
                "a teacher layer has batch 2 and length 5, another 2 and 3",
            ),
            (
                [PAIR],
                [(torch.zeros(1, 1, 3, 4),) * 2],
                None,
                "a teacher layer has batch 1 and length 3, another 2 and 3",
            ),
            ([PAIR, (torch.zeros(2, 1, 5, 4),) * 2], [PAIR], None, "a student layer has batch 2 and length 5"),
            ([(torch.zeros(2, 3, 4),) * 2], [PAIR], None, "a student query has 3 dimensions"),
            ([PAIR], [PAIR], torch.ones(2, 4), r"mask has shape \(2, 4\), the layers have \(2, 3\)"),
            ([PAIR], [PAIR], torch.zeros(2, 3, dtype=torch.bool), "mask keeps no position at all"),
            ([(torch.zeros(0, 1, 3, 4),) * 2], [(torch.zeros(0, 1, 3, 4),) * 2], None, "no position at all"),
        ],
    )
    def test_attention(
        self, student: list[QueryKey], teacher: list[QueryKey], mask: Tensor | None, message: str
    ) -> None:
        with pytest.raises(ValueError, match=message):
            attention_distances(student, teacher, mask)


class TestLargeTensors:
    """Beyond the size up to which everything is float64: products and differences in float32, piece by piece."""

    NOISE = (None, 0.5, 1e-1, 1e-2, 1e-3)

    @staticmethod
    def mask(batch: int, length: int, kind: str) -> Tensor | None:
        if kind == "none":
            return None
        lengths = length - torch.arange(batch) * 3
        prefix = torch.arange(length) < lengths[:, None]
        return prefix if kind == "ragged" else prefix & (torch.arange(length) % 5 != 2)

    @staticmethod
    def check(found: Tensor, exact: Tensor, leaves_: Sequence[Sequence[Tensor]], loop: Tensor) -> None:
        ours, truth, plain = leaves_
        assert worst_relative(found, exact) < 1e-6
        weights = torch.rand(found.shape, generator=torch.Generator().manual_seed(3))
        for cost in (found, exact, loop):
            (weights.to(cost.dtype) * cost).sum().backward()
        assert_as_exact_as_the_loop(*([leaf.grad for leaf in each] for each in (ours, plain, truth)))

    @pytest.mark.parametrize("mask", ["none", "ragged", "holes"])
    @pytest.mark.parametrize("noise", NOISE)
    def test_hidden(self, noise: float | None, mask: str, route: str) -> None:
        teacher = [normal(i, 8, 70, 600, dtype=torch.float32) * (1 + i / 3) for i in range(3)]
        student = [
            normal(20 + i, *t.shape).float() if noise is None else noisy(t, noise, i) for i, t in enumerate(teacher[1:])
        ]
        keep = self.mask(8, 70, mask)
        each = leaves(student), leaves(student, torch.float64), leaves(student)
        self.check(
            hidden_distances(each[0], teacher, keep), reference.hidden_costs(each[1], teacher, keep), each,
            reference.hidden_costs(each[2], teacher, keep, torch.float32),
        )  # fmt: skip

    @pytest.mark.parametrize("mask", ["none", "ragged", "holes"])
    @pytest.mark.parametrize("noise", NOISE)
    @pytest.mark.parametrize(("length", "width"), [(90, 32), (210, 8)])  # by scores, by products
    def test_attention(self, length: int, width: int, noise: float | None, mask: str, route: str) -> None:
        shape = (5 if length < 100 else 3, 12, length, width)
        teacher = [tuple(normal(2 * i + k, *shape).float() * (1 + i / 3) for k in (0, 1)) for i in range(3)]
        student = [
            tuple(
                normal(20 + 2 * i + k, *shape).float() if noise is None else noisy(x, noise, 2 * i + k)
                for k, x in enumerate(pair)
            )
            for i, pair in enumerate(teacher[1:])
        ]
        keep = self.mask(shape[0], length, mask)
        each = leaves(student), leaves(student, torch.float64), leaves(student)
        self.check(
            attention_distances(paired(each[0]), teacher, keep),
            reference.attention_costs(paired(each[1]), teacher, keep), each,
            reference.attention_costs(paired(each[2]), teacher, keep, torch.float32),
        )  # fmt: skip

    @pytest.mark.parametrize("order", ["rising", "falling", "mixed"])
    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_rows_of_like_length_taken_together(self, dtype: torch.dtype, order: str) -> None:
        """Many short 16-bit rows, next to each other or not, some with padding between them and the longest."""
        lengths = torch.tensor([31, 31, 32, 33, 33, 35, 40, 40, 41, 7, 0, 12])
        lengths = lengths[
            {"rising": lengths.argsort(), "falling": lengths.argsort(descending=True)}.get(order, slice(None))
        ]
        keep = torch.arange(45) < lengths[:, None]
        keep[3, ::4] = False  # and one row with holes
        shape = (len(lengths), 12, 45, 32)
        layers = [tuple(normal(2 * i + k, *shape).to(dtype) * (1 + i / 2) for k in (0, 1)) for i in range(5)]
        student, teacher = layers[:2], layers[2:]
        exact = leaves(student, torch.float64)
        truth = reference.attention_costs(paired(exact), teacher, keep)
        for q, k in layers:
            q.transpose(1, 2)[~keep] = k.transpose(1, 2)[~keep] = math.nan
        ours = leaves(student)
        found = attention_distances(paired(ours), teacher, keep)
        assert worst_relative(found, truth) < 1e-6
        for cost in (found, truth):
            (weights_of_pairs(2, 3).to(cost.dtype) * cost).sum().backward()
        for one, other in zip(ours, exact, strict=True):
            resolution = torch.finfo(dtype).eps
            torch.testing.assert_close(one.grad.double(), other.grad, rtol=resolution, atol=resolution * 1e-3)

    def test_no_precision_setting_is_left_behind(self) -> None:
        """bfloat16 inputs are multiplied with a setting of the whole process."""
        one, other = normal(1, 256, 256, dtype=torch.float32), normal(2, 256, 256, dtype=torch.float32)
        before = one @ other
        layers = [tuple(normal(2 * i + k, 8, 12, 64, 16).bfloat16() for k in (0, 1)) for i in range(2)]
        flat = leaves(layers[:1])
        attention_distances(paired(flat), layers[1:]).sum().backward()
        assert torch.equal(one @ other, before)

    def test_head_averages(self, route: str) -> None:
        student = [tuple(normal(i + k, 3, 4, 320, 12).float() for k in (0, 1)) for i in (0, 2)]
        teacher = [tuple(normal(i + k, 3, 6, 320, 8).float() for k in (0, 1)) for i in (4, 6, 8)]
        keep = self.mask(3, 320, "ragged")
        each = leaves(student), leaves(student, torch.float64), leaves(student)
        self.check(
            attention_distances(paired(each[0]), teacher, keep),
            reference.attention_costs(paired(each[1]), teacher, keep), each,
            reference.attention_costs(paired(each[2]), teacher, keep, torch.float32),
        )  # fmt: skip

    @pytest.mark.parametrize("noise", [1e-2, 1e-3, 1e-4])
    def test_few_but_long_rows_keep_their_digits_too(self, noise: float) -> None:
        """Long enough for products, too few entries for the rounding of float32 scores to average out."""
        teacher = [tuple(normal(2 * i + k, 1, 2, 150, 4).float() for k in (0, 1)) for i in range(3)]
        student = [tuple(noisy(x, noise, 2 * i + k) for k, x in enumerate(pair)) for i, pair in enumerate(teacher[:2])]
        exact = reference.attention_costs(student, teacher)
        assert worst_relative(attention_distances(student, teacher), exact) < 1e-6
