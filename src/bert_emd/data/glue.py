"""GLUE from wherever it is: the official TSV folders, files in the hub's layout, or the hub."""

from __future__ import annotations

import re
from pathlib import Path

import datasets

from bert_emd.data.examples import Examples
from bert_emd.data.glue_tsv import read_glue_tsv
from bert_emd.data.hub import HUB_ID, find_local_rows, from_hub_rows, load_hub_rows
from bert_emd.data.labels import listing
from bert_emd.data.tasks import Split, Task, find_task, plain_name
from bert_emd.errors import UserError

__all__ = ["find_tsv", "load_glue"]

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


def load_glue(
    task: Task | str,
    split: str,
    data_dir: str | Path | None = None,
    cache_dir: str | Path | None = None,
    needs_labels: bool = True,
    *,
    refresh: bool = False,
) -> Examples:
    """Return one split of a GLUE task: the same texts and labels from every source.

    Args:
        task: a GLUE `Task` or its name.
        split: train, validation or test; for MNLI (these are the matched ones) also validation_mismatched and
            test_mismatched; train_aug for an augmented training file beside train.tsv.
        data_dir: the task's folder, or the GLUE root above it, with the official TSV files or with files in the hub's
            layout; or the id of a hub data set with that schema. None is ``nyu-mll/glue`` on the hub.
        cache_dir: where downloads from the hub are kept.
        needs_labels: False where a training or validation file may lack its label column (labels are then None).
        refresh: fetch a hub data set anew instead of taking it from the cache.

    Test splits never have labels. `Examples.indices` is the row number, or the hub's ``idx`` (the same, but for
    the training and validation rows of MRPC, which the hub numbers as in the original corpus).
    Raises `UserError` for whatever is missing or malformed, naming file and line.
    """
    task = find_task(task) if isinstance(task, str) else task
    part = task.split(split)
    if data_dir is None or not Path(data_dir).exists():
        hub_id = HUB_ID if data_dir is None else str(data_dir)
        # "glue/MRPC" beside a folder "glue" is a mistyped path: asking the hub for it would only cost time.
        if data_dir is not None and (not _HUB_ID.fullmatch(hub_id) or Path(data_dir).parent.is_dir()):
            raise UserError(f"no folder {hub_id!r}: give --data_dir, the GLUE folder or the folder of {task.name}")
        rows = load_hub_rows(hub_id, task, part, None if cache_dir is None else str(cache_dir), refresh=refresh)
        return from_hub_rows(
            rows, task, part, source=f"{hub_id} ({task.hub_name}, {part.hub})", needs_labels=needs_labels
        )

    folders = _candidate_folders(Path(data_dir), task)
    found = _found(folders, part)
    if isinstance(found, Path):
        return read_glue_tsv(found, task, part, needs_labels=needs_labels)
    if found is not None:
        folder, local = found
        return from_hub_rows(local, task, part, source=f"{folder} ({part.hub})", needs_labels=needs_labels)
    wanted = part.tsv if part.hub is None else f"{part.tsv} or {part.hub}-*.parquet"
    advice = "give --data_dir, the GLUE folder or the task's own"
    if part.name == "train_aug":
        command = f"bert-emd augment --task_name {task.name} --data_dir {data_dir}"
        advice = f"make it with `{command}`, or name one with --aug_file"
    raise UserError(f"no {wanted} for {task.name}: looked in {listing(folders)}; {advice}")


def find_tsv(task: Task, split: Split, data_dir: str | Path | None) -> Path | None:
    """Return the official file that `load_glue` reads this split from; None where it reads another source."""
    if data_dir is None or not Path(data_dir).is_dir():
        return None
    found = _found(_candidate_folders(Path(data_dir), task), split)
    return found if isinstance(found, Path) else None


def _found(folders: list[Path], split: Split) -> Path | tuple[Path, datasets.Dataset] | None:
    """The split's official file, or a folder and its rows in the hub's layout, whichever comes first."""
    for folder in folders:
        if (folder / split.tsv).is_file():
            return folder / split.tsv
        local = find_local_rows(folder, split)
        if local is not None:
            return folder, local
    return None


def _candidate_folders(root: Path, task: Task) -> list[Path]:
    """The folders named after the task first, as they are the more certain ones, then the root itself."""
    if not root.is_dir():
        raise UserError(f"{root} is not a folder: give --data_dir, the GLUE folder or the folder of {task.name}")
    named = [path for path in root.iterdir() if path.is_dir() and plain_name(path.name) in task.folder_names]
    return [*sorted(named), root]
