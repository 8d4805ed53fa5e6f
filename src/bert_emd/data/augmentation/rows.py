"""The rows to be augmented, and how a row is written back in its file's own form."""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

from bert_emd.data.augmented import augmented_path, row_key
from bert_emd.data.examples import Examples
from bert_emd.data.files import choose_label_column, choose_text_columns, texts_of
from bert_emd.data.glue import find_tsv, load_glue
from bert_emd.data.tables import Table, read_table
from bert_emd.data.tasks import Task
from bert_emd.data.text import read_lines
from bert_emd.errors import UserError

__all__ = ["Kind", "RowFormat", "SourceRows", "own_rows", "task_rows"]

Kind = Literal["glue", "csv", "tsv", "json"]
_KINDS: Mapping[str, Kind] = MappingProxyType({".csv": "csv", ".tsv": "tsv", ".json": "json", ".jsonl": "json"})


@dataclass(frozen=True, kw_only=True)
class RowFormat:
    """How a record becomes a line: GLUE's bare tabs, CSV or TSV with CSV's quotes, or JSON."""

    kind: Kind
    columns: tuple[str, ...]
    """The text columns' names; with ``kind`` other than json, `positions` are theirs."""
    positions: tuple[int, ...]
    dropped: int | str | None = None
    """The label's place or name, where labels are left out."""

    def line(self, record: Any, texts: Sequence[str] | None) -> str:
        """Return the line of a record, with its end; with other texts where some are given.

        Args:
            record: the fields in order, or for JSON the line itself.
            texts: one text a text column.
        """
        if self.kind == "json":
            return self._json(record, texts)
        fields = list(record)
        for position, text in zip(self.positions, texts or (), strict=texts is not None):
            fields[position] = text
        if isinstance(self.dropped, int):
            del fields[self.dropped]
        return self.fields_line(fields)

    def fields_line(self, fields: Sequence[str]) -> str:
        """Return the line of these fields."""
        if self.kind == "glue":
            return "\t".join(fields) + "\n"
        stream = io.StringIO(newline="")
        # A carriage return alone must stand in quotes too, and the writer looks only for the line end that it writes.
        quoting: Any = csv.QUOTE_ALL if any("\r" in text for text in fields) else csv.QUOTE_MINIMAL
        delimiter = "," if self.kind == "csv" else "\t"
        csv.writer(stream, delimiter=delimiter, lineterminator="\n", quoting=quoting).writerow(fields)
        return stream.getvalue()

    def _json(self, record: str, texts: Sequence[str] | None) -> str:
        if texts is None and self.dropped is None:
            return record + "\n"
        values = json.loads(record)
        values.update(zip(self.columns, texts or (), strict=texts is not None))
        if self.dropped is not None:
            values.pop(self.dropped, None)
        # A file that escapes goes on doing so: half of a surrogate pair can be written in no other way.
        return json.dumps(values, ensure_ascii=record.isascii() or "\\u" in record) + "\n"


@dataclass(frozen=True, kw_only=True)
class SourceRows:
    """The rows of a training file in order, with everything needed to write them and their variants."""

    source: str
    """Path or hub id, for messages."""
    format: RowFormat
    header: str
    """What the written file begins with; empty where there is no header."""
    texts: list[tuple[str, ...]] = field(repr=False)
    """The one or two texts of each row."""
    records: list[Any] = field(repr=False)
    """Each row's fields, or for JSON its line."""
    read: tuple[Path, ...]
    """The files that were read."""
    beside: Path | None
    """Where the augmented file goes unless another place is named."""

    def __len__(self) -> int:
        return len(self.texts)

    def keys(self) -> frozenset[bytes]:
        """What tells the source rows apart, so that no variant is taken for one of them."""
        return frozenset(row_key(*texts) for texts in self.texts)

    def fingerprint(self) -> str:
        """Return a sha256 over all that the written file takes from the source."""
        digest = hashlib.sha256(self.header.encode())
        for record in self.records:
            digest.update(json.dumps(record).encode() + b"\n")
        return digest.hexdigest()


def own_rows(
    path: str | Path, *, text_columns: Sequence[str] | None, label_column: str | None, labels: bool = True
) -> SourceRows:
    """Read the user's own ``.csv``, ``.tsv``, ``.jsonl`` or ``.json`` file.

    Args:
        path: as in `load_file`.
        text_columns: one or two; None looks for the usual names.
        label_column: which column is left out where ``labels`` is False; None looks for the usual names.
        labels: whether the label column is carried over, with all the other columns.

    Raises:
        UserError: what `load_file` refuses in texts, and a label column to be left out that is not there.
    """
    path = Path(path)
    table = read_table(path)
    columns = choose_text_columns(table, text_columns)
    texts = list(zip(*(texts_of(table, name) for name in columns), strict=True))
    _check_encodable(table, texts)
    label = choose_label_column(table, label_column, needs_labels=label_column is not None)
    if label in columns:
        raise UserError(f"{table.source}: column {label!r} is given as text and as label: mend --text_columns")
    left_out = None if labels else label
    names = list(table.columns)
    kind = _KINDS[path.suffix.lower()]
    if kind == "json":
        assert table.lines is not None
        lines = read_lines(path)
        records: list[Any] = [lines[number - 1].strip() for number in table.lines]
        row_format = RowFormat(kind=kind, columns=columns, positions=(), dropped=left_out)
        header = ""
    else:
        records = list(zip(*table.columns.values(), strict=True))
        row_format = RowFormat(
            kind=kind,
            columns=columns,
            positions=tuple(names.index(name) for name in columns),
            dropped=None if left_out is None else names.index(left_out),
        )
        header = row_format.fields_line([name for name in names if name != left_out])
    return SourceRows(
        source=str(path), format=row_format, header=header, texts=texts, records=records, read=(path,),
        beside=augmented_path(path),
    )  # fmt: skip


def _check_encodable(table: Table, texts: Sequence[tuple[str, ...]]) -> None:
    for row, pair in enumerate(texts):
        for text in pair:
            try:
                text.encode()
            except UnicodeEncodeError:
                raise UserError(
                    f"{table.where(row)}: a text holds half of a surrogate pair, which is no character; mend the row"
                ) from None


def task_rows(task: Task, data_dir: str | None, cache_dir: str | None, *, labels: bool = True) -> SourceRows:
    """Read the training rows of a GLUE task, to be written as the task's official TSV file.

    Args:
        task: the task.
        data_dir: as in `load_glue`.
        cache_dir: where downloads from the hub are kept.
        labels: whether the label column is carried over, with all the other columns.

    Raises:
        UserError: what `load_glue` refuses, and CoLA without labels, whose file has no header to tell.
    """
    split = task.split("train")
    if not labels and split.columns:
        raise UserError(f"{task.name}'s file has no header, so its label column cannot be left out; use --labels carry")
    examples = load_glue(task, "train", data_dir, cache_dir, needs_labels=labels)
    texts = _paired(examples)
    path = find_tsv(task, split, data_dir)
    if path is not None:
        lines = read_lines(path)
        names = list(split.columns or lines[0].split("\t"))
        first = 0 if split.columns else 1
        records: list[Any] = [tuple(lines[first + index].split("\t")) for index in examples.indices]
    else:
        # The hub's rows have no ids; the reader needs the texts and the label alone.
        names = list(split.columns or (*task.tsv_text_columns, task.tsv_label_column))
        records = [_official(task, names, pair, label) for pair, label in zip(texts, _labels(examples), strict=True)]
        for pair in texts:
            if any(mark in text for text in pair for mark in "\t\n"):
                raise UserError(
                    f"{examples.source}: the text {pair[0][:60]!r} holds a tab or line end, which TSV cannot"
                )
    dropped = names.index(task.tsv_label_column) if not labels and task.tsv_label_column in names else None
    row_format = RowFormat(
        kind="glue",
        columns=task.text_columns,
        positions=tuple(names.index(name) for name in task.tsv_text_columns),
        dropped=dropped,
    )
    header = "" if split.columns else row_format.fields_line([n for i, n in enumerate(names) if i != dropped])
    return SourceRows(
        source=examples.source, format=row_format, header=header, texts=texts, records=records,
        read=() if path is None else (path,),
        beside=None if path is None else path.with_name(task.split("train_aug").tsv),
    )  # fmt: skip


def _paired(examples: Examples) -> list[tuple[str, ...]]:
    if examples.pairs is None:
        return [(text,) for text in examples.texts]
    return list(zip(examples.texts, examples.pairs, strict=True))


def _labels(examples: Examples) -> list[str]:
    """Each label as the official file spells it."""
    if examples.labels is None:
        return [""] * len(examples)
    if examples.task.is_regression:
        return [repr(label) for label in examples.labels]
    return [examples.task.tsv_labels[int(label)] for label in examples.labels]


def _official(task: Task, names: Sequence[str], texts: tuple[str, ...], label: str) -> tuple[str, ...]:
    known = dict(zip(task.tsv_text_columns, texts, strict=True)) | {task.tsv_label_column: label}
    return tuple(known.get(name, "") for name in names)
