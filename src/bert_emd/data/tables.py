"""The user's rows, from CSV, TSV, JSON lines or memory, as one table that knows where each row came from."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets

from bert_emd.data.labels import listing
from bert_emd.data.text import read_lines
from bert_emd.errors import UserError

__all__ = ["Table", "dataset_table", "read_table"]


@dataclass(frozen=True)
class Table:
    """Named columns of equal length. A value is None where the source has none."""

    source: str
    columns: dict[str, list[Any]]
    lines: list[int] | None
    """The physical line (1-based) on which each row begins; None for rows that are not of a text file."""
    class_names: dict[str, tuple[str, ...]]
    """The columns whose class order the source defines, with that order."""

    def where(self, row: int) -> str:
        """Return the place of a row, for messages."""
        return f"{self.source}, row {row}" if self.lines is None else f"{self.source}:{self.lines[row]}"


def read_table(path: Path) -> Table:
    """Read ``.csv``, ``.tsv`` (both with CSV quoting and a header line), ``.jsonl`` or ``.json`` (an object a line).

    Raises `UserError` naming file and line for what cannot be read.
    """
    readers: dict[str, Callable[[Path], Table]] = {
        ".csv": lambda path: _read_csv(path, ","),
        ".tsv": lambda path: _read_csv(path, "\t"),
        ".jsonl": _read_json_lines,
        ".json": _read_json_lines,
    }
    if path.suffix.lower() not in readers:
        raise UserError(f"cannot read {path}: its name should end in {listing(list(readers))}")
    table = readers[path.suffix.lower()](path)
    if not table.lines:
        raise UserError(f"{path} has no rows of data")
    return table


def dataset_table(dataset: datasets.Dataset, source: str) -> Table:
    """Return the rows of a `datasets.Dataset`; `ClassLabel` numbers become names, -1 becomes None."""
    if not len(dataset):
        raise UserError(f"{source} has no rows")
    columns: dict[str, list[Any]] = {}
    class_names: dict[str, tuple[str, ...]] = {}
    for name in dataset.column_names:
        values: list[Any] = list(dataset[name])
        feature = dataset.features[name]
        if isinstance(feature, datasets.ClassLabel):
            class_names[name] = tuple(feature.names)
            values = [None if value is None or value < 0 else feature.names[value] for value in values]
        columns[name] = values
    return Table(source=source, columns=columns, lines=None, class_names=class_names)


def _read_csv(path: Path, delimiter: str) -> Table:
    records = _csv_records(path, delimiter)
    header_line, names = next(records)
    names = [name.strip() for name in names]
    if len(names) == 1 and (other := next((c for c in ";\t|," if c != delimiter and c in names[0]), None)):
        raise UserError(
            f"{path}:{header_line}: its columns are separated by {other!r}, but {path.suffix} means {delimiter!r}: "
            "save it that way"
        )
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise UserError(f"{path}:{header_line}: column {repeated[0]!r} stands twice in the header")
    columns: dict[str, list[Any]] = {name: [] for name in names}
    lines = []
    for line, record in records:
        if len(record) != len(names):
            raise UserError(
                f"{path}:{line}: expected {len(names)} columns as in the header ({listing(names)}), "
                f"found {len(record)}: quote fields that hold the delimiter"
            )
        lines.append(line)
        for column, value in zip(columns.values(), record, strict=True):
            column.append(value)
    return Table(source=str(path), columns=columns, lines=lines, class_names={})


def _csv_records(path: Path, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """Yield (line on which it begins, fields) for each record; blank lines are no records."""
    # Line ends go back on, as a quoted field may run over several lines; `strict` refuses stray quotes.
    reader = csv.reader((line + "\n" for line in read_lines(path)), delimiter=delimiter, strict=True)
    while True:
        line = reader.line_num + 1
        try:
            record = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            if "new-line character" in str(error):
                raise UserError(
                    f"{path}:{line}: a line ends in a carriage return alone: save it with the line ends of today"
                ) from error
            if "field limit" in str(error):
                raise UserError(
                    f"{path}:{line}: a field of more than {csv.field_size_limit():,} characters: close the quote that "
                    "is left open, shorten the field, or save the data as .jsonl"
                ) from error
            raise UserError(
                f"{path}:{line}: not valid {path.suffix[1:].upper()} ({error}): a field that holds or begins with a "
                "quote must be quoted, with its quotes doubled"
            ) from error
        if record:
            yield line, record


def _read_json_lines(path: Path) -> Table:
    records: list[dict[str, Any]] = []
    lines = []
    for line, text in enumerate(read_lines(path), start=1):
        if not text.strip():
            continue
        try:
            record = json.loads(text)
        except ValueError as error:
            raise UserError(f"{path}:{line}: not valid JSON ({error}): write one object a line") from error
        if not isinstance(record, dict):
            raise UserError(f"{path}:{line}: expected one JSON object a line, found {type(record).__name__}")
        records.append(record)
        lines.append(line)
    names = dict.fromkeys(name for record in records for name in record)
    columns = {name: [record.get(name) for record in records] for name in names}
    return Table(source=str(path), columns=columns, lines=lines, class_names={})
