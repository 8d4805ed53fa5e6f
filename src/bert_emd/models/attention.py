"""Attention functions of ours in Transformers' attention interface."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

__all__ = ["register_attention"]


def register_attention(name: str, function: Callable[..., Any], *, like: str) -> None:
    """Let ``model.set_attn_implementation(name)`` take a function, once; its masks are made as for ``like``."""
    if name in ALL_ATTENTION_FUNCTIONS:
        return
    AttentionInterface.register(name, function)
    # Without a mask function of the same name the model would silently get no mask and attend to padding.
    AttentionMaskInterface.register(name, ALL_MASK_ATTENTION_FUNCTIONS[like])
