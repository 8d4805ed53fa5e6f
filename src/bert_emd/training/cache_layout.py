"""How the teacher's outputs of one example lie in the cache's file.

First a row of columns a token: hidden states, queries, keys and values of all layers side by side. Behind them, where
that takes less room than queries and keys, the attention scores of all layers: N·H matrices of the example's length.
Legend: B batch, L tokens, H heads, d head width, N layers, l an example's tokens, R columns, S score matrices.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from bert_emd.method import Features, Scores, attention_scores

__all__ = ["Block", "Layout", "layout_of"]

Kept = Tensor | slice
"""A row's kept positions: which ones, or how many of the first ones."""


@dataclass(frozen=True, kw_only=True)
class Block:
    """One tensor of an example: its place among the columns, and its shape after the tokens."""

    kind: str
    """embedding, hidden, query, key or value."""
    start: int
    shape: tuple[int, ...]
    """[D], or [H, d] for queries, keys and values."""
    dtype: torch.dtype = torch.float16
    """How it is kept: bfloat16 where the teacher made bfloat16, so that nothing is rounded."""

    @property
    def stop(self) -> int:
        """The column behind it."""
        return self.start + math.prod(self.shape)


@dataclass(frozen=True, kw_only=True)
class Layout:
    """The tensors that are kept of an example, 16 bits a number."""

    blocks: tuple[Block, ...] = ()
    """Of each token."""
    scores: tuple[int, int] | None = None
    """N and H, where scores are kept in place of queries and keys, as float16 of float32 products."""

    @property
    def width(self) -> int:
        """R."""
        return self.blocks[-1].stop if self.blocks else 0

    @property
    def matrices(self) -> int:
        """S."""
        return math.prod(self.scores) if self.scores else 0

    def elements(self, lengths: np.ndarray) -> np.ndarray:
        """Numbers of examples of these lengths."""
        found: np.ndarray = lengths * self.width + lengths**2 * self.matrices
        return found

    def described(self) -> list[list[object]]:
        """For JSON, and for a key."""
        found: list[list[object]] = [[b.kind, str(b.dtype), *b.shape] for b in self.blocks]
        return [*found, ["scores", str(torch.float16), *self.scores]] if self.scores else found

    def pack(self, features: Features, out_BLR: Tensor) -> None:
        """Put a batch's tensors side by side, as 16-bit integers."""
        tensors = _tensors(features, scores=self.scores is not None)
        for block, (_, tensor) in zip(self.blocks, tensors, strict=True):
            part = out_BLR[..., block.start : block.stop].view(block.dtype)
            by_token = tensor if tensor.dim() == 3 else tensor.transpose(1, 2)
            part.unflatten(2, block.shape).copy_(by_token.detach())  # type: ignore[no-untyped-call]

    def pack_scores(self, features: Features, kept: Sequence[Kept], rows: Sequence[Tensor]) -> None:
        """Fill each row's [S, l, l] with the scores of its kept positions."""
        assert self.scores is not None
        pairs = list(filter(None, features.attention))
        # Text by text: all layers in one product, and no padding.
        for place, (row, keep) in enumerate(zip(rows, kept, strict=True)):
            query, key = (torch.stack([side[place][:, keep] for side in sides]) for sides in zip(*pairs, strict=True))
            scores = row.view(torch.float16).unflatten(0, self.scores)  # type: ignore[no-untyped-call]
            scores.copy_(attention_scores(query, key))

    def unpack(self, packed_BLR: Tensor, rows: Sequence[Tensor]) -> Features:
        """The features of a batch: views of its packed tokens, and of each row's scores [S, l, l]."""
        features = Features()
        parts: dict[str, list[Tensor]] = {}
        for block in self.blocks:
            part = packed_BLR[..., block.start : block.stop].view(block.dtype)
            if len(block.shape) == 2:
                part = part.unflatten(2, block.shape).transpose(1, 2)  # type: ignore[no-untyped-call]
            parts.setdefault(block.kind, []).append(part)
        if "embedding" in parts:
            features.embedding = parts["embedding"][0]
        features.hidden = parts.get("hidden", [])
        features.attention = list(zip(parts.get("query", []), parts.get("key", []), strict=True))
        if self.scores:
            features.attention = Scores([row.view(torch.float16).unflatten(0, self.scores) for row in rows])  # type: ignore[no-untyped-call]
        features.values = parts.get("value", [])
        return features

    def finite(self, values_lR: Tensor, scores: Tensor) -> bool:
        """Whether 16 bits hold every value of an example."""
        runs = itertools.groupby(self.blocks, key=lambda block: block.dtype)
        spans = [(dtype, own[0].start, own[-1].stop) for dtype, own in ((dtype, list(run)) for dtype, run in runs)]
        found = [values_lR[:, start:stop].view(dtype) for dtype, start, stop in spans]
        found += [scores.view(torch.float16)] * bool(self.scores)
        # Both ends are undefined where any value is.
        return all(bool(end.isfinite()) for values in found for end in torch.aminmax(values))


def layout_of(features: Features, lengths: Sequence[int] = (), *, scores: bool = False) -> Layout:
    """How the tensors of a batch are kept.

    Args:
        features: any batch's.
        lengths: tokens of each example of the data set.
        scores: whether attention scores will do for queries and keys; they are kept where they take less room.
    """
    by_factors = Layout(blocks=_blocks(features, scores=False))
    shapes = [(query.shape[1], query.shape[3]) for query, _ in filter(None, features.attention)]
    if not scores or len(set(shapes)) != 1:
        return by_factors
    by_scores = Layout(blocks=_blocks(features, scores=True), scores=(len(shapes), shapes[0][0]))
    tokens = np.asarray(lengths, dtype=np.int64)
    less = by_scores.elements(tokens).sum() < by_factors.elements(tokens).sum()
    return by_scores if less else by_factors


def _blocks(features: Features, *, scores: bool) -> tuple[Block, ...]:
    found: list[Block] = []
    for kind, tensor in _tensors(features, scores=scores):
        shape = tuple(tensor.shape[2:]) if tensor.dim() == 3 else (tensor.shape[1], tensor.shape[3])
        dtype = tensor.dtype if tensor.dtype == torch.bfloat16 else torch.float16
        found.append(Block(kind=kind, start=found[-1].stop if found else 0, shape=shape, dtype=dtype))
    return tuple(found)


def _tensors(features: Features, *, scores: bool) -> list[tuple[str, Tensor]]:
    """What is kept token by token: without queries and keys where scores are kept."""
    found = [("embedding", features.embedding)] if features.embedding is not None else []
    # Layers that nothing needs hold None.
    found += [("hidden", h) for h in features.hidden if h is not None]
    if not scores:
        pairs = filter(None, features.attention)
        found += [(kind, t) for pair in pairs for kind, t in zip(("query", "key"), pair, strict=True)]
    return found + [("value", v) for v in features.values if v is not None]
