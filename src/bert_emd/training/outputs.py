"""The output folder: what may be written where, and files that appear whole or not at all."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from bert_emd.errors import UserError
from bert_emd.processes import first_process
from bert_emd.training.config import RunConfig

__all__ = [
    "INTERMEDIATE",
    "STAGE_FILE",
    "check_output_dir",
    "complete_checkpoints",
    "files_read",
    "first_stage_done",
    "install_model",
    "make_folder",
    "open_output_dir",
    "remove_checkpoints",
    "resume_point",
    "write_json",
    "write_whole",
]

INTERMEDIATE = "intermediate"
"""The folder of the first of two stages."""
STAGE_FILE = "stage.json"
"""The file in it that says that the stage is finished."""
# What a run puts into its folder beside best/, last/ and checkpoint-N/, and so all that overwriting may replace.
# run.json comes last: as long as anything is left to remove, the folder is known as a run's.
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
    "layer_mapping.json",
    STAGE_FILE,
    "run.json",
)
_CHECKPOINT = re.compile(r"checkpoint-(\d+)")


def check_output_dir(
    path: str | None, *, overwrite: bool, resume: bool, inputs: Mapping[str, str | Path | None]
) -> Path:
    """Refuse an output folder that may not be written to; nothing is touched yet.

    Args:
        path: the folder.
        overwrite: replace the files of an earlier run in it, which its run.json tells.
        resume: it holds the run to go on with.
        inputs: what the run reads, by name; none of it may be overwritten.

    Raises:
        UserError: no folder named, not empty and no earlier run to replace, or in the way of an input.
    """
    folder = _named(path)
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
    if first_process() and not resume and not _empty(folder):
        if not _holds_run(folder):
            raise UserError(
                f"output_dir {folder} is not empty and holds no earlier run, so nothing in it is replaced; name another"
            )
        if not overwrite:
            raise UserError(
                f"output_dir {folder} is not empty; name a new one, go on with --resume_from_checkpoint true, "
                "or replace the earlier run with --overwrite_output_dir"
            )
    return folder


def _named(path: str | None) -> Path:
    if not path:
        raise UserError("where should the results go? Name a new folder with --output_dir")
    return Path(path)


def _empty(folder: Path) -> bool:
    # A run that was killed while it wrote its very first file leaves a part of that.
    return not folder.is_dir() or all(path.name == _partial(Path("run.json")).name for path in folder.iterdir())


def _holds_run(folder: Path) -> bool:
    """Whether the folder is one of ours: its run.json says so, nothing else does."""
    try:
        record = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(record, dict) and {"command", "config"} <= record.keys()


def files_read(config: RunConfig, train: object, validation: object, **models: object) -> dict[str, str | Path | None]:
    """What a run reads from disk, by name; models in memory count as the folder that they were loaded from."""
    read = {
        "data": config.data_dir,
        "training file": config.train_file if train is None else train,
        "validation file": config.validation_file if validation is None else validation,
        "test file": config.test_file,
        "augmented file": getattr(config, "aug_file", None),
    } | {name: getattr(model, "name_or_path", model) for name, model in models.items()}
    return {name: value if isinstance(value, (str, Path)) and str(value) else None for name, value in read.items()}


def make_folder(path: str | Path) -> Path:
    """The folder, made where it is not there yet.

    Raises:
        UserError: it cannot be made.
    """
    try:
        Path(path).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"output_dir {path} cannot be made: {error.strerror}; name another folder") from error
    return Path(path)


def open_output_dir(folder: Path, *, resume: bool) -> None:
    """Make the checked folder ready, once nothing can be refused any more: an earlier run's files go.

    Raises:
        UserError: the folder cannot be made.
    """
    if not resume and first_process() and _holds_run(folder):
        _remove_run(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"output_dir {folder} cannot be made: {error.strerror}") from error


def _remove_run(folder: Path) -> None:
    first = folder / INTERMEDIATE
    if _own_folder(first):
        _remove_run(first)
        if not any(first.iterdir()):
            first.rmdir()
    best = folder / "best"
    if _own_folder(best):
        for path in filter(_own_folder, best.glob("step-*")):
            shutil.rmtree(path)
        if not any(best.iterdir()):
            best.rmdir()
    for path in filter(_own_folder, (folder / "last", *_checkpoints(folder))):
        if any((path / name).is_file() for name in ("config.json", "trainer_state.json")):
            shutil.rmtree(path)
    for path in (folder / name for name in _RUN_FILES):
        if path.is_file():
            path.unlink()
        _partial(path).unlink(missing_ok=True)


def _own_folder(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink()


def _checkpoints(folder: Path) -> list[Path]:
    found = [(int(m[1]), p) for p in folder.iterdir() if p.is_dir() and (m := _CHECKPOINT.fullmatch(p.name))]
    return [path for _, path in sorted(found)]


def first_stage_done(folder: Path) -> bool:
    """Whether the first of a run's two stages was trained to its end."""
    return (folder / INTERMEDIATE / STAGE_FILE).is_file()


def remove_checkpoints(folder: Path) -> None:
    """Remove what only resuming needs from a finished run: ``checkpoint-N/`` and ``best/``, one folder deeper too."""
    if not _holds_run(folder):
        return
    places = [folder, *filter(_own_folder, folder.iterdir())]
    for path in [path for place in places for path in (*_checkpoints(place), *place.glob("best/step-*"))]:
        if _own_folder(path) and any((path / name).is_file() for name in ("trainer_state.json", "score.json")):
            shutil.rmtree(path)
    with suppress(OSError):
        (folder / "best").rmdir()


def complete_checkpoints(folder: Path, *, resumable: bool = True) -> list[Path]:
    """The checkpoints that were written to their end (the trainer's state comes last), oldest first.

    Args:
        folder: the output folder.
        resumable: only those with the optimiser's state; ``save_only_model`` leaves it out.
    """
    found = _checkpoints(folder) if folder.is_dir() else []
    return [path for path in found if _is_whole(path) and (not resumable or (path / "optimizer.pt").is_file())]


def _is_whole(checkpoint: Path) -> bool:
    """Whether the trainer's state, which comes last, is there to its end: a run may be stopped while it is written."""
    try:
        return isinstance(json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8")), dict)
    except (OSError, ValueError):
        return False


def resume_point(folder: str | None, wanted: str | None) -> Path | None:
    """The checkpoint to go on from, or None when none is asked for.

    Args:
        folder: the output folder.
        wanted: None or "false" (start anew), "true" (the newest complete one), or the path of one in the folder.

    Raises:
        UserError: there is no such checkpoint, it cannot be resumed, or it is another run's.
    """
    if wanted is None or wanted.lower() in ("false", "no", "0"):
        return None
    here = _named(folder)
    if wanted.lower() in ("true", "yes", "1"):
        if found := complete_checkpoints(here):
            return found[-1]
        if found := complete_checkpoints(here, resumable=False):
            raise UserError(_not_resumable(found[-1]))
        raise UserError(
            f"there is no complete checkpoint in {folder} to resume from; leave out --resume_from_checkpoint"
        )
    checkpoint = Path(wanted)
    if not _is_whole(checkpoint):
        raise UserError(
            f"{wanted} is not a complete checkpoint (no whole trainer_state.json); name a checkpoint-N folder"
        )
    if not (checkpoint / "optimizer.pt").is_file():
        raise UserError(_not_resumable(checkpoint))
    # The run's best model and record lie beside the checkpoint, and the run goes on writing there.
    if checkpoint.resolve().parent != here.resolve():
        raise UserError(
            f"the checkpoint {wanted} does not lie in output_dir {folder}; a run goes on in its own folder, "
            f"--output_dir {checkpoint.parent}"
        )
    return checkpoint


def _not_resumable(checkpoint: Path) -> str:
    return (
        f"{checkpoint} cannot be resumed: it has no optimizer.pt (save_only_model leaves it out); "
        "name another checkpoint, or start anew without --resume_from_checkpoint"
    )


def write_json(path: Path, values: Any) -> None:
    """Write a JSON file whole or not at all; of several processes the first writes."""
    if first_process():
        write_whole(path, json.dumps(values, indent=2, ensure_ascii=False) + "\n")


def write_whole(path: Path, content: str | bytes) -> None:
    """Write a file whole or not at all: bytes, or text as UTF-8 with its line ends as they are.

    Raises:
        UserError: it cannot be written.
    """
    with _whole(path) as partial:
        partial.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8"))


def _partial(path: Path) -> Path:
    return path.with_name(f".{path.name}.partial")


@contextmanager
def _whole(path: Path) -> Iterator[Path]:
    """A file to fill, which takes the place of ``path`` once it is full."""
    partial = _partial(path)
    try:
        yield partial
        os.replace(partial, path)
    except OSError as error:
        with suppress(OSError):
            partial.unlink()
        raise UserError(f"{path} cannot be written: {error.strerror}; make room or name another folder") from error


def install_model(source: Path, target: Path, *, skip: Iterable[str] = ()) -> None:
    """Copy a saved model's files to the top of the output folder, each whole or not at all, the weights last."""
    target.mkdir(parents=True, exist_ok=True)
    files = sorted((p for p in source.iterdir() if p.is_file() and p.name not in skip), key=lambda p: "model" in p.stem)
    for file in files:
        with _whole(target / file.name) as partial:
            shutil.copyfile(file, partial)
