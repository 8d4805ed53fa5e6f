"""What the commands share: resolving, showing what was resolved, and asking for what is missing."""

from __future__ import annotations

import argparse
import dataclasses
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from rich.text import Text

from bert_emd.cli.config_file import read_config_file
from bert_emd.cli.console import console, say, scores_line, table
from bert_emd.cli.options import GROUPS
from bert_emd.errors import UserError
from bert_emd.processes import first_process

if TYPE_CHECKING:
    from bert_emd.training.checked import CheckedConfig
    from bert_emd.training.config import DataConfig, EvaluateConfig
    from bert_emd.training.resolve import Resolved

    ConfigT = TypeVar("ConfigT", bound=CheckedConfig)

__all__ = ["Interrupted", "evaluate_and_show", "interruptible", "predict_and_show", "require", "resolve_args"]

_LOG = logging.getLogger("bert_emd")


class Interrupted(KeyboardInterrupt):
    """Ctrl-C during a run; the message says how to go on."""


@contextmanager
def interruptible(output_dir: str | None) -> Iterator[None]:
    """Let a Ctrl-C inside tell the last checkpoint in ``output_dir`` and how to go on from there."""
    try:
        yield
    except KeyboardInterrupt:
        raise Interrupted(_how_to_go_on(output_dir)) from None


def _how_to_go_on(output_dir: str | None) -> str:
    from bert_emd.training.outputs import INTERMEDIATE, complete_checkpoints, first_stage_done

    if output_dir is None:
        return "nothing was written"
    found = complete_checkpoints(Path(output_dir))
    again = "the same command with --resume_from_checkpoint true goes on from there"
    if not found and first_stage_done(Path(output_dir)):
        return f"the first stage is done; {again}"
    found = found or complete_checkpoints(Path(output_dir) / INTERMEDIATE)
    if not found:
        return f"there is no complete checkpoint in {output_dir} yet; start again with --overwrite_output_dir"
    return f"the last checkpoint is {found[-1]}; {again}"


def resolve_args(cls: type[ConfigT], args: argparse.Namespace) -> Resolved[ConfigT]:
    """Return the configuration that flags, ``--config`` and ``--preset`` make."""
    from bert_emd.training.resolve import resolve

    flags = dict(vars(args))
    path, preset = flags.pop("config", None), flags.pop("preset", None)
    resolved = resolve(cls, flags=flags, file=read_config_file(path) if path else None, preset=preset, file_name=path)
    if path and getattr(resolved.config, "overwrite_output_dir", False):
        folder = Path(getattr(resolved.config, "output_dir", None) or ".").resolve()
        if folder in Path(path).resolve().parents:
            raise UserError(f"output_dir {folder} holds the --config file {path}; name another folder")
    return resolved


def require(config: CheckedConfig, *names: str, data: tuple[str, ...] = ()) -> None:
    """Raise `UserError` for the first of the named fields that is not set, or where none of ``data`` is."""
    fields = {f.name: f for f in dataclasses.fields(config)}
    for name in names:
        if not getattr(config, name):
            raise UserError(f"--{name} is missing: {fields[name].metadata['help']}")
    if data and not any(getattr(config, name) for name in data):
        files = " or ".join(f"--{name}" for name in data if name != "task_name")
        raise UserError(f"there is no data; name a GLUE task with --task_name, or your own file with {files}")


def show_resolved(resolved: Resolved[Any]) -> None:
    """Print every value that matters with where it came from, then the notes and warnings."""
    from bert_emd.training.values import show

    if not first_process():
        return
    rows: list[tuple[Any, ...]] = []
    idle = []
    order = list(GROUPS)
    for f in sorted(dataclasses.fields(resolved.config), key=lambda f: order.index(f.metadata["group"])):
        value, source, reason = getattr(resolved.config, f.name), resolved.sources[f.name], resolved.unused.get(f.name)
        if f.name == "trainer_args":
            rows += [(key, show(item), resolved.trainer_sources.get(key, source), "") for key, item in value.items()]
        elif source == "default" and (reason or value is None or value is False):
            idle.append(f.name)
        else:
            style = "dim" if reason else ""
            cells = (f.name, show(value), source, f"not used: {reason}" if reason else "")
            rows.append(tuple(Text(cell, style=style) for cell in cells))
    out = console()
    out.print(table(rows, "option", "value", "from", ""))
    if idle:
        out.print(f"off, not set or not used, by default: {', '.join(idle)}", style="dim")
    for note in resolved.notes:
        say(f"note: {note}")
    for warning in resolved.warnings:
        _LOG.warning("%s", warning)
    out.print()


def evaluate_config(config: DataConfig, model: str | None) -> EvaluateConfig:
    """Return what a training command's configuration says about evaluating ``model``."""
    from bert_emd.training.config import DataConfig, EvaluateConfig

    shared = {f.name: getattr(config, f.name) for f in dataclasses.fields(DataConfig)}
    output_dir = getattr(config, "output_dir", None)
    overwrite = getattr(config, "overwrite_output_dir", False)
    return EvaluateConfig(**shared, model_name_or_path=model, output_dir=output_dir, overwrite_output_dir=overwrite)


def evaluate_and_show(config: EvaluateConfig) -> None:
    """Evaluate a model and print its scores."""
    from bert_emd.training.evaluation import evaluate

    result = evaluate(config)
    say(f"{result['task']}, main metric {result['metric']}")
    for split, scores in result.items():
        if isinstance(scores, dict) and split != "rows":
            say(scores_line(split, scores))


def predict_and_show(config: EvaluateConfig) -> None:
    """Write a model's predictions and print where they are."""
    from bert_emd.training.evaluation import predict

    written = predict(config)
    for path in written:
        say(f"wrote {path}")
