"""The output folder: what may be written where, and files that appear whole or not at all."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from bert_emd.errors import UserError
from bert_emd.processes import first_process
from bert_emd.training.config import RunConfig

__all__ = [
    "check_output_dir",
    "complete_checkpoints",
    "files_read",
    "install_model",
    "open_output_dir",
    "resume_point",
    "write_json",
]

# Everything that a run puts into its folder, and so all that overwriting may replace.
_RUN_FILES = (
    "config.json",
    "model.safetensors",
    "model.safetensors.index.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "spiece.model",
    "sentencepiece.bpe.model",
    "metrics.json",
    "run.json",
    "layer_mapping.json",
)
_RUN_FOLDERS = ("last", "best")
_CHECKPOINT = re.compile(r"checkpoint-(\d+)")


def check_output_dir(
    path: str | None, *, overwrite: bool, resume: bool, inputs: Mapping[str, str | Path | None]
) -> Path:
    """Refuse an output folder that may not be written to; nothing is touched yet.

    Args:
        path: the folder.
        overwrite: replace the files of an earlier run in it.
        resume: it holds the run to go on with.
        inputs: what the run reads, by name; none of it may be overwritten.

    Raises:
        UserError: no folder named, not empty, or in the way of an input.
    """
    if not path:
        raise UserError("where should the results go? Name a new folder with --output_dir")
    folder = Path(path)
    if folder.exists() and not folder.is_dir():
        raise UserError(f"output_dir {folder} is a file; name a folder")
    here = folder.resolve()
    for name, value in inputs.items():
        if value is None or not Path(value).exists():
            continue
        there = Path(value).resolve()
        if here == there:
            raise UserError(f"output_dir {folder} is the {name}'s own folder; name another")
        if overwrite and (here in there.parents or there in here.parents):
            relation = "holds" if here in there.parents else "lies in"
            raise UserError(
                f"output_dir {folder} {relation} the {name} ({value}); name another, so that nothing is lost"
            )
    # Of several processes the first decides; the others may already see what it has written.
    if first_process() and folder.is_dir() and any(folder.iterdir()) and not resume and not overwrite:
        raise UserError(
            f"output_dir {folder} is not empty; name a new one, go on with --resume_from_checkpoint true, "
            "or replace the earlier run with --overwrite_output_dir"
        )
    return folder


def files_read(config: RunConfig, train: object, validation: object, **models: object) -> dict[str, str | Path | None]:
    """What a run reads from disk, by name; models in memory count as the folder that they were loaded from."""
    read = {
        "data": config.data_dir,
        "training file": config.train_file if train is None else train,
        "validation file": config.validation_file if validation is None else validation,
        "test file": config.test_file,
    } | {name: getattr(model, "name_or_path", model) for name, model in models.items()}
    return {name: value if isinstance(value, (str, Path)) and str(value) else None for name, value in read.items()}


def open_output_dir(folder: Path, *, resume: bool) -> None:
    """Make the checked folder ready, once nothing can be refused any more: an earlier run's files go.

    Raises:
        UserError: the folder cannot be made.
    """
    if folder.is_dir() and not resume and first_process():
        _remove_run(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"output_dir {folder} cannot be made: {error.strerror}") from error


def _remove_run(folder: Path) -> None:
    for name in _RUN_FILES:
        (folder / name).unlink(missing_ok=True)
    for path in (*(folder / name for name in _RUN_FOLDERS), *_checkpoints(folder)):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)


def _checkpoints(folder: Path) -> list[Path]:
    found = [(int(m[1]), p) for p in folder.iterdir() if p.is_dir() and (m := _CHECKPOINT.fullmatch(p.name))]
    return [path for _, path in sorted(found)]


def complete_checkpoints(folder: Path) -> list[Path]:
    """The checkpoints that were written to their end (the trainer's state comes last), oldest first."""
    return [p for p in _checkpoints(folder) if (p / "trainer_state.json").is_file()] if folder.is_dir() else []


def resume_point(folder: str | None, wanted: str | None) -> Path | None:
    """The checkpoint to go on from, or None when none is asked for.

    Args:
        folder: the output folder.
        wanted: None or "false" (start anew), "true" (the newest complete one), or a checkpoint's path.

    Raises:
        UserError: there is no such checkpoint.
    """
    if wanted is None or wanted.lower() in ("false", "no", "0"):
        return None
    if wanted.lower() in ("true", "yes", "1"):
        found = complete_checkpoints(Path(folder or ""))
        if not found:
            raise UserError(
                f"there is no complete checkpoint in {folder} to resume from; leave out --resume_from_checkpoint"
            )
        return found[-1]
    if not (Path(wanted) / "trainer_state.json").is_file():
        raise UserError(f"{wanted} is not a complete checkpoint (no trainer_state.json); name a checkpoint-N folder")
    return Path(wanted)


def write_json(path: Path, values: Any) -> None:
    """Write a JSON file whole or not at all; of several processes the first writes."""
    if not first_process():
        return
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(partial, path)


def install_model(source: Path, target: Path, *, skip: Iterable[str] = ()) -> None:
    """Copy a saved model's files to the top of the output folder, each whole or not at all, the weights last."""
    target.mkdir(parents=True, exist_ok=True)
    files = sorted((p for p in source.iterdir() if p.is_file() and p.name not in skip), key=lambda p: "model" in p.stem)
    for file in files:
        partial = target / f".{file.name}.partial"
        shutil.copyfile(file, partial)
        os.replace(partial, target / file.name)
