"""What a mapping sees of a model: the tensors of one batch, and the declaration of which it needs.

Legend: B batch, L tokens, D width, H heads, d head width.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from bert_emd.method.scores import Scores

__all__ = ["Features", "Needs"]


@dataclass(frozen=True, kw_only=True)
class Needs:
    """Which tensors a mapping uses; the tap supplies only these."""

    embedding: bool = False
    """The embedding output."""
    hidden: bool = False
    """The outputs of the transformer blocks."""
    attention: bool = False
    """Queries and keys."""
    values: bool = False
    """Values."""
    factors: bool = False
    """Whether queries and keys are used one by one; else a teacher's attention may come as `Scores`."""
    layers: tuple[int, ...] | None = None
    """Of which layers, counted from 0 and rising; None: of all."""

    @property
    def tap(self) -> bool:
        """Whether attention has to be tapped at all."""
        return self.attention or self.values

    @property
    def states(self) -> bool:
        """Whether hidden states have to be asked for."""
        return self.embedding or self.hidden


@dataclass(kw_only=True)
class Features:
    """The tensors of one model on one batch; what was not needed is empty or None.

    The lists run over the model's layers; where only some layers are needed, the others' places hold None.
    """

    embedding: Any = None
    """[B, L, D], the embedding output (before the first block): a tensor, or the student's a `Projected`."""
    hidden: list[Any] = field(default_factory=list)
    """Each [B, L, D], the outputs of the blocks: tensors, or the student's `Projected`."""
    attention: Any = field(default_factory=list)
    """Queries and keys as the model uses them, pairs of [B, H, L, d]; of a teacher also the `Scores` made of them."""
    values: list[Tensor] = field(default_factory=list)
    """Each [B, H, L, d]."""

    def only(self, layers: tuple[int, ...] | None) -> Features:
        """The same with None in the place of every other layer."""
        if layers is None:
            return self

        def chosen(tensors: Any) -> list[Any]:
            return [tensor if i in layers else None for i, tensor in enumerate(tensors)]

        return Features(
            embedding=self.embedding,
            hidden=chosen(self.hidden),
            attention=chosen(self.attention),
            values=chosen(self.values),
        )

    def spread(self, layers: tuple[int, ...] | None) -> Features:
        """The inverse: lists that hold these layers alone, with each put in its place.

        >>> Features(hidden=["two", "four"]).spread((1, 3)).hidden
        [None, 'two', None, 'four']
        """
        if layers is None:
            return self

        def placed(tensors: Any) -> Any:
            if isinstance(tensors, Scores):
                return Scores(tensors.rows, layers)
            found = dict(zip(layers, tensors, strict=False))
            return [found.get(i) for i in range(layers[-1] + 1)] if tensors else []

        return Features(
            embedding=self.embedding,
            hidden=placed(self.hidden),
            attention=placed(self.attention),
            values=placed(self.values),
        )
