"""Mappings that pair each student layer with fixed teacher layers: the controls that users compare with."""

from __future__ import annotations

import abc
from collections.abc import Sequence
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from bert_emd.method.distances import attention_distances, hidden_distances
from bert_emd.method.distributed import whole_batch_mean
from bert_emd.method.features import Features, Needs
from bert_emd.method.mappings.base import Mapping, MappingLoss
from bert_emd.method.transfer import HostCopy

__all__ = ["PairMapping", "PkdMapping", "UniformMapping"]


class PairMapping(Mapping):
    """Sums the distances of fixed (student, teacher) pairs, each counted from 0."""

    @abc.abstractmethod
    def pairs(self) -> Sequence[tuple[int, int]]:
        """The pairs of this batch."""

    def forward(self, student: Features, teacher: Features, mask: Tensor | None) -> MappingLoss:
        loss = MappingLoss(embedding=self.embedding_loss(student, teacher, mask))
        pairs = self.pairs()
        shape = (self.options.num_student, self.options.num_teacher)
        found: dict[str, Tensor] = {}
        for term, wanted, distances in (
            ("attention", self.options.attention, attention_distances),
            ("hidden", self.options.hidden, hidden_distances),
        ):
            if not wanted:
                continue
            ours, theirs = getattr(student, term), getattr(teacher, term)
            costs = torch.stack([distances([ours[i]], [theirs[j]], mask, look=False)[0, 0] for i, j in pairs])
            count = partial(self.positions, student, mask, pairs=term == "attention")
            found[term], factor = whole_batch_mean(costs, count)
            setattr(loss, term, costs.sum() * factor)
        for term, values in zip(found, HostCopy(list(found.values())).wait() if found else (), strict=True):
            plan, cost = np.zeros(shape), np.full(shape, np.nan)
            for (i, j), value in zip(pairs, values, strict=True):
                plan[i, j], cost[i, j] = 1.0, value
            loss.record[term] = {"cost": cost, "plan": plan}
        return loss


class UniformMapping(PairMapping):
    """TinyBERT: student layer i learns from teacher layer ⌈i·N/M⌉, counted from 1 (i·N/M where M divides N).

    The losses are sums over the student's layers. Source: Jiao et al., Findings of EMNLP 2020, section 3.
    """

    name = "uniform"

    def pairs(self) -> Sequence[tuple[int, int]]:
        m, n = self.options.num_student, self.options.num_teacher
        return [(i - 1, -(-i * n // m) - 1) for i in range(1, m + 1)]


class PkdMapping(PairMapping):
    r"""PKD-skip: for i = 1..M-1, the normalised [CLS] states of student layer i and teacher layer ⌈i·N/M⌉.

    .. math:: L = \frac{1}{M-1} \sum_{i<M} \left\lVert \frac{s_i}{\lVert s_i\rVert} - \frac{t_{g(i)}}{\lVert
              t_{g(i)}\rVert} \right\rVert^2 \text{, mean over the batch}

    The last student layer is not matched: it learns through the prediction loss. Neither attention nor embeddings
    take part. Source: Sun et al., EMNLP 2019.
    """

    name = "pkd"

    @property
    def needs(self) -> Needs:
        return Needs(hidden=True)

    def pairs(self) -> Sequence[tuple[int, int]]:
        m, n = self.options.num_student, self.options.num_teacher
        return [(i - 1, -(-i * n // m) - 1) for i in range(1, m)]

    def forward(self, student: Features, teacher: Features, mask: Tensor | None) -> MappingLoss:
        costs = []
        for i, j in self.pairs():
            s, t = (F.normalize(x[:, 0].float(), dim=-1) for x in (student.hidden[i], teacher.hidden[j].detach()))
            costs.append((s - t).square().sum(-1).mean())
        if not costs:
            raise ValueError("PKD leaves the last student layer unmatched, so it needs a student of 2 layers or more")
        mean = torch.stack(costs).mean()
        return MappingLoss(hidden=mean * whole_batch_mean(mean, lambda: student.hidden[0].shape[0])[1])
