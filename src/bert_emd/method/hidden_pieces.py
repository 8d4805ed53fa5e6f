"""The rows of a batch of hidden states in pieces that fit a cache.

Legend: B batch, L tokens, R rows of a piece.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from bert_emd.method.pair_sums import is_small, on_cpu

__all__ = ["Rows", "Space"]

# Elements of all layers' rows in one piece: about a CPU's cache, with few calls, or enough to fill a GPU.
_PIECE = {"cpu": 1 << 22, "other": 1 << 24}
# More rows than this make a CPU's products no faster, and few layers would have very many.
_MOST_ROWS = {"cpu": 1024, "other": 1 << 24}
# With this part of the rows kept or more, padding is zeroed instead of left out: rows in their order are copied faster.
_FULL = 0.85


class Rows:
    """The kept rows of layers [B, L, …] flattened to [B·L, …], in pieces."""

    def __init__(self, mask: Tensor | None, like: Tensor, layers: int, dtype: torch.dtype) -> None:
        batch, length, self.width = like.shape
        self.total = batch * length
        self.device, self.on_cpu = like.device, on_cpu(like)
        self.dtype = dtype
        """The working precision."""
        self.index: Tensor | None = None
        """The kept rows, on a CPU where many are not."""
        self.padded: list[Tensor] = []
        """The other rows of each piece, counted from its start, on a CPU where they are few: they are zeroed."""
        self.dropped: Tensor | None = None
        """Which rows to zero, elsewhere: to count them would mean to wait for the device."""
        self.count: Any = self.total
        """Over how many rows the mean runs."""
        kind = "cpu" if self.on_cpu else "other"
        self.step = max(1, min(_MOST_ROWS[kind], _PIECE[kind] // (self.width * layers)))
        if mask is not None and self.on_cpu:
            keep = mask.reshape(-1).bool()
            self.count = int(keep.sum())
            if self.count < _FULL * self.total:
                self.index = keep.nonzero().squeeze(1)
                self.total = self.count
            elif self.count < self.total:
                self.padded = [part.logical_not().nonzero().squeeze(1) for part in keep.split(self.step)]  # type: ignore[no-untyped-call]
        elif mask is not None:
            self.dropped = ~mask.reshape(-1).bool()
            self.count = self.total - self.dropped.sum()
        self.small = is_small(self.count * self.width if self.on_cpu else self.total * self.width)

    def precise(self) -> Rows:
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
        if self.index is None and not self.padded and self.dropped is None and layer.dtype == self.dtype:
            return layer.reshape(-1, self.width)[piece]
        self.take([layer], piece, out)
        return out[0]

    def blank(self, space: Tensor, piece: slice) -> None:
        """Zero the padded rows among those of a piece [layers, R, width]."""
        if self.padded:
            space.index_fill_(1, self.padded[piece.start // self.step], 0)
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


class Space:
    """Room for a piece of some layers' rows, used again by the next piece."""

    def __init__(self, rows: Rows, layers: int, width: int, dtype: torch.dtype) -> None:
        self.layers, self.width = layers, width
        self.flat = torch.empty(layers * min(rows.step, rows.total) * width, dtype=dtype, device=rows.device)

    def of(self, piece: slice) -> Tensor:
        """[layers, R, width], without gaps."""
        rows = piece.stop - piece.start
        return self.flat[: self.layers * rows * self.width].view(self.layers, rows, self.width)
