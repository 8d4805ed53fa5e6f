"""A corpus as a stream of pieces of documents, in constant memory whatever its lines and rows look like."""

from __future__ import annotations

import codecs
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, TypeAlias

from bert_emd.data.corpus.cleaning import PIECE, Cleaner, cut
from bert_emd.data.labels import listing
from bert_emd.errors import UserError

__all__ = [
    "DocumentBreak",
    "Piece",
    "choose_columns",
    "json_line_pieces",
    "parquet_pieces",
    "row_pieces",
    "text_pieces",
]

DocumentBreak = Literal["blank", "line"]

Piece: TypeAlias = tuple[str, bool]
"""A part of a document, and whether the document ends behind it. Parts joined are the document."""

_CHUNK = 1 << 18
_LONGEST_JSON = 64 << 20
_ROWS = 256


def text_pieces(path: Path, cleaner: Cleaner, document_break: DocumentBreak) -> Iterator[Piece]:
    """Documents of a UTF-8 text file: runs of lines between blank lines, or with ``line`` each line.

    The lines of a document are joined by a space. A line of any length is cut in front of white space.
    """
    parts: list[str] = []
    size, began, line_began = 0, False, False
    for fragment, line_ends in _fragments(path):
        text = cleaner(fragment)
        if text.strip():
            # What goes on in a document is parted from what came before, unless it is the same line that goes on.
            part = text if line_began or not began else f" {text}"
            parts.append(part)
            size += len(part)
            began = line_began = True
        elif line_ends and not line_began and began and document_break == "blank":
            yield "".join(parts), True
            parts, size, began = [], 0, False
        if line_ends:
            line_began = False
            if document_break == "line" and began:
                yield "".join(parts), True
                parts, size, began = [], 0, False
        if size >= PIECE:
            yield "".join(parts), False
            parts, size = [], 0
    if began:
        yield "".join(parts), True


def _fragments(path: Path) -> Iterator[tuple[str, bool]]:
    """Lines, each in one part or several, and whether the line ends behind the part."""
    decoder = codecs.getincrementaldecoder("utf-8-sig")()
    rest = ""
    with path.open("rb") as stream:
        while chunk := stream.read(_CHUNK):
            *lines, rest = (rest + decoder.decode(chunk)).split("\n")
            for line in lines:
                yield from _cut_line(line)
            if len(rest) > PIECE:
                *begun, rest = cut(rest)
                for part in begun:
                    yield part, False
    rest += decoder.decode(b"", final=True)
    if rest:
        yield from _cut_line(rest)


def _cut_line(line: str) -> Iterator[tuple[str, bool]]:
    *begun, last = cut(line.removesuffix("\r"))
    for part in begun:
        yield part, False
    yield last, True


def row_pieces(
    rows: Iterable[Any], columns: Sequence[str], cleaner: Cleaner, where: Callable[[int], str]
) -> Iterator[Piece]:
    """Documents of rows: the columns' texts, joined by a space; a row without any text is left out.

    Args:
        rows: mappings from column names to texts or None.
        columns: which of them hold text.
        cleaner: removes control characters.
        where: names a row, counted from 1, for messages.

    Raises:
        UserError: a value that is not a text.
    """
    for number, row in enumerate(rows, start=1):
        texts = [row.get(name) for name in columns]
        for name, text in zip(columns, texts, strict=True):
            if text is not None and not isinstance(text, str):
                raise UserError(f"{where(number)}: column {name!r} holds {text!r:.50}, not a text; mend --text_columns")
        document = cleaner(" ".join(text for text in texts if text))
        if document.strip():
            *begun, last = cut(document)
            for part in begun:
                yield part, False
            yield last, True


def json_line_pieces(path: Path, columns: Sequence[str] | None, cleaner: Cleaner) -> Iterator[Piece]:
    """Documents of a file with a JSON object a line."""

    def rows() -> Iterator[Any]:
        with path.open("rb") as stream:
            number = 0
            while line := stream.readline(_LONGEST_JSON + 1):
                number += 1
                if len(line) > _LONGEST_JSON:
                    raise UserError(
                        f"{path}:{number}: a line of more than {_LONGEST_JSON >> 20} MB; write one row a line"
                    )
                if line.strip():
                    yield _json_row(path, number, line)

    numbered = rows()
    first = next(numbered, None)
    if first is None:
        return
    chosen = choose_columns([name for name, v in first.items() if isinstance(v, str)], list(first), columns, str(path))

    def again() -> Iterator[Any]:
        yield first
        yield from numbered

    yield from row_pieces(again(), chosen, cleaner, lambda number: f"{path}, row {number}")


def _json_row(path: Path, number: int, line: bytes) -> dict[str, Any]:
    try:
        row = json.loads(line.decode("utf-8-sig"))
    except ValueError as error:
        raise UserError(f"{path}:{number}: not valid JSON ({error}); write one object a line") from error
    if not isinstance(row, dict):
        raise UserError(f"{path}:{number}: expected one JSON object a line, found {type(row).__name__}")
    return row


def parquet_pieces(path: Path, columns: Sequence[str], cleaner: Cleaner) -> Iterator[Piece]:
    """Documents of a Parquet file's rows, read a few hundred at a time.

    Raises:
        UserError: the file is damaged.
    """
    import pyarrow
    from pyarrow import parquet

    def rows() -> Iterator[Any]:
        try:
            with parquet.ParquetFile(path, pre_buffer=False) as file:
                for batch in file.iter_batches(batch_size=_ROWS, columns=list(columns)):
                    yield from batch.to_pylist()
        except (OSError, pyarrow.ArrowException) as error:
            raise UserError(f"cannot read {path}: {one_line(error)}; write or download it again") from error

    yield from row_pieces(rows(), columns, cleaner, lambda number: f"{path}, row {number}")


def choose_columns(
    texts: Sequence[str], known: Sequence[str], wanted: Sequence[str] | None, source: str
) -> tuple[str, ...]:
    """The text columns: those that are wanted, else ``text``, else the only one that holds text.

    Args:
        texts: the columns that hold text.
        known: all columns.
        wanted: None looks for one.
        source: names the rows, for messages.

    Raises:
        UserError: there is none, or several that could be meant.
    """
    if wanted is not None:
        if missing := [name for name in wanted if name not in known]:
            raise UserError(f"{source}: no column {missing[0]!r} (found: {listing(list(known))}); mend --text_columns")
        if bad := [name for name in wanted if name not in texts]:
            raise UserError(f"{source}: column {bad[0]!r} holds no text; mend --text_columns")
        return tuple(wanted)
    if "text" in texts:
        return ("text",)
    if len(texts) == 1:
        return (texts[0],)
    found = listing(list(texts)) if texts else "none"
    raise UserError(f"{source}: which column holds the text? Columns of text: {found}; name it with --text_columns")


def one_line(error: BaseException) -> str:
    """What a library says, on one line."""
    return (" ".join(str(error).split()) or type(error).__name__)[:300]
