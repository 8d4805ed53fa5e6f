"""Features of made-up models for tests of mappings."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor

from bert_emd.method import Features, Mapping, MappingLoss, MappingOptions

BATCH, LENGTH, WIDTH, HEADS, HEAD_WIDTH = 3, 6, 8, 2, 4
VECTORS = ("attention_student", "attention_teacher", "hidden_student", "hidden_teacher")
TERMS = ("attention", "hidden", "embedding")
EVERY_TERM = (*TERMS, "relation")
MASK = torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0], [1, 0, 1, 0, 0, 0]])


def normal(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def features(depth: int, seed: int, dtype: torch.dtype = torch.float64, heads: int = HEADS) -> Features:
    """Layers of different sizes, so that costs differ and plans are not trivial."""
    g = torch.Generator().manual_seed(seed)
    scales = [0.5 + layer / depth for layer in range(depth)]
    head_shape = (BATCH, heads, LENGTH, HEAD_WIDTH)
    return Features(
        embedding=normal(g, BATCH, LENGTH, WIDTH).to(dtype),
        hidden=[(s * normal(g, BATCH, LENGTH, WIDTH)).to(dtype) for s in scales],
        attention=[((s * normal(g, *head_shape)).to(dtype), normal(g, *head_shape).to(dtype)) for s in scales],
        values=[(s * normal(g, *head_shape)).to(dtype) for s in scales],
    )


def tensors(given: Features) -> dict[str, list[Tensor]]:
    return {
        "embedding": [] if given.embedding is None else [given.embedding],
        "hidden": list(given.hidden),
        "attention": [t for pair in given.attention for t in pair],
        "values": list(given.values),
    }


def with_gradient(given: Features) -> Features:
    """A copy whose tensors are leaves that ask for a gradient."""
    given = copy.deepcopy(given)
    for group in tensors(given).values():
        for tensor in group:
            tensor.requires_grad_()
    return given


def only_needed(given: Features, mapping: Mapping) -> Features:
    return Features(
        embedding=given.embedding if mapping.needs.embedding else None,
        hidden=given.hidden if mapping.needs.hidden else [],
        attention=given.attention if mapping.needs.attention else [],
        values=given.values if mapping.needs.values else [],
    )


def total(loss: MappingLoss) -> Tensor:
    terms = [value for term in EVERY_TERM if (value := getattr(loss, term)) is not None]
    assert terms
    return torch.stack(terms).sum()


def options(m: int = 2, n: int = 4, **more: Any) -> MappingOptions:
    return MappingOptions(num_student=m, num_teacher=n, **more)


def advance(mapping: Mapping, steps: int, seed: int = 100) -> list[float]:
    """Some training batches; the totals."""
    m, n = mapping.options.num_student, mapping.options.num_teacher
    mapping.train()
    return [
        total(mapping(features(m, seed + 2 * step), features(n, seed + 2 * step + 1), None)).item()
        for step in range(steps)
    ]


def worst_relative(found: Tensor, expected: Tensor) -> float:
    return float((found.detach().double() - expected.detach()).abs() / expected.detach().abs())
