"""From flags, a config file and a preset to one checked configuration that knows where each value came from.

The configurations of training bring PyTorch along, so they are imported only where they are asked about: the other
commands start without it.
"""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Generic, TypeVar

from bert_emd.errors import UserError
from bert_emd.training.checked import CheckedConfig
from bert_emd.training.trainer_fields import ACCEPTED, OURS, REFUSED, check_trainer_args, trainer_type
from bert_emd.training.values import convert, nearest, show

__all__ = ["Resolved", "field_types", "resolve", "spellings", "unknown_name", "with_sources_from_defaults"]

ConfigT = TypeVar("ConfigT", bound=CheckedConfig)

FLAG, CONFIG, PRED_DISTILL, TINYBERT, DEFAULT = "flag", "config", "pred_distill", "tinybert", "default"
_EXTRA = "trainer_args"

_PER_PART = ("per_gpu_train_batch_size", "per_device_train_batch_size")

_SHORT: Mapping[str, str] = MappingProxyType({
    "lr": "learning_rate", "epochs": "num_train_epochs", "batch_size": "train_batch_size", "layers": "student_layers",
    "max_length": "max_seq_length", "teacher": "teacher_model", "student": "student_model", "task": "task_name",
    "model": "model_name_or_path", "output": "output_dir",
})  # fmt: skip


@dataclass(frozen=True)
class Resolved(Generic[ConfigT]):
    """A configuration, and what a user should know about how it came about."""

    config: ConfigT
    sources: dict[str, str]
    """For each field: ``flag``, ``config``, ``pred_distill``, ``tinybert``, ``preset NAME`` or ``default``."""
    trainer_sources: dict[str, str]
    """The same for each entry of ``trainer_args``."""
    unused: dict[str, str]
    """Fields without effect, each with the reason."""
    notes: list[str]
    warnings: list[str]


def resolve(
    cls: type[ConfigT],
    *,
    flags: dict[str, Any],
    file: dict[str, Any] | None = None,
    preset: str | None = None,
    file_name: str | None = None,
) -> Resolved[ConfigT]:
    """Return the configuration in which a flag wins over ``file``, that over ``preset``, and that over our defaults.

    ``flags`` and ``file`` hold values as text or as YAML reads them, under any accepted name of a field; ``preset``
    may also be a key of ``file``. Raises `UserError` for an unknown or refused name and for a value that does not fit.
    """
    file = dict(file or {})
    file_preset = file.pop("preset", None)
    preset = preset if preset is not None else file_preset
    layers = {FLAG: _typed(cls, flags, FLAG), CONFIG: _typed(cls, file, CONFIG, file_name)}
    user = {**layers[CONFIG], **layers[FLAG]}
    preset_layer: dict[str, Any] = {}
    notes: list[str] = []
    if preset is not None:
        from bert_emd.training.config import DataConfig
        from bert_emd.training.presets import preset_values

        if not issubclass(cls, DataConfig):
            raise UserError(f"preset {preset} sets options of training; leave it out here")
        preset_layer, notes = preset_values(cls, preset, user)
    if user.get("pred_distill"):
        # The reference's prediction stage has warm-up and decay whatever the intermediate one has.
        layers[PRED_DISTILL] = {"lr_scheduler": "linear"}
    if user.get("use_emd") is True and user.get("mapping") == "uniform":
        raise UserError("use_emd true means mapping emd, and mapping uniform is given too; keep one")
    if user.get("tinybert"):
        from bert_emd.training.distill_checks import TINYBERT_SETTINGS, tinybert_switches

        if all(user.get(name) is True for name in ("one_step", "use_emd", "new_pred_loss")):
            raise UserError("tinybert means one_step, use_emd and new_pred_loss false, and all three are given as true")
        schedule = {**preset_layer, **user}.get("schedule", "one-step")
        layers[TINYBERT] = {**tinybert_switches(bool(user.get("pred_distill")), schedule), **TINYBERT_SETTINGS}
    if preset is not None:
        layers[f"preset {preset}"] = preset_layer

    values: dict[str, Any] = {}
    sources = dict.fromkeys((f.name for f in dataclasses.fields(cls)), DEFAULT)
    extra: dict[str, Any] = {}
    trainer_sources: dict[str, str] = {}
    for source, layer in reversed(layers.items()):
        values.update(layer)
        sources.update(dict.fromkeys(layer, source))
        extra.update(layer.get(_EXTRA, {}))
        trainer_sources.update(dict.fromkeys(layer.get(_EXTRA, {}), source))
    if extra:
        values[_EXTRA] = extra
    given = {FLAG: flags, CONFIG: file}.get(sources.get("train_batch_size", DEFAULT), {})
    if any(str(name).replace("-", "_") in _PER_PART for name in given):
        # These names count the rows of one forward, ours those of a step.
        values["train_batch_size"] *= values.get("gradient_accumulation_steps", 1)
    config = cls(**values)
    unused = config.without_effect()
    warnings = [
        f"{name} {show(getattr(config, name))} has no effect: {reason}"
        for name, reason in unused.items()
        if sources[name] in (FLAG, CONFIG)
    ]
    return Resolved(config, sources, trainer_sources, unused, notes, warnings)


def with_sources_from_defaults(config: CheckedConfig) -> dict[str, str]:
    """Return the sources of a configuration made in Python: ``python`` where a field differs from its default."""
    # Some defaults are seen from the machine.
    default = type(config)()
    same = {f.name: getattr(config, f.name) == getattr(default, f.name) for f in dataclasses.fields(config)}
    return {name: DEFAULT if unchanged else "python" for name, unchanged in same.items()}


def spellings(cls: type[CheckedConfig]) -> dict[str, str]:
    """Return every name under which a field may be set, the fields' own and the other ones, with the field's."""
    names = {f.name: f.name for f in dataclasses.fields(cls)}
    for f in dataclasses.fields(cls):
        names.update(dict.fromkeys(f.metadata.get("aliases", ()), f.name))
    return names


def field_types(cls: type[CheckedConfig]) -> Mapping[str, Any]:
    """Return the declared type of each field."""
    return typing.get_type_hints(cls)


def unknown_name(
    cls: type[CheckedConfig], name: str, *, prefix: str = "", suffix: str = "", also: Iterable[str] = ()
) -> UserError:
    """Return the error for a name that is no field of ``cls``: why it is refused, or the nearest right name."""
    if name in REFUSED:
        return UserError(f"{prefix}{name} is not available: {REFUSED[name]}")
    names = spellings(cls)
    if name in OURS and OURS[name] in names:
        return UserError(f"{prefix}{name} is called {prefix}{OURS[name]} here")
    from bert_emd.training.config import DistillConfig, FinetuneConfig

    for other, command in ((DistillConfig, "distill"), (FinetuneConfig, "finetune")):
        if not issubclass(cls, other) and name in spellings(other):
            return UserError(f"{prefix}{name}{suffix} is an option of `bert-emd {command}`; leave it out here")
    known = [*names, *(ACCEPTED if _EXTRA in names else ()), *also]
    close = _SHORT.get(name) or nearest(name, known)
    hint = f"did you mean {prefix}{close}?" if close else "--help lists the known ones"
    kind = "flag" if prefix else "key"
    return UserError(f"unknown {kind} {prefix}{name}{suffix}; {hint}")


def _typed(
    cls: type[CheckedConfig], given: Mapping[str, Any], source: str, file_name: str | None = None
) -> dict[str, Any]:
    """The given values under the fields' own names and in their types; the engine's fields below ``trainer_args``."""
    names, types = spellings(cls), field_types(cls)
    readers = {f.name for f in dataclasses.fields(cls) if f.metadata.get("read") is not None}
    prefix, suffix = ("--", "") if source == FLAG else ("", f" in {file_name or 'the config file'}")
    typed: dict[str, Any] = {}
    extra: dict[str, Any] = {}
    spelled: dict[str, str] = {}
    for written, value in given.items():
        key = str(written).replace("-", "_")
        name = names.get(key, key)
        if name in spelled:
            raise UserError(f"{prefix}{written} and {prefix}{spelled[name]} are the same option{suffix}; keep one")
        spelled[name] = str(written)
        where = f"{prefix}{written}{suffix}"
        if name == _EXTRA and _EXTRA in types:
            extra.update(check_trainer_args(convert(value, types[name], where)))
        elif name in types:
            value = _resume_value(value) if name == "resume_from_checkpoint" else value
            # A field that takes several forms is read by the configuration itself.
            typed[name] = value if name in readers else convert(value, types[name], where)
        elif name in ACCEPTED and _EXTRA in types:
            extra.update(check_trainer_args({name: convert(value, trainer_type(name), where)}))
        else:
            raise unknown_name(cls, key, prefix=prefix, suffix=suffix, also=() if source == FLAG else ("preset",))
    if extra:
        typed[_EXTRA] = extra
    return typed


def _resume_value(value: Any) -> Any:
    """The field takes a path or ``true``, so a truth value is meant as one."""
    text = str(value).strip().lower()
    if text in ("true", "yes"):
        return "true"
    return None if text in ("false", "no") else value
