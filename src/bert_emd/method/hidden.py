"""The hidden distances and their gradient, streamed over pieces of rows that fit a cache.

Layers that have yet to be projected are projected piece by piece as well. Their rows are kept for backward in the 16
bits of autocast, and in float32 where they are few against the teacher's; elsewhere they are projected again.

Legend: B batch, L tokens, d student width, D teacher width,
M student layers, N teacher layers, R rows of a piece, m layers of a run (student layers that follow each other and
share a projection, or have none).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import Any

import torch
from torch import Tensor

from bert_emd.method.hidden_pieces import Rows, Space
from bert_emd.method.pair_sums import pair_sums, result_dtype, used_layers
from bert_emd.method.projected import Projected, State

__all__ = ["streamed_hidden_distances"]

# What is there for a run's weight, bias and states.
_Parts = tuple[Any, Any, Sequence[Any]]
# Below this part of the norms the rounding of a float32 projection shows in a cost.
_ROUNDED = 3e-4
# In float32 projected rows are kept where the teacher has so many times as many layers, which are there anyway.
_MANY_TIMES = 3


def streamed_hidden_distances(
    student: Sequence[State], teacher: Sequence[Tensor], mask: Tensor | None, *, squares: bool = False
) -> tuple[Tensor, Tensor | None]:
    """D_ij of `bert_emd.method.hidden_distances` for checked input, and the teacher's mean squares where wanted."""
    lengths: list[int] = []
    tensors: list[Tensor | None] = []
    for _, group in groupby(student, lambda s: (id(s.weight), id(s.bias)) if isinstance(s, Projected) else None):
        run = list(group)
        lengths.append(len(run))
        tensors += [run[0].weight, run[0].bias] if isinstance(run[0], Projected) else [None, None]
        tensors += [s.state if isinstance(s, Projected) else s for s in run]
    device = teacher[0].device.type
    autocast = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
    follows = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)
    return _HiddenDistances.apply(mask, autocast, squares, follows, lengths, *tensors, *teacher)  # type: ignore[no-any-return, no-untyped-call]


class _HiddenDistances(torch.autograd.Function):
    """Arguments: mask [B, L] or None, the dtype of autocast or None, whether the teacher's mean squares are wanted
    (they are None if not), whether a backward pass follows, the lengths m of the runs, and the tensors.

    The tensors are weight, bias (None without a projection) and states of each run, then the teacher's states.
    """

    @staticmethod
    def forward(
        ctx: Any,
        mask: Tensor | None,
        autocast: torch.dtype | None,
        squares: bool,
        follows: bool,
        lengths: list[int],
        *tensors: Any,
    ) -> Any:
        ctx.lengths, ctx.autocast = lengths, autocast
        of_runs, teacher = _parted(tensors, lengths)
        dtype = result_dtype([t for t in tensors if t is not None])
        rows = ctx.rows = Rows(mask, teacher[0], sum(lengths) + len(teacher), dtype)
        ctx.count = rows.count * rows.width
        keeps = follows and _keeps(rows, autocast, of_runs, len(teacher))
        wide = [_kept_of(rows, autocast, *parts) if keeps else None for parts in of_runs]
        with torch.autocast(rows.device.type, enabled=False):
            found = _totals(rows, autocast, of_runs, wide, teacher, squares)
            if found is None:
                wide = [None for _ in of_runs]
                found = _totals(rows.precise(), autocast, of_runs, wide, teacher, squares)
        assert found is not None
        total_MN, squares_N = found
        ctx.save_for_backward(*wide, *tensors)
        if squares_N is not None:
            squares_N /= ctx.count
            ctx.mark_non_differentiable(squares_N)
        return (total_MN / ctx.count).to(dtype), squares_N

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        saved, runs_count = ctx.saved_tensors, len(ctx.lengths)
        wide, (of_runs, teacher) = saved[:runs_count], _parted(saved[runs_count:], ctx.lengths)
        asked, _ = _parted(ctx.needs_input_grad[5:], ctx.lengths)
        # d D_ij / d Y_i = 2/count (Y_i - T_j)
        scale_MN = grad_outputs[0].double() * 2.0 / ctx.count
        rows = ctx.rows
        used = used_layers(scale_MN)
        # A list of places would have to travel to a device.
        mixed, weights_MN = [teacher[j] for j in used], scale_MN if len(used) == len(teacher) else scale_MN[:, used]
        states = [
            [rows.new_like(s) if wanted else None for s, wanted in zip(parts[2], flags[2], strict=True)]
            for parts, flags in zip(of_runs, asked, strict=True)
        ]
        with torch.autocast(rows.device.type, enabled=False):
            runs = [_Run(rows, ctx.autocast, *parts, kept) for parts, kept in zip(of_runs, wide, strict=True)]
            found = [_Gradients(run, *flags[:2], own) for run, flags, own in zip(runs, asked, states, strict=True)]
            mix = _Mix(rows, runs, weights_MN)
            for piece in rows.pieces():
                for gradient, wide_mRD in zip(found, torch.split(mix.of(mixed, piece), ctx.lengths), strict=True):
                    gradient.add(wide_mRD, piece)
        return (None, None, None, None, None, *(g for own in found for g in own.all()), *[None] * len(teacher))


def _totals(
    rows: Rows,
    autocast: torch.dtype | None,
    of_runs: list[_Parts],
    wide: Sequence[Tensor | None],
    teacher: Sequence[Tensor],
    squares: bool,
) -> tuple[Tensor, Tensor | None] | None:
    """Σ (y - t)² of all pairs, [M, N] float64, and Σ t², [N] float64, where it is wanted.

    None where a float32 projection would round too much of these sums away, as far as a CPU's first piece tells.
    """
    m, n = sum(len(states) for _, _, states in of_runs), len(teacher)
    projects = any(weight is not None for weight, _, _ in of_runs)
    # Where it is no wait: whether a float32 projection is exact enough for these costs.
    look = projects and autocast is None and rows.on_cpu and rows.dtype == torch.float32
    runs = [_Run(rows, autocast, *parts, own) for parts, own in zip(of_runs, wide, strict=True)]
    total_MN = torch.zeros(m, n, dtype=torch.float64, device=rows.device)
    squares_N = torch.zeros_like(total_MN[0]) if squares else None
    space = Space(rows, m + n, rows.width, rows.dtype)
    for piece in rows.pieces():
        layers = space.of(piece)
        for run, wide_mRD in zip(runs, torch.split(layers[:m], [len(run.states) for run in runs]), strict=True):
            run.project(wide_mRD, piece)
        rows.take(teacher, piece, layers[m:])
        stacked = layers.flatten(1)
        total_MN += pair_sums(stacked[:m], stacked[m:], small=rows.small, squares_N=squares_N)
        if look and piece.start == 0:
            norms = torch.linalg.vector_norm(stacked, dim=1).double().square()
            if (total_MN < _ROUNDED * (norms[:m, None] + norms[m:])).any():
                return None
    return total_MN, squares_N


def _keeps(rows: Rows, autocast: torch.dtype | None, of_runs: Sequence[_Parts], n: int) -> bool:
    """Whether backward finds the projected rows: in 16 bits, or where they are few; else it projects again."""
    m = sum(len(states) for weight, _, states in of_runs if weight is not None)
    return rows.dtype != torch.float64 and (autocast is not None or _MANY_TIMES * m <= n)


def _kept_of(
    rows: Rows, autocast: torch.dtype | None, weight: Tensor | None, bias: Tensor | None, states: Sequence[Tensor]
) -> Tensor | None:
    """Room for a run's projected rows, piece after piece."""
    if weight is None:
        return None
    return torch.empty(len(states) * rows.total * rows.width, dtype=autocast or rows.dtype, device=rows.device)


def _parted(flat: Sequence[Any], lengths: list[int]) -> tuple[list[_Parts], Sequence[Any]]:
    """What is there for each tensor, as (weight, bias, states) of each run, and the teacher's."""
    parts = []
    for length in lengths:
        parts.append((flat[0], flat[1], flat[2 : 2 + length]))
        flat = flat[2 + length :]
    return parts, flat


class _Mix:
    """G_i = Σ_j g_ij (Y_i - T_j) of a piece.

    A sum y Σ g - Σ g t loses digits where student and teacher nearly agree: it serves projected states, where the
    projection has rounded as many before. Elsewhere the differences are taken. Either goes over one teacher layer after
    the other: a plan has few weights, so that costs less than a product with all layers, which would have to be copied
    together for it.
    """

    def __init__(self, rows: Rows, runs: Sequence[_Run], weights_MN: Tensor) -> None:
        self.rows, self.runs, self.weights_MN = rows, runs, weights_MN
        projected = [run.projects for run in runs for _ in run.states]
        self.projected_M = torch.tensor(projected, device=rows.device)
        self.own_M = torch.where(self.projected_M, weights_MN.sum(1), 0.0).to(rows.dtype)[:, None, None]
        self.teacher_room = Space(rows, 1, rows.width, rows.dtype)
        self.total = Space(rows, len(projected), rows.width, rows.dtype)
        # Room for Y, where its differences are taken; elsewhere G grows out of it.
        self.student_room = self.total if all(projected) else Space(rows, len(projected), rows.width, rows.dtype)
        self.users: list[list[tuple[int, float, bool]]] = []
        """Of each of the teacher's layers, on a CPU: the i with a weight, the weight, and whether i is projected."""
        if rows.on_cpu:
            self.users = [[(i, w, projected[i]) for i, w in enumerate(column) if w] for column in weights_MN.T.tolist()]

    def of(self, teacher: Sequence[Tensor], piece: slice) -> Tensor:
        """[M, R, D], of the teacher's layers that have a weight; the next piece overwrites it."""
        student_MRD, total_MRD = self.student_room.of(piece), self.total.of(piece)
        counts = [len(run.states) for run in self.runs]
        for run, wide_mRD in zip(self.runs, torch.split(student_MRD, counts), strict=True):
            run.project(wide_mRD, piece, again=True)
        torch.mul(student_MRD, self.own_M, out=total_MRD)
        taken = (self.rows.view(layer, piece, self.teacher_room.of(piece)) for layer in teacher)
        if self.rows.on_cpu:
            totals, student = total_MRD.unbind(0), student_MRD.unbind(0)
            for t, users in zip(taken, self.users, strict=True):
                _subtract(totals, student, t, users)
            return total_MRD
        s_MRD = torch.where(self.projected_M[:, None, None], 0.0, student_MRD)
        for t, weights_M in zip(taken, self.weights_MN.T, strict=True):
            total_MRD.addcmul_(s_MRD - t, weights_M[:, None, None].to(t.dtype))
        return total_MRD


def _subtract(
    totals: Sequence[Tensor], student: Sequence[Tensor], t: Tensor, users: Sequence[tuple[int, float, bool]]
) -> None:
    """Add g_i (s_i - t), or -g_i t where s_i Σ g is in the total already: for projected states."""
    difference: Tensor | None = None
    for i, weight, projected in users:
        if projected:
            totals[i].sub_(t, alpha=weight)
        else:
            difference = torch.sub(student[i], t, out=torch.empty_like(t) if difference is None else difference)
            totals[i].add_(difference, alpha=weight)


class _Run:
    """The layers of a run in the teacher's width: Y = S Wᵀ + b, or S itself; ``wide``: `_kept_of` its rows or None."""

    def __init__(
        self,
        rows: Rows,
        autocast: torch.dtype | None,
        weight: Tensor | None,
        bias: Tensor | None,
        states: Any,
        wide: Tensor | None,
    ) -> None:
        self.rows, self.weight, self.bias, self.states, self.wide = rows, weight, bias, states, wide
        # In what torch.nn.Linear would multiply: autocast leaves float64 alone.
        self.dtype = rows.dtype if autocast is None or rows.dtype == torch.float64 else autocast
        self.projects = weight is not None
        if weight is not None:
            self.matrix = weight.to(self.dtype)
            self.offset = self.matrix.new_zeros(len(weight)) if bias is None else bias.to(self.dtype)
            self.space = Space(rows, len(states), weight.shape[1], self.dtype)

    def project(self, wide_mRD: Tensor, piece: slice, *, again: bool = False) -> None:
        """Make the rows of a piece; ``again``: those that were made before, and the narrow ones."""
        if self.weight is None:
            self.rows.take(self.states, piece, wide_mRD)
            return
        self.rows.take(self.states, piece, self.space.of(piece))
        flat, kept = wide_mRD.flatten(0, 1), self._kept(piece)
        if kept is not None and again:
            flat.copy_(kept)
        else:
            # In a space that is used again where it can be: the room to keep is memory not in any cache.
            direct = flat.dtype == self.dtype
            made = torch.addmm(self.offset, self.narrow(piece), self.matrix.t(), out=flat if direct else kept)
            if not direct:
                flat.copy_(made)
            elif kept is not None:
                kept.copy_(made)
        self.rows.blank(wide_mRD, piece)

    def _kept(self, piece: slice) -> Tensor | None:
        """[m·R, D] of what is kept."""
        if self.wide is None:
            return None
        rows = self.wide.view(-1, self.rows.width)
        return rows[piece.start * len(self.states) : piece.stop * len(self.states)]

    def narrow(self, piece: slice) -> Tensor:
        """The student's rows that were taken last, [m·R, d]."""
        return self.space.of(piece).flatten(0, 1)


class _Gradients:
    """The gradients of a run's tensors that are asked for, piece by piece from those of its wide rows, G.

    dS = G W, dW = Σ Gᵀ S, db = Σ G; the sums are in the working precision. ``states`` is room for each dS, or None.
    """

    def __init__(self, run: _Run, weight: bool, bias: bool, states: Sequence[Tensor | None]) -> None:
        self.run, self.states, rows = run, states, run.rows
        self.weight, self.bias = (
            torch.zeros_like(x, dtype=rows.dtype) if x is not None and asked else None
            for x, asked in ((run.weight, weight), (run.bias, bias))
        )

    def add(self, wide_mRD: Tensor, piece: slice) -> None:
        """Take in a piece."""
        values = wide_mRD
        if self.run.weight is not None:
            flat = wide_mRD.flatten(0, 1).to(self.run.dtype)
            if self.weight is not None:
                if flat.dtype == self.weight.dtype:
                    self.weight.addmm_(flat.t(), self.run.narrow(piece))
                else:
                    self.weight += flat.t() @ self.run.narrow(piece)
            if self.bias is not None:
                self.bias += wide_mRD.sum((0, 1))
            values = (flat @ self.run.matrix).view(*wide_mRD.shape[:2], -1)
        for grad, values_Rw in zip(self.states, values, strict=True):
            if grad is not None:
                self.run.rows.give(grad, values_Rw, piece)

    def all(self) -> list[Tensor | None]:
        """Of weight, bias and states, each in its tensor's precision."""
        sums = ((self.weight, self.run.weight), (self.bias, self.run.bias))
        return [*(None if x is None or like is None else x.to(like.dtype) for x, like in sums), *self.states]
