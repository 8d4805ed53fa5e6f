"""Student layers with a projection, inside the distances and outside, and what is made on the way."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import reference
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from bert_emd.method import Projected

BATCH, LENGTH, NARROW, WIDE = 3, 7, 6, 10
# Which projection each of three student layers has; None is a layer that is wide already.
KINDS = {"shared": [0, 0, 0], "own": [0, 1, 2], "first-and-last": [0, 1, 0], "one-is-wide": [0, None, 1]}
SIZES = {"small": (BATCH, LENGTH, NARROW, WIDE), "large": (8, 70, 40, 600)}


def masks(batch: int, length: int) -> dict[str, Tensor | None]:
    prefix = torch.arange(length) < (length - 2 * torch.arange(batch))[:, None]
    return {"none": None, "ragged": prefix, "holes": prefix & (torch.arange(length) % 3 != 1)}


MASKS = masks(BATCH, LENGTH)


normal = partial(reference.normal, dtype=torch.float32)


@dataclasses.dataclass
class Setting:
    """Leaves: three student states, the projections, and what each layer uses."""

    kind: list[int | None]
    states: list[Tensor]
    layers: list[nn.Linear]

    @property
    def leaves(self) -> list[Tensor]:
        return [*self.states, *(p for layer in self.layers for p in layer.parameters())]

    @property
    def gradients(self) -> list[Tensor | None]:
        return [leaf.grad for leaf in self.leaves]

    def each(self, wide: Callable[[Tensor, nn.Linear], Any]) -> list[Any]:
        pairs = zip(self.kind, self.states, strict=True)
        return [state if k is None else wide(state, self.layers[k]) for k, state in pairs]

    def inside(self) -> list[Any]:
        return self.each(lambda state, layer: Projected(state, layer.weight, layer.bias))

    def outside(self) -> list[Tensor]:
        return self.each(lambda state, layer: layer(state))

    def copy(self, dtype: torch.dtype) -> Setting:
        states = [s.detach().clone().to(dtype).requires_grad_() for s in self.states]
        made = []
        for layer in self.layers:
            new = nn.Linear(layer.in_features, layer.out_features, bias=layer.bias is not None, dtype=dtype)
            new.load_state_dict(layer.state_dict())
            made.append(new)
        return Setting(self.kind, states, made)


def setting(kind: str = "shared", size: Sequence[int] = SIZES["small"], *, bias: bool = True) -> Setting:
    batch, length, narrow, wide = size
    uses = KINDS[kind]
    torch.manual_seed(7)
    layers = [nn.Linear(narrow, wide, bias=bias) for _ in range(len({k for k in uses if k is not None}))]
    return Setting(uses, [
        normal(i, batch, length, wide if k is None else narrow).mul_(1 + i / 2).requires_grad_()
        for i, k in enumerate(uses)
    ], layers)  # fmt: skip


def teacher_of(made: Setting, noise: float | None) -> list[Tensor]:
    """Four layers, the first three unlike the student's or nearly the same as its projected ones."""
    wide = [y.detach() for y in made.copy(torch.float64).outside()]
    if noise is not None:
        wide = [y * (1 + noise * normal(40 + i, *y.shape)) for i, y in enumerate(wide)]
    else:
        wide = [normal(20 + i, *y.shape) * (1 + i / 3) for i, y in enumerate(wide)]
    return [t.float() for t in (*wide, normal(30, *wide[0].shape))]


class Seen(TorchDispatchMode):
    """The largest tensor that is made (views of what was there before are not), and the precisions of products."""

    def __init__(self, *known: Tensor) -> None:
        super().__init__()
        self.known = {t.untyped_storage().data_ptr() for t in known}
        self.largest = 0
        self.products: set[torch.dtype] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_flatten(result)[0]:
            if isinstance(tensor, Tensor) and tensor.untyped_storage().data_ptr() not in self.known:
                self.largest = max(self.largest, tensor.untyped_storage().nbytes())
        products = torch.ops.aten.mm, torch.ops.aten.addmm, torch.ops.aten.addmm_
        if func.overloadpacket in products:
            self.products.add(args[-1].dtype)
        return result
