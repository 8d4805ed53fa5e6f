"""Small results from the device to the host and back, waiting once."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

__all__ = ["HostCopy", "to_device"]


class HostCopy:
    """Several tensors on their way to the host in one copy, while the device goes on with what is queued next.

    >>> copy = HostCopy([torch.tensor([[1.0, 2.0]]), torch.tensor([3.0])])
    >>> copy.wait()
    [array([[1., 2.]]), array([3.])]
    """

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self._shapes = [tuple(t.shape) for t in tensors]
        flat = torch.cat([t.detach().double().flatten() for t in tensors])
        self._event: torch.cuda.Event | None = None
        if flat.device.type == "cuda":
            self._flat = torch.empty(flat.shape, dtype=flat.dtype, pin_memory=True)
            self._flat.copy_(flat, non_blocking=True)
            self._event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._event.record()
        else:
            self._flat = flat.cpu()

    def wait(self) -> list[np.ndarray]:
        """The tensors as float64 arrays, in their order."""
        if self._event is not None:
            self._event.synchronize()
        parts = self._flat.split([int(np.prod(shape)) for shape in self._shapes])  # type: ignore[no-untyped-call]
        return [part.numpy().reshape(shape) for part, shape in zip(parts, self._shapes, strict=True)]


def to_device(array: np.ndarray, like: Tensor) -> Tensor:
    """A host array as a tensor of another's type and device, without waiting for the device."""
    tensor = torch.from_numpy(np.ascontiguousarray(array)).to(like.dtype)
    if like.device.type == "cuda":
        return tensor.pin_memory().to(like.device, non_blocking=True)
    return tensor.to(like.device)
