"""BERT's forward in plain NumPy and float64, straight from the variables of a TensorFlow checkpoint.

Written from the paper (Devlin et al., 2019; Vaswani et al., 2017), without Transformers or any code of ours.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from scipy.special import erf

Array = np.ndarray[Any, Any]


class NumpyBert:
    """A checkpoint's variables by Google's names, and the sizes that they do not tell."""

    def __init__(self, variables: Mapping[str, Array], *, layers: int, heads: int) -> None:
        self.variables = {name: np.asarray(value, dtype=np.float64) for name, value in variables.items()}
        self.layers, self.heads = layers, heads

    def encoder(self, ids: Array, mask: Array, types: Array) -> tuple[Array, Array]:
        """Last hidden states and the pooled first position."""
        v = self.variables
        x = v["bert/embeddings/word_embeddings"][ids] + v["bert/embeddings/token_type_embeddings"][types]
        x = x + v["bert/embeddings/position_embeddings"][: ids.shape[1]]
        x = self._norm("bert/embeddings/LayerNorm", x)
        for i in range(self.layers):
            x = self._layer(f"bert/encoder/layer_{i}", x, mask)
        return x, np.tanh(self._dense("bert/pooler/dense", x[:, 0]))

    def word_logits(self, x: Array) -> Array:
        """The masked-language model's scores."""
        x = self._norm("cls/predictions/transform/LayerNorm", _gelu(self._dense("cls/predictions/transform/dense", x)))
        words = self.variables["bert/embeddings/word_embeddings"]
        return x @ words.T + self.variables["cls/predictions/output_bias"]

    def following_logits(self, pooled: Array) -> Array:
        """The next-sentence scores."""
        v = self.variables
        return pooled @ v["cls/seq_relationship/output_weights"].T + v["cls/seq_relationship/output_bias"]

    def _dense(self, scope: str, x: Array) -> Array:
        return x @ self.variables[f"{scope}/kernel"] + self.variables[f"{scope}/bias"]

    def _norm(self, scope: str, x: Array) -> Array:
        centred = x - x.mean(-1, keepdims=True)
        scaled = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-12)
        return scaled * self.variables[f"{scope}/gamma"] + self.variables[f"{scope}/beta"]

    def _layer(self, scope: str, x: Array, mask: Array) -> Array:
        rows, length, width = x.shape
        size = width // self.heads
        parts = {}
        for part in ("query", "key", "value"):
            flat = self._dense(f"{scope}/attention/self/{part}", x)
            parts[part] = flat.reshape(rows, length, self.heads, size).transpose(0, 2, 1, 3)
        scores = parts["query"] @ parts["key"].transpose(0, 1, 3, 2) / np.sqrt(size)
        scores = np.where(mask[:, None, None, :] > 0, scores, -np.inf)
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        context = (weights / weights.sum(-1, keepdims=True)) @ parts["value"]
        context = context.transpose(0, 2, 1, 3).reshape(rows, length, width)
        x = self._norm(
            f"{scope}/attention/output/LayerNorm", x + self._dense(f"{scope}/attention/output/dense", context)
        )
        wide = _gelu(self._dense(f"{scope}/intermediate/dense", x))
        return self._norm(f"{scope}/output/LayerNorm", x + self._dense(f"{scope}/output/dense", wide))


def _gelu(x: Array) -> Array:
    return x * 0.5 * (1 + erf(x / np.sqrt(2)))
