"""What a mapping sees of a model: the tensors of one batch, and the declaration of which it needs.

Legend: B batch, L tokens, D width, H heads, d head width.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

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
    """The tensors of one model on one batch, lists over its layers; what was not needed is empty or None."""

    embedding: Tensor | None = None
    """[B, L, D], the embedding output (before the first block)."""
    hidden: list[Tensor] = field(default_factory=list)
    """Each [B, L, D], the outputs of the blocks."""
    attention: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    """Queries and keys as the model uses them, each [B, H, L, d]."""
    values: list[Tensor] = field(default_factory=list)
    """Each [B, H, L, d]."""
