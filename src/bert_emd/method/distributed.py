"""One cost for all processes, so that every process solves the same plan."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

__all__ = ["whole_batch_mean"]


def whole_batch_mean(mean: Tensor, count: int) -> tuple[Tensor, float]:
    """The mean over the batches of all processes, and the factor that makes local losses add up to it.

    Args:
        mean: this process's mean, any shape.
        count: how many positions it was taken over.

    Returns:
        The mean over all processes (without gradient), and n·W/Σn for W processes: data parallelism averages the
        gradients of W local losses, and with this factor their average is the gradient of the whole batch's mean.
    """
    detached = mean.detach()
    if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
        return detached, 1.0
    packed = torch.cat([detached.double().flatten() * count, detached.new_tensor([count], dtype=torch.float64)])
    dist.all_reduce(packed)
    total = float(packed[-1])
    return (packed[:-1] / total).reshape(detached.shape), count * dist.get_world_size() / total
