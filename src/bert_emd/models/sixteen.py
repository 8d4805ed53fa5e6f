"""A frozen model's matrices kept in the precision of autocast."""

from __future__ import annotations

from collections import Counter

import torch
from torch import Tensor, nn

__all__ = ["SixteenBitMatrices"]


class SixteenBitMatrices:
    """Puts 16-bit copies in the place of a model's linear weights, and the originals back.

    Autocast makes the same copies in every forward, and for a model that is not trained it keeps none of them: the
    numbers are the same, and a forward on a CPU saves a pass over all weights.

    Args:
        model: a model that is not trained and runs under autocast only.
        dtype: the precision of autocast.
    """

    def __init__(self, model: nn.Module, dtype: torch.dtype) -> None:
        self._originals: list[tuple[Tensor, Tensor]] = []
        # A tied weight has another use, as an embedding table for one, which autocast leaves in float32.
        uses = Counter(id(p) for module in model.modules() for p in module._parameters.values())
        for module in model.modules():
            for parameter in (module.weight, module.bias) if isinstance(module, nn.Linear) else ():
                if parameter is not None and uses[id(parameter)] == 1 and parameter.dtype == torch.float32:
                    self._originals.append((parameter, parameter.data))
                    parameter.data = parameter.data.to(dtype)

    def restore(self) -> None:
        """Leave the model as it was; on another device if it has been moved meanwhile."""
        while self._originals:
            parameter, original = self._originals.pop()
            parameter.data = original.to(parameter.device)
