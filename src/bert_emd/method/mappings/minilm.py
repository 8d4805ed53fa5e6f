"""MiniLMv2: the relations between the positions of the last layer, whatever the widths and head counts."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from bert_emd.method.distributed import whole_batch_mean
from bert_emd.method.features import Features, Needs
from bert_emd.method.mappings.base import Mapping, MappingLoss, MappingOptions
from bert_emd.method.transfer import HostCopy

__all__ = ["MinilmMapping"]

# exp of it is zero, and unlike -inf it leaves a row without any key finite.
_LOW = -1e30


class MinilmMapping(Mapping):
    r"""Query-query, key-key and value-value relations of the student's last layer learn from one teacher layer's.

    Queries, keys and values [B, L, width] are split anew into A relation heads of width d = width/A. For X one of the
    three,

    .. math:: R_a = \operatorname{softmax}(X_a X_a^\top / \sqrt{d}), \qquad
              L = \sum_{X \in \{Q, K, V\}} \frac{1}{A\,P} \sum_{a, p} KL(R^T_{a,p} \Vert R^S_{a,p})

    over the A heads and the P kept query positions; padded keys have no part in the softmax. A is ``relation_heads``,
    else the teacher's head count, else the largest number up to it that divides both widths. Student layers other
    than the last are not matched. The teacher's layer is ``relation_layer``, counted from 1, else its last.

    Source: Wang et al., Findings of ACL 2021 (MiniLMv2), section 3.
    """

    name = "minilm"
    uses = frozenset({"relation_heads", "relation_layer"})

    def __init__(self, options: MappingOptions) -> None:
        super().__init__(options)
        n = options.num_teacher
        if options.relation_layer is not None and not 1 <= options.relation_layer <= n:
            raise ValueError(
                f"relation_layer {options.relation_layer} is no teacher layer; the teacher's layers are 1 to {n}"
            )
        if options.student_width is not None and options.teacher_width is not None:
            self.relation_heads(options.student_width, options.teacher_width, options.teacher_heads or 1)

    @property
    def needs(self) -> Needs:
        return Needs(attention=True, values=True, factors=True)

    @property
    def layers(self) -> tuple[Sequence[int] | None, Sequence[int] | None]:
        return [self.options.num_student - 1], [(self.options.relation_layer or self.options.num_teacher) - 1]

    def relation_heads(self, student_width: int, teacher_width: int, teacher_heads: int) -> int:
        """A for these widths.

        Raises:
            ValueError: the number that was asked for does not divide them.
        """
        asked = self.options.relation_heads
        if asked is not None:
            if student_width % asked or teacher_width % asked:
                raise ValueError(
                    f"relation_heads {asked} must divide both widths, the student's {student_width} and the teacher's "
                    f"{teacher_width}; their common divisors are those of {math.gcd(student_width, teacher_width)}"
                )
            return asked
        common = math.gcd(student_width, teacher_width)
        return max(a for a in range(1, teacher_heads + 1) if common % a == 0)

    @property
    def notes(self) -> list[str]:
        o = self.options
        (i,), (j,) = (side or () for side in self.layers)
        note = f"mapping minilm, student layer {i + 1} from teacher layer {j + 1}, relations Q-Q, K-K and V-V"
        if o.student_width is None or o.teacher_width is None or o.teacher_heads is None:
            return [note]
        heads = self.relation_heads(o.student_width, o.teacher_width, o.teacher_heads)
        note += f", {heads} relation heads"
        if o.relation_heads is None and heads != o.teacher_heads:
            note += (
                f": the teacher's {o.teacher_heads} do not divide both widths ({o.student_width} and "
                f"{o.teacher_width}), and {heads} is the largest number below that does"
            )
        return [note]

    def forward(self, student: Features, teacher: Features, mask: Tensor | None) -> MappingLoss:
        (i,), (j,) = (side or () for side in self.layers)
        ours, theirs = (
            (*features.attention[layer], features.values[layer]) for features, layer in ((student, i), (teacher, j))
        )
        heads = self.relation_heads(_width(ours[0]), _width(theirs[0]), theirs[0].shape[1])
        if mask is not None:
            mask = mask.bool().to(ours[0].device)
            if mask.device.type == "cpu" and not bool(mask.any()):
                raise ValueError("mask keeps no position at all")
        with torch.autocast(ours[0].device.type, enabled=False):
            cost = torch.stack(
                [_divergence(s, t.detach(), mask, heads) for s, t in zip(ours, theirs, strict=True)]
            ).sum()
        batch, length = ours[0].shape[0], ours[0].shape[2]
        whole, factor = whole_batch_mean(cost, lambda: batch * length if mask is None else mask.sum())
        shape = (self.options.num_student, self.options.num_teacher)
        plan, costs = np.zeros(shape), np.full(shape, np.nan)
        plan[i, j], costs[i, j] = 1.0, HostCopy([whole]).wait()[0]
        return MappingLoss(relation=cost * factor, record={"relation": {"cost": costs, "plan": plan}})


def _width(tensor: Tensor) -> int:
    return tensor.shape[1] * tensor.shape[3]


def _divergence(student: Tensor, teacher: Tensor, mask: Tensor | None, heads: int) -> Tensor:
    """KL(teacher || student) of one relation, mean over relation heads and kept query positions."""
    s, t = (_log_relation(x, mask, heads) for x in (student, teacher))
    divergence_BAL = F.kl_div(s, t.to(s.dtype), reduction="none", log_target=True).sum(-1)
    if mask is None:
        return divergence_BAL.mean()
    return (divergence_BAL.mean(1) * mask).sum() / mask.sum()


def _log_relation(x: Tensor, mask: Tensor | None, heads: int) -> Tensor:
    """log softmax(X Xᵀ/√d) of queries, keys or values [B, H, L, d'] with their heads split anew, [B, A, L, L]."""
    x = x if x.dtype == torch.float64 else x.float()
    if mask is not None:
        # Not a product with zero: padding may hold anything.
        x = x.masked_fill(~mask[:, None, :, None], 0)
    x = x.transpose(1, 2).flatten(2).unflatten(2, (heads, -1)).transpose(1, 2)  # type: ignore[no-untyped-call]
    scores = x @ x.transpose(2, 3) / math.sqrt(x.shape[-1])
    if mask is not None:
        scores = scores.masked_fill(~mask[:, None, None, :], _LOW)
    return F.log_softmax(scores, -1)
