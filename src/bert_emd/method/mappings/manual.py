"""The pairs that the user gives."""

from __future__ import annotations

import re
from collections.abc import Mapping as Mapped
from collections.abc import Sequence
from typing import Any

from bert_emd.method.mappings.base import MappingOptions
from bert_emd.method.mappings.pairs import PairMapping

__all__ = ["ManualMapping", "layer_map_text"]

_PAIR = re.compile(r"\s*(\d+)\s*:\s*(\d+)\s*")
_FORM = "pairs like 1:2,2:4,3:6 (student layer:teacher layer, counted from 1)"


def layer_map_text(value: Any) -> str:
    """Pairs in any form that is taken, as the one form that is kept.

    Args:
        value: "1:2,2:4", a list of pairs or of such texts, or a mapping from student to teacher layers.

    Raises:
        ValueError: it is empty, malformed, or names a pair twice.

    >>> layer_map_text({1: 2, 2: [3, 4]}), layer_map_text([(1, 2), "2:4"]), layer_map_text(" 1:2, 2:4")
    ('1:2,2:3,2:4', '1:2,2:4', '1:2,2:4')
    """
    items: list[Any]
    if isinstance(value, Mapped):
        items = [(i, j) for i, js in value.items() for j in (js if isinstance(js, (list, tuple)) else [js])]
    elif isinstance(value, str):
        items = value.split(",") if value.strip() else []
    elif isinstance(value, (list, tuple)):
        items = list(value)
    elif isinstance(value, int):
        raise ValueError(f"layer_map is the number {value}, as YAML reads 1:2; put the pair in quotes")
    else:
        raise ValueError(f"layer_map must be {_FORM}, not {value!r}")
    if not items:
        raise ValueError(f"layer_map is empty; give {_FORM}")
    pairs = [_pair(item) for item in items]
    if twice := [pair for k, pair in enumerate(pairs) if pair in pairs[:k]]:
        raise ValueError(f"layer_map names the pair {twice[0][0]}:{twice[0][1]} twice; keep one")
    return ",".join(f"{i}:{j}" for i, j in pairs)


def _pair(item: Any) -> tuple[int, int]:
    text = (
        item if isinstance(item, str) else ":".join(map(str, item)) if isinstance(item, (list, tuple)) else repr(item)
    )
    match = _PAIR.fullmatch(text)
    if not match:
        raise ValueError(f"layer_map must be {_FORM}; {item!r} is no such pair")
    return int(match[1]), int(match[2])


class ManualMapping(PairMapping):
    """Student layer i learns from teacher layer j for each pair i:j of ``layer_map``, counted from 1.

    A student layer may learn from several teacher layers, or from none. No map, or one that names a layer which a
    model does not have, is a ValueError.
    """

    name = "manual"
    uses = PairMapping.uses | {"layer_map"}

    def __init__(self, options: MappingOptions) -> None:
        if options.layer_map is None:
            raise ValueError(f"mapping manual needs layer_map: {_FORM}")
        self._pairs = [_pair(item) for item in layer_map_text(options.layer_map).split(",")]
        for side, count, named in (
            ("student", options.num_student, [i for i, _ in self._pairs]),
            ("teacher", options.num_teacher, [j for _, j in self._pairs]),
        ):
            if bad := [layer for layer in named if not 1 <= layer <= count]:
                raise ValueError(f"layer_map names {side} layer {bad[0]}, but the {side}'s layers are 1 to {count}")
        super().__init__(options)

    def pairs(self) -> Sequence[tuple[int, int]]:
        return [(i - 1, j - 1) for i, j in self._pairs]
