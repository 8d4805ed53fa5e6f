"""Student states on their way into the teacher's width.

Legend: B batch, L tokens, d student width, D teacher width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["Projected", "State"]


@dataclass(frozen=True, eq=False)
class Projected:
    r"""A student layer in the teacher's width, projected where it is compared.

    .. math:: Y = S W^\top + b

    `bert_emd.method.hidden_distances` takes it in place of a tensor and makes Y a few rows at a time. Under autocast,
    and where the projected layers are at most a third as many as the teacher's, they stay until backward, without most
    of the padding; else they are made again there. State, weight and bias get their gradients.

    Args:
        state: S, [B, L, d].
        weight: W, [D, d].
        bias: b, [D], or None.
    """

    state: Tensor
    weight: Tensor
    bias: Tensor | None = None

    @property
    def shape(self) -> torch.Size:
        """Y's, [B, L, D]."""
        return torch.Size((*self.state.shape[:-1], self.weight.shape[0]))

    def full(self) -> Tensor:
        """Y, [B, L, D], as `torch.nn.Linear` makes it."""
        return F.linear(self.state, self.weight, self.bias)

    def __getitem__(self, positions: Any) -> Tensor:
        """Y[positions], chosen before they are projected: texts, or texts and tokens.

        >>> eye = torch.eye(3)
        >>> Projected(torch.ones(2, 5, 3), eye)[:, 0].shape
        torch.Size([2, 3])
        """
        return F.linear(self.state[positions], self.weight, self.bias)


State = Tensor | Projected
"""A layer's hidden states as `bert_emd.method.hidden_distances` takes them."""
