"""Label names: compared by name, never by number."""

from __future__ import annotations

import re
from collections.abc import Sequence

from bert_emd.errors import UserError

__all__ = ["label_lookup", "listing", "match_labels", "normalise_label", "order_labels"]

_UNNAMED = re.compile(r"(?:label_)?(\d+)")


def normalise_label(name: str) -> str:
    """Return the spelling in which two label names are compared: lower case, ``-`` and spaces as ``_``."""
    return name.strip().lower().replace("-", "_").replace(" ", "_")


def listing(names: Sequence[object], limit: int = 20) -> str:
    """Return names for a one-line message, the tail of a very long list cut."""
    shown = ", ".join(str(name) if str(name).isprintable() else repr(name) for name in names[:limit])
    return f"{shown}, … ({len(names)} in all)" if len(names) > limit else shown


def label_lookup(names: Sequence[str]) -> dict[str, int]:
    """Return normalised name -> position.

    Raises `UserError` where two names differ only in case, ``-``, ``_`` or spaces.
    """
    lookup: dict[str, int] = {}
    for position, name in enumerate(names):
        first = lookup.setdefault(normalise_label(name), position)
        if first != position:
            raise UserError(
                f"labels {names[first]!r} and {name!r} count as the same name: give each class one spelling"
            )
    return lookup


def order_labels(found_names: Sequence[str], wanted_names: Sequence[str]) -> tuple[int, ...]:
    """Return, for each found name, its position among the wanted names.

    Names are compared as `normalise_label` spells them. Raises `UserError`, listing both, where the two sets differ.

    >>> order_labels(["entailment", "not_entailment"], ["Not-Entailment", "Entailment"])
    (1, 0)
    """
    found, wanted = label_lookup(found_names), label_lookup(wanted_names)
    if found.keys() != wanted.keys():
        raise UserError(
            f"label names disagree: the data have {listing(found_names)}, the model {listing(wanted_names)}; use a "
            "model and data of the same task (case, '-' and '_' do not matter)"
        )
    return tuple(wanted[name] for name in found)


def match_labels(
    model_names: Sequence[str], data_names: Sequence[str], *, known_order: bool = False
) -> tuple[tuple[int, ...], bool]:
    """Say where each label of the data stands in the model's outputs.

    Returns ``(permutation, assumed)``: label ``i`` of the data is output ``permutation[i]`` of the model.

    The rule: names that agree are matched by name (``assumed`` is False). A model whose labels have no names
    (``LABEL_0, LABEL_1, …``, or just ``0, 1, …``, each at its own position) is taken to use the data's order, with
    ``assumed`` True, but only if that order means something: ``known_order`` (`Task.known_order`: a GLUE task, a
    `ClassLabel` column, or names the user listed), or data labels spelled ``0 … n-1`` in that order.

    Raises `UserError` where the names disagree, the counts differ, or the data's order is only alphabetical.
    """
    model_lookup, data_lookup = label_lookup(model_names), label_lookup(data_names)
    if model_lookup.keys() == data_lookup.keys() or not _unnamed(model_names):
        return order_labels(data_names, model_names), False
    if len(model_names) != len(data_names):
        raise UserError(
            f"the model has {len(model_names)} labels ({listing(model_names)}), the data {len(data_names)} "
            f"({listing(data_names)}): use a model and data of the same task"
        )
    if not (known_order or list(data_names) == [str(i) for i in range(len(data_names))]):
        raise UserError(
            f"the model's labels have no names ({listing(model_names)}), so its order of {listing(data_names)} "
            "is unknown: pass --label_names in the model's order"
        )
    return tuple(range(len(data_names))), True


def _unnamed(names: Sequence[str]) -> bool:
    matches = [_UNNAMED.fullmatch(normalise_label(name)) for name in names]
    return all(match is not None and int(match[1]) == i for i, match in enumerate(matches))
