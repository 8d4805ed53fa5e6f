"""Nearest neighbours of words in a table of embeddings, and such a table from a GloVe file."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bert_emd.errors import UserError

__all__ = ["WordTable", "read_glove"]

# Similarities held at a time, of float32: 64 MiB.
_HELD = 1 << 24
# How far float32 similarities may be off, so that what may belong to the nearest is looked at again in float64.
_SLACK = 1e-5
# Bytes of a line: far more than any embedding takes.
_LONGEST = 1 << 20


class WordTable:
    """Words and their embeddings, in which nearest neighbours are found by cosine.

    Words that differ only in case are one word, the first one of the table.

    Args:
        words: the words that may be neighbours, in order.
        vectors: [V, d] their embeddings, none of them zero.
    """

    def __init__(self, words: Sequence[str], vectors: np.ndarray) -> None:
        first: dict[str, int] = {}
        for i, word in enumerate(words):
            first.setdefault(word.lower(), i)
        self.words = [words[i] for i in first.values()]
        self.place = {word: k for k, word in enumerate(first)}
        kept = np.ascontiguousarray(vectors[list(first.values())], dtype=np.float32)
        self.vectors: np.ndarray = kept / np.linalg.norm(kept, axis=1, keepdims=True)

    def fingerprint(self) -> str:
        """Return a sha256 over words and embeddings."""
        digest = hashlib.sha256("\n".join(self.words).encode())
        digest.update(self.vectors.tobytes())
        return digest.hexdigest()

    def vector(self, word: str) -> np.ndarray | None:
        """Return a word's embedding, [d], whatever its case; None where the table lacks it."""
        place = self.place.get(word.lower())
        return None if place is None else self.vectors[place]

    def nearest(
        self, queries: np.ndarray, leave_out: Sequence[Collection[str]], count: int, least: float
    ) -> list[tuple[str, ...]]:
        """Return the nearest words of each query, the nearest first.

        What is found for one query does not depend on the others, to the last bit.

        Args:
            queries: [Q, d] embeddings.
            leave_out: for each query, the words in lower case that are no neighbours of it.
            count: how many neighbours at most.
            least: neighbours whose cosine is below this are left out.
        """
        found: list[tuple[str, ...]] = []
        step = max(1, _HELD // max(len(self.words), 1))
        for start in range(0, len(queries), step):
            part = queries[start : start + step].astype(np.float32)
            part /= np.maximum(np.linalg.norm(part, axis=1, keepdims=True), np.finfo(np.float32).tiny)
            similar = part @ self.vectors.T
            for row, query in enumerate(part):
                found.append(self._of_one(similar[row], query, leave_out[start + row], count, least))
        return found

    def _of_one(
        self, similar: np.ndarray, query: np.ndarray, leave_out: Collection[str], count: int, least: float
    ) -> tuple[str, ...]:
        out = [self.place[word] for word in leave_out if word in self.place]
        similar[out] = -np.inf
        k = min(count, len(similar) - len(out))
        if k <= 0:
            return ()
        bound = max(float(np.partition(similar, len(similar) - k)[len(similar) - k]), least) - _SLACK
        near = np.flatnonzero(similar >= bound)
        # Large products round differently in every shape; these sums are taken in one order always.
        exact = (self.vectors[near].astype(np.float64) * query.astype(np.float64)).sum(1)
        order = np.lexsort((near, -exact))[:count]
        return tuple(self.words[near[i]] for i in order if exact[i] >= least)


def read_glove(path: str | Path, keep: Callable[[str], bool], most: int) -> WordTable:
    """Read a GloVe text file: a word and its numbers a line, parted by spaces.

    A first line with two whole numbers, as word2vec writes it, is passed over; so are words that hold a space, and
    vectors of zeros.

    Args:
        path: a UTF-8 file, the frequent words first.
        keep: whether a word may be a neighbour; the others are read and checked, and not kept.
        most: how many lines are read; 0 reads them all.

    Raises:
        UserError: a file that cannot be read or has no such words, and, naming the line, a row of another width, a
            number that is none, or bytes that are not UTF-8.
    """
    path = Path(path)
    words: list[str] = []
    vectors: list[np.ndarray] = []
    width: int | None = None
    rows = 0
    try:
        with path.open("rb") as stream:
            for number, raw in enumerate(iter(lambda: stream.readline(_LONGEST + 1), b""), start=1):
                if len(raw) > _LONGEST:
                    raise UserError(f"glove_embs {path}:{number}: a line of megabytes; name a GloVe text file")
                if most and rows == most:
                    break
                fields = _fields(raw, path, number)
                if number == 1 and len(fields) == 2 and all(part.isdigit() for part in fields):
                    continue
                if not fields:
                    continue
                rows += 1
                width = len(fields) - 1 if width is None else width
                vector = _vector(fields, width, path, number)
                if vector is not None and keep(fields[0]) and vector.any():
                    words.append(fields[0])
                    vectors.append(vector)
    except OSError as error:
        raise UserError(f"glove_embs {path} cannot be read: {error.strerror or error}") from error
    if not words:
        raise UserError(f"glove_embs {path} holds no words with embeddings; name a GloVe text file")
    return WordTable(words, np.stack(vectors))


def _fields(raw: bytes, path: Path, number: int) -> list[str]:
    try:
        # Only spaces and tabs part fields: words of some files hold other white space.
        return raw.decode("utf-8").rstrip("\r\n").strip(" ").replace("\t", " ").split(" ") if raw.strip() else []
    except UnicodeDecodeError:
        raise UserError(f"glove_embs {path}:{number}: not UTF-8 text; name a GloVe text file") from None


def _vector(fields: list[str], width: int, path: Path, number: int) -> np.ndarray | None:
    """The numbers of a row, [width]; None where its word holds a space."""
    if width < 2:
        raise UserError(
            f"glove_embs {path}:{number}: a row is a word and its numbers, parted by spaces; found {fields[0][:40]!r}"
        )
    extra = len(fields) - 1 - width
    if extra < 0 or (extra > 0 and all(_is_number(part) for part in fields[1 : 1 + extra])):
        raise UserError(
            f"glove_embs {path}:{number}: expected {width} numbers as in the first row, found {len(fields) - 1}"
        )
    numbers: Any = fields[1 + extra :]
    try:
        vector = np.array(numbers, dtype=np.float32)
    except ValueError:
        bad = next(part for part in numbers if not _is_number(part))
        raise UserError(f"glove_embs {path}:{number}: {bad[:40]!r} is not a number; mend or remove the row") from None
    if not np.isfinite(vector).all():
        raise UserError(f"glove_embs {path}:{number}: a number is not finite; mend or remove the row")
    return None if extra else vector


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
