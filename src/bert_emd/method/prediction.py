"""The prediction loss: what the student's logits learn from the teacher's and from the labels.

Shapes: B batch, C classes (C = 1 is regression); logits z [B, C], labels y [B].
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["hard_loss", "prediction_loss", "soft_loss"]


def soft_loss(student_logits: Tensor, teacher_logits: Tensor, temperature: float = 1.0) -> Tensor:
    r"""What the student learns from the teacher's logits, without the factor T².

    .. math:: \operatorname{mean}_{B, C} \left( -\operatorname{softmax}(z^T / T) \cdot
              \log\operatorname{softmax}(z^S / T) \right)

    The mean also runs over the C classes, so it is 1/C of the usual batch mean: the published beta belongs to this
    scale. For C = 1 (regression) it is MSE(z^S, z^T).

    >>> soft_loss(torch.zeros(1, 2), torch.zeros(1, 2))  # 2 classes at probability 1/2: mean of -1/2 log 1/2 = log(2)/2
    tensor(0.3466)
    """
    student, teacher = student_logits.float(), teacher_logits.float()
    if student.shape[-1] == 1:
        return F.mse_loss(student, teacher)
    return -(F.softmax(teacher / temperature, -1) * F.log_softmax(student / temperature, -1)).mean()


def hard_loss(student_logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy with the labels; for C = 1 the mean squared error.

    >>> hard_loss(torch.tensor([[3.0]]), torch.tensor([1.0]))
    tensor(4.)
    """
    if student_logits.shape[-1] == 1:
        return F.mse_loss(student_logits.float().squeeze(-1), labels.float().flatten())
    return F.cross_entropy(student_logits.float(), labels)


def prediction_loss(
    student_logits: Tensor,
    teacher_logits: Tensor | None,
    labels: Tensor | None,
    *,
    alpha: float = 1.0,
    temperature: float = 1.0,
    reduce_T: float = 1.0,
    published: bool = True,
) -> Tensor:
    r"""The prediction loss of the paper.

    .. math:: L_{pred} = \alpha\, T^2 / reduce_T \cdot soft + (1 - \alpha) \cdot hard

    with `soft_loss` and `hard_loss`; in regression both are mean squared errors and T has no part.

    Args:
        student_logits: z^S, [B, C].
        teacher_logits: z^T, [B, C]; may be None when alpha is 0.
        labels: y, [B]; may be None when alpha is 1.
        alpha: weight of the teacher against the labels, 0 to 1.
        temperature: T, above 0.
        reduce_T: divides the soft loss (the reference's flag of this name).
        published: False is the reference's ``new_pred_loss false``: soft · T²/2 with alpha unused, and regression on
            the labels alone.

    Raises:
        ValueError: a loss that is asked for lacks its logits or labels.

    >>> z = torch.tensor([[0.0, 0.0]])
    >>> prediction_loss(z, z, torch.tensor([0]), alpha=0.5)  # (log(2)/2 + log(2)) / 2
    tensor(0.5199)

    Source: Li et al., EMNLP 2020, section 3.4; Hinton et al., 2015.
    """
    regression = student_logits.shape[-1] == 1
    if not published:
        if regression:
            return hard_loss(student_logits, _needed(labels, "labels"))
        soft = soft_loss(student_logits, _needed(teacher_logits, "teacher_logits"), temperature)
        return soft * temperature**2 / 2 / reduce_T
    loss = student_logits.new_zeros((), dtype=torch.float32)
    if alpha > 0:
        scale = 1.0 if regression else temperature**2
        soft = soft_loss(student_logits, _needed(teacher_logits, "teacher_logits"), temperature)
        loss = loss + alpha * scale / reduce_T * soft
    if alpha < 1:
        loss = loss + (1 - alpha) * hard_loss(student_logits, _needed(labels, "labels"))
    return loss


def _needed(tensor: Tensor | None, name: str) -> Tensor:
    if tensor is None:
        raise ValueError(f"this prediction loss needs {name}")
    return tensor
