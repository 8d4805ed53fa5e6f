"""The shape that every mapping has."""

from __future__ import annotations

import abc
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
from torch import Tensor, nn

from bert_emd.method.cost_attention import CostRule
from bert_emd.method.distances import hidden_distances
from bert_emd.method.distributed import whole_batch_mean
from bert_emd.method.features import Features, Needs
from bert_emd.method.transfer import to_device

__all__ = ["Mapping", "MappingLoss", "MappingOptions"]


@dataclass(frozen=True, kw_only=True)
class MappingOptions:
    """What a mapping may be told; each takes what concerns it."""

    num_student: int
    num_teacher: int
    attention: bool = True
    hidden: bool = True
    embedding: bool = True
    rule: CostRule = "ratio"
    T_emd: float = 1.0
    joint: bool = True


@dataclass(kw_only=True)
class MappingLoss:
    """The terms of one batch, each None when switched off, and a record of how they came about."""

    attention: Tensor | None = None
    hidden: Tensor | None = None
    embedding: Tensor | None = None
    record: dict[str, Any] = field(default_factory=dict)


class Mapping(nn.Module, abc.ABC):
    """Turns the features of both models into losses.

    A mapping says what it needs, is told the epoch, and is called on every training batch with the student's hidden
    states already in the teacher's width. Its state, where it has any, goes through ``get_extra_state`` as one
    float64 tensor, so that it is checkpointed with the model and never cast or broadcast with it.
    """

    name: ClassVar[str]

    def __init__(self, options: MappingOptions) -> None:
        super().__init__()
        self.options = options

    @property
    def needs(self) -> Needs:
        """What the tap has to supply."""
        return Needs(embedding=self.options.embedding, hidden=self.options.hidden, attention=self.options.attention)

    def start_epoch(self, epoch: int) -> None:
        """Told before the first batch of each epoch, counted from 0."""

    @abc.abstractmethod
    def forward(self, student: Features, teacher: Features, mask: Tensor | None) -> MappingLoss:
        """The losses of one batch; ``mask`` [B, L], true = keep, None keeps all."""

    def layer_weights(self) -> dict[str, list[float]]:
        """The weights of the layers, for mappings that have them."""
        return {}

    def embedding_loss(self, student: Features, teacher: Features, mask: Tensor | None) -> Tensor | None:
        """L_emb: mean squared error of the embedding outputs over the kept positions, outside any mapping."""
        if not self.options.embedding:
            return None
        assert student.embedding is not None
        assert teacher.embedding is not None
        cost = hidden_distances([student.embedding], [teacher.embedding], mask, look=False)[0, 0]
        return cost * whole_batch_mean(cost, lambda: self.positions(student, mask))[1]

    @staticmethod
    def positions(student: Features, mask: Tensor | None, *, pairs: bool = False) -> Tensor | int:
        """How many positions, or query-key pairs, the means of this batch run over."""
        if mask is not None:
            lengths = mask.bool().sum(1)
            return lengths.square().sum() if pairs else lengths.sum()
        tensor = student.embedding
        if tensor is None:
            tensor = student.hidden[0] if student.hidden else student.attention[0][0]
        batch, length = tensor.shape[0], tensor.shape[-2]
        return batch * length ** (2 if pairs else 1)


def weighted_sum(weights: np.ndarray, cost: Tensor) -> Tensor:
    """Σ_ij F_ij D_ij with F a constant for the gradient."""
    return (to_device(weights, cost) * cost).sum()
