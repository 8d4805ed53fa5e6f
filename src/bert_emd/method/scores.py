"""Attention scores that were made before: what a teacher's cache keeps where they take less room than their factors.

Legend: B batch, L tokens, H heads, d head width, l the kept positions of one text.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from bert_emd.method.exact16 import exact_products

__all__ = ["QueryKey", "Scores", "attention_scores"]

QueryKey = tuple[Tensor, Tensor]


@dataclass(frozen=True, eq=False)
class Scores:
    r"""The attention scores of a teacher's layers on one batch, kept positions alone, in place of queries and keys.

    .. math:: A = Q K^\top / \sqrt{d}

    `bert_emd.method.attention_distances` takes it as the teacher's layers on a CPU. Texts that are short against the
    head width, l < 2·d, have fewer scores than numbers in Q and K, and what is read is not multiplied again.

    Args:
        rows: of each text, [N, H, l, l] in any float dtype, its kept positions in their order.
        layers: which layers of the model these are, counted from 0 and rising; None: all.

    >>> scores = Scores([torch.zeros(2, 4, 3, 3), torch.zeros(2, 4, 5, 5)], layers=(1, 3))
    >>> len(scores), scores.heads, scores.layer(3).rows[1].shape
    (2, 4, torch.Size([1, 4, 5, 5]))
    """

    rows: Sequence[Tensor]
    layers: tuple[int, ...] | None = None

    def __len__(self) -> int:
        """N."""
        return int(self.rows[0].shape[0])

    def at(self, place: int) -> Scores:
        """One of these layers, by its place among them."""
        if not 0 <= place < len(self):
            raise IndexError(f"there is no layer {place} among {len(self)}")
        return Scores([row[place : place + 1] for row in self.rows])

    def layer(self, number: int) -> Scores:
        """One of these layers, by its number in the model."""
        return self.at(number if self.layers is None else self.layers.index(number))

    @property
    def heads(self) -> int:
        """H."""
        return int(self.rows[0].shape[1])


@torch.no_grad()
def attention_scores(query: Tensor, key: Tensor) -> Tensor:
    """Q Kᵀ/√d in float32, [B, H, L, L], padding included; what bfloat16 holds is not rounded on the way.

    >>> attention_scores(torch.ones(1, 1, 1, 4), 2 * torch.ones(1, 1, 1, 4)).item()
    4.0
    """
    sixteen = query.dtype == key.dtype == torch.bfloat16 and query.device.type == "cpu"
    with torch.autocast(query.device.type, enabled=False), exact_products() if sixteen else nullcontext():
        return torch.matmul(query.float(), key.float().transpose(2, 3)).mul_(1 / math.sqrt(query.shape[3]))
