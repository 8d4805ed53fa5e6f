"""From documents of token ids to sequences of one length, without a token wasted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from bert_emd.errors import UserError

__all__ = ["Packer", "SequenceForm"]


@dataclass(frozen=True, kw_only=True)
class SequenceForm:
    """What stands around the text of a sequence, and how long it is in all.

    ``[CLS] document one [SEP] document two [SEP]`` for BERT: prefix, text, suffix.
    """

    length: int
    prefix: tuple[int, ...]
    suffix: tuple[int, ...]
    separator: int
    pad: int

    @property
    def room(self) -> int:
        """Tokens of text in a sequence, separators between documents among them."""
        return self.length - len(self.prefix) - len(self.suffix)


class Packer:
    r"""Cuts the stream of documents into sequences.

    The documents are written one behind the other with one separator between two of them, and the stream is cut into
    parts of ``form.room`` tokens, each between prefix and suffix. Where a part would begin with a separator, that one
    is left out: the suffix of the sequence before parts the documents already. So no text is lost or doubled, only the
    very last sequence is padded, and a document may go on in the next sequence.

    With ``short`` above 0 a sequence ends early with that probability, at a length drawn uniformly from prefix, suffix
    and two tokens up to the whole; such a sequence is padded. The draw depends on ``seed`` and the sequence's number
    alone.

    Args:
        form: prefix, suffix, separator and length.
        short: that probability.
        seed: for the draws.

    Raises:
        UserError: the length leaves no room for text.

    >>> form = SequenceForm(length=6, prefix=(101,), suffix=(102,), separator=102, pad=0)
    >>> packer = Packer(form)
    >>> packer.add([1, 2, 3], ends_document=True)
    >>> packer.add([4, 5, 6, 7], ends_document=True)
    >>> packer.finish()
    >>> rows, lengths = packer.take()
    >>> rows.tolist(), lengths.tolist()
    ([[101, 1, 2, 3, 102, 102], [101, 4, 5, 6, 7, 102]], [6, 6])
    """

    def __init__(self, form: SequenceForm, *, short: float = 0.0, seed: int = 0) -> None:
        if form.room < 2:
            special = form.length - form.room
            raise UserError(f"max_seq_length {form.length} leaves no room for text: {special} special tokens are added")
        self.form, self.short, self.seed = form, short, seed
        self.count = 0
        """Sequences made so far."""
        self._waiting: list[np.ndarray] = []
        self._size = 0
        self._open = False
        self._rows: list[np.ndarray] = []
        self._lengths: list[int] = []

    def add(self, ids: Sequence[int] | np.ndarray, *, ends_document: bool) -> None:
        """Put the next part of a document on the stream."""
        if len(ids):
            self._waiting.append(np.asarray(ids, dtype=np.int64))
            self._size += len(ids)
            self._open = True
        if ends_document and self._open:
            self._waiting.append(np.array([self.form.separator], dtype=np.int64))
            self._size += 1
            self._open = False
        # Joining the parts each time would copy the stream again and again.
        if self._size > 64 * self.form.length:
            self._cut()

    def finish(self) -> None:
        """The corpus is over: what is left becomes the last, padded sequence."""
        self._cut()
        rest = self._stream()
        if len(rest) and rest[0] == self.form.separator:
            rest = rest[1:]
        if len(rest) and rest[-1] == self.form.separator and not self._open:
            rest = rest[:-1]
        self._waiting, self._size = [], 0
        if len(rest):
            self._emit(rest)

    def take(self) -> tuple[np.ndarray, np.ndarray]:
        """The sequences [n, length] made since the last call, and their lengths without padding [n]."""
        self._cut()
        rows = np.stack(self._rows) if self._rows else np.zeros((0, self.form.length), dtype=np.int64)
        lengths = np.array(self._lengths, dtype=np.int64)
        self._rows, self._lengths = [], []
        return rows, lengths

    @property
    def state(self) -> dict[str, object]:
        """What is needed to go on after `take`."""
        return {"count": self.count, "waiting": self._stream().tolist(), "open": self._open}

    def restore(self, state: dict[str, object]) -> None:
        """Go on from a `state`."""
        waiting = np.array(state["waiting"], dtype=np.int64)
        self._waiting, self._size = [waiting] if len(waiting) else [], len(waiting)
        self.count, self._open = int(str(state["count"])), bool(state["open"])

    def _stream(self) -> np.ndarray:
        if len(self._waiting) != 1:
            self._waiting = [np.concatenate(self._waiting)] if self._waiting else [np.zeros(0, dtype=np.int64)]
        return self._waiting[0]

    def _cut(self) -> None:
        stream, start = self._stream(), 0
        while start < len(stream):
            begin = start + int(stream[start] == self.form.separator)
            end = begin + self._room()
            # A part that ends the stream may yet be the last one, which keeps no separator at its end.
            if end >= len(stream):
                break
            self._emit(stream[begin:end])
            start = end
        self._waiting, self._size = [stream[start:]], len(stream) - start

    def _room(self) -> int:
        if not self.short:
            return self.form.room
        chance = np.random.default_rng([self.seed, self.count])
        return int(chance.integers(2, self.form.room + 1)) if chance.random() < self.short else self.form.room

    def _emit(self, text: np.ndarray) -> None:
        form = self.form
        row = np.full(form.length, form.pad, dtype=np.int64)
        length = len(form.prefix) + len(text) + len(form.suffix)
        row[: len(form.prefix)] = form.prefix
        row[len(form.prefix) : length - len(form.suffix)] = text
        row[length - len(form.suffix) : length] = form.suffix
        self._rows.append(row)
        self._lengths.append(length)
        self.count += 1
