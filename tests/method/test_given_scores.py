"""A teacher's attention scores in place of its queries and keys: the costs and gradients are those of the scores."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence

import pytest
import reference
import torch
from reference import normal
from torch import Tensor

from bert_emd.method import Features, Scores, attention_distances, attention_scores
from bert_emd.method.distances import attention_costs

QueryKey = tuple[Tensor, Tensor]


def layers(count: int, seed: int, shape: Sequence[int], dtype: torch.dtype) -> list[QueryKey]:
    drawn = [(normal(seed + 2 * i, *shape) * (1 + i), normal(seed + 2 * i + 1, *shape)) for i in range(count)]
    return [(q.to(dtype), k.to(dtype)) for q, k in drawn]


def a_mask(kind: str, batch: int, length: int) -> Tensor | None:
    """Rows of many lengths, in no order; holes are in some of them."""
    if kind == "none":
        return None
    lengths = [max(1, length - (5 * row) % length) for row in range(batch)]
    mask = (torch.arange(length) < torch.tensor(lengths)[:, None]).long()
    if kind == "holes":
        mask[::2, 0] = 0
        mask[::3, length // 2] = 0
    return mask


def given(teacher: Sequence[QueryKey], mask: Tensor | None, dtype: torch.dtype) -> tuple[Scores, list[Tensor]]:
    """What a cache would hold, text by text, and the same numbers as whole tensors [B, H, L, L], zero elsewhere."""
    whole = torch.stack([reference.attention_scores(q.double(), k.double()).to(dtype) for q, k in teacher])
    keep = torch.ones(whole.shape[1], whole.shape[3]).bool() if mask is None else mask.bool()
    rows = [whole[:, row][:, :, kept][:, :, :, kept] for row, kept in enumerate(keep)]
    return Scores(rows), list(whole.double() * (keep[:, None, :, None] & keep[:, None, None, :]))


def loop(student: Sequence[QueryKey], scores: Sequence[Tensor], mask: Tensor | None, dtype: torch.dtype) -> Tensor:
    """One mean squared error a pair over kept query-key pairs; head averages where head counts differ."""
    average = student[0][0].shape[1] != scores[0].shape[1]
    rows = []
    for q, k in student:
        ours, row = reference.attention_scores(q.to(dtype), k.to(dtype)), []
        for theirs in scores:
            a, b = (x.mean(1, keepdim=True) if average else x for x in (ours, theirs.to(dtype)))
            keep = None if mask is None else (mask[:, None, :, None] * mask[:, None, None, :]).bool().expand_as(a)
            row.append(reference.mean_squared_error(a, b, keep))
        rows.append(torch.stack(row))
    return torch.stack(rows)


SMALL, LARGE, SHORT = (5, 2, 7, 3), (9, 4, 150, 4), (70, 3, 40, 4)


@pytest.mark.parametrize("heads", [0, 1], ids=["same heads", "head averages"])
@pytest.mark.parametrize("mask", ["none", "ragged", "holes"])
@pytest.mark.parametrize("shape", [SMALL, LARGE, SHORT], ids=["small", "large", "short rows"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("kept", [torch.float16, torch.float32], ids=str)
def test_costs_and_gradients_are_those_of_the_scores(
    shape: tuple[int, ...], mask: str, heads: int, dtype: torch.dtype, kept: torch.dtype
) -> None:
    batch, count, length, width = shape
    student, teacher = layers(2, 0, shape, dtype), layers(3, 50, (batch, count + heads, length, 8), torch.float32)
    keep = a_mask(mask, batch, length)
    scores, whole = given(teacher, keep, kept)
    weights = normal(99, 2, 3)

    flat = [t.clone().requires_grad_() for pair in student for t in pair]
    found = attention_costs(list(zip(flat[::2], flat[1::2], strict=True)), scores, keep, squares=True)
    (found.D * weights).sum().backward()
    exact = [t.double().clone().requires_grad_() for pair in student for t in pair]
    truth = loop(list(zip(exact[::2], exact[1::2], strict=True)), whole, keep, torch.float64)
    (truth * weights).sum().backward()

    rtol = 1e-12 if dtype == torch.float64 else 1e-6
    torch.testing.assert_close(found.D.double(), truth, rtol=rtol, atol=0)
    zero = [(torch.zeros(batch, count, length, width, dtype=torch.float64),) * 2]
    torch.testing.assert_close(found.squares, loop(zero, whole, keep, torch.float64)[0], rtol=2e-6, atol=0)
    resolution = 1e-4 if dtype != torch.bfloat16 else torch.finfo(dtype).eps
    for ours, theirs in zip(flat, exact, strict=True):
        assert ours.grad.dtype == dtype
        slack = 1e-5 * float(theirs.grad.abs().max())
        torch.testing.assert_close(ours.grad.double(), theirs.grad, rtol=resolution, atol=slack)


@pytest.mark.parametrize("only", [None, (1, 2, 5)], ids=["all layers", "some layers"])
@pytest.mark.parametrize("noise", [1e-1, 1e-2, 1e-3])
@pytest.mark.parametrize("shape", [SMALL, SHORT], ids=["small", "large"])
def test_they_keep_their_digits_where_student_and_teacher_nearly_agree(
    shape: tuple[int, ...], noise: float, only: tuple[int, ...] | None
) -> None:
    teacher = layers(3, 50, shape, torch.float32)
    noisy = [
        ((q * (1 + noise * normal(7, *shape))).float(), (k * (1 + noise * normal(8, *shape))).float())
        for q, k in teacher[:2]
    ]
    keep = a_mask("ragged", shape[0], shape[2])
    scores, whole = given(teacher, keep, torch.float32)
    truth = loop(noisy, whole, keep, torch.float64)
    found = attention_distances(noisy, Scores(scores.rows, only), keep)
    torch.testing.assert_close(found.double(), truth, rtol=1e-6, atol=0)


def test_over_many_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    pieces = sys.modules["bert_emd.method.attention_pieces"]
    monkeypatch.setattr(pieces, "_PIECE", {"cpu": 1 << 12, "other": 1 << 12})
    monkeypatch.setattr(pieces, "_PIECE_OF_ROW", 1 << 12)
    student, teacher = layers(2, 0, SHORT, torch.float32), layers(3, 50, SHORT, torch.float32)
    keep = a_mask("holes", SHORT[0], SHORT[2])
    scores, whole = given(teacher, keep, torch.float16)
    flat = [t.clone().requires_grad_() for pair in student for t in pair]
    found = attention_distances(list(zip(flat[::2], flat[1::2], strict=True)), scores, keep)
    found[:, 1].sum().backward()
    exact = [t.double().clone().requires_grad_() for pair in student for t in pair]
    truth = loop(list(zip(exact[::2], exact[1::2], strict=True)), whole, keep, torch.float64)
    truth[:, 1].sum().backward()
    torch.testing.assert_close(found.double(), truth, rtol=1e-6, atol=0)
    for ours, theirs in zip(flat, exact, strict=True):
        slack = 1e-5 * float(theirs.grad.abs().max())
        torch.testing.assert_close(ours.grad.double(), theirs.grad, rtol=1e-4, atol=slack)


def test_attention_scores_are_the_products_of_what_bfloat16_holds() -> None:
    """Products of 16-bit numbers are float32 numbers: only the sums are rounded."""
    query, key = layers(1, 0, (6, 4, 40, 32), torch.bfloat16)[0]
    truth = reference.attention_scores(query.double(), key.double())
    with torch.autocast("cpu", torch.bfloat16):
        found = attention_scores(query, key)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), truth, rtol=1e-5, atol=1e-5 * float(truth.abs().max()))
    assert (found.double() - truth).abs().max() < 2.0**-9 * truth.abs().max() / 16  # far below 16 bits' own rounding


@pytest.mark.parametrize("only", [(1, 3), None], ids=["some layers", "all"])
def test_one_layer_of_them(only: tuple[int, ...] | None) -> None:
    """What mappings take that compare one pair of layers at a time."""
    student, teacher = layers(1, 0, SMALL, torch.float32), layers(4, 50, SMALL, torch.float32)
    keep = a_mask("holes", SMALL[0], SMALL[2])
    scores, whole = given([teacher[j] for j in only or range(4)], keep, torch.float32)
    features = Features(attention=scores).spread(only)
    for place, j in enumerate(only or range(4)):
        truth = loop(student, whole[place : place + 1], keep, torch.float64)
        found = attention_distances(student, features.attention.layer(j), keep)
        torch.testing.assert_close(found.double(), truth, rtol=1e-6, atol=0)


def test_layers_that_are_not_there() -> None:
    scores = Scores([torch.zeros(2, 1, 3, 3)])
    for place in (-1, 2):
        with pytest.raises(IndexError, match="among 2"):
            scores.at(place)
    with pytest.raises(TypeError):
        list(scores)  # no sequence: an index could mean a place or a layer of the model


def test_what_cannot_be_compared_is_refused() -> None:
    (student,) = layers(1, 0, (2, 2, 3, 4), torch.float32)
    one = Scores([torch.zeros(1, 2, 3, 3)] * 2)
    for scores, mask, message in (
        (
            Scores([torch.zeros(1, 2, 3, 3)]),
            None,
            r"the teacher's scores are \[\(1, 2, 3, 3\)\], and the kept positions",
        ),
        (Scores([torch.zeros(2, 3, 3)] * 2), None, r"the teacher's scores are \[\(2, 3, 3\)"),
        (one, torch.tensor([[1, 1, 1], [1, 1, 0]]), r"kept positions of the texts \[3, 2\]"),
        (one, torch.zeros(2, 3), "mask keeps no position at all"),
    ):
        with pytest.raises(ValueError, match=message):
            attention_distances([student], scores, mask)
    on_meta = (student[0].to("meta"), student[1].to("meta"))
    with pytest.raises(ValueError, match="on a CPU"):
        attention_distances([on_meta], one)
    assert math.isfinite(attention_distances([student], one).item())
