"""The search space: ranges and choices of options, read from text or YAML and checked against their types.

learning_rate=1e-5..1e-3:log     a range, searched on a logarithmic scale
T=1..8:int                       whole numbers of a range (options that are whole numbers need no :int)
alpha=0..1:step=0.25             a range with a step
beta=0.1,1,10                    choices
student_layer_ids=2,4,6/1,3,6    choices that are lists
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias, get_args, get_origin

from bert_emd.errors import UserError
from bert_emd.training.config import DistillConfig
from bert_emd.training.resolve import field_types, spellings, unknown_name
from bert_emd.training.trainer_fields import trainer_type
from bert_emd.training.values import convert, show

__all__ = ["Choices", "Dimension", "Range", "Space", "read_space", "split_assignments"]

_ENGINE = ("adam_beta1", "adam_beta2")
"""Fields of the engine that change what is learnt."""
_WITH_COMMAS = ("layer_map",)
"""Texts whose values hold commas themselves."""
_NOT_SEARCHED = {
    "seed": "a seed that wins has had luck; score one recipe with several seeds instead",
    "eval_step": "more evaluations are more chances of a high score, so it must be the same in all trials",
    "do_lower_case": "the teacher was trained with its tokenizer as it is",
    "trainer_args": f"name the engine's field itself: {', '.join(_ENGINE)}",
    **dict.fromkeys(("teacher_model", "task_name", "data_dir", "train_file", "validation_file", "test_file",
                     "text_columns", "label_column", "label_names", "regression", "select_on"),
                    "scores of other data or another teacher cannot be compared"),
    **dict.fromkeys(("output_dir", "overwrite_output_dir", "resume_from_checkpoint", "strict", "cache_dir",
                     "overwrite_cache", "eval_batch_size", "no_cuda", "logging_steps", "save_steps", "cache_teacher",
                     "teacher_cache_dir", "do_eval", "do_predict"), "it does not change what a student learns"),
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Range:
    """All numbers from low to high, both included."""

    low: float
    high: float
    log: bool = False
    whole: bool = False
    step: float | None = None

    def values(self) -> list[Any] | None:
        """Every value, or None where there is no end of them."""
        if self.step is None and not self.whole:
            return None
        step = self.step if self.step is not None else 1
        numbers = [self.low + i * step for i in range(math.floor((self.high - self.low) / step + 1e-9) + 1)]
        return [int(n) for n in numbers] if self.whole else [float(f"{n:.12g}") for n in numbers]

    def corners(self) -> list[Any]:
        """The two ends."""
        return [int(end) if self.whole else end for end in (self.low, self.high)]

    def __str__(self) -> str:
        marks = ["log"] * self.log + ["int"] * self.whole
        marks += [f"step={self.step:.12g}"] if self.step is not None else []
        return ":".join([f"{self.low:.12g}..{self.high:.12g}", *marks])


@dataclass(frozen=True, kw_only=True)
class Choices:
    """One of several values."""

    options: tuple[Any, ...]

    def values(self) -> list[Any]:
        """Every value."""
        return list(self.options)

    def corners(self) -> list[Any]:
        """Every value."""
        return list(self.options)

    def __str__(self) -> str:
        parts = [show(value) if value is not None else "none" for value in self.options]
        # A value with a comma in it is a list, or is read as one.
        return ("/" if any("," in part for part in parts) else ",").join(parts)


Dimension: TypeAlias = Range | Choices


@dataclass(frozen=True)
class Space:
    """What is searched, by option."""

    dimensions: dict[str, Dimension]

    def size(self) -> int | None:
        """How many combinations there are; None where there is no end of them."""
        counts = []
        for dimension in self.dimensions.values():
            values = dimension.values()
            if values is None:
                return None
            counts.append(len(values))
        return math.prod(counts)

    def without(self, name: str) -> Space:
        """The space without one of its options."""
        return Space({key: value for key, value in self.dimensions.items() if key != name})

    def described(self) -> dict[str, str]:
        """Every option's dimension as one would type it."""
        return {name: str(dimension) for name, dimension in self.dimensions.items()}


def split_assignments(words: list[str]) -> dict[str, str]:
    """Return what ``--space`` was given, ``name=values`` each, by name.

    Raises:
        UserError: a word without ``=``, or an option that stands twice.
    """
    found: dict[str, str] = {}
    for word in words:
        name, equals, text = word.partition("=")
        name = name.strip().lstrip("-").replace("-", "_")
        if not equals or not name:
            raise UserError(f"--space {word} is no name=values; write beta=0.1,1,10 or learning_rate=1e-5..1e-3:log")
        if name in found:
            raise UserError(f"--space names {name} twice; keep one")
        found[name] = text.strip()
    return found


def read_space(given: Mapping[str, Any], where: str = "--space") -> Space:
    """Return the checked space. Each value is text as above, a list of choices, or a mapping of YAML
    (``{low: 1.0e-5, high: 1.0e-3, log: true}``, also ``int`` and ``step``).

    Raises:
        UserError: an option that is unknown or cannot be searched, or values that do not fit.
    """
    names = spellings(DistillConfig)
    dimensions: dict[str, Dimension] = {}
    for written, value in given.items():
        key = str(written).replace("-", "_")
        name = names.get(key, key)
        if name in dimensions:
            raise UserError(f"{where}: {written} is an option that is named already; keep one")
        dimensions[name] = _dimension(name, value, f"{where} {written}", _type_of(name, where))
    return Space(dimensions)


def _type_of(name: str, where: str) -> Any:
    types = field_types(DistillConfig)
    if name in _NOT_SEARCHED:
        raise UserError(f"{where}: {name} cannot be searched: {_NOT_SEARCHED[name]}")
    if name in types:
        return types[name]
    if name in _ENGINE:
        return float
    try:
        trainer_type(name)
        known = True
    except UserError:
        known = False
    error = unknown_name(DistillConfig, name)
    if known and str(error).startswith("unknown"):
        raise UserError(f"{where}: {name} cannot be searched: it does not change what a student learns")
    raise UserError(f"{where}: {error}")


def _dimension(name: str, value: Any, where: str, kind: Any) -> Dimension:
    if isinstance(value, Mapping):
        return _from_mapping(name, value, where, kind)
    if isinstance(value, str) and ".." in value:
        return _range(value, where, kind)
    return _choices(name, value, where, kind)


def _from_mapping(name: str, value: Mapping[str, Any], where: str, kind: Any) -> Dimension:
    if set(value) == {"choices"}:
        return _choices(name, value["choices"], where, kind)
    unknown = set(map(str, value)) - {"low", "high", "log", "int", "step"}
    if unknown or not {"low", "high"} <= set(value):
        raise UserError(f"{where} must have low and high (and may have log, int, step), or choices alone")
    marks = [m for m in ("log", "int") if convert(value.get(m, False), bool, f"{where}, {m}")]
    step = [f"step={value['step']}"] if value.get("step") is not None else []
    return _range(":".join([f"{value['low']}..{value['high']}", *marks, *step]), where, kind)


def _members(kind: Any) -> tuple[Any, ...]:
    return get_args(kind) or (kind,)


def _is_list(kind: Any) -> bool:
    return any(get_origin(member) is tuple for member in _members(kind))


def _range(text: str, where: str, kind: Any) -> Range:
    ends, *marks = (part.strip() for part in text.split(":"))
    if not {int, float} & set(_members(kind)) or _is_list(kind):
        raise UserError(f"{where} is no number and has no range; list its values: name=A,B")
    low, _, high = ends.partition("..")
    number = int if int in _members(kind) else float
    whole, log, step = number is int, False, None
    for mark in marks:
        if mark == "log":
            log = True
        elif mark == "int":
            whole = True
        elif mark.startswith("step="):
            step = convert(mark.removeprefix("step="), float, f"{where}, step")
        else:
            raise UserError(f"{where}: {mark or 'nothing'!r} after a colon is not known; use log, int or step=N")
    found = Range(
        low=convert(low, int if whole else float, f"{where}, the lower end"),
        high=convert(high, int if whole else float, f"{where}, the upper end"),
        log=log, whole=whole, step=step,
    )  # fmt: skip
    return _checked(found, where)


def _checked(found: Range, where: str) -> Range:
    if found.low > found.high:
        raise UserError(f"{where}: {found.low:g} is above {found.high:g}; the lower end comes first")
    if found.low == found.high:
        raise UserError(f"{where}: the range is empty but for {found.low:g}; set the option itself, or widen the range")
    if found.log and found.low <= 0:
        raise UserError(f"{where}: a logarithmic range must lie above 0, and {found.low:g} does not")
    if found.step is not None:
        if found.log:
            raise UserError(f"{where}: log and step exclude each other; keep one")
        if found.step <= 0 or found.step > found.high - found.low:
            raise UserError(f"{where}: step {found.step:g} must be above 0 and at most {found.high - found.low:g}")
        if found.whole and not float(found.step).is_integer():
            raise UserError(f"{where}: step {found.step:g} is no whole number, and the values are")
        # So that the upper end is a value too, as in the other ranges' meaning of it: the last one that is reached.
        values = found.values()
        assert values is not None
        return dataclasses.replace(found, high=values[-1])
    return found


def _choices(name: str, value: Any, where: str, kind: Any) -> Choices:
    if isinstance(value, str):
        parts: list[Any] = [
            part.strip() for part in value.split("/" if _is_list(kind) or name in _WITH_COMMAS else ",")
        ]
    else:
        parts = list(value) if isinstance(value, (list, tuple)) else [value]
    if not parts or any(part == "" for part in parts):
        raise UserError(f"{where} has an empty value; write it like beta=0.1,1,10 or beta=0.1..10")
    options = [convert(part, kind, where) for part in parts]
    for i, option in enumerate(options):
        if option in options[:i]:
            raise UserError(f"{where} has {show(option)} twice; keep one")
    if len(options) < 2:
        hint = " (a range is written 1e-5..1e-3)" if isinstance(options[0], (int, float)) else ""
        raise UserError(f"{where} has one value only, so there is nothing to choose; name several{hint}")
    return Choices(options=tuple(options))
