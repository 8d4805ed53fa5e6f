"""Which tokens of a tokenizer are whole words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

__all__ = ["Vocabulary"]

_SPACE_MARKS = ("Ġ", "▁")
_SUFFIX_MARK = "##"


class Vocabulary:
    """A tokenizer's tokens, and the word that each is, where it is one.

    In a vocabulary of word pieces these are the tokens without ``##``; where tokens carry the space before them (``Ġ``,
    ``▁``), those that do.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer
        self.tokens: list[str] = list(tokenizer.convert_ids_to_tokens(range(len(tokenizer))))
        self._mark = self._space_mark()
        special = set(tokenizer.all_special_ids)
        self.words: list[str | None] = [
            None if i in special else self._word(token) for i, token in enumerate(self.tokens)
        ]
        """The word that each token is, by token id; None for pieces, special tokens and signs."""

    def _space_mark(self) -> str | None:
        pieces = sum(token.startswith(_SUFFIX_MARK) for token in self.tokens)
        counts = {mark: sum(token.startswith(mark) for token in self.tokens) for mark in _SPACE_MARKS}
        mark = max(counts, key=counts.__getitem__)
        return mark if counts[mark] > pieces else None

    def _word(self, token: str) -> str | None:
        if self._mark is None:
            word = None if token.startswith(_SUFFIX_MARK) else token
        elif token.startswith(self._mark):
            # Byte-level vocabularies spell letters beyond ASCII in signs of their own.
            word = self.tokenizer.convert_tokens_to_string([token]).strip()
        else:
            word = None
        return word if word and word.isalpha() else None

    def pieces(self, words: Sequence[str]) -> list[list[int]]:
        """Return the token ids of each word as it stands inside a sentence."""
        if not words:
            return []
        written = [f" {word}" for word in words] if self._mark == "Ġ" else list(words)
        coded: Any = self.tokenizer(written, add_special_tokens=False, verbose=False)["input_ids"]
        return [list(ids) for ids in coded]
