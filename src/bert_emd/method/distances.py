"""All-pairs distances between the layers of a student and of a teacher.

Legend: B batch, L tokens, D width, H heads, d head width, M student layers, N teacher layers, P positions kept by the
mask. Both functions stream over pieces of the batch that fit a cache, take exact differences (an expansion into norms
and products loses its digits where student and teacher nearly agree) and add them up in float64. Nothing of size M·N
times a tensor is kept for backward: the pieces are recomputed, and only pairs with a gradient are visited.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

__all__ = ["attention_distances", "hidden_distances"]

# Elements of one layer's piece. All layers of a piece together stay within a few MiB of cache on a CPU; a GPU wants
# pieces large enough to fill it.
_PIECE = {"cpu": 1 << 16, "other": 1 << 25}

QueryKey = tuple[Tensor, Tensor]


def hidden_distances(student: Sequence[Tensor], teacher: Sequence[Tensor], mask: Tensor | None = None) -> Tensor:
    r"""Mean squared error between every student layer and every teacher layer.

    .. math:: D_{ij} = \frac{1}{P \cdot D} \sum_{p, k} (S_{i,p,k} - T_{j,p,k})^2

    Args:
        student: M tensors [B, L, D]. Differentiable.
        teacher: N tensors [B, L, D]. Constants.
        mask: [B, L], true = keep; the P positions kept are what the mean runs over. None keeps all.

    Returns:
        D, [M, N], float32 (float64 for float64 input).

    Raises:
        ValueError: unequal widths or shapes, no layer, or a mask that keeps nothing.

    >>> hidden_distances([torch.zeros(1, 2, 3)], [torch.ones(1, 2, 3), 2 * torch.ones(1, 2, 3)])
    tensor([[1., 4.]])

    Source: Li et al., EMNLP 2020, section 3.2.
    """
    _check_layers(student, teacher)
    shape = student[0].shape
    for name, layer in [("student", s) for s in student] + [("teacher", t) for t in teacher]:
        if layer.dim() != 3:
            raise ValueError(f"a {name} layer has {layer.dim()} dimensions; hidden states are [batch, tokens, width]")
        if layer.shape[-1] != shape[-1]:
            raise ValueError(
                f"a {name} layer is {layer.shape[-1]} wide but another is {shape[-1]}; project the student's first"
            )
        if layer.shape != shape:
            raise ValueError(f"a {name} layer has shape {tuple(layer.shape)} but another has {tuple(shape)}")
    kept = _kept_positions(mask, shape[:2], student[0].device)
    return _HiddenDistances.apply(kept, len(student), *student, *teacher)  # type: ignore[no-any-return, no-untyped-call]


def attention_distances(student: Sequence[QueryKey], teacher: Sequence[QueryKey], mask: Tensor | None = None) -> Tensor:
    r"""Mean squared error between the attention scores of every student layer and every teacher layer.

    .. math:: A = Q K^\top / \sqrt{d}, \qquad D_{ij} = \operatorname{mean}\,(A^S_i - A^T_j)^2

    over batch, heads and the query-key pairs that the mask keeps on both sides, before any softmax.
    Where head counts differ anywhere, the head averages of the scores are compared instead.

    Args:
        student: M pairs (query, key), each [B, H, L, d]. Differentiable in both.
        teacher: N pairs (query, key), each [B, H', L, d']. Constants.
        mask: [B, L], true = keep. None keeps all.

    Returns:
        D, [M, N], float32 (float64 for float64 input).

    Raises:
        ValueError: unequal batch or length, no layer, or a mask that keeps nothing.

    >>> one, two = torch.ones(1, 1, 1, 4), 2 * torch.ones(1, 1, 1, 4)  # scores 4/2 = 2 and 8/2 = 4
    >>> attention_distances([(one, one)], [(one, one), (one, two)])
    tensor([[0., 4.]])

    Source: Li et al., EMNLP 2020, section 3.2.
    """
    _check_layers(student, teacher)
    first = student[0][0]
    batch, length = first.shape[0], first.shape[-2]
    for name, layers in (("student", student), ("teacher", teacher)):
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
    _kept_positions(mask, (batch, length), first.device)
    kept_BL = None if mask is None else mask.to(first.device).bool()
    heads = {q.shape[1] for q, _ in (*student, *teacher)}
    flat = [tensor for pair in (*student, *teacher) for tensor in pair]
    return _AttentionDistances.apply(kept_BL, len(student), len(heads) > 1, *flat)  # type: ignore[no-any-return, no-untyped-call]


class _HiddenDistances(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, kept: Tensor | None, m: int, *layers: Tensor) -> Tensor:
        ctx.save_for_backward(*layers)
        ctx.kept, ctx.m = kept, m
        n = len(layers) - m
        total_MN = torch.zeros(m, n, dtype=torch.float64, device=layers[0].device)
        for rows in _row_pieces(layers[0], kept):
            teacher = [_rows(t, rows) for t in layers[m:]]
            for i in range(m):
                s = _rows(layers[i], rows)
                for j, t in enumerate(teacher):
                    total_MN[i, j] += _squared_norm(s - t)
        ctx.count = _positions(layers[0], kept) * layers[0].shape[-1]
        cost_MN: Tensor = total_MN / ctx.count
        return cost_MN.to(_result_dtype(layers))

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        layers, m, kept = ctx.saved_tensors, ctx.m, ctx.kept
        # d D_ij / d S_i = 2/count (S_i - T_j)
        scale_MN = (grad_outputs[0].double() * (2.0 / ctx.count)).tolist()
        grads: list[Tensor | None] = [None] * len(layers)
        for i in range(m):
            if ctx.needs_input_grad[2 + i]:
                grads[i] = torch.zeros(layers[i].shape, dtype=layers[i].dtype, device=layers[i].device)
        for rows in _row_pieces(layers[0], kept):
            teacher: dict[int, Tensor] = {}
            for i in range(m):
                grad = grads[i]
                if grad is None:
                    continue
                s = _rows(layers[i], rows)
                piece = torch.zeros_like(s)
                for j, scale in enumerate(scale_MN[i]):
                    if scale != 0:
                        if j not in teacher:
                            teacher[j] = _rows(layers[m + j], rows)
                        piece.add_(s - teacher[j], alpha=scale)
                grad.view(-1, grad.shape[-1])[rows] = piece.to(grad.dtype)
        return (None, None, *grads)


class _AttentionDistances(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, kept_BL: Tensor | None, m: int, average: bool, *flat: Tensor) -> Tensor:
        ctx.save_for_backward(*flat)
        ctx.kept_BL, ctx.m, ctx.average = kept_BL, m, average
        layers = list(zip(flat[::2], flat[1::2], strict=True))
        n = len(layers) - m
        total_MN = torch.zeros(m, n, dtype=torch.float64, device=flat[0].device)
        for part in _batch_pieces(layers):
            teacher = [_scores(q, k, part, kept_BL, average) for q, k in layers[m:]]
            for i in range(m):
                s = _scores(*layers[i], part, kept_BL, average)
                for j, t in enumerate(teacher):
                    total_MN[i, j] += _squared_norm(s - t)
        batch, heads, length, _ = flat[0].shape
        pairs = batch * length**2 if kept_BL is None else int(kept_BL.sum(1).square().sum())
        ctx.count = pairs * (1 if average else heads)
        cost_MN: Tensor = total_MN / ctx.count
        return cost_MN.to(_result_dtype(flat))

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        flat, m, kept_BL, average = ctx.saved_tensors, ctx.m, ctx.kept_BL, ctx.average
        layers = list(zip(flat[::2], flat[1::2], strict=True))
        scale_MN = (grad_outputs[0].double() * (2.0 / ctx.count)).tolist()
        grads: list[Tensor | None] = [None] * len(flat)
        wanted = [ctx.needs_input_grad[3 + 2 * i] or ctx.needs_input_grad[4 + 2 * i] for i in range(m)]
        for i in range(m):
            for side, tensor in enumerate(layers[i]):
                if ctx.needs_input_grad[3 + 2 * i + side]:
                    grads[2 * i + side] = torch.zeros(tensor.shape, dtype=tensor.dtype, device=tensor.device)
        for part in _batch_pieces(layers):
            teacher: dict[int, Tensor] = {}
            for i in range(m):
                if not wanted[i]:
                    continue
                q, k = layers[i]
                s = _scores(q, k, part, kept_BL, average)
                grad_scores = torch.zeros_like(s)
                for j, scale in enumerate(scale_MN[i]):
                    if scale != 0:
                        if j not in teacher:
                            q_t, k_t = layers[m + j]
                            teacher[j] = _scores(q_t, k_t, part, kept_BL, average)
                        grad_scores.add_(s - teacher[j], alpha=scale)
                # A = Q Kᵀ/√d (averaged over heads where asked), so dQ = dA K/√d and dK = dAᵀ Q/√d. Scores at padding
                # are zero on both sides, so dA is zero there and padded rows get no gradient.
                factor = 1 / math.sqrt(q.shape[-1]) / (q.shape[1] if average else 1)
                for side, other, da in ((0, k, grad_scores), (1, q, grad_scores.transpose(-1, -2))):
                    grad = grads[2 * i + side]
                    if grad is not None:
                        with _no_autocast(grad):
                            grad[part] = (da @ _piece(other, part, kept_BL)).mul_(factor).to(grad.dtype)
        return (None, None, None, *grads)


def _check_layers(student: Sequence[Any], teacher: Sequence[Any]) -> None:
    for name, layers in (("student", student), ("teacher", teacher)):
        if len(layers) == 0:
            raise ValueError(f"there is no {name} layer to compare")


def _kept_positions(mask: Tensor | None, shape: Sequence[int], device: torch.device) -> Tensor | None:
    """Indices of the kept positions in the flattened [B * L], or None for all of them."""
    if mask is None:
        if 0 in shape:
            raise ValueError("the layers hold no position at all")
        return None
    if tuple(mask.shape) != tuple(shape):
        raise ValueError(f"mask has shape {tuple(mask.shape)}, the layers have {tuple(shape)}")
    kept = mask.to(device).reshape(-1).bool().nonzero().squeeze(1)
    if kept.numel() == 0:
        raise ValueError("mask keeps no position at all")
    return kept


def _piece_size(tensor: Tensor) -> int:
    return _PIECE["cpu" if tensor.device.type == "cpu" else "other"]


def _row_pieces(layer: Tensor, kept: Tensor | None) -> Iterator[Tensor | slice]:
    """The rows of the flattened [B * L, D] in pieces that fit the cache."""
    step = max(1, _piece_size(layer) // layer.shape[-1])
    if kept is None:
        total = layer.shape[0] * layer.shape[1]
        yield from (slice(start, min(start + step, total)) for start in range(0, total, step))
    else:
        yield from torch.split(kept, step)


def _rows(layer: Tensor, rows: Tensor | slice) -> Tensor:
    return _wide(layer.reshape(-1, layer.shape[-1])[rows])


def _batch_pieces(layers: Sequence[QueryKey]) -> Iterator[slice]:
    """Slices of the batch whose scores of one layer fit the cache."""
    batch, heads, length, _ = layers[0][0].shape
    step = max(1, _piece_size(layers[0][0]) // (heads * length**2))
    yield from (slice(start, min(start + step, batch)) for start in range(0, batch, step))


def _piece(tensor_BHLd: Tensor, part: slice, kept_BL: Tensor | None) -> Tensor:
    piece = _wide(tensor_BHLd[part])
    if kept_BL is not None:
        piece = piece.masked_fill(~kept_BL[part, None, :, None], 0)  # not a product: padding may hold anything
    return piece


def _scores(q_BHLd: Tensor, k_BHLd: Tensor, part: slice, kept_BL: Tensor | None, average: bool) -> Tensor:
    """Q Kᵀ/√d of a piece of the batch, [b, H, L, L] or, averaged over heads, [b, 1, L, L]; zero at padding."""
    scale = 1 / math.sqrt(q_BHLd.shape[-1])
    q, k = _piece(q_BHLd, part, kept_BL), _piece(k_BHLd, part, kept_BL)
    if average:
        # Σ_h Q_h K_hᵀ is one product over the heads side by side.
        scale /= q.shape[1]
        q, k = (x.transpose(1, 2).flatten(2).unsqueeze(1) for x in (q, k))
    with _no_autocast(q):
        return (q * scale) @ k.transpose(-1, -2)


def _wide(tensor: Tensor) -> Tensor:
    return tensor if tensor.dtype in (torch.float32, torch.float64) else tensor.float()


def _no_autocast(tensor: Tensor) -> torch.autocast:
    """Distances stay in float32 where the models run in 16 bits."""
    return torch.autocast(tensor.device.type, enabled=False)


def _squared_norm(difference: Tensor) -> Tensor:
    """Σ x², overwriting x. `sum` adds pairwise; a vector norm adds in sequence and loses digits on large pieces."""
    return difference.square_().sum().double()


def _positions(layer: Tensor, kept: Tensor | None) -> int:
    return layer.shape[0] * layer.shape[1] if kept is None else kept.numel()


def _result_dtype(tensors: Sequence[Tensor]) -> torch.dtype:
    return torch.float64 if any(t.dtype == torch.float64 for t in tensors) else torch.float32
