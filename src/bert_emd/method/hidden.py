"""The hidden distances and their gradient, streamed over pieces of rows that fit a cache.

Legend: B batch, L tokens, D width, M student layers, N teacher layers, R rows of a piece.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from bert_emd.method.pair_sums import is_small, on_cpu, pair_sums, result_dtype, used_layers

__all__ = ["HiddenDistances"]

# Elements of all layers' rows in one piece: a CPU's cache, or enough to fill a GPU.
_PIECE = {"cpu": 1 << 21, "other": 1 << 24}


class HiddenDistances(torch.autograd.Function):
    """D_ij of `bert_emd.method.hidden_distances` for checked input: mask [B, L] or None, M, then all layers."""

    @staticmethod
    def forward(ctx: Any, mask: Tensor | None, m: int, *layers: Tensor) -> Tensor:
        ctx.save_for_backward(*layers)
        rows = _Rows(mask, list(layers))
        ctx.rows, ctx.m = rows, m
        total_MN = torch.zeros(m, len(layers) - m, dtype=torch.float64, device=layers[0].device)
        for piece in rows.pieces():
            stacked = rows.stack(layers, piece).flatten(1)
            total_MN += pair_sums(stacked[:m], stacked[m:], small=rows.small)
        rows.release()
        ctx.count = rows.count * layers[0].shape[-1]
        cost_MN: Tensor = total_MN / ctx.count
        return cost_MN.to(result_dtype(list(layers)))

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        layers, m, rows = ctx.saved_tensors, ctx.m, ctx.rows
        # d D_ij / d S_i = 2/count (S_i - T_j)
        scale_MN = grad_outputs[0].double() * 2.0 / ctx.count
        wanted = [i for i in range(m) if ctx.needs_input_grad[2 + i]]
        grads: list[Tensor | None] = [None] * len(layers)
        for i in wanted:
            # Padding, which no piece writes, has no gradient.
            grads[i] = torch.empty_like(layers[i]) if rows.index is None else torch.zeros_like(layers[i])
        needed = used_layers(scale_MN[wanted])
        weights_MN = scale_MN[:, needed]
        for piece in rows.pieces():
            stacked = rows.stack([layers[i] for i in wanted] + [layers[m + j] for j in needed], piece)
            student, teacher = stacked[: len(wanted)], stacked[len(wanted) :]
            for i, s in zip(wanted, student, strict=True):
                rows.give(grads[i], _weighted_differences(s, teacher, weights_MN[i]), piece)
        rows.release()
        return (None, None, *grads)


def _weighted_differences(s: Tensor, teacher: Tensor, weights: Tensor) -> Tensor:
    """Σ_j g_j (s - t_j). Not s Σ g - Σ g t, which loses digits where student and teacher nearly agree."""
    if not on_cpu(s):
        mixed: Tensor = torch.tensordot(weights.to(s.dtype), s - teacher, 1)
        return mixed
    total, difference = torch.zeros_like(s), torch.empty_like(s)
    for weight, t in zip(weights.tolist(), teacher, strict=True):
        if weight != 0:
            total.add_(torch.sub(s, t, out=difference), alpha=weight)
    return total


class _Rows:
    """The kept rows of the flattened [B·L, D], in pieces."""

    def __init__(self, mask: Tensor | None, layers: list[Tensor]) -> None:
        batch, length, self.width = layers[0].shape
        self.total = batch * length
        self.on_cpu = on_cpu(layers[0])
        self.index: Tensor | None = None
        """The kept rows, on a CPU where some are not."""
        self.dropped: Tensor | None = None
        """Which rows to zero, elsewhere: to count them would mean to wait for the device."""
        self.count: Any = self.total
        if mask is not None and self.on_cpu:
            kept = mask.reshape(-1).bool().nonzero().squeeze(1)
            self.index = kept if len(kept) < self.total else None
            self.count = self.total = len(kept)
        elif mask is not None:
            self.dropped = ~mask.reshape(-1).bool()
            self.count = self.total - self.dropped.sum()
        self.dtype = result_dtype(layers)
        self.small = is_small(self.total * self.width)
        size = _PIECE["cpu" if self.on_cpu else "other"]
        self.step = max(1, size // (self.width * len(layers)))
        self._space = layers[0].new_empty(0, dtype=self.dtype)

    def pieces(self) -> Iterator[slice]:
        for start in range(0, self.total, self.step):
            yield slice(start, min(start + self.step, self.total))

    def stack(self, layers: Any, piece: slice) -> Tensor:
        """[layers, R, D] in the working precision; the space is used again by the next piece."""
        shape = (len(layers), piece.stop - piece.start, self.width)
        size = shape[0] * shape[1] * shape[2]
        if len(self._space) < size:
            self._space = self._space.new_empty(size)
        space = self._space[:size].view(shape)
        for place, layer in zip(space, layers, strict=True):
            flat = layer.reshape(-1, self.width)
            if self.index is None:
                place.copy_(flat[piece])
            elif flat.dtype == self.dtype:
                torch.index_select(flat.detach(), 0, self.index[piece], out=place)
            else:
                place.copy_(flat.index_select(0, self.index[piece]))
        if self.dropped is not None:
            # Not a product with zero: padding may hold anything.
            space.masked_fill_(self.dropped[piece, None], 0)
        return space

    def give(self, grad: Tensor | None, values_RD: Tensor, piece: slice) -> None:
        """Write a piece of a gradient to its place."""
        assert grad is not None
        flat = grad.view(-1, self.width)
        flat[piece if self.index is None else self.index[piece]] = values_RD.to(grad.dtype)

    def release(self) -> None:
        """Forget the space: between forward and backward it would only be in the way."""
        self._space = self._space.new_empty(0)
