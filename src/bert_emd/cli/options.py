"""The command line's parser, made from a configuration dataclass."""

from __future__ import annotations

import argparse
import dataclasses
import re
from collections.abc import Collection, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Literal, NoReturn, get_args, get_origin

from bert_emd.errors import UserError

__all__ = ["GROUPS", "OptionParser", "add_config_arguments", "add_field_arguments"]

GROUPS = MappingProxyType({
    "compare": "comparison",
    "sweep": "search",
    "data": "data and models",
    "student": "teacher and student",
    "method": "method",
    "training": "training",
    "output": "output",
})  # fmt: skip
"""The groups of a configuration's fields in the order in which they are shown, each with its title."""
_ENGINE = "fields of transformers.TrainingArguments, passed on as they are"


class OptionParser(argparse.ArgumentParser):
    """A parser without abbreviations, in which ``-`` and ``_`` are the same and mistakes are a `UserError`."""

    config_class: Any = None
    """The configuration whose names are suggested for an unknown flag."""
    refused: Mapping[str, str] = MappingProxyType({})
    """Options of that configuration which this command does not take, each with the reason."""

    def __init__(self, prog: str, description: str, usage: str = "%(prog)s [options]") -> None:
        super().__init__(prog, usage, description, formatter_class=_Formatter, add_help=False, allow_abbrev=False)
        self.own = self.add_argument_group("this command")
        self.own.add_argument("-h", "--help", action="help", help="show this help")

    def parse(self, argv: Sequence[str]) -> argparse.Namespace:
        """Return the flags that were given, and only those. Raises `UserError` for what is not known."""
        args, rest = self.parse_known_args([_with_underscores(word) for word in argv])
        if not rest:
            return args
        unknown = next((word for word in rest if word.startswith("-")), None)
        if unknown is None:
            raise UserError(f"nothing is expected where {rest[0]!r} stands; every value follows its flag")
        raise self._unknown(unknown.partition("=")[0])

    def error(self, message: str) -> NoReturn:
        """Raise the message as a `UserError`."""
        match = re.fullmatch(r"argument (?:-\w/)?(--\w+).*?: expected (?:one|at least one) argument", message)
        raise UserError(f"{match[1]} needs a value" if match else message)

    def _unknown(self, flag: str) -> UserError:
        own = [name.lstrip("-") for name in self._option_string_actions if name.startswith("--")]
        if (name := flag.lstrip("-").removeprefix("no_")) in self.refused:
            return UserError(f"--{name} is not an option of this command: {self.refused[name]}")
        if self.config_class is not None:
            from bert_emd.training.resolve import unknown_name

            return unknown_name(self.config_class, flag.lstrip("-"), prefix="--", also=own)
        from bert_emd.training.values import nearest

        close = nearest(flag.lstrip("-"), own)
        hint = f"did you mean --{close}?" if close else "--help lists the known ones"
        return UserError(f"unknown flag {flag}; {hint}")


def add_config_arguments(
    parser: OptionParser, cls: type[Any], *, leave_out: Collection[str] = (), lists: Collection[str] = ()
) -> None:
    """Add a flag for every field of a configuration, ``--config``, and what the engine accepts besides.

    Every value is kept as the text that was typed; `bert_emd.training.resolve.resolve` gives it its type. The fields
    ``leave_out`` get no flag; ``preset`` among them neither. The fields ``lists`` take several words, which are kept
    as a list.
    """
    from bert_emd.training.resolve import field_types
    from bert_emd.training.trainer_fields import ACCEPTED, trainer_type

    parser.config_class = cls
    _add(parser.own, "config", str, "a YAML file that sets any of these options; a flag wins over it", metavar="FILE")
    if cls.WITH_PRESETS and "preset" not in leave_out:
        from bert_emd.training.presets import PRESETS

        presets = ", ".join(PRESETS)
        _add(parser.own, "preset", str, f"published settings instead of our defaults: {presets}", metavar="NAME")
    fields = [f for f in dataclasses.fields(cls) if f.name not in leave_out]
    add_field_arguments(parser, fields, field_types(cls), lists=lists)
    if "trainer_args" in field_types(cls):
        group = parser.add_argument_group(_ENGINE)
        for name, text in ACCEPTED.items():
            if (kind := _installed_type(trainer_type, name)) is not None:
                _add(group, name, kind, text)


def add_field_arguments(
    parser: OptionParser,
    fields: Sequence[dataclasses.Field[Any]],
    types: Mapping[str, Any],
    *,
    prefix: str = "",
    lists: Collection[str] = (),
) -> None:
    """Add a flag for each of the fields, in their groups; with a prefix in one group, and without other names."""
    for key, title in GROUPS.items():
        members = [f for f in fields if f.metadata["group"] == key]
        if not members:
            continue
        group = parser.add_argument_group(f"{prefix.rstrip('_')}: {title}" if prefix else title)
        for f in members:
            aliases = () if prefix else f.metadata["aliases"]
            several = {"nargs": "+", "action": "extend", "metavar": "NAME=VALUES"} if f.name in lists else {}
            _add(group, prefix + f.name, types[f.name], _help_of(f), aliases=aliases, **several)


def _installed_type(trainer_type: Any, name: str) -> Any:
    try:
        return trainer_type(name)
    except UserError:
        return None


def _add(group: Any, name: str, kind: Any, text: str, *, aliases: Sequence[str] = (), **more: Any) -> None:
    options: dict[str, Any] = {"dest": name, "default": argparse.SUPPRESS, "metavar": _metavar(name, kind)} | more
    if bool in (kind, *get_args(kind)) or name == "resume_from_checkpoint":
        options |= {"nargs": "?", "const": "true"}
    also = f" (also {', '.join(f'--{alias}' for alias in aliases)})" if aliases else ""
    if bool in (kind, *get_args(kind)):
        group.add_argument(
            f"--no_{name}",
            dest=name,
            action="store_const",
            const="false",
            default=argparse.SUPPRESS,
            help=argparse.SUPPRESS,
        )
    group.add_argument(f"--{name}", help=(text + also).replace("%", "%%"), **options)
    for alias in aliases:
        group.add_argument(f"--{alias}", help=argparse.SUPPRESS, **options)


def _help_of(f: dataclasses.Field[Any]) -> str:
    from bert_emd.training.values import show

    text = str(f.metadata["help"])
    if f.default is None or f.default is dataclasses.MISSING or "(default" in text:
        return text
    return f"{text} (default: {show(f.default)})"


def _metavar(name: str, kind: Any) -> str:
    kinds = (kind, *get_args(kind))
    if bool in kinds:
        return "true|false"
    if any(get_origin(member) is tuple for member in kinds):
        return "A,B,…"
    if get_origin(kind) is Literal:
        return "|".join(map(str, get_args(kind)))
    if any(get_origin(member) is dict or member is dict for member in kinds):
        return "JSON"
    for member, shown in ((int, "N"), (float, "X")):
        if member in kinds:
            return shown
    return "FOLDER" if name.endswith("_dir") else "FILE" if name.endswith(("_file", "_embs")) else "NAME"


def _with_underscores(word: str) -> str:
    if not word.startswith("--"):
        return word
    name, equals, value = word[2:].partition("=")
    return f"--{name.replace('-', '_')}{equals}{value}"


class _Formatter(argparse.HelpFormatter):
    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=36)

    def _format_args(self, action: argparse.Action, default_metavar: str) -> str:
        return f"[{action.metavar}]" if action.nargs == "?" else super()._format_args(action, default_metavar)
