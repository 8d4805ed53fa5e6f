"""The mappings by the names that users type: one table row each."""

from __future__ import annotations

from bert_emd.method.mappings.base import Mapping, MappingLoss, MappingOptions
from bert_emd.method.mappings.emd import EmdMapping
from bert_emd.method.mappings.pairs import PkdMapping, UniformMapping

__all__ = ["MAPPINGS", "Mapping", "MappingLoss", "MappingOptions", "build_mapping"]

MAPPINGS: dict[str, type[Mapping]] = {cls.name: cls for cls in (EmdMapping, UniformMapping, PkdMapping)}


def build_mapping(name: str, options: MappingOptions) -> Mapping:
    """The mapping of this name.

    Raises:
        ValueError: there is no such mapping.
    """
    if name not in MAPPINGS:
        raise ValueError(f"there is no mapping {name!r}; choose one of {', '.join(MAPPINGS)}")
    return MAPPINGS[name](options)
