"""Dropout that costs little on a CPU.

torch draws one random number after the other for each value that dropout may drop: a tenth to a fifth of a small
student's training step. And its fused attention has no dropout on a CPU: with one, it takes a path that computes
16-bit scores in 32 bits. Here 64 random bits serve four values, and attention with dropout stays in the precision that
its queries came in. What is dropped is as random as before, to 1/65,536 in the rate, and drawn from the same generator.

Without dropout the fused attention is taken, whose backward pass is several times as slow in bfloat16 as the products
one by one where texts are short: those are taken there too.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from bert_emd.models.attention import register_attention

__all__ = ["QuickDropout", "attach_quick_dropout", "keep_or_drop", "quick_dropout"]

_NAME = "bert_emd_dropout"
_STEPS = 1 << 16
_HALF = (torch.bfloat16, torch.float16)
# Up to here the products one by one are faster than fused attention, forward and backward, by two times or more; at
# twice this length they are equal, and their scores take room.
_SHORT = 256


def keep_or_drop(shape: Sequence[int], p: float, dtype: torch.dtype) -> Tensor:
    """Factors for dropout: 0 with probability p, else 1/(1 − p), each value on its own.

    Args:
        shape: of the tensor that is multiplied.
        p: the rate; rounded to a multiple of 2⁻¹⁶, in the factor too, so that the mean stays 1.
        dtype: of the factors. In 16 bits 1/(1 − p) is rounded to them, as torch's own dropout does it.

    Returns:
        A tensor on the CPU, drawn from torch's generator there.
    """
    count, dropped = math.prod(shape), round(p * _STEPS)
    words = torch.empty(-(-count // 4), dtype=torch.int64).random_(-(2**63), None)
    keep = words.view(torch.int16)[:count].ge_(dropped - _STEPS // 2)  # 1 or 0, in place
    factor = torch.tensor(_STEPS / (_STEPS - dropped), dtype=dtype)
    if dtype in _HALF:
        # The factor's own bits times 1 or 0: a product of integers, where a conversion would take twice as long.
        return keep.mul_(factor.view(torch.int16)).view(dtype).view(*shape)
    return keep.to(dtype).mul_(factor).view(*shape)


class QuickDropout(nn.Dropout):
    """`torch.nn.Dropout` by `keep_or_drop`, where that is quicker: in training, on a CPU, not compiled."""

    def forward(self, input: Tensor) -> Tensor:
        """The input times its factors."""
        if not self.training or not _quicker(input, self.p):
            return super().forward(input)
        factors = keep_or_drop(input.shape, self.p, input.dtype)
        return input.mul_(factors) if self.inplace else input * factors


@contextmanager
def quick_dropout(model: nn.Module) -> Iterator[None]:
    """Let a model's dropout be quick inside; afterwards the model is as it was.

    Serves layers that are `nn.Dropout` itself, and the attention of Transformers models that run on SDPA.
    """
    undo = attach_quick_dropout(model)
    try:
        yield
    finally:
        undo()


def attach_quick_dropout(model: nn.Module) -> Callable[[], None]:
    """`quick_dropout` without a block to end it: the function that is returned does. A second call changes nothing."""
    layers = [module for module in model.modules() if type(module) is nn.Dropout]
    for layer in layers:
        layer.__class__ = QuickDropout
    attentive = model if isinstance(model, PreTrainedModel) and model.config._attn_implementation == "sdpa" else None
    if attentive is not None:
        register_attention(_NAME, _attention, like="sdpa")
        attentive.set_attn_implementation(_NAME)

    def undo() -> None:
        for layer in layers:
            layer.__class__ = nn.Dropout
        if attentive is not None:
            attentive.set_attn_implementation("sdpa")

    return undo


def _quicker(tensor: Tensor, p: float) -> bool:
    compiled = torch.compiler.is_compiling()
    return tensor.device.type == "cpu" and tensor.is_floating_point() and 0 < p < 1 - 1 / _STEPS and not compiled


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, Any]:
    """softmax(Q Kᵀ·scaling + mask), dropout if any, times V; all but an encoder's training on a CPU goes to SDPA."""
    unusual = kwargs.get("is_causal") or getattr(module, "is_causal", False) or key.shape[1] != query.shape[1]
    drops = _quicker(query, dropout)
    if unusual or kwargs.get("position_bias") is not None or not (drops or (dropout == 0 and _slow_when_fused(query))):
        plain: tuple[Tensor, Any] = ALL_ATTENTION_FUNCTIONS["sdpa"](
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
        return plain
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    scores = torch.matmul(query * scale, key.transpose(-1, -2))
    if attention_mask is not None:
        scores = scores + _added(attention_mask, scores.dtype)
    probabilities = torch.softmax(scores, dim=-1)
    if drops:
        probabilities = probabilities * keep_or_drop(probabilities.shape, dropout, probabilities.dtype)
    return torch.matmul(probabilities, value).transpose(1, 2).contiguous(), None


def _slow_when_fused(query: Tensor) -> bool:
    """Whether fused attention without dropout would be slower, backward included."""
    trains = torch.is_grad_enabled() and query.requires_grad and not torch.compiler.is_compiling()
    return trains and query.device.type == "cpu" and query.dtype == torch.bfloat16 and query.shape[-2] <= _SHORT


def _added(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """What a mask adds to the scores. Finite, so that a row with nothing to attend to, always padding, is no NaN."""
    if mask.dtype == torch.bool:
        return torch.zeros(mask.shape, dtype=dtype).masked_fill_(~mask, torch.finfo(dtype).min)
    return mask.to(dtype)
