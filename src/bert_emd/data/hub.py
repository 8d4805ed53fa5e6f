"""Rows in the schema that nyu-mll/glue has on the hub, from Parquet files, a saved data set, or the hub itself."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import datasets

from bert_emd.data.examples import Examples
from bert_emd.data.labels import label_lookup, listing, normalise_label
from bert_emd.data.tasks import Split, Task
from bert_emd.data.text import as_float32
from bert_emd.errors import MissingLabelsError, UserError

__all__ = ["HUB_ID", "find_local_rows", "from_hub_rows", "load_hub_rows"]

HUB_ID = "nyu-mll/glue"


def find_local_rows(folder: Path, split: Split) -> datasets.Dataset | None:
    """Return the split from a folder that holds Parquet files or a saved `DatasetDict`, or None where it has neither.

    Parquet files are ``<split>-*.parquet`` (as on the hub), ``<split>.parquet`` or ``<split>/*.parquet``.
    Raises `UserError` for files that cannot be read.
    """
    if split.hub is None:
        return None
    patterns = (f"{split.hub}-*.parquet", f"{split.hub}.parquet", f"{split.hub}/*.parquet")
    shards = next((found for pattern in patterns if (found := sorted(folder.glob(pattern)))), [])
    try:
        if shards:
            return datasets.concatenate_datasets([_read_parquet(shard) for shard in shards])
        if (folder / "dataset_dict.json").is_file():
            saved: Any = datasets.load_from_disk(str(folder))
            return saved.get(split.hub)
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"cannot read {shards[0] if shards else folder}: {_one_line(error)}") from error
    return None


def load_hub_rows(
    hub_id: str, task: Task, split: Split, cache_dir: str | None, *, refresh: bool = False
) -> datasets.Dataset:
    """Return the split from the hub, or its cache unless ``refresh`` asks for a new download.

    Raises `UserError` where that fails, with the hub's reason.
    """
    if split.hub is None:
        raise UserError(f"the hub has no split {split.name!r}: give --data_dir, a folder with {split.tsv}")
    try:
        mode = "force_redownload" if refresh else None
        return datasets.load_dataset(hub_id, task.hub_name, split=split.hub, cache_dir=cache_dir, download_mode=mode)
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        tried = "" if hub_id == HUB_ID else f"there is no folder {hub_id!r}, and "
        raise UserError(
            f"{tried}cannot load {task.name} ({split.hub}) from {hub_id!r} on the hub: {_one_line(error)}; "
            "give --data_dir, a folder with the GLUE files, to work without the hub"
        ) from error


def from_hub_rows(
    rows: datasets.Dataset, task: Task, split: Split, *, source: str, needs_labels: bool = True
) -> Examples:
    """Turn rows of the hub's schema into `Examples`.

    Classes are matched by the names of the `ClassLabel` column; a column of bare integers is in the hub's order, and
    a column of strings holds names. Labels of test splits, and columns of -1, are read as none.
    Raises `UserError` naming the row for missing texts and bad labels.
    """
    missing = [name for name in task.text_columns if name not in rows.column_names]
    if missing:
        raise UserError(
            f"{source}: no column {missing[0]!r} (found: {listing(rows.column_names)}): is this {task.name}?"
        )
    if not len(rows):
        raise UserError(f"{source} has no rows")
    texts = [_texts(rows, name, source) for name in task.text_columns]
    labels = None
    if not split.is_test and (needs_labels or "label" in rows.column_names):
        labels = _labels(rows, task, source)
        if labels is None and needs_labels:
            raise MissingLabelsError(f"{source} has no labels: labels are needed here")
    return Examples(
        texts=texts[0],
        pairs=texts[1] if len(texts) > 1 else None,
        labels=labels,
        indices=list(rows["idx"]) if "idx" in rows.column_names else list(range(len(rows))),
        task=task,
        source=source,
    )


def _read_parquet(path: Path) -> datasets.Dataset:
    # Read straight into memory: `Dataset.from_parquet` would write a second copy into the cache.
    from pyarrow import parquet

    return datasets.Dataset(datasets.table.InMemoryTable(parquet.read_table(path)))


def _texts(rows: datasets.Dataset, name: str, source: str) -> list[str]:
    texts = list(rows[name])
    for i, text in enumerate(texts):
        if not isinstance(text, str):
            raise UserError(f"{source}, row {i}: column {name!r} holds {text!r}, not a text")
    return texts


def _labels(rows: datasets.Dataset, task: Task, source: str) -> list[float] | None:
    """Return class positions (ints) or scores (floats); None where every row says -1."""
    if "label" not in rows.column_names:
        raise MissingLabelsError(
            f"{source}: no column 'label' (found: {listing(rows.column_names)}): labels are needed here"
        )
    raw: list[Any] = list(rows["label"])
    if all(value == -1 for value in raw):
        return None
    if task.label_names is None:
        for i, value in enumerate(raw):
            if not isinstance(value, (int, float)) or not math.isfinite(value):
                raise UserError(f"{source}, row {i}: score {value!r} is not a finite number")
        return [as_float32(value) for value in raw]
    feature = rows.features["label"]
    position: dict[Any, int] = dict(label_lookup(task.label_names))
    if isinstance(feature, datasets.ClassLabel):
        ours = [position.get(normalise_label(name)) for name in feature.names]
        known = list(feature.names)
        position = {theirs: mine for theirs, mine in enumerate(ours) if mine is not None}
    else:
        known = list(task.label_names)
        position |= {i: i for i in range(len(known))}
    labels: list[float] = []
    for i, value in enumerate(raw):
        key = normalise_label(value) if isinstance(value, str) else value
        if key not in position:
            shown = (
                feature.names[key] if isinstance(feature, datasets.ClassLabel) and key in range(len(known)) else value
            )
            raise UserError(f"{source}, row {i}: unknown label {shown!r}: {task.name} has {listing(task.label_names)}")
        labels.append(position[key])
    return labels


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
