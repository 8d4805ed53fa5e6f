"""Values as people write them (on a command line, in YAML) into the type that a field wants, and back."""

from __future__ import annotations

import csv
import difflib
import json
import math
import types
import typing
from collections.abc import Iterable, Mapping
from typing import Any, Literal, Union, get_args, get_origin

from bert_emd.errors import UserError

__all__ = ["convert", "nearest", "show"]

_TRUE, _FALSE = ("true", "yes", "on", "1"), ("false", "no", "off", "0")


def convert(value: Any, hint: Any, where: str) -> Any:
    """Return ``value`` as the type ``hint``, whether it was typed as text or read from YAML.

    ``where`` names it in the error. Raises `UserError` where the value does not fit.

    >>> convert("1e-5", float, "--learning_rate"), convert("1,3", tuple[int, ...] | None, "--student_layer_ids")
    (1e-05, (1, 3))
    """
    members = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
    wanted = [member for member in members if member is not type(None)]
    if len(wanted) < len(members) and _is_none(value, str in wanted):
        return None
    for member in sorted(wanted, key=lambda member: member is str):
        converted = _convert_one(value, member, only=len(wanted) == 1)
        if converted is not _NO:
            return converted
    items = value if isinstance(value, (list, tuple)) else [value]
    if any(isinstance(item, bool) for item in items) and all(_is_textual(member) for member in wanted):
        raise UserError(f"{where} must be text, and YAML reads yes, no, on and off as true and false; put it in quotes")
    raise UserError(f"{where} must be {' or '.join(map(_describe, wanted))}, not {value!r}")


def show(value: Any) -> str:
    """Return a value as one would type it.

    >>> show(5.0), show(2e-05), show(True), show((1, 3)), show(None)
    ('5', '2e-05', 'true', '1,3', '-')
    """
    if value is None:
        return "-"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, (list, tuple)):
        return ",".join(show(item) for item in value)
    if isinstance(value, Mapping):
        return " ".join(f"{key}={show(item)}" for key, item in value.items()) or "-"
    return str(value)


def nearest(name: str, known: Iterable[str]) -> str | None:
    """Return the known name most like ``name``, whatever the case, or None where none is like it.

    >>> nearest("learning_rat", ["alpha", "learning_rate"])
    'learning_rate'
    """
    by_lower = {known_name.lower(): known_name for known_name in known}
    found = difflib.get_close_matches(name.lower(), by_lower, n=1, cutoff=0.55)
    return by_lower[found[0]] if found else None


class _No:
    """The answer of a conversion that does not fit."""


_NO = _No()


def _is_none(value: Any, text_is_fine: bool) -> bool:
    return value is None or (not text_is_fine and isinstance(value, str) and value.strip().lower() in ("none", "null"))


def _convert_one(value: Any, kind: Any, *, only: bool) -> Any:
    origin = get_origin(kind)
    if kind is bool:
        return _to_bool(value)
    if kind in (int, float):
        return _to_number(value, kind)
    if origin in (tuple, list) or kind is list:
        return _to_sequence(value, kind, only=only)
    if origin is dict or kind is dict:
        return _to_dict(value)
    if origin is Literal:
        return next((choice for choice in get_args(kind) if str(choice) == str(value)), _NO)
    if kind is str:
        return str(value) if isinstance(value, (str, int, float)) and not isinstance(value, bool) else _NO
    if kind is Any:
        return value
    return _NO


def _to_bool(value: Any) -> Any:
    if isinstance(value, bool):
        return value
    text = str(value).strip().lower()
    if text in _TRUE:
        return True
    return False if text in _FALSE else _NO


def _to_number(value: Any, kind: type) -> Any:
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return _NO
    try:
        if kind is int and isinstance(value, (int, str)):
            return int(value)
    except ValueError:
        pass
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return _NO
    if not math.isfinite(number):
        return _NO
    if kind is float:
        return number
    return int(number) if number.is_integer() else _NO


def _to_sequence(value: Any, kind: Any, *, only: bool) -> Any:
    if isinstance(value, str):
        if not only and "," not in value:
            return _NO
        # As in CSV: a name that itself holds a comma stands in double quotes.
        value = [part.strip() for part in next(csv.reader([value], skipinitialspace=True), [])]
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        value = [value]
    if not isinstance(value, (list, tuple)) or not value or "" in value:
        return _NO
    item_kind = (get_args(kind) or (str,))[0]
    items = [_convert_one(item, item_kind, only=True) for item in value]
    if any(item is _NO for item in items):
        return _NO
    return tuple(items) if get_origin(kind) is tuple else items


def _to_dict(value: Any) -> Any:
    if isinstance(value, str) and value.strip().startswith("{"):
        try:
            value = json.loads(value)
        except json.JSONDecodeError:
            return _NO
    return dict(value) if isinstance(value, Mapping) else _NO


def _is_textual(kind: Any) -> bool:
    return kind is str or (get_origin(kind) in (tuple, list) and str in get_args(kind))


def _describe(kind: Any) -> str:
    origin = get_origin(kind)
    if origin is Literal:
        return f"one of {', '.join(map(str, get_args(kind)))}"
    if origin in (tuple, list) or kind is list:
        return "whole numbers separated by commas" if int in get_args(kind) else "names separated by commas"
    if origin is dict or kind is dict:
        return 'a mapping like {"name": 1}'
    names = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}
    return names.get(kind, typing.cast(str, getattr(kind, "__name__", str(kind))))
