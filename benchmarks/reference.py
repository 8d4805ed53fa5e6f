"""The reference method as a research script does it: the other side of every comparison here.

Eager attention whose score tensors are kept, one mean squared error for every pair of layers, a transport problem of
(M+N) x (M+N) for every term, everything padded. Written from the paper's formulas as plainly as it can be said.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

from bert_emd.pot import ot

__all__ = ["ReferenceMethod"]

_NAME = "benchmarks_reference_eager"


def _eager(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **more: Any) -> Any:
    scores = torch.matmul(query, key.transpose(2, 3)) / math.sqrt(query.shape[-1])
    module._benchmark_scores.append(scores)  # type: ignore[operator, union-attr]
    masked = scores if mask is None else scores + mask
    weights = F.dropout(torch.softmax(masked, dim=-1), p=more.get("dropout", 0.0), training=module.training)
    return torch.matmul(weights, value).transpose(1, 2).contiguous(), weights


class ReferenceMethod:
    """Both models, the projection, the two transports and the layer weights of the `ratio` rule, joint."""

    def __init__(self, student: PreTrainedModel, teacher: PreTrainedModel) -> None:
        AttentionInterface.register(_NAME, _eager)
        AttentionMaskInterface.register(_NAME, ALL_MASK_ATTENTION_FUNCTIONS["eager"])
        self.student, self.teacher = student.train(), teacher.eval()
        for model in (student, teacher):
            model.set_attn_implementation(_NAME)
        narrow, wide = student.config.hidden_size, teacher.config.hidden_size
        self.fit_dense = nn.Linear(narrow, wide) if narrow != wide else nn.Identity()
        m, n = student.config.num_hidden_layers, teacher.config.num_hidden_layers
        self.weights = [np.ones(m) / m, np.ones(n) / n, np.ones(m) / m, np.ones(n) / n]
        self.mse = nn.MSELoss()

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        """The whole loss of a batch, all terms with weight 1."""
        with torch.no_grad():
            teacher_logits, teacher_scores, teacher_states = self._run(self.teacher, batch)
        logits, scores, states = self._run(self.student, batch)
        # Padded keys count as zero on both sides.
        keep = batch["attention_mask"][:, None, None, :].to(scores[0].dtype)
        scores, teacher_scores = [s * keep for s in scores], [s * keep for s in teacher_scores]
        projected = [self.fit_dense(s) for s in states]
        att, att_plan, att_cost = self._mapped(scores, teacher_scores, self.weights[0], self.weights[1])
        rep, rep_plan, rep_cost = self._mapped(projected[1:], teacher_states[1:], self.weights[2], self.weights[3])
        self._update(att_plan, att_cost, rep_plan, rep_cost)
        soft = -(F.softmax(teacher_logits, -1) * F.log_softmax(logits, -1)).mean()
        total: Tensor = att + rep + self.mse(projected[0], teacher_states[0]) + soft
        return total

    def _run(self, model: PreTrainedModel, batch: dict[str, Tensor]) -> tuple[Tensor, list[Tensor], tuple[Tensor, ...]]:
        kept: list[Tensor] = []
        for module in model.modules():
            module._benchmark_scores = kept
        outputs = model(**batch, output_hidden_states=True)
        return outputs.logits, kept, outputs.hidden_states

    def _mapped(self, student: Any, teacher: Any, w_s: np.ndarray, w_t: np.ndarray) -> tuple[Tensor, Any, Any]:
        m, n = len(student), len(teacher)
        cost = torch.zeros(m + n, m + n)
        pairs = {}
        for i, s in enumerate(student):
            for j, t in enumerate(teacher):
                pairs[i, j] = self.mse(s, t)
                cost[i, m + j] = cost[m + j, i] = pairs[i, j].detach()
        sides = np.concatenate([w_s, np.zeros(n)]), np.concatenate([np.zeros(m), w_t])
        plan = ot.emd(*sides, cost.double().numpy())
        loss = sum((float(plan[i, m + j]) * pairs[i, j] for i, j in pairs), torch.zeros(()))
        return loss, plan[:m, m:], cost[:m, m:].double().numpy()

    def _update(self, att_plan: Any, att_cost: Any, rep_plan: Any, rep_cost: Any) -> None:
        moved = []
        for plan, cost, w_s, w_t in ((att_plan, att_cost, *self.weights[:2]), (rep_plan, rep_cost, *self.weights[2:])):
            moved += [self._ratio((plan * cost).sum(1) / w_s), self._ratio((plan * cost).sum(0) / w_t)]
        joint = [(moved[0] + moved[2]) / 2, (moved[1] + moved[3]) / 2]
        self.weights = [*joint, *joint]

    @staticmethod
    def _ratio(costs: np.ndarray) -> np.ndarray:
        inverse: np.ndarray = 1 / np.maximum(costs, 1e-6 * costs.max())
        weights: np.ndarray = inverse / inverse.sum()
        return weights
