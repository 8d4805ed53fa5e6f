"""The earth mover's mapping: every student layer learns from all teacher layers at once."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from bert_emd.method.cost_attention import CostAttention
from bert_emd.method.distances import attention_costs, hidden_costs
from bert_emd.method.features import Features
from bert_emd.method.mappings.base import COST_OPTIONS, Mapping, MappingLoss, MappingOptions, weighted_sum
from bert_emd.method.transfer import HostCopy
from bert_emd.method.transport import transport_plan

__all__ = ["EmdMapping"]


class EmdMapping(Mapping):
    r"""Optimal transport between the layers, with weights moved by cost attention on every training batch.

    .. math:: L_{att} = \sum_{ij} F^A_{ij} D^A_{ij}, \qquad L_{hid} = \sum_{ij} F^H_{ij} D^H_{ij}

    D are the all-pairs distances of the batch, or the relative ones (then plan, weights and loss all see those), F the
    exact plan under the present layer weights. F is a constant for the gradient, which by the envelope theorem makes
    it the true gradient of the transport cost. The weights move once per training forward, after the plan, and never
    in evaluation.

    Source: Li et al., EMNLP 2020, section 3.2 and 3.3.
    """

    name = "emd"
    uses = COST_OPTIONS | {"rule", "T_emd", "seperate", "update_weight"}

    def __init__(self, options: MappingOptions) -> None:
        super().__init__(options)
        self.cost_attention = CostAttention(
            options.num_student, options.num_teacher, options.rule, options.T_emd, options.joint
        )

    def forward(self, student: Features, teacher: Features, mask: Tensor | None) -> MappingLoss:
        weights = self.cost_attention
        costs: dict[str, tuple[Tensor, Tensor, Tensor | float]] = {}
        for term, wanted, costs_of in (
            ("attention", self.options.attention, attention_costs),
            ("hidden", self.options.hidden, hidden_costs),
        ):
            if wanted:
                found = costs_of(
                    getattr(student, term), getattr(teacher, term), mask, look=False, squares=self.relative
                )
                costs[term] = self.whole_batch(term, found, student, mask)
        travelling = HostCopy([whole for _, whole, _ in costs.values()]) if costs else None
        # Queued before the host waits for the costs, so that the device has work while the plans are solved.
        loss = MappingLoss(embedding=self.embedding_loss(student, teacher, mask))
        moved: dict[str, Any] = {}
        for (term, (cost_MN, _, factor)), whole in zip(
            costs.items(), travelling.wait() if travelling else (), strict=True
        ):
            plan = transport_plan(whole, getattr(weights, f"{term}_student"), getattr(weights, f"{term}_teacher"))
            setattr(loss, term, weighted_sum(plan, cost_MN) * factor)
            moved |= {f"{term}_cost": whole, f"{term}_plan": plan}
            loss.record[term] = {"cost": whole, "plan": plan}
        if self.training and moved:
            weights.update(**moved)
        return loss

    def layer_weights(self) -> dict[str, list[float]]:
        names = [
            f"{term}_{side}"
            for term, wanted in (("attention", self.options.attention), ("hidden", self.options.hidden))
            if wanted
            for side in ("student", "teacher")
        ]
        return {name: getattr(self.cost_attention, name).tolist() for name in names}

    _VECTORS = ("attention_student", "attention_teacher", "hidden_student", "hidden_teacher")

    def get_extra_state(self) -> Tensor:
        return torch.from_numpy(np.concatenate([getattr(self.cost_attention, name) for name in self._VECTORS]))

    def set_extra_state(self, state: Tensor) -> None:
        m, n = self.options.num_student, self.options.num_teacher
        if state.shape != (2 * (m + n),):
            raise ValueError(f"the saved layer weights are for other depths than {m} and {n} layers")
        parts = np.split(state.detach().to("cpu", torch.float64).numpy(), np.cumsum([m, n, m]))
        # Other depths of the same total length (2 and 6 for 4 and 4) cut the vectors in the wrong places.
        if not all(np.isclose(part.sum(), 1.0, rtol=0, atol=1e-9) for part in parts):
            raise ValueError(f"the saved layer weights do not sum to 1 for {m} and {n} layers: saved for other depths?")
        for name, part in zip(self._VECTORS, parts, strict=True):
            setattr(self.cost_attention, name, part.copy())
