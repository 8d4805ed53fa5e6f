"""What the mappings share that pair student layers with chosen teacher layers: the earth mover's controls."""

from __future__ import annotations

import abc
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from bert_emd.method.distances import LayerCosts, attention_costs, hidden_costs
from bert_emd.method.distributed import whole_batch_mean
from bert_emd.method.features import Features, Needs
from bert_emd.method.mappings.base import COST_OPTIONS, Mapping, MappingLoss, MappingOptions
from bert_emd.method.scores import Scores
from bert_emd.method.transfer import HostCopy

__all__ = ["PairMapping", "evenly"]


def evenly(i: int, m: int, n: int) -> int:
    """Teacher layer ⌈i·N/M⌉ of student layer i, both counted from 1; i·N/M where M divides N.

    >>> [evenly(i, 3, 6) for i in (1, 2, 3)], [evenly(i, 4, 6) for i in (1, 2, 3, 4)]
    ([2, 4, 6], [2, 3, 5, 6])
    """
    return -(-i * n // m)


class PairMapping(Mapping):
    r"""Compares chosen pairs of a student layer i and a teacher layer j = g(i).

    With ``state_loss`` ``mse`` the distances of attention scores and hidden states are summed over the P pairs, as
    TinyBERT does it, and the embedding outputs are compared beside them:

    .. math:: L_{att} = \sum_i D^A_{i,g(i)}, \qquad L_{hid} = \sum_i D^H_{i,g(i)}

    With ``cls`` it is the loss of PKD: the first position's states, normalised; neither attention nor embeddings take
    part.

    .. math:: L_{hid} = \frac{1}{P} \sum_i \left\lVert \frac{s_i}{\lVert s_i\rVert} - \frac{t_{g(i)}}{\lVert
              t_{g(i)}\rVert} \right\rVert^2 \text{, mean over the batch}
    """

    uses = COST_OPTIONS | {"state_loss"}
    rounds: ClassVar[bool] = False
    """Whether its pairs come from ⌈i·N/M⌉."""

    def __init__(self, options: MappingOptions) -> None:
        super().__init__(options)
        m, n = options.num_student, options.num_teacher
        if m > n:
            raise ValueError(f"mapping {self.name} needs a teacher of at least as many layers ({m} against {n})")
        if not self.pairs():
            raise ValueError(
                f"mapping {self.name} leaves the last student layer unmatched: it needs a student of 2 layers or more"
            )

    @abc.abstractmethod
    def pairs(self) -> Sequence[tuple[int, int]]:
        """The (student, teacher) pairs of this batch, each layer counted from 0."""

    @property
    def first_position_only(self) -> bool:
        """Whether the loss is PKD's."""
        return self.options.state_loss == "cls"

    @property
    def needs(self) -> Needs:
        return Needs(hidden=True) if self.first_position_only else super().needs

    @property
    def layers(self) -> tuple[Sequence[int] | None, Sequence[int] | None]:
        pairs = self.pairs()
        return [i for i, _ in pairs], [j for _, j in pairs]

    @property
    def notes(self) -> list[str]:
        m, n = self.options.num_student, self.options.num_teacher
        found = f"mapping {self.name}, student layer from teacher layer: "
        found += ", ".join(f"{i + 1} from {j + 1}" for i, j in self.pairs())
        if self.rounds and n % m:
            found += f" (⌈i·{n}/{m}⌉, rounded up as {m} does not divide {n})"
        return [found, *super().notes]

    def forward(self, student: Features, teacher: Features, mask: Tensor | None) -> MappingLoss:
        pairs = self.pairs()
        if self.first_position_only:
            return self._first_positions(pairs, student, teacher)
        loss = MappingLoss(embedding=self.embedding_loss(student, teacher, mask))
        found: dict[str, Tensor] = {}
        for term, wanted, costs_of in (
            ("attention", self.options.attention, attention_costs),
            ("hidden", self.options.hidden, hidden_costs),
        ):
            if not wanted:
                continue
            ours, theirs = getattr(student, term), getattr(teacher, term)
            each = [costs_of([ours[i]], _alone(theirs, j), mask, look=False, squares=self.relative) for i, j in pairs]
            of_teacher = [costs.squares for costs in each if costs.squares is not None]
            squares = torch.cat(of_teacher) if self.relative else None
            stacked = LayerCosts(torch.cat([costs.D[0] for costs in each]), squares)
            costs_P, found[term], factor = self.whole_batch(term, stacked, student, mask)
            setattr(loss, term, costs_P.sum() * factor)
        self._record(loss, pairs, found, 1.0)
        return loss

    def _first_positions(self, pairs: Sequence[tuple[int, int]], student: Features, teacher: Features) -> MappingLoss:
        costs = []
        for i, j in pairs:
            s, t = (F.normalize(x.float(), dim=-1) for x in (student.hidden[i][:, 0], teacher.hidden[j][:, 0].detach()))
            costs.append((s - t).square().sum(-1).mean())
        stacked = torch.stack(costs)
        whole, factor = whole_batch_mean(stacked, lambda: student.hidden[pairs[0][0]].shape[0])
        loss = MappingLoss(hidden=stacked.mean() * factor)
        self._record(loss, pairs, {"hidden": whole}, 1 / len(pairs))
        return loss

    def _record(
        self, loss: MappingLoss, pairs: Sequence[tuple[int, int]], found: dict[str, Tensor], weight: float
    ) -> None:
        """Costs of the pairs, and a plan whose sum with them is the loss."""
        shape = (self.options.num_student, self.options.num_teacher)
        for term, values in zip(found, HostCopy(list(found.values())).wait() if found else (), strict=True):
            plan, cost = np.zeros(shape), np.full(shape, np.nan)
            for (i, j), value in zip(pairs, values, strict=True):
                plan[i, j], cost[i, j] = weight, value
            loss.record[term] = {"cost": cost, "plan": plan}


def _alone(layers: Any, j: int) -> Any:
    """One layer, as the distances take layers."""
    return layers.layer(j) if isinstance(layers, Scores) else [layers[j]]
