"""All-pairs distances between the layers of a student and of a teacher.

Legend: B batch, L tokens, D width, H heads, d head width, M student layers, N teacher layers, P positions kept by the
mask. Both functions stream over pieces of the batch that fit a cache, take exact differences (an expansion into norms
and products loses its digits where student and teacher nearly agree) and add them up in float64. Nothing of size M·N
times a tensor is kept for backward: the pieces are recomputed, and only pairs with a gradient are visited.
"""

from __future__ import annotations

from collections.abc import Sequence, Sized
from dataclasses import dataclass

import torch
from torch import Tensor

from bert_emd.method.attention import AttentionDistances
from bert_emd.method.hidden import streamed_hidden_distances
from bert_emd.method.projected import State
from bert_emd.method.scores import QueryKey, Scores

__all__ = ["LayerCosts", "attention_costs", "attention_distances", "hidden_costs", "hidden_distances"]


@dataclass(frozen=True)
class LayerCosts:
    """All-pairs distances, and how large the teacher's own layers are: what relative costs are measured in."""

    D: Tensor
    """[M, N], differentiable."""
    squares: Tensor | None
    r"""The mean square of each teacher layer over what D's mean runs over, [N] float64, a constant; None if not asked.

    .. math:: s_j = \operatorname{mean}\,T_j^2, \qquad s_j = \operatorname{mean}\,(A^T_j)^2
    """


def hidden_distances(
    student: Sequence[State], teacher: Sequence[Tensor], mask: Tensor | None = None, *, look: bool = True
) -> Tensor:
    r"""Mean squared error between every student layer and every teacher layer.

    .. math:: D_{ij} = \frac{1}{P \cdot D} \sum_{p, k} (S_{i,p,k} - T_{j,p,k})^2

    Args:
        student: M tensors [B, L, D], or `Projected` ones of this shape. Differentiable.
        teacher: N tensors [B, L, D]. Constants.
        mask: [B, L], true = keep; the P positions kept are what the mean runs over. None keeps all.
        look: False spares a GPU the wait for the check that the mask keeps anything; costs are NaN if it does not.

    Returns:
        D, [M, N], float32 (float64 for float64 input).

    Raises:
        ValueError: unequal widths or shapes, no layer, or a mask that keeps nothing.

    >>> hidden_distances([torch.zeros(1, 2, 3)], [torch.ones(1, 2, 3), 2 * torch.ones(1, 2, 3)])
    tensor([[1., 4.]])

    Source: Li et al., EMNLP 2020, section 3.2.
    """
    return hidden_costs(student, teacher, mask, look=look).D


def hidden_costs(
    student: Sequence[State],
    teacher: Sequence[Tensor],
    mask: Tensor | None = None,
    *,
    look: bool = True,
    squares: bool = False,
) -> LayerCosts:
    """`hidden_distances`, and with ``squares`` the mean squares of the teacher's layers from the same pass.

    >>> hidden_costs([torch.zeros(1, 1, 4)], [torch.ones(1, 1, 4)], squares=True)
    LayerCosts(D=tensor([[1.]]), squares=tensor([1.], dtype=torch.float64))
    """
    _check_layers(student, teacher)
    shape = student[0].shape
    for name, layer in [("student", s) for s in student] + [("teacher", t) for t in teacher]:
        if len(layer.shape) != 3:
            raise ValueError(
                f"a {name} layer has {len(layer.shape)} dimensions; hidden states are [batch, tokens, width]"
            )
        if layer.shape[-1] != shape[-1]:
            raise ValueError(
                f"a {name} layer is {layer.shape[-1]} wide but another is {shape[-1]}; project the student's first"
            )
        if layer.shape != shape:
            raise ValueError(f"a {name} layer has shape {tuple(layer.shape)} but another has {tuple(shape)}")
    mask = _check_mask(mask, shape[:2], teacher[0].device, look=look)
    return LayerCosts(*streamed_hidden_distances(student, teacher, mask, squares=squares))


def attention_distances(
    student: Sequence[QueryKey],
    teacher: Sequence[QueryKey] | Scores,
    mask: Tensor | None = None,
    *,
    look: bool = True,
) -> Tensor:
    r"""Mean squared error between the attention scores of every student layer and every teacher layer.

    .. math:: A = Q K^\top / \sqrt{d}, \qquad D_{ij} = \operatorname{mean}\,(A^S_i - A^T_j)^2

    over batch, heads and the query-key pairs that the mask keeps on both sides, before any softmax.
    Where head counts differ anywhere, the head averages of the scores are compared instead.

    Args:
        student: M pairs (query, key), each [B, H, L, d]. Differentiable in both.
        teacher: N pairs (query, key), each [B, H', L, d'], or on a CPU `Scores`. Constants.
        mask: [B, L], true = keep. None keeps all.
        look: as in `hidden_distances`.

    Returns:
        D, [M, N], float32 (float64 for float64 input).

    Raises:
        ValueError: unequal batch or length, no layer, or a mask that keeps nothing.

    >>> one, two = torch.ones(1, 1, 1, 4), 2 * torch.ones(1, 1, 1, 4)  # scores 4/2 = 2 and 8/2 = 4
    >>> attention_distances([(one, one)], [(one, one), (one, two)])
    tensor([[0., 4.]])

    Source: Li et al., EMNLP 2020, section 3.2.
    """
    return attention_costs(student, teacher, mask, look=look).D


def attention_costs(
    student: Sequence[QueryKey],
    teacher: Sequence[QueryKey] | Scores,
    mask: Tensor | None = None,
    *,
    look: bool = True,
    squares: bool = False,
) -> LayerCosts:
    """`attention_distances`, and with ``squares`` the mean squares of the teacher's scores from the same pass.

    >>> one, two = torch.ones(1, 1, 1, 4), 2 * torch.ones(1, 1, 1, 4)  # scores 4/2 = 2 and 8/2 = 4
    >>> attention_costs([(one, one)], [(one, two)], squares=True)
    LayerCosts(D=tensor([[4.]]), squares=tensor([16.], dtype=torch.float64))
    """
    _check_layers(student, teacher)
    first = student[0][0]
    batch, length = first.shape[0], first.shape[-2]
    given, pairs = (teacher, ()) if isinstance(teacher, Scores) else (None, teacher)
    for name, layers in (("student", student), ("teacher", pairs)):
        for q, k in layers:
            if q.dim() != 4:
                raise ValueError(
                    f"a {name} query has {q.dim()} dimensions; they are [batch, heads, tokens, head width]"
                )
            if q.shape != k.shape:
                raise ValueError(f"a {name} query has shape {tuple(q.shape)} but its key {tuple(k.shape)}")
            if (q.shape[0], q.shape[2]) != (batch, length):
                raise ValueError(
                    f"a {name} layer has batch {q.shape[0]} and length {q.shape[2]}, another {batch} and {length}"
                )
    mask = _check_mask(mask, (batch, length), first.device, look=look)
    heads = {q.shape[1] for q, _ in (*student, *pairs)}
    if given is not None:
        _check_scores(given, mask, first)
        heads.add(given.heads)
    flat = [tensor for pair in (*student, *pairs) for tensor in pair]
    return LayerCosts(*AttentionDistances.apply(mask, len(student), len(heads) > 1, squares, given, *flat))  # type: ignore[no-untyped-call]


def _check_scores(given: Scores, mask: Tensor | None, like: Tensor) -> None:
    """Scores [N, H, l, l] of all kept positions of every text."""
    if like.device.type != "cpu":
        raise ValueError("scores in place of queries and keys are compared on a CPU alone")
    lengths = [like.shape[-2]] * len(like) if mask is None else mask.bool().sum(1).tolist()
    found = [tuple(row.shape) for row in given.rows]
    if found != [(len(given), given.heads, length, length) for length in lengths]:
        raise ValueError(f"the teacher's scores are {found}, and the kept positions of the texts {lengths}")


def _check_layers(student: Sized, teacher: Sized) -> None:
    for name, layers in (("student", student), ("teacher", teacher)):
        if len(layers) == 0:
            raise ValueError(f"there is no {name} layer to compare")


def _check_mask(mask: Tensor | None, shape: Sequence[int], device: torch.device, *, look: bool) -> Tensor | None:
    """The mask on the layers' device, with at least one position kept."""
    if mask is None:
        if 0 in shape:
            raise ValueError("the layers hold no position at all")
        return None
    if tuple(mask.shape) != tuple(shape):
        raise ValueError(f"mask has shape {tuple(mask.shape)}, the layers have {tuple(shape)}")
    if (look or mask.device.type == "cpu") and not bool(mask.any()):
        raise ValueError("mask keeps no position at all")
    return mask.to(device)
