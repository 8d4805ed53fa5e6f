"""What may take the place of each word: from the masked language model, and from nearest neighbours."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from bert_emd.data.augmentation import Slot, WordRules, WordTable
from bert_emd.models.masked_lm import Encoder, MaskedWords

__all__ = ["Candidates", "Neighbours", "own_table"]


def own_table(encoder: Encoder, stop_words: frozenset[str]) -> WordTable:
    """The words of an encoder's vocabulary with its input embeddings."""
    from bert_emd.data.augmentation import may_replace

    vectors = encoder.word_vectors()
    places = [
        i
        for i, word in enumerate(encoder.vocabulary.words)
        if word is not None and may_replace(word, stop_words) and vectors[i].any()
    ]
    return WordTable([str(encoder.vocabulary.words[i]) for i in places], vectors[places])


@dataclass
class Neighbours:
    """A word's nearest neighbours in a table, each word looked up once.

    With an encoder the table is its own and a word's embedding the mean of its pieces'; without one only words of the
    table have neighbours.
    """

    table: WordTable
    count: int
    least: float
    encoder: Encoder | None = None
    _known: dict[str, tuple[str, ...]] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        # Taken now: the model may be turned into bfloat16 or moved afterwards.
        self._vectors = None if self.encoder is None else self.encoder.word_vectors()

    def of(self, words: Sequence[str]) -> list[tuple[str, ...]]:
        """Return the neighbours of each word, nearest first; never the word itself, nor a piece of it."""
        new = sorted({word for word in words if word not in self._known})
        if new:
            self._look_up(new)
        return [self._known[word] for word in words]

    def _look_up(self, words: list[str]) -> None:
        vectors: list[np.ndarray] = []
        found: list[str] = []
        leave_out: list[set[str]] = []
        pieces = self.encoder.vocabulary.pieces(words) if self.encoder is not None else [[]] * len(words)
        for word, ids in zip(words, pieces, strict=True):
            out = {word.lower()}
            vector = self.table.vector(word)
            if self.encoder is not None and self._vectors is not None and ids:
                vector = self._vectors[ids].mean(0)
                own = (self.encoder.vocabulary.words[i] for i in ids)
                out |= {part.lower() for part in own if part is not None}
            if vector is None or not vector.any():
                self._known[word] = ()
                continue
            found.append(word)
            vectors.append(vector)
            leave_out.append(out)
        if found:
            nearest = self.table.nearest(np.stack(vectors), leave_out, self.count, self.least)
            self._known.update(zip(found, nearest, strict=True))


@dataclass(frozen=True)
class Candidates:
    """The replaceable words of texts, each with its candidates."""

    rules: WordRules
    neighbours: Neighbours
    masked: MaskedWords | None = None

    def of(self, texts: Sequence[str]) -> dict[str, list[Slot]]:
        """Return, for each different text, its words' places and candidates."""
        different = list(dict.fromkeys(texts))
        words = [self.rules.find(text) for text in different]
        spans = [[(word.start, word.end) for word in part] for part in words]
        none: list[list[tuple[str, ...] | None]] = [[None] * len(part) for part in words]
        best = none if self.masked is None else self.masked.of(different, spans)
        several = [
            word.text
            for part, found in zip(words, best, strict=True)
            for word, candidates in zip(part, found, strict=True)
            if candidates is None
        ]
        near = dict(zip(several, self.neighbours.of(several), strict=True))
        return {
            text: [
                (word.start, word.end, near[word.text] if candidates is None else candidates)
                for word, candidates in zip(part, found, strict=True)
            ]
            for text, part, found in zip(different, words, best, strict=True)
        }
