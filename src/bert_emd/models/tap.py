"""The tap: each layer's queries, keys and values, as the model uses them, without asking for attention outputs.

Transformers' attention interface calls one function for every attention layer. The tap registers a function that hands
queries and keys on and then calls the very function the model would have called (SDPA, flash, eager), so the fast
kernel stays and the logits are the same bit for bit. Models that compute attention themselves are tapped by hooks on
their query and key layers: one row of `HOOKED` each.

Legend: B batch, L tokens, H heads, d head width.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from bert_emd.errors import UserError
from bert_emd.method import Features, Needs
from bert_emd.models.attention import register_attention

__all__ = ["HOOKED", "Tap"]

# Architectures that go around the attention interface: the names of the query, key and value layers inside each
# attention module. Their scores also hold relative-position terms; what is compared is Q Kᵀ/√d without them.
HOOKED: dict[str, tuple[str, str, str]] = {
    "mpnet": ("q", "k", "v"),
    "deberta-v2": ("query_proj", "key_proj", "value_proj"),
}

_PREFIX = "bert_emd_tap_"
_RECORDER = "_bert_emd_recorder"


class Tap:
    """Collects the features of one model.

    Use it as a context: inside, the model's attention is tapped; on leaving, the model is as it was before.

    >>> with Tap(model, Needs(attention=True)) as tap:  # doctest: +SKIP
    ...     outputs, features = tap(input_ids=ids, attention_mask=mask)

    Args:
        model: any Transformers encoder with a head.
        needs: which tensors to supply. Without attention or values nothing is tapped.

    Raises:
        UserError: the architecture does not let its attention be tapped.
    """

    def __init__(self, model: PreTrainedModel, needs: Needs) -> None:
        self.model, self.needs = model, needs
        self._captured: list[tuple[Tensor, Tensor, Tensor | None]] = []
        self._undo: list[Callable[[], None]] = []
        self._forward: Callable[..., Any] = model
        # One object for all calls: a compiled model checks that it is still the same.
        self._recorder = self._record

    def compile(self) -> None:
        """Run the model through `torch.compile`, queries and keys included."""
        compiled = torch.compile(self.model, dynamic=True)

        def first(**inputs: Any) -> Any:
            # Transformers puts up its hooks in the first call, which would break the graph.
            self._forward = compiled
            return self.model(**inputs)

        self._forward = first

    @property
    def note(self) -> str | None:
        """What is compared where the scores are not simply Q Kᵀ/√d."""
        if self.needs.attention and self.model.config.model_type in HOOKED:
            return (
                f"{self.model.config.model_type} adds relative positions to its attention scores; "
                "queries and keys (and Q Kᵀ/√d) are compared without them"
            )
        return None

    def __enter__(self) -> Tap:
        return self.attach()

    def __exit__(self, *_: object) -> None:
        self.detach()

    def attach(self) -> Tap:
        """Start tapping."""
        if self.needs.tap and not self._undo:
            if self.model.config.model_type in HOOKED:
                self._attach_hooks(HOOKED[self.model.config.model_type])
            else:
                self._attach_interface()
        return self

    def detach(self) -> None:
        """Leave the model as it was found."""
        while self._undo:
            self._undo.pop()()

    def __call__(self, **inputs: Any) -> tuple[Any, Features]:
        """Run the model once and return its outputs and its features."""
        self._captured = []
        try:
            with self._recording():
                outputs = self._forward(**inputs, output_hidden_states=self.needs.states or None)
            captured = self._captured
        finally:
            self._captured = []
        features = Features()
        if self.needs.states:
            states = outputs.hidden_states
            features.embedding = states[0] if self.needs.embedding else None
            features.hidden = list(states[1:]) if self.needs.hidden else []
        if self.needs.tap:
            layers = self.model.config.num_hidden_layers
            if len(captured) != layers:
                raise UserError(
                    f"the attention of a {self.model.config.model_type} model cannot be tapped "
                    f"({len(captured)} of {layers} layers seen); match hidden states alone with --use_att false"
                )
            if self.needs.attention:
                features.attention = [(q, k) for q, k, _ in captured]
            if self.needs.values:
                features.values = [v for _, _, v in captured if v is not None]
        return outputs, features.only(self.needs.layers)

    @contextmanager
    def _recording(self) -> Iterator[None]:
        # The recorder is set for the forward only: evaluation and checkpoint recomputation must not capture anything.
        modules = [m for m in self.model.modules() if hasattr(m, _RECORDER)]
        for module in modules:
            setattr(module, _RECORDER, self._recorder)
        try:
            yield
        finally:
            for module in modules:
                setattr(module, _RECORDER, None)

    def _record(self, query: Tensor, key: Tensor, value: Tensor | None) -> None:
        self._captured.append((query, key, value if self.needs.values else None))

    def _attach_interface(self) -> None:
        model = self.model
        base = model.config._attn_implementation
        name = _registered(base)
        model.set_attn_implementation(name)
        if model.config._attn_implementation != name:
            raise UserError(
                f"the attention of a {model.config.model_type} model cannot be tapped; "
                "match hidden states alone with --use_att false"
            )
        self._undo.append(lambda: model.set_attn_implementation(base))
        self._mark(model.modules())

    def _attach_hooks(self, names: tuple[str, str, str]) -> None:
        modules = [m for m in self.model.modules() if all(hasattr(m, n) for n in names)]
        self._mark(modules)
        for module in modules:
            heads = module.num_attention_heads
            seen: dict[str, Tensor] = {}
            self._undo.append(module.register_forward_pre_hook(_forget(seen)).remove)
            self._undo.append(seen.clear)
            for part, name in zip("qkv", names, strict=True):
                handle = getattr(module, name).register_forward_hook(_hook(module, seen, part, heads))
                self._undo.append(handle.remove)

    def _mark(self, modules: Any) -> None:
        marked = [m for m in modules if not isinstance(m, (nn.ModuleList, nn.Linear, nn.LayerNorm, nn.Dropout))]
        for module in marked:
            object.__setattr__(module, _RECORDER, None)

        def unmark() -> None:
            for module in marked:
                object.__delattr__(module, _RECORDER)

        self._undo.append(unmark)


def _registered(base: str) -> str:
    """The name of the tapping variant of an attention implementation, registered if it was not yet."""
    name = _PREFIX + base

    def tapped(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> Any:
        recorder = getattr(module, _RECORDER, None)
        if recorder is not None:
            recorder(_scaled(query, kwargs.get("scaling")), _all_heads(key, query), _all_heads(value, query))
        if base == "eager":
            # Eager attention is not in the interface: each modelling file has its own.
            function = sys.modules[type(module).__module__].eager_attention_forward
        else:
            function = ALL_ATTENTION_FUNCTIONS[base]
        return function(module, query, key, value, *args, **kwargs)

    register_attention(name, tapped, like=base)
    return name


def _scaled(query: Tensor, scaling: float | None) -> Tensor:
    """The query such that Q Kᵀ/√d is the model's own score also where its scale is not 1/√d."""
    usual = 1 / math.sqrt(query.shape[-1])
    # Not math.isclose, which torch.compile cannot see through.
    if scaling is None or abs(scaling - usual) <= 1e-6 * usual:
        return query
    return query * (scaling / usual)


def _all_heads(tensor: Tensor, query: Tensor) -> Tensor:
    """Grouped keys and values repeated to one a query head."""
    if tensor.shape[1] == query.shape[1]:
        return tensor
    return tensor.repeat_interleave(query.shape[1] // tensor.shape[1], dim=1)


def _hook(module: nn.Module, seen: dict[str, Tensor], part: str, heads: int) -> Callable[..., None]:
    def hook(_: nn.Module, __: Any, output: Tensor) -> None:
        recorder = getattr(module, _RECORDER, None)
        # Relative-position embeddings pass through the same layers in some models; hidden states come first.
        if recorder is None or part in seen:
            return
        seen[part] = output.reshape(*output.shape[:-1], heads, -1).transpose(1, 2)
        if len(seen) == 3:
            recorder(seen["q"], seen["k"], seen["v"])

    return hook


def _forget(seen: dict[str, Tensor]) -> Callable[..., None]:
    """Each call of an attention module starts anew."""

    def hook(_: nn.Module, __: Any) -> None:
        seen.clear()

    return hook
