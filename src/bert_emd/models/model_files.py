"""Which files of a published model are taken: what Transformers needs to load it, and never code."""

from __future__ import annotations

import re
from collections.abc import Iterable

__all__ = ["model_files"]

_BESIDE = frozenset({
    "config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
    "vocab.txt", "vocab.json", "merges.txt", "spiece.model", "spm.model", "sentencepiece.bpe.model",
    "README.md", "LICENSE", "LICENSE.txt", "LICENSE.md", "NOTICE", "NOTICE.txt",
})  # fmt: skip
"""Files besides the weights, all of them plain data."""
_KINDS = (
    ("model.safetensors", "model.safetensors.index.json", re.compile(r"model-\d{5}-of-\d{5}\.safetensors")),
    ("pytorch_model.bin", "pytorch_model.bin.index.json", re.compile(r"pytorch_model-\d{5}-of-\d{5}\.bin")),
)
"""Weights in one file, or the index of several and those; the better kind first."""


def model_files(names: Iterable[str]) -> list[str]:
    """Return the files to take, the weights last; empty where there are none of a kind that can be loaded.

    >>> model_files(["config.json", "model.py", "onnx/model.onnx", "pytorch_model.bin", "model.safetensors"])
    ['config.json', 'model.safetensors']
    """
    there = set(names)
    beside = sorted(there & _BESIDE)
    for single, index, shard in _KINDS:
        if single in there:
            return [*beside, single]
        shards = sorted(name for name in there if shard.fullmatch(name))
        if index in there and shards:
            return [*beside, index, *shards]
    return []
