"""The shape that every mapping has."""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor, nn

from bert_emd.method.cost_attention import CostRule
from bert_emd.method.distances import LayerCosts, hidden_costs
from bert_emd.method.distributed import whole_batch_mean
from bert_emd.method.features import Features, Needs
from bert_emd.method.transfer import to_device

__all__ = ["COST_OPTIONS", "CostScale", "Mapping", "MappingLoss", "MappingOptions", "StateLoss"]

StateLoss = Literal["mse", "cls"]
CostScale = Literal["absolute", "relative"]
COST_OPTIONS = frozenset(
    {"use_att", "use_rep", "use_embedding", "cost_scale", "count_padding", "projection", "share_param"}
)
"""The options of every mapping that sums the distances of attention scores, hidden states and embeddings."""

_NO_SCALE = 1e-12


@dataclass(frozen=True, kw_only=True)
class MappingOptions:
    """What a mapping may be told; each takes what concerns it."""

    num_student: int
    num_teacher: int
    student_heads: int | None = None
    teacher_heads: int | None = None
    student_width: int | None = None
    teacher_width: int | None = None
    attention: bool = True
    hidden: bool = True
    embedding: bool = True
    rule: CostRule = "ratio"
    T_emd: float = 1.0
    joint: bool = True
    cost_scale: CostScale = "absolute"
    state_loss: StateLoss = "mse"
    layer_map: str | None = None
    relation_heads: int | None = None
    relation_layer: int | None = None
    """Counted from 1."""
    seed: int = 42


@dataclass(kw_only=True)
class MappingLoss:
    """The terms of one batch, each None when switched off, and a record of how they came about."""

    attention: Tensor | None = None
    hidden: Tensor | None = None
    relation: Tensor | None = None
    embedding: Tensor | None = None
    record: dict[str, Any] = field(default_factory=dict)


class Mapping(nn.Module, abc.ABC):
    """Turns the features of both models into losses.

    A mapping says what it needs, is told the epoch, and is called on every training batch with the student's hidden
    states already in the teacher's width. Its state, where it has any, goes through ``get_extra_state`` as one
    float64 tensor, so that it is checkpointed with the model and never cast or broadcast with it.

    Raises:
        ValueError: it cannot be defined for these depths or options.
    """

    name: ClassVar[str]
    uses: ClassVar[frozenset[str]] = frozenset()
    """The options that have an effect in this mapping, as the configuration names them."""

    def __init__(self, options: MappingOptions) -> None:
        super().__init__()
        self.options = options

    @property
    def needs(self) -> Needs:
        """Which kinds of tensors both taps have to supply."""
        return Needs(embedding=self.options.embedding, hidden=self.options.hidden, attention=self.options.attention)

    @property
    def layers(self) -> tuple[Sequence[int] | None, Sequence[int] | None]:
        """Of which student and of which teacher layers, counted from 0; None: of all."""
        return None, None

    @property
    def student_needs(self) -> Needs:
        """What the student's tap has to supply."""
        return dataclasses.replace(self.needs, layers=_rising(self.layers[0]))

    @property
    def teacher_needs(self) -> Needs:
        """What the teacher's tap has to supply, and its cache to keep."""
        return dataclasses.replace(self.needs, layers=_rising(self.layers[1]))

    @property
    def notes(self) -> list[str]:
        """What a user should know about how the two models are compared."""
        ours, theirs = self.options.student_heads, self.options.teacher_heads
        if self.needs.attention and ours != theirs:
            return [f"the teacher has {theirs} attention heads and the student {ours}: head averages are compared"]
        return []

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
        costs = hidden_costs([student.embedding], [teacher.embedding], mask, look=False, squares=self.relative)
        cost, _, factor = self.whole_batch("embedding", costs, student, mask)
        return cost[0, 0] * factor

    @property
    def relative(self) -> bool:
        """Whether costs are relative to the teacher layer's own mean square."""
        return self.options.cost_scale == "relative"

    def whole_batch(
        self, term: str, costs: LayerCosts, student: Features, mask: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor | float]:
        r"""This process's costs on the scale that is asked for, those of all processes, and the factor between them.

        .. math:: D_{ij} / s_j \text{ where costs are relative, } s_j \text{ the teacher layer's own mean square}

        Args:
            term: attention, hidden or embedding.
            costs: its costs, D of any shape, with the mean squares of the last dimension's teacher layers.
            student: its features.
            mask: [B, L] or None.

        Returns:
            D with its gradient, the whole batch's D without, and the factor of `whole_batch_mean`. The denominators
            are constants, and the whole batch's.
        """
        count = partial(self.positions, student, mask, pairs=term == "attention")
        whole, factor = whole_batch_mean(costs.D, count)
        if not self.relative:
            return costs.D, whole, factor
        assert costs.squares is not None
        mean_squares, _ = whole_batch_mean(costs.squares, count)
        # A layer of zeros has no scale to measure in; its costs stay as they are.
        scale = torch.where(mean_squares > _NO_SCALE, mean_squares, 1.0)
        return costs.D / scale.to(costs.D.dtype), whole / scale, factor

    @staticmethod
    def positions(student: Features, mask: Tensor | None, *, pairs: bool = False) -> Tensor | int:
        """How many positions, or query-key pairs, the means of this batch run over."""
        if mask is not None:
            lengths = mask.bool().sum(1)
            return lengths.square().sum() if pairs else lengths.sum()
        queries = (pair[0] for pair in student.attention if pair is not None)
        tensor = next(t for t in (student.embedding, *student.hidden, *queries) if t is not None)
        batch, length = int(tensor.shape[0]), int(tensor.shape[-2])
        return batch * length ** (2 if pairs else 1)


def _rising(layers: Sequence[int] | None) -> tuple[int, ...] | None:
    return None if layers is None else tuple(sorted(set(layers)))


def weighted_sum(weights: np.ndarray, cost: Tensor) -> Tensor:
    """Σ_ij F_ij D_ij with F a constant for the gradient."""
    return (to_device(weights, cost) * cost).sum()
