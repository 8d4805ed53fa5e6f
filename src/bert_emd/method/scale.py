"""How large a teacher layer's own tensors are: what relative costs are measured in.

Legend: B batch, L tokens, D width, H heads, d head width, N teacher layers; a product takes n matrices [l, c].
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["attention_mean_squares", "hidden_mean_squares", "usable_scale"]

# A layer of zeros has no scale to measure in; its costs stay as they are.
_NO_SCALE = 1e-12


def hidden_mean_squares(layers: Sequence[Tensor], mask: Tensor | None = None) -> Tensor:
    r"""The mean square of each layer over the kept positions.

    .. math:: s_j = \frac{1}{P \cdot D} \sum_{p, k} T_{j,p,k}^2

    Args:
        layers: N tensors [B, L, D].
        mask: [B, L], true = keep; P positions. None keeps all.

    Returns:
        s, [N] float64, without gradient.

    >>> hidden_mean_squares([torch.ones(1, 2, 3), 2 * torch.ones(1, 2, 3)])
    tensor([1., 4.], dtype=torch.float64)
    """
    first = layers[0]
    positions = first.shape[0] * first.shape[1] if mask is None else mask.bool().sum()
    with torch.no_grad():
        sums = [_kept(x, mask).square().sum(dtype=torch.float64) for x in layers]
        return torch.stack(sums) / (positions * first.shape[2])


def attention_mean_squares(
    layers: Sequence[tuple[Tensor, Tensor]], mask: Tensor | None = None, *, average: bool = False
) -> Tensor:
    r"""The mean square of each layer's attention scores over heads and kept query-key pairs.

    .. math:: s_j = \operatorname{mean}\,(Q_j K_j^\top / \sqrt{d})^2

    Args:
        layers: N pairs (query, key), each [B, H, L, d].
        mask: [B, L], true = keep; a pair counts where both sides are kept. None keeps all.
        average: take the mean square of the head averages, as costs do where head counts differ.

    Returns:
        s, [N] float64, without gradient.

    >>> one, two = torch.ones(1, 1, 1, 4), 2 * torch.ones(1, 1, 1, 4)  # scores 4/2 = 2 and 8/2 = 4
    >>> attention_mean_squares([(one, one), (one, two)])
    tensor([ 4., 16.], dtype=torch.float64)
    """
    batch, _, length, _ = layers[0][0].shape
    pairs = batch * length**2 if mask is None else mask.bool().sum(1).square().sum()
    sums = []
    with torch.no_grad(), torch.autocast(layers[0][0].device.type, enabled=False):
        for query, key in layers:
            heads, width = query.shape[1], query.shape[3]
            # The sum of Q_h K_hᵀ over heads is one product over all columns side by side.
            q, k = (
                x.transpose(1, 2).flatten(2) if average else x.flatten(0, 1)
                for x in (_kept(query, mask), _kept(key, mask))
            )
            sums.append(_square_sum(q, k) / (width * (heads**2 if average else heads)))
    return torch.stack(sums) / pairs


def usable_scale(mean_squares: Tensor) -> Tensor:
    """What costs are divided by: 1 where the layer is zero throughout.

    >>> usable_scale(torch.tensor([4.0, 0.0]))
    tensor([4., 1.])
    """
    return torch.where(mean_squares > _NO_SCALE, mean_squares, torch.ones_like(mean_squares))


def _kept(x: Tensor, mask: Tensor | None) -> Tensor:
    """In float32 (float64 stays), padded rows zero. Not a product with zero: padding may hold anything."""
    x = x if x.dtype == torch.float64 else x.float()
    if mask is None:
        return x
    dropped = ~mask.bool().to(x.device)
    return x.masked_fill(dropped[:, :, None] if x.dim() == 3 else dropped[:, None, :, None], 0)


def _square_sum(q: Tensor, k: Tensor) -> Tensor:
    """Σ (Q Kᵀ)² of matrices [n, l, c]; for long rows as ⟨QᵀQ, KᵀK⟩, which makes no scores."""
    if q.shape[1] <= 2 * q.shape[2]:
        return torch.bmm(q, k.transpose(1, 2)).double().square().sum()
    return (torch.bmm(q.transpose(1, 2), q).double() * torch.bmm(k.transpose(1, 2), k)).sum()
