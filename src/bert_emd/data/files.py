"""The user's own data: files of CSV, TSV or JSON lines, and data sets in memory."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets

from bert_emd.data.examples import Examples
from bert_emd.data.labels import label_lookup, listing, normalise_label
from bert_emd.data.tables import Table, dataset_table, read_table
from bert_emd.data.tasks import Task, custom_task
from bert_emd.data.text import parse_number
from bert_emd.errors import MissingLabelsError, UserError

__all__ = ["choose_label_column", "choose_text_columns", "from_dataset", "load_file", "texts_of"]

# Pairs come first: "question, sentence" must not be taken for a single "sentence".
_TEXT_COLUMNS = (
    ("text", "text_pair"),
    ("sentence1", "sentence2"),
    ("premise", "hypothesis"),
    ("question", "sentence"),
    ("question1", "question2"),
    ("text",),
    ("sentence",),
)
_LABEL_COLUMNS = ("label", "labels", "score")
_FEW_ROWS = 20


def load_file(
    path: str | Path,
    *,
    text_columns: Sequence[str] | None = None,
    label_column: str | None = None,
    label_names: Sequence[str] | None = None,
    regression: bool | None = None,
    needs_labels: bool = True,
) -> Examples:
    """Read a ``.csv``, ``.tsv``, ``.jsonl`` or ``.json`` file (the last two: one JSON object a line).

    Args:
        path: a UTF-8 file; CSV and TSV with a header line and CSV quoting (a field may span lines).
        text_columns: one column, or two for sentence pairs. None looks for text, sentence, (text, text_pair),
            (sentence1, sentence2), (premise, hypothesis), (question, sentence), (question1, question2).
        label_column: None looks for label, labels, score.
        label_names: the classes in class order (a model's); labels are matched to them by name (case, ``-``, ``_``
            and spaces do not matter). None takes the names found, sorted (as numbers where all of them are).
        regression: True for scores, False for classes. None is True where no ``label_names`` are given, all labels
            are numbers and at least one is not whole.
        needs_labels: False where the label column may be absent or have gaps; labels are then None.

    Raises `UserError` naming file and line for an empty text, a missing or unknown label, a score that is not a finite
    number, a row of the wrong length, invalid CSV, JSON or UTF-8; and naming the columns where one is not found.
    """
    return _examples(read_table(Path(path)), text_columns, label_column, label_names, regression, needs_labels)


def from_dataset(
    dataset: datasets.Dataset,
    *,
    text_columns: Sequence[str] | None = None,
    label_column: str | None = None,
    label_names: Sequence[str] | None = None,
    regression: bool | None = None,
    needs_labels: bool = True,
    source: str = "the data set",
) -> Examples:
    """Turn a `datasets.Dataset` in memory into `Examples`; options and errors as in `load_file` (rows count from 0).

    A `ClassLabel` column gives the class names and their order, unless ``label_names`` gives another order.
    """
    table = dataset_table(dataset, source)
    return _examples(table, text_columns, label_column, label_names, regression, needs_labels)


def _examples(
    table: Table,
    text_columns: Sequence[str] | None,
    label_column: str | None,
    label_names: Sequence[str] | None,
    regression: bool | None,
    needs_labels: bool,
) -> Examples:
    if regression and label_names is not None:
        raise UserError(f"label names ({listing(label_names)}) were given for a regression task: drop one of the two")
    chosen = choose_text_columns(table, text_columns)
    column = choose_label_column(table, label_column, needs_labels)
    if column in chosen:
        raise UserError(f"{table.source}: column {column!r} is given as text and as label: mend --text_columns")
    texts = [texts_of(table, name) for name in chosen]
    task, labels = _labels(table, column, chosen, label_names, regression, needs_labels)
    return Examples(
        texts=texts[0],
        pairs=texts[1] if len(texts) > 1 else None,
        labels=labels,
        indices=list(range(len(texts[0]))),
        task=task,
        source=table.source,
    )


def choose_text_columns(table: Table, wanted: Sequence[str] | None) -> tuple[str, ...]:
    """Return the one or two text columns: those named, or the first of the usual ones. Raises `UserError`."""
    if wanted is None:
        for guess in _TEXT_COLUMNS:
            found = [_column(table, name) for name in guess]
            if None not in found:
                return tuple(name for name in found if name is not None)
        raise UserError(
            f"{table.source}: which column holds the text? Found: {listing(list(table.columns))}; "
            "name one or two with --text_columns"
        )
    columns = tuple(part.strip() for part in wanted.split(",")) if isinstance(wanted, str) else tuple(wanted)
    for name in columns:
        if name not in table.columns:
            raise UserError(
                f"{table.source}: no column {name!r} (found: {_quoted(table)}): mend --text_columns "
                "(a name that holds a comma in double quotes)"
            )
    if len(set(columns)) < len(columns):
        raise UserError(f"{table.source}: text_columns names {columns[0]!r} twice: name two columns, or one")
    return columns


def _quoted(table: Table) -> str:
    return listing([repr(name) for name in table.columns])


def choose_label_column(table: Table, wanted: str | None, needs_labels: bool) -> str | None:
    """Return the label column: the one named, or the first of the usual ones; None where there is none and none is
    needed. Raises `UserError`."""
    if wanted is None:
        found = next((name for guess in _LABEL_COLUMNS if (name := _column(table, guess)) is not None), None)
    else:
        found = wanted if wanted in table.columns else None
    if found is None and needs_labels:
        raise MissingLabelsError(
            f"{table.source}: no label column {wanted or listing(_LABEL_COLUMNS)!r} (found: {_quoted(table)}): name it "
            "with --label_column"
        )
    return found


def _column(table: Table, name: str) -> str | None:
    """The column of this name, whatever its case where only one is meant."""
    if name in table.columns:
        return name
    alike = [column for column in table.columns if column.strip().lower() == name]
    return alike[0] if len(alike) == 1 else None


def texts_of(table: Table, name: str) -> list[str]:
    """Return the texts of a column. Raises `UserError` naming the line of what is no text."""
    texts = table.columns[name]
    for row, text in enumerate(texts):
        if text is not None and not isinstance(text, str):
            raise UserError(f"{table.where(row)}: column {name!r} holds {text!r}, not a text: write it in quotes")
        if text is None or not text.strip():
            raise UserError(f"{table.where(row)}: no text in column {name!r}: fill it in or remove the row")
    return texts


def _labels(
    table: Table,
    column: str | None,
    text_columns: tuple[str, ...],
    label_names: Sequence[str] | None,
    regression: bool | None,
    needs_labels: bool,
) -> tuple[Task, list[float] | None]:
    """Return the task and the labels: class positions (ints) or scores (floats)."""
    raw = None if column is None else _spellings(table, column, needs_labels)
    ordered_names = label_names if label_names is not None or column is None else table.class_names.get(column)
    if raw is None:
        return custom_task(None if regression else ordered_names or (), text_columns), None
    numbers = [parse_number(value) for value in raw]
    if regression or (regression is None and ordered_names is None and _looks_like_scores(numbers)):
        for row, number in enumerate(numbers):
            if number is None or not math.isfinite(number):
                raise UserError(f"{table.where(row)}: score {raw[row]!r} in column {column!r} is not a finite number")
        return custom_task(None, text_columns), [number for number in numbers if number is not None]

    names = _sorted_names(set(raw)) if ordered_names is None else tuple(ordered_names)
    if len(names) == 1 and label_names is not None:
        raise UserError(f"label_names names only one class, {names[0]!r}: name all of them, separated by commas")
    if len(names) > _FEW_ROWS and 2 * len(names) > len(raw):
        raise UserError(
            f"{table.source}: column {column!r} has {len(names)} different labels in {len(raw)} rows: name the label "
            "column with --label_column, or set --regression true for numbers"
        )
    try:
        task = custom_task(names, text_columns, known_order=ordered_names is not None)
    except UserError as error:
        raise UserError(f"{table.source}, column {column!r}: {error}") from error
    position = label_lookup(names)
    labels: list[float] = []
    for row, value in enumerate(raw):
        label = position.get(normalise_label(value))
        if label is None:
            raise UserError(
                f"{table.where(row)}: unknown label {value!r} in column {column!r}: known: {listing(names)}"
            )
        labels.append(label)
    return task, labels


def _spellings(table: Table, column: str, needs_labels: bool) -> list[str] | None:
    """Return every label as text; None where some are missing and none are needed."""
    spellings = []
    for row, value in enumerate(table.columns[column]):
        if isinstance(value, (list, dict)):
            raise UserError(f"{table.where(row)}: label in column {column!r} is {value!r}: one word or number a row")
        spelling = _spell(value)
        if not spelling:
            if needs_labels:
                raise MissingLabelsError(
                    f"{table.where(row)}: missing label in column {column!r}: add it or remove the row"
                )
            return None
        spellings.append(spelling)
    return spellings


def _spell(value: Any) -> str:
    if value is None:
        return ""
    return str(value).lower() if isinstance(value, bool) else str(value).strip()


def _looks_like_scores(numbers: list[float | None]) -> bool:
    known = [number for number in numbers if number is not None]
    return len(known) == len(numbers) and any(not number.is_integer() for number in known)


def _sorted_names(names: set[str]) -> tuple[str, ...]:
    numbers = {name: parse_number(name) for name in names}
    if any(number is None for number in numbers.values()):
        return tuple(sorted(names))
    # The spelling settles ties ("1" and "1.0"), so that the order never depends on the set's.
    return tuple(sorted(names, key=lambda name: (numbers[name], name)))
