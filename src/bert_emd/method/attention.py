"""The attention distances and their gradient, streamed over pieces of the batch that fit a cache.

Two routes give the same numbers: the scores themselves, of all layers of a piece, or d x d products of queries and
keys, which make a score only for pairs that nearly agree, and win on long rows. Legend: B batch, L tokens, H heads, d
head width, M student layers, N teacher layers; a piece holds n matrices (heads of one row, or of several) of length l.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from bert_emd.method.attention_pieces import Layer, Piece, Pieces, Run
from bert_emd.method.pair_sums import on_cpu, pair_sums, result_dtype, too_close, used_layers
from bert_emd.method.scores import QueryKey, Scores

__all__ = ["AttentionDistances"]

# The d x d products are sums of both signs, so they lose digits earlier than the scores do.
_TOO_CLOSE_BY_PRODUCTS = 0.3
# The rounding of float32 scores shows in a cost below this part of the norms, times the number of entries: over many
# entries it averages out.
_ROUNDED = 8.0


class AttentionDistances(torch.autograd.Function):
    """D_ij of `bert_emd.method.attention_distances` for checked input, and the mean squares of the teacher's scores.

    Arguments: mask [B, L] or None, M, whether head averages are compared, whether the mean squares are wanted (they are
    None if not), the teacher's scores where they are there already, then query, key, query, key, …
    """

    @staticmethod
    def forward(
        ctx: Any, mask: Tensor | None, m: int, average: bool, squares: bool, given: Scores | None, *flat: Tensor
    ) -> Any:
        ctx.save_for_backward(*flat)
        pairs = list(zip(flat[::2], flat[1::2], strict=True))
        student, teacher = pairs[:m], pairs[m:] if given is None else given
        pieces = Pieces(mask, student, teacher, average)
        ctx.pieces, ctx.m = pieces, m
        layers = [Layer(pieces, pair) for pair in pairs]
        with torch.autocast(flat[0].device.type, enabled=False):
            total_MN, squares_N, norms = _sums(pieces, layers, m, squares)
            if pieces.small and pieces.on_cpu and pieces.dtype == torch.float32:
                for i, j in too_close(total_MN, norms[:m], norms[m:], _ROUNDED / pieces.elements):
                    other = teacher.at(j) if isinstance(teacher, Scores) else teacher[j]
                    total_MN[i, j] = _in_float64(mask, student[i], other, average) / pieces.unit**2
        # The sums first: elsewhere than on a CPU the count is a tensor, over which a number would be float32.
        means_MN = (total_MN * pieces.unit**2 / pieces.count).to(result_dtype(list(flat)))
        if not squares:
            return means_MN, None
        squares_N = squares_N * pieces.unit**2 / pieces.count
        ctx.mark_non_differentiable(squares_N)
        return means_MN, squares_N

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        flat, m, pieces = ctx.saved_tensors, ctx.m, ctx.pieces
        layers = [Layer(pieces, pair) for pair in zip(flat[::2], flat[1::2], strict=True)]
        scale_MN = grad_outputs[0].double() * 2.0 / pieces.count
        asked = ctx.needs_input_grad[5:]
        # The teacher is a constant. What no piece writes, padding, has no gradient. Without gaps, as the model's own
        # products make theirs: sums of two layouts are slow.
        new = torch.empty_like if pieces.kept is None else torch.zeros_like
        grads = [
            new(t, memory_format=torch.contiguous_format) if asked[i] and i < 2 * m else None
            for i, t in enumerate(flat)
        ]
        wanted = [i for i in range(m) if asked[2 * i] or asked[2 * i + 1]]
        sides = [(grads[2 * i], grads[2 * i + 1]) for i in wanted]
        needed = used_layers(scale_MN[wanted])
        weights_MN = scale_MN[wanted][:, needed]
        student = [layers[i] for i in wanted]
        teacher, there = ([layers[m + j] for j in needed], []) if pieces.given is None else ([], needed)

        mix = _Mix(pieces, student, weights_MN)
        own = pieces.with_space()
        with torch.autocast(flat[0].device.type, enabled=False):
            for piece in pieces:
                if piece.products:
                    _backward_by_products(own, student, teacher, weights_MN, sides, piece)
                else:
                    runs = own.runs(student, piece, "student")
                    grad_scores = mix.of(own, runs, own.runs(teacher, piece, "teacher"), there, piece)
                    _backward_by_scores(own, runs, grad_scores, sides, piece)
        return (None, None, None, None, None, *grads)


def _sums(pieces: Pieces, layers: Sequence[Layer], m: int, squares: bool) -> tuple[Tensor, Tensor, Tensor]:
    """In float64 over the unit of the scores: Σ (A_i - A_j)² of all pairs [M, N], Σ A_j² [N] where it is wanted, and
    for small tensors on a CPU Σ A² of all layers [M + N]."""
    pieces = pieces.with_space()
    given = 0 if pieces.given is None else len(pieces.given)
    total_MN = torch.zeros(m, len(layers) - m + given, dtype=torch.float64, device=layers[0].query.tensor.device)
    squares_N = torch.zeros_like(total_MN[0])
    norms = torch.zeros(sum(total_MN.shape), dtype=torch.float64)
    for piece in pieces:
        if piece.products:
            total_MN += _by_products(pieces, layers, piece, m, squares_N)
            continue
        scores = pieces.scores(pieces.runs(layers, piece, "all"), piece, range(given)).flatten(1)
        total_MN += pair_sums(scores[:m], scores[m:], small=pieces.small, squares_N=squares_N if squares else None)
        if pieces.small and pieces.on_cpu:
            norms += torch.linalg.vector_norm(scores, dim=1).double().square()
    return total_MN, squares_N, norms


def _in_float64(mask: Tensor | None, student: QueryKey, teacher: QueryKey | Scores, average: bool) -> Tensor:
    """The sum for one pair of layers whose difference is near the rounding of float32 scores."""
    pairs = [student] if isinstance(teacher, Scores) else [student, teacher]
    wide = [(q.double(), k.double()) for q, k in pairs]
    pieces = Pieces(mask, wide[:1], teacher if isinstance(teacher, Scores) else wide[1:], average)
    layers = [Layer(pieces, pair) for pair in wide]
    total = torch.zeros((), dtype=torch.float64)
    for piece in pieces:
        runs = pieces.runs(layers, piece, "pair")
        one, other = pieces.scores(runs, piece, [0] if isinstance(teacher, Scores) else ())
        total += (one - other).square_().sum() * pieces.unit**2
    return total


class _Mix:
    """dA_i = Σ_j g_ij (A_i - A_j), over √d: Σ_s w_is A_s over the layers s of both sides, the student's own first.

    The scores are those over their unit; ``weights_MN`` are the g_ij of the teacher's layers that have any.
    """

    def __init__(self, pieces: Pieces, student: Sequence[Layer], weights_MN: Tensor) -> None:
        factors = weights_MN.new_tensor([[layer.factor * pieces.unit] for layer in student])
        weights_MS = torch.cat([torch.diag(weights_MN.sum(1)), -weights_MN], 1) * factors
        self.weights_MS = weights_MS.to(pieces.dtype)
        # A plan's few weights cost less one by one than a product with all rows.
        self.sparse = on_cpu(weights_MS) and int(weights_MS.count_nonzero()) <= 2 * weights_MS.shape[1]
        if self.sparse:
            m, rows = len(weights_MS), self.weights_MS.tolist()
            self.own = [row[i] for i, row in enumerate(rows)]
            self.users = [[(i, w) for i, w in enumerate(column) if w] for column in list(zip(*rows, strict=True))[m:]]
            """Of each of the teacher's layers, the i that it has a weight for, and the weight."""

    def of(
        self, pieces: Pieces, student: Sequence[Run], teacher: Sequence[Run], there: Sequence[int], piece: Piece
    ) -> Tensor:
        """[M, n, l, l] of a piece; ``there``: the teacher's layers whose scores need not be made."""
        m, shape = len(self.weights_MS), (pieces.matrices(piece), piece.length, piece.length)
        out = pieces.space("grad", (m, *shape))
        if self.sparse and not there and pieces.one_by_one(piece):
            self._grow(pieces, student, teacher, pieces.space("scores", shape), out.unbind(0))
            return out
        scores = pieces.scores([*student, *teacher], piece, there)
        if not self.sparse:
            torch.mm(self.weights_MS, scores.flatten(1), out=out.flatten(1))
            return out
        outs, layers = out.unbind(0), scores.unbind(0)
        for to, own, w in zip(outs, layers[:m], self.own, strict=True):
            torch.mul(own, w, out=to)
        for users, other in zip(self.users, layers[m:], strict=True):
            for i, w in users:
                outs[i].add_(other, alpha=w)
        return out

    def _grow(
        self, pieces: Pieces, student: Sequence[Run], teacher: Sequence[Run], room: Tensor, outs: Sequence[Tensor]
    ) -> None:
        """The same from runs of one layer each: scores that have one user are made where they are added up."""
        for to, run, w in zip(outs, student, self.own, strict=True):
            pieces.multiply(run, to, weight=w)
        for users, run in zip(self.users, teacher, strict=True):
            if len(users) == 1:
                ((i, w),) = users
                pieces.multiply(run, outs[i], weight=w, add=True)
                continue
            pieces.multiply(run, room)
            for i, w in users:
                outs[i].add_(room, alpha=w)


def _backward_by_scores(
    pieces: Pieces,
    student: Sequence[Run],
    grad_scores: Tensor,
    sides: Sequence[tuple[Tensor | None, Tensor | None]],
    piece: Piece,
) -> None:
    """With A = QKᵀ/√d and dA/√d, [M, n, l, l]: dQ = dA K/√d and dK = dAᵀ Q/√d."""
    counts = [len(run.layers) for run in student]
    # Scores of padding are zero on both sides or absent, so dA is zero there and padded rows get no gradient.
    left = iter(sides)
    for run, count, grad in zip(student, counts, torch.split(grad_scores, counts), strict=True):
        da, own = grad.flatten(0, 1), list(islice(left, count))
        for side, (d, other) in enumerate(((da, run.key), (da.transpose(1, 2), run.query))):
            wanted = [pair[side] for pair in own]
            if all(to is None for to in wanted):
                continue
            found = torch.bmm(d, other, out=pieces.space("found", tuple(other.shape)))
            for to, values in zip(wanted, found.chunk(count), strict=True):
                if to is not None:
                    pieces.give(to, values, piece)


def _by_products(pieces: Pieces, layers: Sequence[Layer], piece: Piece, m: int, squares_N: Tensor) -> Tensor:
    """⟨A_i, A_j⟩ = ⟨Q_iᵀQ_j, K_iᵀK_j⟩ head by head, so no score is made; [M, N] sums of squared differences.

    Over the unit of the scores; ``squares_N`` takes in the teacher's own sums of squares.
    """
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
    squares_N += norms[m:] / pieces.unit**2
    cross_MN = torch.stack([torch.stack([b.sum() for b in row]) for row in blocks]) * torch.outer(*factors)
    total_MN = norms[:m, None] + norms[m:] - 2 * cross_MN
    for i, j in too_close(total_MN, norms[:m], norms[m:], _TOO_CLOSE_BY_PRODUCTS):
        scores = pieces.scores(pieces.runs([layers[i], layers[m + j]], piece, "pair"), piece).flatten(1)
        total_MN[i, j] = pair_sums(scores[:1], scores[1:])[0, 0] * pieces.unit**2
    return total_MN / pieces.unit**2


def _inner(q: Tensor, k: Tensor, r: Tensor, s: Tensor) -> Tensor:
    """Qᵀ R ∘ Kᵀ S added up over the n matrices, [C, D] float64, for Q, K [n, l, C] and R, S [n, l, D]."""
    product = torch.bmm(q.transpose(1, 2), r).mul_(torch.bmm(k.transpose(1, 2), s))
    return product.sum(0).double()


def _backward_by_products(
    pieces: Pieces,
    student: Sequence[Layer],
    teacher: Sequence[Layer],
    weights_MN: Tensor,
    sides: Sequence[tuple[Tensor | None, Tensor | None]],
    piece: Piece,
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


class _Taken:
    """One layer's matrices of a piece, and what its scores are multiplied by."""

    def __init__(self, pieces: Pieces, layer: Layer, piece: Piece) -> None:
        self.sides = self.query, self.key = pieces.take(layer.query, piece), pieces.take(layer.key, piece)
        self.factor = layer.factor
