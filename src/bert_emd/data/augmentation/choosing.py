"""Drawing a row's variants from the candidates of its words."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from bert_emd.data.augmentation.rows import RowFormat
from bert_emd.data.augmentation.words import in_case_of
from bert_emd.data.augmented import row_key

__all__ = ["Drawn", "Slot", "Variants"]

Slot = tuple[int, int, tuple[str, ...]]
"""A word's start and end in its text, and what may take its place."""

# A short text with few candidates has fewer variants than are asked for: give up after so many draws for each.
_DRAWS = 5


@dataclass(frozen=True, slots=True)
class Drawn:
    """A source row and its variants, each as the line that is written and the key that tells it apart."""

    source: str
    lines: list[str]
    keys: list[bytes]


@dataclass(frozen=True, kw_only=True)
class Variants:
    """Draws variants: every word is replaced with probability ``p`` by one of its candidates, all alike."""

    format: RowFormat
    count: int
    """Variants of each text; of a pair, first so many with another first text, then with another second one."""
    p: float
    seed: int

    def of_row(self, row: int, record: object, texts: Sequence[str], slots: Sequence[Sequence[Slot]]) -> Drawn:
        """The variants of one row: no two alike and none like the row itself.

        What is drawn depends on the seed, the row's number and its candidates alone.

        Args:
            row: its number in the source.
            record: its fields, as the format keeps them.
            texts: its one or two texts.
            slots: the replaceable words of each.
        """
        # Python promises that random() draws the same from the same seed in every version.
        draw = random.Random(f"{self.seed}:{row}").random
        taken = {row_key(*texts)}
        lines, keys = [], []
        for column in range(len(texts)):
            for changed in self._of_text(texts, column, slots[column], taken, draw):
                keys.append(row_key(*changed))
                lines.append(self.format.line(record, changed))
        return Drawn(source=self.format.line(record, None), lines=lines, keys=keys)

    def _of_text(
        self, texts: Sequence[str], column: int, slots: Sequence[Slot], taken: set[bytes], draw: Callable[[], float]
    ) -> list[list[str]]:
        text = texts[column]
        words = [
            (start, end, [in_case_of(text[start:end], word) for word in candidates])
            for start, end, candidates in slots
            if candidates
        ]
        found: list[list[str]] = []
        for _ in range(_DRAWS * self.count if words else 0):
            parts, at = [], 0
            for start, end, candidates in words:
                if draw() < self.p:
                    parts += [text[at:start], candidates[int(draw() * len(candidates))]]
                    at = end
            if not at:
                continue
            changed = list(texts)
            changed[column] = "".join([*parts, text[at:]])
            key = row_key(*changed)
            if key not in taken:
                taken.add(key)
                found.append(changed)
                if len(found) == self.count:
                    break
        return found
