"""The hidden distances and their gradient, streamed over pieces of rows that fit a cache.

Layers that have yet to be projected are projected piece by piece as well, in forward and again in backward: no tensor
of the teacher's width is made of a whole student layer. Legend: B batch, L tokens, d student width, D teacher width,
M student layers, N teacher layers, R rows of a piece, m layers of a run (student layers that follow each other and
share a projection, or have none).
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any

import torch
from torch import Tensor

from bert_emd.method.pair_sums import is_small, on_cpu, pair_sums, result_dtype, used_layers
from bert_emd.method.projected import Projected, State

__all__ = ["streamed_hidden_distances"]

# Elements of all layers' rows in one piece: a CPU's cache, or enough to fill a GPU.
_PIECE = {"cpu": 1 << 22, "other": 1 << 24}
# What is there for a run's weight, bias and states.
_Parts = tuple[Any, Any, Sequence[Any]]
# With this part of the rows kept or more, padding is zeroed instead of left out: rows in their order are copied faster.
_FULL = 0.85
# Below this part of the norms the rounding of a float32 projection shows in a cost.
_ROUNDED = 3e-4


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
    return _HiddenDistances.apply(mask, autocast, squares, lengths, *tensors, *teacher)  # type: ignore[no-any-return, no-untyped-call]


class _HiddenDistances(torch.autograd.Function):
    """Arguments: mask [B, L] or None, the dtype of autocast or None, whether the teacher's mean squares are wanted
    (they are None if not), the lengths m of the runs, and the tensors.

    The tensors are weight, bias (None without a projection) and states of each run, then the teacher's states.
    """

    @staticmethod
    def forward(
        ctx: Any, mask: Tensor | None, autocast: torch.dtype | None, squares: bool, lengths: list[int], *tensors: Any
    ) -> Any:
        ctx.save_for_backward(*tensors)
        ctx.lengths, ctx.autocast = lengths, autocast
        of_runs, teacher = _parted(tensors, lengths)
        dtype = result_dtype([t for t in tensors if t is not None])
        rows = ctx.rows = _Rows(mask, teacher[0], sum(lengths) + len(teacher), dtype)
        ctx.count = rows.count * rows.width
        with torch.autocast(rows.device.type, enabled=False):
            total_MN, squares_N = _totals(rows, autocast, of_runs, teacher, squares)
        if squares_N is not None:
            squares_N /= ctx.count
            ctx.mark_non_differentiable(squares_N)
        return (total_MN / ctx.count).to(dtype), squares_N

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        of_runs, teacher = _parted(ctx.saved_tensors, ctx.lengths)
        asked, _ = _parted(ctx.needs_input_grad[4:], ctx.lengths)
        # d D_ij / d Y_i = 2/count (Y_i - T_j)
        scale_MN = grad_outputs[0].double() * 2.0 / ctx.count
        rows, m = ctx.rows, len(scale_MN)
        with torch.autocast(rows.device.type, enabled=False):
            runs = [_Run(rows, ctx.autocast, *parts) for parts in of_runs]
            gradients = [_Gradients(run, *flags) for run, flags in zip(runs, asked, strict=True)]
            space, total = (_Space(rows, m, rows.width, rows.dtype) for _ in range(2))
            one = _Space(rows, 1, rows.width, rows.dtype)
            projected_M = torch.tensor([run.projects for run in runs for _ in run.states], device=rows.device)
            own_M = torch.where(projected_M, scale_MN.sum(1), 0.0).to(rows.dtype)[:, None, None]
            for piece in rows.pieces():
                student_MRD, total_MRD = space.of(piece), total.of(piece)
                _fill(runs, student_MRD, piece)
                torch.mul(student_MRD, own_M, out=total_MRD)
                for j in used_layers(scale_MN):
                    t = rows.view(teacher[j], piece, one.of(piece))
                    _subtract(total_MRD, student_MRD, t, scale_MN[:, j], projected_M)
                for gradient, wide_mRD in zip(gradients, torch.split(total_MRD, ctx.lengths), strict=True):
                    gradient.add(wide_mRD, piece)
        found = [grad for gradient in gradients for grad in gradient.all()]
        return (None, None, None, None, *found, *[None] * len(teacher))


def _totals(
    rows: _Rows, autocast: torch.dtype | None, of_runs: list[_Parts], teacher: Sequence[Tensor], squares: bool
) -> tuple[Tensor, Tensor | None]:
    """Σ (y - t)² of all pairs, [M, N] float64, and Σ t², [N] float64, where it is wanted."""
    runs = [_Run(rows, autocast, *parts) for parts in of_runs]
    m, n = sum(len(run.states) for run in runs), len(teacher)
    total_MN = torch.zeros(m, n, dtype=torch.float64, device=rows.device)
    squares_N = torch.zeros_like(total_MN[0]) if squares else None
    space = _Space(rows, m + n, rows.width, rows.dtype)
    # Where it is no wait: whether a float32 projection is exact enough for these costs.
    look = any(run.projects for run in runs) and autocast is None and rows.on_cpu and rows.dtype == torch.float32
    for piece in rows.pieces():
        layers = space.of(piece)
        _fill(runs, layers[:m], piece)
        rows.take(teacher, piece, layers[m:])
        stacked = layers.flatten(1)
        total_MN += pair_sums(stacked[:m], stacked[m:], small=rows.small, squares_N=squares_N)
        if look and piece.start == 0:
            norms = torch.linalg.vector_norm(stacked, dim=1).double().square()
            if (total_MN < _ROUNDED * (norms[:m, None] + norms[m:])).any():
                return _totals(rows.precise(), autocast, of_runs, teacher, squares)
    return total_MN, squares_N


def _fill(runs: Sequence[_Run], student_MRD: Tensor, piece: slice) -> None:
    for run, wide_mRD in zip(runs, torch.split(student_MRD, [len(run.states) for run in runs]), strict=True):
        run.fill(wide_mRD, piece)


def _parted(flat: Sequence[Any], lengths: list[int]) -> tuple[list[_Parts], Sequence[Any]]:
    """What is there for each tensor, as (weight, bias, states) of each run, and the teacher's."""
    parts = []
    for length in lengths:
        parts.append((flat[0], flat[1], flat[2 : 2 + length]))
        flat = flat[2 + length :]
    return parts, flat


def _subtract(total_MRD: Tensor, student_MRD: Tensor, t: Tensor, weights_M: Tensor, projected_M: Tensor) -> None:
    """Add g_i (s_i - t), or -g_i t where s_i Σ g is in the total already: for projected states.

    A sum s Σ g - Σ g t loses digits where student and teacher nearly agree. A projection has rounded as many before.
    """
    if not on_cpu(t):
        s = torch.where(projected_M[:, None, None], 0.0, student_MRD)
        total_MRD.addcmul_(s - t, weights_M[:, None, None].to(t.dtype))
        return
    difference: Tensor | None = None
    for total, s, weight, projected in zip(
        total_MRD, student_MRD, weights_M.tolist(), projected_M.tolist(), strict=True
    ):
        if weight != 0 and projected:
            total.sub_(t, alpha=weight)
        elif weight != 0:
            difference = torch.sub(s, t, out=torch.empty_like(t) if difference is None else difference)
            total.add_(difference, alpha=weight)


class _Rows:
    """The kept rows of layers [B, L, …] flattened to [B·L, …], in pieces."""

    def __init__(self, mask: Tensor | None, like: Tensor, layers: int, dtype: torch.dtype) -> None:
        batch, length, self.width = like.shape
        self.total = batch * length
        self.device, self.on_cpu = like.device, on_cpu(like)
        self.dtype = dtype
        """The working precision."""
        self.index: Tensor | None = None
        """The kept rows, on a CPU where many are not."""
        self.padded: Tensor | None = None
        """The other rows, rising, on a CPU where they are few: they are zeroed."""
        self.dropped: Tensor | None = None
        """Which rows to zero, elsewhere: to count them would mean to wait for the device."""
        self.count: Any = self.total
        """Over how many rows the mean runs."""
        if mask is not None and self.on_cpu:
            keep = mask.reshape(-1).bool()
            self.count = int(keep.sum())
            if self.count < _FULL * self.total:
                self.index = keep.nonzero().squeeze(1)
                self.total = self.count
            elif self.count < self.total:
                self.padded = (~keep).nonzero().squeeze(1)
        elif mask is not None:
            self.dropped = ~mask.reshape(-1).bool()
            self.count = self.total - self.dropped.sum()
        self.small = is_small(self.count * self.width if self.on_cpu else self.total * self.width)
        self.step = max(1, _PIECE["cpu" if self.on_cpu else "other"] // (self.width * layers))

    def precise(self) -> _Rows:
        """The same rows in float64."""
        rows = copy.copy(self)
        rows.dtype = torch.float64
        return rows

    def pieces(self) -> Iterator[slice]:
        for start in range(0, self.total, self.step):
            yield slice(start, min(start + self.step, self.total))

    def take(self, layers: Sequence[Tensor], piece: slice, out: Tensor) -> None:
        """The rows of these layers, in the precision of ``out`` [layers, R, width]."""
        for place, layer in zip(out, layers, strict=True):
            flat = layer.reshape(-1, layer.shape[-1])
            if self.index is None:
                place.copy_(flat[piece])
            elif flat.dtype == place.dtype:
                torch.index_select(flat.detach(), 0, self.index[piece], out=place)
            else:
                place.copy_(flat.index_select(0, self.index[piece]))
        self.blank(out, piece)

    def view(self, layer: Tensor, piece: slice, out: Tensor) -> Tensor:
        """The rows of one layer, [R, width], in the working precision; through ``out`` where need be."""
        if self.index is None and self.padded is None and self.dropped is None and layer.dtype == self.dtype:
            return layer.reshape(-1, self.width)[piece]
        self.take([layer], piece, out)
        return out[0]

    def blank(self, space: Tensor, piece: slice) -> None:
        """Zero the padded rows among those of a piece [layers, R, width]."""
        if self.padded is not None:
            first, last = torch.searchsorted(self.padded, torch.tensor([piece.start, piece.stop])).tolist()
            if first < last:
                space.index_fill_(1, self.padded[first:last] - piece.start, 0)
        elif self.dropped is not None:
            # Not a product with zero: padding may hold anything.
            space.masked_fill_(self.dropped[piece, None], 0)

    def new_like(self, layer: Tensor) -> Tensor:
        """Room for a layer's gradient; padding, which no piece writes, has none."""
        return (torch.empty_like if self.index is None else torch.zeros_like)(
            layer, memory_format=torch.contiguous_format
        )

    def give(self, out: Tensor, values_Rw: Tensor, piece: slice) -> None:
        """Write a piece to its place in a layer."""
        flat = out.view(-1, out.shape[-1])
        flat[piece if self.index is None else self.index[piece]] = values_Rw.to(out.dtype)


class _Space:
    """Room for a piece of some layers' rows, used again by the next piece."""

    def __init__(self, rows: _Rows, layers: int, width: int, dtype: torch.dtype) -> None:
        self.layers, self.width = layers, width
        self.flat = torch.empty(layers * min(rows.step, rows.total) * width, dtype=dtype, device=rows.device)

    def of(self, piece: slice) -> Tensor:
        """[layers, R, width], without gaps."""
        rows = piece.stop - piece.start
        return self.flat[: self.layers * rows * self.width].view(self.layers, rows, self.width)


class _Run:
    """The layers of a run in the teacher's width: Y = S Wᵀ + b, or S itself."""

    def __init__(
        self, rows: _Rows, autocast: torch.dtype | None, weight: Tensor | None, bias: Tensor | None, states: Any
    ) -> None:
        self.rows, self.weight, self.bias, self.states = rows, weight, bias, states
        # In what torch.nn.Linear would multiply: autocast leaves float64 alone.
        self.dtype = rows.dtype if autocast is None or rows.dtype == torch.float64 else autocast
        self.projects = weight is not None
        if weight is not None:
            self.matrix = weight.to(self.dtype)
            self.offset = self.matrix.new_zeros(len(weight)) if bias is None else bias.to(self.dtype)
            self.space = _Space(rows, len(states), weight.shape[1], self.dtype)

    def fill(self, wide_mRD: Tensor, piece: slice) -> None:
        """Make the rows of a piece."""
        if self.weight is None:
            self.rows.take(self.states, piece, wide_mRD)
            return
        self.rows.take(self.states, piece, self.space.of(piece))
        flat = wide_mRD.flatten(0, 1)
        if flat.dtype == self.dtype:
            torch.addmm(self.offset, self.narrow(piece), self.matrix.t(), out=flat)
        else:
            flat.copy_(torch.addmm(self.offset, self.narrow(piece), self.matrix.t()))
        self.rows.blank(wide_mRD, piece)

    def narrow(self, piece: slice) -> Tensor:
        """The rows that `fill` projected last, [m·R, d]."""
        return self.space.of(piece).flatten(0, 1)


class _Gradients:
    """The gradients of a run's tensors that are asked for, piece by piece from those of its wide rows, G.

    dS = G W, dW = Σ Gᵀ S, db = Σ G; the sums are in the working precision.
    """

    def __init__(self, run: _Run, weight: bool, bias: bool, states: Sequence[bool]) -> None:
        self.run, rows = run, run.rows
        self.states = [rows.new_like(s) if asked else None for s, asked in zip(run.states, states, strict=True)]
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
        return [*(None if x is None or grad is None else grad.to(x.dtype) for grad, x in sums), *self.states]
