"""Where a corpus comes from: files, a data set in memory, or a stream from the hub, each with its fingerprint."""

from __future__ import annotations

import codecs
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import datasets

from bert_emd.data.corpus.cleaning import Cleaner
from bert_emd.data.corpus.reading import (
    DocumentBreak,
    Piece,
    choose_columns,
    json_line_pieces,
    one_line,
    parquet_pieces,
    row_pieces,
    text_pieces,
)
from bert_emd.errors import UserError

__all__ = ["Corpus", "FileCorpus", "HubCorpus", "RowsCorpus", "StreamError", "corpus_files"]

_CHUNK = 1 << 22
_SUFFIXES = (".txt", ".text", ".parquet", ".jsonl", ".json")
_PACKED = {
    b"\x1f\x8b": "gzip",
    b"PK\x03\x04": "zip",
    b"\x28\xb5\x2f\xfd": "zstandard",
    b"BZh": "bzip2",
    b"\xfd7zXZ": "xz",
}
_MANY_CONTROLS = 0.1
_LONG_LINE = 1_000_000
_CONTROLS = bytes(i for i in range(32) if i not in b"\t\n\v\f\r")


class StreamError(UserError):
    """The text or its tokens stopped before the end; what came of them so far is good."""


class Corpus(Protocol):
    """Something that can be read from its beginning again and again, always in the same order."""

    name: str
    """For messages and records."""
    size: int | None
    """Bytes of text, about; None where nobody knows."""
    cleaner: Cleaner

    @property
    def identity(self) -> dict[str, Any]:
        """What its text depends on."""
        ...

    def pieces(self) -> Iterator[Piece]:
        """Its documents, in pieces."""
        ...


def corpus_files(paths: Sequence[str | Path]) -> list[Path]:
    """The files that are meant: each path itself, or what lies in it, in the order of the names.

    Raises:
        UserError: a path that does not exist, or a folder without a text, JSON-lines or Parquet file.
    """
    found: list[Path] = []
    for path in map(Path, paths):
        if path.is_dir():
            inside = sorted(
                p for p in path.rglob("*") if p.is_file() and p.suffix.lower() in _SUFFIXES and not _hidden(p, path)
            )
            if not inside:
                raise UserError(
                    f"the corpus {path} holds no file whose name ends in {', '.join(_SUFFIXES)}; name others"
                )
            found += inside
        elif path.is_file():
            found.append(path)
        else:
            raise UserError(f"the corpus {path} does not exist; name a text or Parquet file, or a folder of them")
    return found


def _hidden(path: Path, folder: Path) -> bool:
    return any(part.startswith(".") for part in path.relative_to(folder).parts)


@dataclass
class FileCorpus:
    """Files, one after the other.

    They are looked through when this is made, so that a file that cannot be read is refused before anything is done
    with another.

    Args:
        paths: files of text, JSON lines (``.jsonl``, ``.json``) or Parquet (``.parquet``).
        document_break: what ends a document in a text file.
        text_columns: of Parquet and JSON-lines files; None looks for them.
        clean: take text files with lines of more than a megabyte, which are then cut, or with control characters, which
            are removed. (In the rows of the other files, where nobody sees them, control characters always are.)

    Raises:
        UserError: a file that is missing, empty, truncated, packed, binary or not UTF-8, or has to be cleaned.
    """

    paths: list[Path]
    document_break: DocumentBreak = "blank"
    text_columns: tuple[str, ...] | None = None
    clean: bool = False
    cleaner: Cleaner = field(default_factory=Cleaner)

    def __post_init__(self) -> None:
        self._prints: list[str] = []
        self._columns: dict[Path, tuple[str, ...]] = {}
        self.size: int | None = 0
        for path in self.paths:
            try:
                if _is_parquet(path):
                    self._columns[path], size = _parquet_columns(path, self.text_columns)
                    self._prints.append(_print(path))
                else:
                    size = path.stat().st_size
                    self._prints.append(_checked_text(path, clean=self.clean or _kind(path) != "text"))
            except OSError as error:
                raise UserError(f"cannot read {path}: {one_line(error)}") from error
            self.size += size
        self.name = ", ".join(map(str, self.paths[:3])) + (
            f" and {len(self.paths) - 3} more" if len(self.paths) > 3 else ""
        )
        if not self.size:
            raise UserError(f"the corpus {self.name} is empty; name a file with text in it")

    @property
    def identity(self) -> dict[str, Any]:
        return {
            "files": self._prints,
            "kinds": [_kind(path) for path in self.paths],
            "document_break": self.document_break,
            "text_columns": self.text_columns,
        }

    def pieces(self) -> Iterator[Piece]:
        for path in self.paths:
            if path in self._columns:
                yield from parquet_pieces(path, self._columns[path], self.cleaner)
            elif _kind(path) == "json":
                yield from json_line_pieces(path, self.text_columns, self.cleaner)
            else:
                yield from text_pieces(path, self.cleaner, self.document_break)


def _kind(path: Path) -> str:
    if _is_parquet(path):
        return "parquet"
    return "json" if path.suffix.lower() in (".jsonl", ".json") else "text"


def _is_parquet(path: Path) -> bool:
    return path.suffix.lower() == ".parquet"


def _print(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def _checked_text(path: Path, *, clean: bool) -> str:
    """The fingerprint of a file that is UTF-8 text to its end, and needs no cleaning unless that was asked for."""
    digest, decoder = hashlib.sha256(), codecs.getincrementaldecoder("utf-8")()
    lines = size = controls = open_line = 0
    unclean: tuple[int, str] | None = None
    with path.open("rb") as stream:
        while chunk := stream.read(_CHUNK):
            if not size:
                for start, name in _PACKED.items():
                    if chunk.startswith(start):
                        raise UserError(f"{path} is a {name} file; unpack it first")
                if chunk.startswith(b"PAR1"):
                    raise UserError(f"{path} is a Parquet file; let its name end in .parquet")
            size += len(chunk)
            found = len(chunk) - len(chunk.translate(None, _CONTROLS))
            controls += found
            long, open_line = _long_line(chunk, open_line)
            if unclean is None and found:
                first = min(at for c in _CONTROLS if (at := chunk.find(c)) >= 0)
                unclean = lines + chunk.count(b"\n", 0, first) + 1, f"a control character (U+{chunk[first]:04X})"
            elif unclean is None and long is not None:
                unclean = lines + chunk.count(b"\n", 0, max(0, long)) + 1, "a line of more than a megabyte"
            _check_utf8(decoder, chunk, path, lines)
            digest.update(chunk)
            lines += chunk.count(b"\n")
    _check_utf8(decoder, b"", path, lines, final=True)
    if controls > _MANY_CONTROLS * size:
        raise UserError(f"{path} is no text: {controls / size:.0%} of it are control characters; name a text file")
    if unclean is not None and not clean:
        line, what = unclean
        raise UserError(
            f"{path}:{line}: {what}; mend the file, or let long lines be cut and control characters removed with "
            "--clean_corpus"
        )
    return digest.hexdigest()


def _long_line(chunk: bytes, open_line: int) -> tuple[int | None, int]:
    """Where a line of more than a megabyte begins in a chunk, and how long the line is that the chunk leaves open.

    Args:
        chunk: the next bytes.
        open_line: how many bytes before them belong to the same line.
    """
    start, found = -open_line, None
    while True:
        stop = start + _LONG_LINE + 1
        last = chunk.rfind(b"\n", max(0, start), max(0, stop))
        if last < 0 and stop <= len(chunk):
            found = start if found is None else found
            last = chunk.find(b"\n", stop)
        if last < 0:
            return found, len(chunk) - start
        start = last + 1


def _check_utf8(decoder: Any, chunk: bytes, path: Path, lines: int, *, final: bool = False) -> None:
    try:
        decoder.decode(chunk, final)
    except UnicodeDecodeError as error:
        line = lines + bytes(error.object).count(b"\n", 0, error.start) + 1
        raise UserError(f"{path}:{line}: not UTF-8 text; convert the file to UTF-8, or name a text file") from error


def _parquet_columns(path: Path, wanted: Sequence[str] | None) -> tuple[tuple[str, ...], int]:
    """The text columns of a Parquet file, and how many bytes of them there are before compression."""
    import pyarrow
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(path) as file:
            schema, metadata = file.schema_arrow, file.metadata
            is_text = (pyarrow.types.is_string, pyarrow.types.is_large_string)
            texts = [f.name for f in schema if any(check(f.type) for check in is_text)]
            columns = choose_columns(texts, schema.names, wanted, str(path))
            size = 0
            for g in range(metadata.num_row_groups):
                group = metadata.row_group(g)
                for c in range(group.num_columns):
                    if group.column(c).path_in_schema in columns:
                        size += group.column(c).total_uncompressed_size
    except (OSError, pyarrow.ArrowException) as error:
        raise UserError(f"cannot read {path}: {one_line(error)}; write or download it again") from error
    return columns, size


@dataclass
class RowsCorpus:
    """A `datasets.Dataset` with text columns; a document a row.

    Raises:
        UserError: there is no text column.
    """

    rows: datasets.Dataset
    text_columns: tuple[str, ...] | None = None
    cleaner: Cleaner = field(default_factory=Cleaner)

    def __post_init__(self) -> None:
        self.name = "the data set"
        self.size: int | None = self.rows.dataset_size or self.rows.data.nbytes
        texts = [n for n, f in self.rows.features.items() if getattr(f, "dtype", None) in ("string", "large_string")]
        self._columns = choose_columns(texts, self.rows.column_names, self.text_columns, self.name)

    @property
    def identity(self) -> dict[str, Any]:
        return {"dataset": self.rows._fingerprint, "text_columns": list(self._columns)}

    def pieces(self) -> Iterator[Piece]:
        yield from row_pieces(self.rows, self._columns, self.cleaner, lambda number: f"{self.name}, row {number}")


@dataclass
class HubCorpus:
    """A stream of rows from the hub, or of a folder that `datasets` can read; never wholly downloaded.

    Args:
        dataset: its id or folder.
        config_name: which of its configurations.
        split: which split.
        revision: a commit, tag or branch of the hub's repository.
        text_columns: None looks for them.
        cache_dir: where `datasets` keeps what it downloads.

    Raises:
        UserError: it cannot be opened or has no text column.
    """

    dataset: str
    config_name: str | None = None
    split: str = "train"
    revision: str | None = None
    text_columns: tuple[str, ...] | None = None
    cache_dir: str | None = None
    cleaner: Cleaner = field(default_factory=Cleaner)

    def __post_init__(self) -> None:
        self.name = f"{self.dataset} ({self.split})"
        self.size: int | None = None

    @property
    def identity(self) -> dict[str, Any]:
        found: dict[str, Any] = {
            "hub": self.dataset,
            "config_name": self.config_name,
            "split": self.split,
            "revision": self.revision,
            "text_columns": self.text_columns,
        }
        folder = Path(self.dataset)
        if folder.is_dir():  # unlike a commit of the hub it changes under its name
            files = sorted(p for p in folder.rglob("*") if p.is_file() and not _hidden(p, folder))
            found["files"] = {p.relative_to(folder).as_posix(): _print(p) for p in files}
        return found

    def pieces(self) -> Iterator[Piece]:
        try:
            stream = datasets.load_dataset(
                self.dataset, self.config_name, split=self.split, revision=self.revision, cache_dir=self.cache_dir,
                streaming=True,
            )  # fmt: skip
            rows = iter(stream)
            first = next(rows, None)
        except Exception as error:  # the hub, its readers and every file format raise errors of their own
            raise UserError(f"cannot read {self.name}: {one_line(error)}; mend --dataset_name") from error
        if first is None:
            raise UserError(f"{self.name} has no rows; name another split with --dataset_split")
        texts = [name for name, value in first.items() if isinstance(value, str)]
        columns = choose_columns(texts, list(first), self.text_columns, self.name)
        yield from row_pieces(
            self._all(first, rows), columns, self.cleaner, lambda number: f"{self.name}, row {number}"
        )

    def _all(self, first: Any, rows: Iterator[Any]) -> Iterator[Any]:
        yield first
        try:
            yield from rows
        except Exception as error:
            raise StreamError(f"{self.name} broke off: {one_line(error)}; the same command goes on") from error
