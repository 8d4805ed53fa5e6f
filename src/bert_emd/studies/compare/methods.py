"""Methods as they are typed: a mapping's name, options of its own, and the students' start."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from bert_emd.errors import UserError
from bert_emd.studies.compare.config import option_name

__all__ = ["Method", "from_both_starts", "parse_method", "parse_methods"]

_OPTION = re.compile(r"\+(?=[A-Za-z_-]+=)")
_STARTS = ("teacher", "pretrained")
_UNTAUGHT = ("none", "kd")
# What makes runs comparable is the same for all of them.
_SAME_FOR_ALL = frozenset({
    "task_name", "data_dir", "train_file", "validation_file", "test_file", "text_columns", "label_column",
    "label_names", "regression", "select_on", "teacher_model", "student_layers", "output_dir", "cache_dir",
    "overwrite_cache",
})  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Method:
    """One row of the tables."""

    spec: str
    """As it was typed."""
    name: str
    """The mapping's name, ``kd`` or ``none``."""
    options: dict[str, str] = field(default_factory=dict)
    preset: str | None = None
    """Published settings for this row alone."""
    start: str | None = None
    """``teacher`` or ``pretrained``; None takes the one that the methods share."""


def parse_method(spec: str) -> Method:
    """Read ``NAME[+option=value…][@teacher|@pretrained]``; any option of `distill` that may differ between runs,
    and ``preset``.

    >>> parse_method("emd+rule=softmax@pretrained")
    Method(spec='emd+rule=softmax@pretrained', name='emd', options={'rule': 'softmax'}, preset=None, start='pretrained')

    Raises:
        UserError: it is not of this form, or an option is unknown or must be the same for all methods.
    """
    spec = spec.strip()
    head, at, start = spec.rpartition("@")
    if not at:
        head, start = spec, ""
    elif start not in _STARTS:
        raise UserError(f"method {spec!r}: a start is @teacher or @pretrained, not @{start}")
    name, *parts = _OPTION.split(head)
    if not re.fullmatch(r"[A-Za-z][\w-]*", name):
        advice = ""
        if re.fullmatch(r"[\d:./ ]+", name):
            advice = "; one that holds a comma goes in double quotes: '\"manual+layer_map=1:2,2:4\",emd'"
        raise UserError(f"method {spec!r} is not of the form NAME+option=value+…@teacher or @pretrained{advice}")
    options: dict[str, str] = {}
    preset = None
    for part in parts:
        key, _, value = part.partition("=")
        if key == "preset":
            preset = value
            continue
        option = option_name(key)
        if option == "student_from":
            raise UserError(f"method {spec!r}: its start is written behind it: {name}@teacher or {name}@pretrained")
        if option in _SAME_FOR_ALL:
            raise UserError(f"method {spec!r}: {option} is the same for all methods; set it as --{option}")
        if option in options:
            raise UserError(f"method {spec!r} sets {option} twice; keep one")
        options[option] = value
    return Method(spec=spec, name=name, options=options, preset=preset, start=start or None)


def parse_methods(specs: Sequence[str]) -> list[Method]:
    """All methods, in their order.

    Raises:
        UserError: one cannot be read, or stands twice.
    """
    methods = [parse_method(spec) for spec in specs]
    for i, method in enumerate(methods):
        for other in methods[:i]:
            if _same(other, method):
                raise UserError(f"methods names {method.spec} twice; leave one out")
    return methods


def _same(one: Method, other: Method) -> bool:
    return dataclasses.replace(one, spec="") == dataclasses.replace(other, spec="")


def from_both_starts(methods: Sequence[Method], shared: str) -> list[Method]:
    """The methods, with the other start's row behind each ``none`` and ``kd`` that was written as just that.

    >>> [m.spec for m in from_both_starts(parse_methods(["none", "kd@teacher", "emd"]), "teacher")]
    ['none', 'none@pretrained', 'kd@teacher', 'emd']
    """
    (other,) = (start for start in _STARTS if start != shared)
    made: list[Method] = []
    for method in methods:
        made.append(method)
        if method.spec in _UNTAUGHT:
            twin = Method(spec=f"{method.name}@{other}", name=method.name, start=other)
            if not any(_same(twin, m) for m in methods):
                made.append(twin)
    return made
