"""The mappings by the names that users type: one table row each."""

from __future__ import annotations

from bert_emd.method.mappings.all_to_one import AllToOneMapping
from bert_emd.method.mappings.base import CostScale, Mapping, MappingLoss, MappingOptions, StateLoss
from bert_emd.method.mappings.emd import EmdMapping
from bert_emd.method.mappings.last import LastMapping
from bert_emd.method.mappings.manual import ManualMapping, layer_map_text
from bert_emd.method.mappings.minilm import MinilmMapping
from bert_emd.method.mappings.pkd import PkdMapping
from bert_emd.method.mappings.random import RandomMapping
from bert_emd.method.mappings.reverse import ReverseMapping
from bert_emd.method.mappings.skip import SkipMapping
from bert_emd.method.mappings.uniform import UniformMapping

__all__ = [
    "MAPPINGS",
    "CostScale",
    "Mapping",
    "MappingLoss",
    "MappingOptions",
    "StateLoss",
    "build_mapping",
    "layer_map_text",
]

_TABLE: tuple[type[Mapping], ...] = (
    EmdMapping,
    UniformMapping,
    SkipMapping,
    LastMapping,
    ReverseMapping,
    RandomMapping,
    AllToOneMapping,
    ManualMapping,
    MinilmMapping,
    PkdMapping,
)
MAPPINGS: dict[str, type[Mapping]] = {cls.name: cls for cls in _TABLE}


def build_mapping(name: str, options: MappingOptions) -> Mapping:
    """The mapping of this name.

    Raises:
        ValueError: there is no such mapping, or it cannot be defined for these depths or options.
    """
    if name not in MAPPINGS:
        raise ValueError(f"there is no mapping {name!r}; choose one of {', '.join(MAPPINGS)}")
    return MAPPINGS[name](options)
