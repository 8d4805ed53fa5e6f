"""The official GLUE files: tab-separated, no quoting, a few of them without a header."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

from bert_emd.data.examples import Examples
from bert_emd.data.labels import listing
from bert_emd.data.tasks import Split, Task
from bert_emd.data.text import as_float32, parse_number, read_lines
from bert_emd.errors import MissingLabelsError, UserError

__all__ = ["read_glue_tsv"]


def read_glue_tsv(path: Path, task: Task, split: Split, *, needs_labels: bool = True) -> Examples:
    """Read one official TSV file.

    Texts are kept as they are, to the last space; quotes are plain characters. `Examples.indices` is the row number,
    counted from 0 after the header. Labels of test splits are not read. Raises `UserError` naming file and line
    for anything malformed; only where `Task.drops_short_rows` are rows with too few columns dropped and counted.
    """
    lines = read_lines(path)
    columns = split.columns or tuple(lines[0].split("\t"))
    header_lines = 0 if split.columns else 1
    positions = [_position(path, task, columns, name) for name in task.tsv_text_columns]
    label_position = None
    # Without a need for labels a file may lack the column; where it is there, it is read and checked all the same.
    if not split.is_test and (needs_labels or task.tsv_label_column in columns):
        label_position = _position(path, task, columns, task.tsv_label_column, MissingLabelsError)
    parse_label = _label_parser(task)

    texts: list[list[str]] = [[] for _ in positions]
    labels: list[float] = []
    indices: list[int] = []
    for index, line in enumerate(lines[header_lines:]):
        fields = line.split("\t")
        if len(fields) < len(columns) and task.drops_short_rows:
            continue
        where = f"{path}:{index + header_lines + 1}"
        if len(fields) != len(columns):
            raise UserError(
                f"{where}: expected {len(columns)} tab-separated columns, found {len(fields)}: "
                f"mend the line, or download {task.name} again"
            )
        for column, position in zip(texts, positions, strict=True):
            column.append(fields[position])
        if label_position is not None:
            labels.append(parse_label(fields[label_position], where))
        indices.append(index)

    if not indices:
        raise UserError(f"{path} has no rows of data: download {task.name} again")
    return Examples(
        texts=texts[0],
        pairs=texts[1] if len(texts) > 1 else None,
        labels=labels if label_position is not None else None,
        indices=indices,
        task=task,
        source=str(path),
        dropped=len(lines) - header_lines - len(indices),
    )


def _position(path: Path, task: Task, columns: tuple[str, ...], name: str, error: type[UserError] = UserError) -> int:
    if name not in columns:
        raise error(
            f"{path}:1: no column {name!r} in the header (found: {listing(columns)}): "
            f"is this the official {task.name} file?"
        )
    return columns.index(name)


def _label_parser(task: Task) -> Callable[[str, str], float]:
    """Return a function from (raw label, where it stands) to the label; an int for classes."""
    if task.is_regression:
        return _score
    classes = {spelling: i for i, spelling in enumerate(task.tsv_labels)}

    def parse(raw: str, where: str) -> int:
        if raw not in classes:
            raise UserError(f"{where}: unknown label {raw!r}: {task.name} has {listing(task.tsv_labels)}")
        return classes[raw]

    return parse


def _score(raw: str, where: str) -> float:
    number = parse_number(raw)
    if number is None or not math.isfinite(number):
        raise UserError(f"{where}: score {raw!r} is not a finite number: mend the line")
    return as_float32(number)
