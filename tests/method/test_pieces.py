"""Batches in many small pieces: the same costs and gradients as the loops over whole tensors."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from functools import partial

import pytest
import reference
import torch
from torch import Tensor

from bert_emd.method import Projected, Scores, attention_distances, hidden_distances
from bert_emd.method.attention_pieces import Pieces
from bert_emd.method.hidden_pieces import Rows

BATCH, LENGTH, HEADS, WIDTH = 6, 24, 3, 8
MASK = (torch.arange(LENGTH) < torch.tensor([24, 20, 20, 13, 24, 6])[:, None]).long()
SCATTERED = (torch.arange(LENGTH) < torch.tensor([6, 24, 5, 7, 9, 6])[:, None]).long()
FEW = (torch.arange(LENGTH) < torch.tensor([24, 24, 20, 24, 24, 22])[:, None]).long()
HOLES = MASK * (torch.arange(LENGTH) % 4 != 1)


normal = partial(reference.normal, dtype=torch.float32)


@pytest.fixture(autouse=True)
def _small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    pieces = sys.modules["bert_emd.method.attention_pieces"]
    monkeypatch.setattr(pieces, "_PIECE", {"cpu": 1 << 12, "other": 1 << 12})
    monkeypatch.setattr(pieces, "_PIECE_OF_ROW", 1 << 12)
    monkeypatch.setattr(pieces, "_PIECE_OF_PRODUCTS", 1 << 12)
    monkeypatch.setattr(sys.modules["bert_emd.method.hidden_pieces"], "_MOST_ROWS", {"cpu": 16, "other": 16})
    # The differences of a few rows at a time.
    monkeypatch.setattr(sys.modules["bert_emd.method.pair_sums"], "_AT_ONCE", 1 << 12)


Costs = Callable[[Sequence[Tensor]], Tensor]


def attention(
    mask: Tensor | None, teachers: int, *, width: int = WIDTH, given: bool = False, dtype: torch.dtype = torch.float32
) -> tuple[list[Tensor], Costs, Costs]:
    student = [(normal(i, BATCH, HEADS, LENGTH, width) * (1 + i)).to(dtype) for i in range(6)]
    shape = BATCH, HEADS, LENGTH, WIDTH
    teacher = [(normal(9 + i, *shape).to(dtype), normal(19 + i, *shape).to(dtype)) for i in range(1, teachers + 1)]
    there: Sequence[tuple[Tensor, Tensor]] | Scores = teacher
    if given:
        keep = torch.ones(BATCH, LENGTH) if mask is None else mask
        whole = torch.stack([reference.attention_scores(q, k) for q, k in teacher])
        there = Scores([whole[:, row][:, :, kept][:, :, :, kept] for row, kept in enumerate(keep.bool())])

    def pairs(x: Sequence[Tensor]) -> list[tuple[Tensor, Tensor]]:
        return list(zip(x[::2], x[1::2], strict=True))

    pieces = list(Pieces(mask, pairs(student), there, False))
    assert len(pieces) >= (BATCH if mask is not SCATTERED else 2)
    if mask is HOLES or dtype == torch.bfloat16:
        # A row's heads, copied, in several pieces.
        assert any(piece.heads.stop - piece.heads.start < HEADS for piece in pieces)
    assert any(piece.index is not None for piece in pieces) == (mask is HOLES)
    return (
        student,
        lambda x: attention_distances(pairs(x), there, mask),
        lambda x: reference.attention_costs(pairs(x), teacher, mask),
    )


def hidden(mask: Tensor | None, teachers: int, *, narrow: int = 0) -> tuple[list[Tensor], Costs, Costs]:
    """With a projection, ``narrow`` wide before it: kept for the backward pass where there are many teacher layers."""
    student = [normal(40 + i, BATCH, LENGTH, narrow or WIDTH) * (1 + i) for i in range(2)]
    teacher = [normal(50 + i, BATCH, LENGTH, WIDTH) for i in range(teachers)]
    projection = [normal(60, WIDTH, narrow), normal(61, WIDTH)] if narrow else []
    rows = Rows(mask, teacher[0], 2 + teachers, torch.float32)
    assert len(list(rows.pieces())) > 3
    assert not rows.padded or {len(part) for part in rows.padded} > {0}

    def loop(x: Sequence[Tensor]) -> Tensor:
        wide = [s @ x[2].T + x[3] for s in x[:2]] if narrow else list(x)
        return reference.hidden_costs(wide, [t.double() for t in teacher], mask)

    return (
        [*student, *projection],
        lambda x: hidden_distances([Projected(s, x[2], x[3]) for s in x[:2]] if narrow else x, teacher, mask),
        loop,
    )


CASES = {
    "attention": attention,
    "hidden": hidden,
    "projected": partial(hidden, narrow=5),
    "other width": partial(attention, width=5),
    "given scores": partial(attention, given=True),
    "bfloat16": partial(attention, dtype=torch.bfloat16),
}


@pytest.mark.parametrize("teachers", [2, 7])
@pytest.mark.parametrize("every", [1, 3], ids=["all pairs", "every third pair"])
@pytest.mark.parametrize(
    "mask", [None, MASK, SCATTERED, HOLES, FEW], ids=["no mask", "mask", "scattered", "holes", "few"]
)
@pytest.mark.parametrize("case", CASES)
def test_costs_and_gradients_are_the_loops(case: str, mask: Tensor | None, every: int, teachers: int) -> None:
    """With weights for few pairs, as a plan has, and for all."""
    leaves, ours, loop = CASES[case](mask, teachers)
    leaves = [leaf.requires_grad_() for leaf in leaves]
    exact = [leaf.detach().double().requires_grad_() for leaf in leaves]
    found, truth = ours(leaves), loop(exact)
    weights = normal(77, *found.shape)
    weights.view(-1)[torch.arange(weights.numel()) % every != 0] = 0
    (found * weights).sum().backward()
    (truth * weights).sum().backward()
    torch.testing.assert_close(found.double(), truth, rtol=1e-6, atol=0)
    for a, b in zip(leaves, exact, strict=True):
        resolution = 1e-5 if a.dtype == torch.float32 else torch.finfo(a.dtype).eps
        torch.testing.assert_close(a.grad.double(), b.grad, rtol=resolution, atol=1e-5 * float(b.grad.abs().max()))

    again = [leaf.detach().clone().requires_grad_() for leaf in leaves]
    second = ours(again)
    (second * weights).sum().backward()
    assert torch.equal(second, found)
    assert all(torch.equal(a.grad, b.grad) for a, b in zip(again, leaves, strict=True))


@pytest.mark.parametrize(("dtype", "width"), [(torch.float32, 4), (torch.bfloat16, 16)])
def test_long_rows_by_products(dtype: torch.dtype, width: int) -> None:
    """Rows so long that no score is made, a head or two a piece."""
    shape = 3, 2, 380, width
    student = [normal(i, *shape).to(dtype).requires_grad_() for i in range(2)]
    teacher = [(normal(i, *shape).to(dtype), normal(i + 1, *shape).to(dtype)) for i in (5, 7)]
    assert all(piece.products for piece in Pieces(None, [tuple(student)], teacher, False))
    exact = [s.detach().double().requires_grad_() for s in student]
    found = attention_distances([tuple(student)], teacher)
    truth = reference.attention_costs([tuple(exact)], teacher)
    found.sum().backward()
    truth.sum().backward()
    torch.testing.assert_close(found.double(), truth, rtol=1e-6, atol=0)
    resolution = max(1e-4, torch.finfo(dtype).eps)
    for a, b in zip(student, exact, strict=True):
        torch.testing.assert_close(a.grad.double(), b.grad, rtol=resolution, atol=1e-5 * float(b.grad.abs().max()))


def test_in_inference_mode() -> None:
    leaves, ours, _ = attention(MASK, 2)
    expected = ours(leaves)
    with torch.inference_mode():
        assert torch.equal(ours(leaves), expected)
