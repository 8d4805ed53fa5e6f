"""A batch of queries and keys cut into pieces that fit a cache, and what is done with one piece.

Legend: B batch, L tokens, H heads, d head width; a piece holds n matrices (heads of one row, or of several) of
length l.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch
from torch import Tensor

from bert_emd.method.exact16 import exact_products
from bert_emd.method.pair_sums import is_small, on_cpu, result_dtype
from bert_emd.method.scores import QueryKey, Scores

__all__ = ["Layer", "Piece", "Pieces", "Run", "Side"]

# Elements of all layers' scores in one piece, and of the queries and keys that are copied for them: about a CPU's
# cache, with few calls, or enough to fill a GPU.
_PIECE = {"cpu": 1 << 22, "other": 1 << 24}
# The same where a row's queries and keys are copied: its heads lie beside each other token by token, so some of them
# alone are read in strides.
_PIECE_OF_ROW = 1 << 23
# The same for queries and keys where no scores are made: large products are fewer calls.
_PIECE_OF_PRODUCTS = 1 << 24
_SHORTEST_FOR_PRODUCTS = 128
# Rows of a CPU are put together where a row's queries have fewer elements than this, or have to be copied anyway: on
# short rows the calls cost more than the copy.
_SHORT_ROW = 1 << 16
# How much larger than its rows' own scores a piece of several rows may be.
_PADDING = 1.15


class Side:
    """The queries or the keys of a layer, opened once for all pieces.

    On a CPU also as a tuple of rows: to cut a row out for every piece would cost as much as a small product.
    """

    def __init__(self, tensor: Tensor, *, rows: bool) -> None:
        self.tensor = tensor
        self.rows = tensor.unbind(0) if rows else ()


class Layer:
    """One layer's queries and keys, and what its scores are multiplied by."""

    def __init__(self, pieces: Pieces, pair: QueryKey) -> None:
        self.factor = pieces.factor_of(pair[0])
        self.query, self.key = (Side(tensor, rows=pieces.on_cpu) for tensor in pair)
        self.shape = pair[0].shape[1], pair[0].shape[3]
        """H and d."""


@dataclass(frozen=True)
class Run:
    """A piece's queries and keys of m layers that follow each other, [m·n, l, d]: one product serves them all."""

    layers: Sequence[Layer]
    query: Tensor
    key: Tensor


@dataclass(frozen=True)
class Piece:
    """Heads of some rows; positions that are not kept are left out where there is one row, and zeroed elsewhere."""

    rows: slice | tuple[int, ...]
    """Following each other, or (CPU) any."""
    heads: slice
    lengths: tuple[int, ...]
    """Of each row, the longest first: how many of its first positions are taken (elsewhere than on a CPU, all)."""
    products: bool = False
    """Whether d x d products cost less here than scores."""
    index: Tensor | None = None
    """The kept positions of a single row, where they are not simply the first ones."""

    @property
    def length(self) -> int:
        """l, of the longest row."""
        return self.lengths[0]

    @property
    def chosen(self) -> Sequence[int]:
        """The rows by number."""
        return range(self.rows.start, self.rows.stop) if isinstance(self.rows, slice) else self.rows


class Pieces:
    """A batch of queries and keys in pieces, and what is done with one.

    On a CPU padding is hardly computed: a piece is one row's kept positions, or several rows of like length. Elsewhere
    a piece is several padded rows: small kernels and waiting for the device would cost more than padding does.
    """

    def __init__(
        self, mask: Tensor | None, student: Sequence[QueryKey], teacher: Sequence[QueryKey] | Scores, average: bool
    ) -> None:
        self.given = teacher if isinstance(teacher, Scores) else None
        """The teacher's scores, where they are there already."""
        pairs = [*student, *(() if isinstance(teacher, Scores) else teacher)]
        first = student[0][0]
        self.batch, self.heads, self.length, _ = first.shape
        self.average = average
        self.on_cpu = on_cpu(first)
        self.kept = None if mask is None else mask.bool()
        if self.kept is not None and self.on_cpu and bool(self.kept.all()):
            self.kept = None
        lengths = torch.full((self.batch,), self.length) if self.kept is None else self.kept.sum(1)
        entries: Any = lengths.square().sum()
        matrices = 1 if average else self.heads
        if self.on_cpu or self.kept is None:
            entries = int(entries)
            elements = entries * matrices
        else:
            elements = self.batch * self.length**2 * matrices
        self.count: Any = entries * matrices
        """Over how many entries the mean runs."""
        self.elements, self.small = elements, is_small(elements)
        tensors = [t for pair in pairs for t in pair]
        self.dtype = result_dtype(tensors)
        if self.small and not self.on_cpu:
            # Elsewhere one cannot look which costs are close to their rounding; small tensors are all float64.
            self.dtype = torch.float64
        self.unit = 1.0 if self.given is not None else self.factor_of(pairs[-1][0])
        """What the teacher's scores are multiplied by: they are kept without it, which saves a pass over them."""
        self._copied = any(t.dtype != self.dtype for t in tensors)
        # Over a head's width the processor's bfloat16 units add up as exactly as its float32 units, in half the time,
        # and nearly so over all heads' (averages); over a row's length, in d x d products, costs would show it.
        self._sixteen = self.on_cpu and all(t.dtype == torch.bfloat16 for t in tensors)
        self._lengths = lengths.tolist() if self.on_cpu else []
        self._layers = len(student) + len(teacher)
        self._device = first.device
        self._spaces: dict[str, Tensor] = {}
        widths = [q.shape[3] for q, _ in pairs]
        self._widths = sum(widths[: len(student)]), sum(widths[len(student) :])
        self._all_heads = sum(q.shape[1] * q.shape[3] for q, _ in pairs)

    def factor_of(self, query: Tensor) -> float:
        """1/√d, over the number of heads where their mean is compared."""
        return 1 / math.sqrt(query.shape[3]) / (query.shape[1] if self.average else 1)

    def __iter__(self) -> Iterator[Piece]:
        if not self.on_cpu:
            matrices = 1 if self.average else self.heads
            step = max(1, _PIECE["other"] // (matrices * self._size(self.length, copied=True)))
            for start in range(0, self.batch, step):
                stop = min(start + step, self.batch)
                yield Piece(slice(start, stop), slice(0, self.heads), (self.length,) * (stop - start))
            return
        for rows in self._groups():
            lengths = tuple(self._lengths[row] for row in rows)
            length = lengths[0]
            if len(rows) > 1:
                following = all(row == rows[0] + i for i, row in enumerate(rows))
                chosen = slice(rows[0], rows[-1] + 1) if following else tuple(rows)
                yield Piece(chosen, slice(0, self.heads), lengths)
                continue
            (row,) = rows
            index = None if self._starts_with_all(row) else self.kept[row].nonzero().squeeze(1)  # type: ignore[index]
            step, products = self.heads, self._products_win(length)
            if products:
                step = max(1, min(step, _PIECE_OF_PRODUCTS // (sum(self._widths) * length)))
            elif not self.average:
                copied = self._copied or index is not None
                most = _PIECE_OF_ROW if copied else _PIECE["cpu"]
                step = max(1, min(step, most // self._size(length, copied=copied)))
            step = -(-self.heads // -(-self.heads // step))  # as many pieces, of like size
            for start in range(0, self.heads, step):
                heads = slice(start, min(start + step, self.heads))
                yield Piece(slice(row, row + 1), heads, lengths, products, index)

    def _groups(self) -> Iterator[list[int]]:
        """Rows of like length that are taken together, the longest first; rows with holes alone."""
        group: list[int] = []
        used = longest = 0
        widest = max(self._widths) // max(1, self._layers // 2)
        for row in sorted(range(self.batch), key=lambda row: -self._lengths[row]):
            length = self._lengths[row]
            if length == 0:
                continue
            copied = self._copied or self.given is not None
            alone = not (copied or self.heads * length * widest < _SHORT_ROW) or self._products_win(length)
            if alone or not self._starts_with_all(row):
                yield [row]
                continue
            rows = len(group) + 1
            size = rows * (1 if self.average else self.heads) * self._size(longest, copied=True)
            fits = rows * longest**2 <= _PADDING * (used + length**2) and size <= _PIECE["cpu"]
            if group and fits:
                group.append(row)
                used += length**2
                continue
            if group:
                yield group
            group, used, longest = [row], length**2, length
        if group:
            yield group

    def _size(self, length: int, *, copied: bool) -> int:
        """Elements that all layers have in one of a piece's matrices: scores, and what is copied for them."""
        width = self._all_heads if self.average else sum(self._widths)
        return self._layers * length**2 + (2 * width * length if copied else 0)

    def _starts_with_all(self, row: int) -> bool:
        return self.kept is None or bool(self.kept[row, : self._lengths[row]].all())

    def _products_win(self, length: int) -> bool:
        """Whether d x d products cost less than scores: l > 2·S·T/(S + T), S and T all layers' widths together.

        Small tensors keep to scores, whose norms say which costs have to be taken in float64.
        """
        if self.average or self.small or self.given is not None or length < _SHORTEST_FOR_PRODUCTS:
            return False
        student, teacher = self._widths
        return length > 2 * student * teacher / (student + teacher)

    def take(self, side: Side, piece: Piece) -> Tensor:
        """The piece's matrices [n, l, d], or [n, l, H·d] for head averages: Σ_h Q_h K_hᵀ is one product over all.

        On a CPU a piece of one row.
        """
        if not self.on_cpu:
            x: Tensor = side.tensor[piece.rows].to(self.dtype)
            if self.kept is not None:
                # Not a product with zero: padding may hold anything.
                x = x.masked_fill(~self.kept[piece.rows, None, :, None], 0)
            return x.transpose(1, 2).flatten(2) if self.average else x.flatten(0, 1)
        x = self._cut(side.rows[piece.chosen[0]], piece).to(self.dtype)
        return x.transpose(0, 1).flatten(1).unsqueeze(0) if self.average else x

    def _cut(self, row: Tensor, piece: Piece) -> Tensor:
        """A CPU's: the piece's part of one of its rows, [heads, l, d], with what is behind it up to the longest."""
        if piece.heads.stop - piece.heads.start < self.heads and not self.average:
            row = row[piece.heads]
        if piece.index is not None:
            return row.index_select(1, piece.index)
        return row[:, : piece.length] if piece.length < self.length else row

    def runs(self, layers: Sequence[Layer], piece: Piece, name: str) -> list[Run]:
        """The queries and keys of these layers, in few tensors where they have to be copied anyway.

        The space that is copied to has this name and is used again by the next piece.
        """
        if self.one_by_one(piece):
            return [Run([layer], self.take(layer.query, piece), self.take(layer.key, piece)) for layer in layers]
        found: list[Run] = []
        for _, group in groupby(layers, lambda layer: layer.shape):
            run = list(group)
            names = (f"{name} {len(found)} {side}" for side in ("queries", "keys"))
            sides = [layer.query for layer in run], [layer.key for layer in run]
            found.append(Run(run, *(self._together(x, piece, n) for x, n in zip(sides, names, strict=True))))
        return found

    def one_by_one(self, piece: Piece) -> bool:
        """Whether each layer is a run of its own: elsewhere the queries and keys of several are put together."""
        return not self.on_cpu or (len(piece.lengths) == 1 and not self._copied)

    def _together(self, sides: Sequence[Side], piece: Piece, name: str) -> Tensor:
        """`take`'s matrices of several layers, copied, what is behind the shorter rows zeroed."""
        _, heads, _, width = sides[0].tensor.shape
        count, b, length = len(sides), len(piece.lengths), piece.length
        views = [self._cut(side.rows[row], piece) for side in sides for row in piece.chosen]
        if self.average:
            shape = count * b, length, heads * width
        else:
            heads = piece.heads.stop - piece.heads.start
            shape = count * b * heads, length, width
        # Put together as they are and widened at once: either is faster than copies from one type to another.
        types = {view.dtype for view in views}
        own = types.pop() if len(types) == 1 else self.dtype
        found = self.space(name, shape)
        room = found if own == self.dtype else self.space(f"together in {own}", shape, own)
        if self.average:
            out = room.view(count * b, length, heads, width).transpose(1, 2)
        else:
            out = room.view(count * b, heads, length, width)
        torch.stack(views, out=out)
        for place, kept in enumerate(piece.lengths):
            if kept < length:
                out[place::b, :, kept:] = 0
        if room is not found:
            found.copy_(room)
        return found

    def matrices(self, piece: Piece) -> int:
        """n."""
        return len(piece.lengths) * (1 if self.average else piece.heads.stop - piece.heads.start)

    def give(self, grad_BHLd: Tensor, values: Tensor, piece: Piece) -> None:
        """Write what belongs to `take`'s matrices to its place in a gradient."""
        b, (_, h, _, d) = len(piece.lengths), grad_BHLd.shape
        heads = slice(0, h) if self.average else piece.heads
        if self.average:
            values = values.view(b, -1, h, d).transpose(1, 2)
        else:
            values = values.view(b, heads.stop - heads.start, -1, d)
        values = values.to(grad_BHLd.dtype)
        if not isinstance(piece.rows, slice):
            for row, part in zip(piece.rows, values, strict=True):
                grad_BHLd[row, :, : piece.length] = part
        elif piece.index is None:
            grad_BHLd[piece.rows, heads, : piece.length] = values
        else:
            grad_BHLd[piece.rows, heads].index_copy_(2, piece.index, values)

    def scores(self, runs: Sequence[Run], piece: Piece, teacher: Sequence[int] = ()) -> Tensor:
        """Q Kᵀ/√d of a piece over `unit`, [layers, n, l, l]; the space is used again by the next piece.

        Behind them come those layers of the teacher whose scores are there already.
        """
        counts, n, length = [len(run.layers) for run in runs], self.matrices(piece), piece.length
        found = self.space("scores", (sum(counts) + len(teacher), n, length, length))
        if teacher:
            self._copy(teacher, piece, found[sum(counts) :])
        made = found[: sum(counts)].flatten(0, 1).split([n * count for count in counts])  # type: ignore[no-untyped-call]
        with exact_products() if self._sixteen else nullcontext():
            for out, run in zip(made, runs, strict=True):
                self.multiply(run, out)
        return found

    def multiply(self, run: Run, out: Tensor, *, weight: float = 1.0, add: bool = False) -> None:
        """Q Kᵀ/√d over `unit` of a run, times ``weight``, into ``out`` [m·n, l, l], or added to it."""
        factor = weight * run.layers[0].factor / self.unit
        if factor == 1 and not add:
            torch.bmm(run.query, run.key.transpose(1, 2), out=out)
        else:
            out.baddbmm_(run.query, run.key.transpose(1, 2), beta=int(add), alpha=factor)

    def _copy(self, layers: Sequence[int], piece: Piece, out: Tensor) -> None:
        """A piece of scores that are there already, what is behind the shorter rows zeroed."""
        assert self.given is not None
        places = out.unflatten(1, (len(piece.lengths), -1)).unbind(1)  # type: ignore[no-untyped-call]
        for place, row, kept in zip(places, piece.chosen, piece.lengths, strict=True):
            values = self.given.rows[row]
            if len(layers) < len(values):
                values = values[list(layers)]
            if self.average:
                values = values.to(self.dtype).mean(1, keepdim=True)
            elif values.shape[1] > place.shape[1]:
                values = values[:, piece.heads]
            if kept == piece.length:
                place.copy_(values)
            else:
                place[:, :, :kept, :kept] = values
                place[:, :, kept:] = 0
                place[:, :, :kept, kept:] = 0

    def space(self, name: str, shape: tuple[int, ...], dtype: torch.dtype | None = None) -> Tensor:
        """Uninitialised, and the same memory for every piece: fresh pages cost more than the products in them.

        A name has one ``dtype``, by default the working precision.
        """
        size = math.prod(shape)
        if name not in self._spaces or len(self._spaces[name]) < size:
            self._spaces[name] = torch.empty(size, dtype=dtype or self.dtype, device=self._device)
        return self._spaces[name][:size].view(shape)

    def with_space(self) -> Pieces:
        """The same with space of its own, which goes with it: between forward and backward it would be in the way."""
        own = copy.copy(self)
        own._spaces = {}
        return own
