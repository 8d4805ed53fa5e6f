"""The attention distances and their gradient, streamed over pieces of the batch that fit a cache.

Two routes give the same numbers: the scores themselves, layer at a time, or d x d products of queries and keys, which
never make a score and win on long rows. Legend: B batch, L tokens, H heads, d head width, M student layers, N teacher
layers; a piece holds n matrices (heads of one row, or of several) of length l.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bert_emd.method.pair_sums import is_small, on_cpu, pair_sums, result_dtype, too_close, used_layers

__all__ = ["AttentionDistances", "QueryKey"]

QueryKey = tuple[Tensor, Tensor]

# Elements of all layers' scores in one piece: a CPU's cache, or enough to fill a GPU.
_PIECE = {"cpu": 1 << 22, "other": 1 << 24}
# The same for queries and keys where no scores are made: large products are fewer calls.
_PIECE_OF_PRODUCTS = 1 << 24
# The d x d products are sums of both signs, so they lose digits earlier than the scores do.
_TOO_CLOSE_BY_PRODUCTS = 0.3
_SHORTEST_FOR_PRODUCTS = 128
# The rounding of float32 scores shows in a cost below this part of the norms, times the number of entries: over many
# entries it averages out.
_ROUNDED = 8.0


class AttentionDistances(torch.autograd.Function):
    """D_ij of `bert_emd.method.attention_distances` for checked input.

    Arguments: mask [B, L] or None, M, whether head averages are compared, then query, key, query, key, …
    """

    @staticmethod
    def forward(ctx: Any, mask: Tensor | None, m: int, average: bool, *flat: Tensor) -> Tensor:
        ctx.save_for_backward(*flat)
        pairs = list(zip(flat[::2], flat[1::2], strict=True))
        pieces = _Pieces(mask, pairs, average, m)
        ctx.pieces, ctx.m = pieces, m
        layers = [_Layer(pieces, pair) for pair in pairs]
        total_MN = torch.zeros(m, len(layers) - m, dtype=torch.float64, device=flat[0].device)
        norms = torch.zeros(len(layers), dtype=torch.float64)
        with torch.autocast(flat[0].device.type, enabled=False):
            for piece in pieces:
                if piece.products:
                    total_MN += _by_products(pieces, layers, piece, m)
                else:
                    scores = pieces.scores(layers, piece).flatten(1)
                    total_MN += pair_sums(scores[:m], scores[m:], small=pieces.small)
                    if pieces.small and pieces.on_cpu:
                        norms += torch.linalg.vector_norm(scores, dim=1).double().square()
            if pieces.small and pieces.on_cpu and pieces.dtype == torch.float32:
                for i, j in too_close(total_MN, norms[:m], norms[m:], _ROUNDED / pieces.elements):
                    total_MN[i, j] = _in_float64(mask, [pairs[i], pairs[m + j]], average)
        pieces.release()
        cost_MN: Tensor = total_MN / pieces.count
        return cost_MN.to(result_dtype(list(flat)))

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        flat, m, pieces, mask = ctx.saved_tensors, ctx.m, ctx.pieces, ctx.pieces.kept
        layers = [_Layer(pieces, pair) for pair in zip(flat[::2], flat[1::2], strict=True)]
        scale_MN = grad_outputs[0].double() * 2.0 / pieces.count
        asked = ctx.needs_input_grad[3:]
        # The teacher is a constant. What no piece writes, padding, has no gradient.
        new = torch.empty_like if mask is None else torch.zeros_like
        grads = [new(t) if asked[i] and i < 2 * m else None for i, t in enumerate(flat)]
        wanted = [i for i in range(m) if asked[2 * i] or asked[2 * i + 1]]
        sides = [(grads[2 * i], grads[2 * i + 1]) for i in wanted]
        needed = used_layers(scale_MN[wanted])
        weights_MN = scale_MN[wanted][:, needed]
        student, teacher = [layers[i] for i in wanted], [layers[m + j] for j in needed]
        with torch.autocast(flat[0].device.type, enabled=False):
            for piece in pieces:
                backward = _backward_by_products if piece.products else _backward_by_scores
                backward(pieces, student, teacher, weights_MN, sides, piece)
        pieces.release()
        return (None, None, None, *grads)


def _in_float64(mask: Tensor | None, pair: Sequence[QueryKey], average: bool) -> Tensor:
    """The sum for one pair of layers whose difference is near the rounding of float32 scores."""
    wide = [(q.double(), k.double()) for q, k in pair]
    pieces = _Pieces(mask, wide, average, 1)
    layers = [_Layer(pieces, each) for each in wide]
    total = torch.zeros((), dtype=torch.float64)
    for piece in pieces:
        one, other = pieces.scores(layers, piece)
        total += (one - other).square_().sum()
    return total


def _backward_by_scores(
    pieces: _Pieces,
    student: Sequence[_Layer],
    teacher: Sequence[_Layer],
    weights_MN: Tensor,
    sides: Sequence[tuple[Tensor | None, Tensor | None]],
    piece: _Piece,
) -> None:
    """With A = QKᵀ/√d: dA_i = Σ_j g_ij (A_i - A_j), then dQ = dA K/√d and dK = dAᵀ Q/√d."""
    scores = pieces.scores([*student, *teacher], piece)
    mix = torch.cat([torch.diag(weights_MN.sum(1)), -weights_MN], 1).to(scores.dtype)
    # Scores of padding are zero on both sides or absent, so dA is zero there and padded rows get no gradient.
    grad_scores = pieces.space("grad", (len(student), *scores.shape[1:]))
    torch.mm(mix, scores.flatten(1), out=grad_scores.flatten(1))
    for layer, grads, da in zip(student, sides, grad_scores, strict=True):
        for grad, other, d in zip(grads, (layer.key, layer.query), (da, da.transpose(1, 2)), strict=True):
            if grad is not None:
                x = pieces.take(other, piece)
                space = x.new_empty(x.shape)
                pieces.give(grad, torch.baddbmm(space, d, x, beta=0, alpha=layer.factor, out=space), piece)


def _by_products(pieces: _Pieces, layers: Sequence[_Layer], piece: _Piece, m: int) -> Tensor:
    """⟨A_i, A_j⟩ = ⟨Q_iᵀQ_j, K_iᵀK_j⟩ head by head, so no score is made; [M, N] sums of squared differences."""
    taken = [_Taken(pieces, layer, piece) for layer in layers]
    student, teacher = taken[:m], taken[m:]
    norms = torch.stack([_inner(t.query, t.key, t.query, t.key).sum() * t.factor**2 for t in taken])
    sides = [(torch.cat([t.query for t in ts], 2), torch.cat([t.key for t in ts], 2)) for ts in (student, teacher)]
    inner = _inner(*sides[0], *sides[1])
    blocks = [
        torch.split(row, [t.query.shape[2] for t in teacher], 1)
        for row in torch.split(inner, [t.query.shape[2] for t in student])
    ]
    factors = [torch.tensor([t.factor for t in ts], dtype=torch.float64) for ts in (student, teacher)]
    cross_MN = torch.stack([torch.stack([b.sum() for b in row]) for row in blocks]) * torch.outer(*factors)
    total_MN = norms[:m, None] + norms[m:] - 2 * cross_MN
    for i, j in too_close(total_MN, norms[:m], norms[m:], _TOO_CLOSE_BY_PRODUCTS):
        scores = pieces.scores([layers[i], layers[m + j]], piece).flatten(1)
        total_MN[i, j] = pair_sums(scores[:1], scores[1:])[0, 0]
    return total_MN


def _inner(q: Tensor, k: Tensor, r: Tensor, s: Tensor) -> Tensor:
    """Qᵀ R ∘ Kᵀ S added up over the n matrices, [C, D] float64, for Q, K [n, l, C] and R, S [n, l, D]."""
    product = torch.bmm(q.transpose(1, 2), r).mul_(torch.bmm(k.transpose(1, 2), s))
    return product.sum(0).double()


def _backward_by_products(
    pieces: _Pieces,
    student: Sequence[_Layer],
    teacher: Sequence[_Layer],
    weights_MN: Tensor,
    sides: Sequence[tuple[Tensor | None, Tensor | None]],
    piece: _Piece,
) -> None:
    """dQ_i = Σ_j g_ij (Q_i (K_iᵀK_i)/d_i - Q_j (K_jᵀK_i)/√(d_i d_j)), and dK_i likewise."""
    taken = [_Taken(pieces, layer, piece) for layer in teacher]
    for layer, grads, weights in zip(student, sides, weights_MN, strict=True):
        own = _Taken(pieces, layer, piece)
        terms = [(own, float(weights.sum())), *((t, -w) for t, w in zip(taken, weights.tolist(), strict=True) if w)]
        for side, grad in enumerate(grads):
            if grad is not None:
                total = torch.zeros_like(own.sides[side])
                for t, weight in terms:
                    inner = torch.bmm(t.sides[1 - side].transpose(1, 2), own.sides[1 - side])
                    total.baddbmm_(t.sides[side], inner, alpha=weight * own.factor * t.factor)
                pieces.give(grad, total, piece)


class _Layer:
    """One layer's queries and keys, opened once for all pieces, and what its scores are multiplied by.

    On a CPU they are tuples of rows: to cut a row out for every piece would cost as much as a small product.
    """

    def __init__(self, pieces: _Pieces, pair: QueryKey) -> None:
        heads, width = pair[0].shape[1], pair[0].shape[3]
        self.factor = 1 / math.sqrt(width) / (heads if pieces.average else 1)
        self.query, self.key = (tensor.unbind(0) if pieces.on_cpu else tensor for tensor in pair)


class _Taken:
    """One layer's matrices of a piece, and what its scores are multiplied by."""

    def __init__(self, pieces: _Pieces, layer: _Layer, piece: _Piece) -> None:
        self.sides = self.query, self.key = pieces.take(layer.query, piece), pieces.take(layer.key, piece)
        self.factor = layer.factor


@dataclass(frozen=True)
class _Piece:
    """Heads of one row (CPU: its kept positions alone) or of several (elsewhere: padded ones zeroed)."""

    rows: slice
    heads: slice
    length: int
    products: bool = False
    """Whether d x d products cost less here than scores."""
    index: Tensor | None = None
    """The kept positions, where they are not simply the first ones."""


class _Pieces:
    """A batch of queries and keys in pieces, and what is done with one.

    On a CPU a piece lies within one row, so padding is not computed at all. Elsewhere a piece is several padded rows:
    small kernels and waiting for the device would cost more than padding does.
    """

    def __init__(self, mask: Tensor | None, layers: Sequence[QueryKey], average: bool, m: int) -> None:
        first = layers[0][0]
        self.batch, self.heads, self.length, _ = first.shape
        self.average = average
        self.on_cpu = on_cpu(first)
        self.kept = None if mask is None else mask.bool()
        lengths = torch.full((self.batch,), self.length) if mask is None else self.kept.sum(1)  # type: ignore[union-attr]
        pairs: Any = lengths.square().sum()
        matrices = 1 if average else self.heads
        if self.on_cpu or mask is None:
            pairs = int(pairs)
            elements = pairs * matrices
        else:
            elements = self.batch * self.length**2 * matrices
        self.count: Any = pairs * matrices
        """Over how many entries the mean runs."""
        self.elements, self.small = elements, is_small(elements)
        self.dtype = result_dtype([t for pair in layers for t in pair])
        if self.small and not self.on_cpu:
            # Elsewhere one cannot look which costs are close to their rounding; small tensors are all float64.
            self.dtype = torch.float64
        self._lengths = lengths.tolist() if self.on_cpu else []
        self._layers = len(layers)
        self._device = first.device
        self._spaces: dict[str, Tensor] = {}
        widths = [q.shape[3] for q, _ in layers]
        self._widths = sum(widths[:m]), sum(widths[m:])

    def __iter__(self) -> Iterator[_Piece]:
        if not self.on_cpu:
            step = max(1, _PIECE["other"] // (self._layers * self.heads * self.length**2))
            for start in range(0, self.batch, step):
                yield _Piece(slice(start, min(start + step, self.batch)), slice(None), self.length)
            return
        for row, length in enumerate(self._lengths):
            if length == 0:
                continue
            index = None
            if self.kept is not None and not bool(self.kept[row, :length].all()):
                index = self.kept[row].nonzero().squeeze(1)
            step, products = self.heads, self._products_win(length)
            if products:
                step = max(1, min(step, _PIECE_OF_PRODUCTS // (sum(self._widths) * length)))
            elif not self.average:
                step = max(1, min(step, _PIECE["cpu"] // (self._layers * length**2)))
            for start in range(0, self.heads, step):
                heads = slice(start, min(start + step, self.heads))
                yield _Piece(slice(row, row + 1), heads, length, products, index)

    def _products_win(self, length: int) -> bool:
        """Whether d x d products cost less than scores: l > 2·S·T/(S + T), S and T all layers' widths together.

        Small tensors keep to scores, whose norms say which costs have to be taken in float64.
        """
        if self.average or self.small or length < _SHORTEST_FOR_PRODUCTS:
            return False
        student, teacher = self._widths
        return length > 2 * student * teacher / (student + teacher)

    def take(self, opened: Any, piece: _Piece) -> Tensor:
        """The piece's matrices [n, l, d], or [n, l, H·d] for head averages: Σ_h Q_h K_hᵀ is one product over all."""
        if self.on_cpu:
            x: Tensor = opened[piece.rows.start]
            if not self.average and piece.heads.stop - piece.heads.start < self.heads:
                x = x[piece.heads]
            if piece.index is not None:
                x = x.index_select(1, piece.index)
            elif piece.length < self.length:
                x = x[:, : piece.length]
            if x.dtype != self.dtype:
                x = x.to(self.dtype)
            return x.transpose(0, 1).flatten(1).unsqueeze(0) if self.average else x
        x = opened[piece.rows].to(self.dtype)
        if self.kept is not None:
            # Not a product with zero: padding may hold anything.
            x = x.masked_fill(~self.kept[piece.rows, None, :, None], 0)
        return x.transpose(1, 2).flatten(2) if self.average else x.flatten(0, 1)

    def give(self, grad_BHLd: Tensor, values: Tensor, piece: _Piece) -> None:
        """Write what belongs to `take`'s matrices to its place in a gradient."""
        heads = slice(None) if self.average else piece.heads
        target = grad_BHLd[piece.rows, heads]
        b, h, _, d = target.shape
        values = values.view(b, -1, h, d).transpose(1, 2) if self.average else values.view(b, h, -1, d)
        if piece.index is None:
            target[:, :, : piece.length] = values.to(grad_BHLd.dtype)
        else:
            target.index_copy_(2, piece.index, values.to(grad_BHLd.dtype))

    def scores(self, layers: Sequence[_Layer], piece: _Piece) -> Tensor:
        """Q Kᵀ/√d of a piece, [layers, n, l, l]; the space is used again by the next piece."""
        taken = [_Taken(self, layer, piece) for layer in layers]
        space = self.space("scores", (len(layers), len(taken[0].query), piece.length, piece.length))
        for scores, t in zip(space.unbind(0), taken, strict=True):
            torch.baddbmm(scores, t.query, t.key.transpose(1, 2), beta=0, alpha=t.factor, out=scores)
        return space

    def space(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """Uninitialised, and the same memory for every piece: fresh pages cost more than the products in them."""
        size = math.prod(shape)
        if len(self._spaces.get(name, ())) < size:
            self._spaces[name] = torch.empty(size, dtype=self.dtype, device=self._device)
        return self._spaces[name][:size].view(shape)

    def release(self) -> None:
        """Forget the space: between forward and backward it would only be in the way."""
        self._spaces.clear()
