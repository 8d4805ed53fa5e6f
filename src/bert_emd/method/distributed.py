"""One cost for all processes, so that every process solves the same plan."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import Tensor

__all__ = ["whole_batch_mean"]


def whole_batch_mean(mean: Tensor, count: Callable[[], Tensor | int]) -> tuple[Tensor, Tensor | float]:
    """The mean over the batches of all processes, and the factor that makes local losses add up to it.

    Args:
        mean: this process's mean, any shape.
        count: tells how many positions it was taken over; asked only where there are several processes.

    Returns:
        The mean over all processes (without gradient), and n·W/Σn for W processes: data parallelism averages the
        gradients of W local losses, and with this factor their average is the gradient of the whole batch's mean.
        Nothing here waits for the device.
    """
    detached = mean.detach()
    if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
        return detached, 1.0
    own = torch.as_tensor(count(), dtype=torch.float64, device=mean.device).reshape(1)
    packed = torch.cat([detached.double().flatten() * own, own])
    dist.all_reduce(packed)
    total = packed[-1:]
    factor = (own * dist.get_world_size() / total).squeeze().to(mean.dtype)
    return (packed[:-1] / total).reshape(detached.shape), factor
