"""What every configuration is made of: fields with their documentation, checked when the dataclass is made."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar, get_args

from bert_emd.errors import UserError

__all__ = ["CheckedConfig", "opt"]


def opt(
    default: Any, help: str, *, group: str, aliases: tuple[str, ...] = (), read: Callable[[Any], Any] | None = None
) -> Any:
    """A field with its line of documentation, its group in ``--help``, other names of its flag, and what brings a value
    into the form that is kept where several are taken (it raises a ValueError that names the field)."""
    metadata = {"help": help, "group": group, "aliases": aliases, "read": read}
    if isinstance(default, dict):
        return field(default_factory=lambda: dict(default), metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass(frozen=True, kw_only=True)
class CheckedConfig:
    """A configuration whose values are brought into form and checked as soon as they are set."""

    COMMON_CHOICES: ClassVar[dict[str, Any]] = {}
    """What the names of choices stand for that several configurations have."""
    CHOICES: ClassVar[dict[str, Any]] = {}
    """What the names of a subclass's own choices stand for."""
    WITH_PRESETS: ClassVar[bool] = False
    """Whether published settings (``--preset``) are for it."""

    def __post_init__(self) -> None:
        self._read()
        self._check_types()

    def without_effect(self) -> dict[str, str]:
        """The fields that have no part under the other values, each with the reason."""
        return {}

    def _read(self) -> None:
        for f in dataclasses.fields(self):
            read, value = f.metadata.get("read"), getattr(self, f.name)
            if read is not None and value is not None:
                try:
                    object.__setattr__(self, f.name, read(value))
                except ValueError as error:
                    raise UserError(str(error)) from error

    def _check_types(self) -> None:
        for f in dataclasses.fields(self):
            value, wanted = getattr(self, f.name), str(f.type)
            fine = (
                (value is None and "None" in wanted)
                or (wanted.startswith("tuple[") and _is_tuple_of(value, int if "int" in wanted else str))
                or ("bool" in wanted and isinstance(value, bool))
                or ("int" in wanted.split(" | ") and isinstance(value, int) and not isinstance(value, bool))
                or ("float" in wanted.split(" | ") and isinstance(value, (int, float)) and not isinstance(value, bool))
                or ("str" in wanted.split(" | ") and isinstance(value, str))
                or (wanted.startswith("dict") and isinstance(value, dict))
            )
            known, named = self.COMMON_CHOICES | self.CHOICES, wanted.replace(" | None", "")
            choices = get_args(known[named]) if named in known else None
            if choices is not None:
                if value not in choices and not (value is None and "None" in wanted):
                    raise UserError(f"{f.name} must be one of {', '.join(choices)}, not {value!r}")
            elif not fine:
                raise UserError(f"{f.name} must be {wanted.replace(' | None', '')}, not {value!r}")

    def _at_least(self, low: float, *names: str) -> None:
        for name in names:
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value >= low):
                raise UserError(f"{name} must be at least {low}, not {value}")

    def _above_zero(self, *names: str) -> None:
        for name in names:
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value > 0):
                raise UserError(f"{name} must be above 0, not {value}")

    def _between(self, low: float, high: float, *names: str) -> None:
        for name in names:
            value = getattr(self, name)
            if not (low <= value <= high):
                raise UserError(f"{name} must lie between {low} and {high}, not {value}")


def _is_tuple_of(value: Any, kind: type) -> bool:
    return isinstance(value, tuple) and all(isinstance(v, kind) and not isinstance(v, bool) for v in value)
