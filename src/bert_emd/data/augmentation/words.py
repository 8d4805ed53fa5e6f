"""Which words of a text may be replaced, by which words, and in which case."""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass, field
from pathlib import Path

from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS

from bert_emd.data.text import read_lines
from bert_emd.errors import UserError

__all__ = ["STOP_WORDS", "Word", "WordRules", "in_case_of", "may_replace", "read_stop_words"]

# scikit-learn's list has these, which say what a sentence is about.
_CONTENT = (
    "amoungst amount bill bottom call con cry describe detail fill find fire found front full interest mill move name "
    "part put see serious show side sincere system thick thin top"
)
# Numbers in words are numbers; the rest is what is left of a contraction where its apostrophe parts it.
_MORE = (
    "seven thirteen fourteen sixteen seventeen eighteen nineteen thirty seventy eighty ninety thousand million billion "
    "trillion dozen zero half quarter second seventh tenth "
    "ain aren couldn didn doesn don hadn hasn haven isn ll mustn needn shan shouldn ve wasn weren won wouldn "
    "does did doing having just theirs"
)
STOP_WORDS: frozenset[str] = ENGLISH_STOP_WORDS - frozenset(_CONTENT.split()) | frozenset(_MORE.split())
"""English words that stay as they are: function words, negations, numbers."""

_LETTERS = re.compile(r"[^\W\d_]+")
_CHUNK = re.compile(r"\S+")
# Numbers with what hangs on them, addresses, paths, markup, abbreviations with points.
_NO_PROSE = re.compile(r"[\d@_\\<>{}|]|://|www\.|&\w+;|\w\.\w|\w/\w")
_APOSTROPHES = "'’"
_CHARACTERS_A_WORD = 50


@dataclass(frozen=True, slots=True)
class Word:
    """A word and where it stands in its text."""

    start: int
    end: int
    text: str


@dataclass(frozen=True, kw_only=True)
class WordRules:
    """Says which words of a text may be replaced.

    These are runs of letters (of any script) that are no stop words and longer than one letter. Left alone is all that
    hangs on a digit, addresses, paths, markup, abbreviations with points, and both halves of a contraction
    (``don't``); of ``firm's`` the ``firm`` may change.
    """

    stop_words: frozenset[str] = field(default=STOP_WORDS, repr=False)
    """In lower case."""
    limit: int = 128
    """Only the first so many words of a text, since what lies behind is not read by a model."""

    def find(self, text: str) -> list[Word]:
        """Return the words that may be replaced, in order.

        >>> [word.text for word in WordRules().find("He didn't buy 3 of the firm's old planes, see www.firm.com")]
        ['buy', 'firm', 'old', 'planes', 'see']
        """
        # A line may be megabytes long: what lies behind the limit is not looked at.
        most = self.limit * _CHARACTERS_A_WORD
        seen = text[:most]
        found: list[Word] = []
        count = 0
        for chunk in _CHUNK.finditer(seen):
            if chunk.end() == most < len(text):
                break
            odd = _NO_PROSE.search(chunk[0]) is not None
            for match in _LETTERS.finditer(seen, chunk.start(), chunk.end()):
                count += 1
                if count > self.limit:
                    return found
                if not odd and self._may_change(match[0]) and _stands_alone(seen, match.start(), match.end()):
                    found.append(Word(match.start(), match.end(), match[0]))
        return found

    def _may_change(self, word: str) -> bool:
        return len(word) > 1 and word.lower() not in self.stop_words


def may_replace(word: str, stop_words: frozenset[str] = STOP_WORDS) -> bool:
    """Whether a word of a vocabulary may take another's place: letters only, no stop word, and three letters or more
    where they are ASCII, since shorter ones are mostly pieces of words.

    >>> [word for word in ("house", "the", "x1", "rec", "ab", "家") if may_replace(word)]
    ['house', 'rec', '家']
    """
    if not word.isalpha() or (len(word) < 3 and word.isascii()):
        return False
    return word.lower() not in stop_words


def in_case_of(word: str, replacement: str) -> str:
    """Return the replacement written as the word is: in capitals, with a capital, or as it stands.

    >>> in_case_of("Dog", "cat"), in_case_of("DOG", "cat"), in_case_of("dog", "Paris")
    ('Cat', 'CAT', 'Paris')
    """
    if len(word) > 1 and word.isupper():
        return replacement.upper()
    if word[0].isupper():
        return replacement[0].upper() + replacement[1:]
    return replacement


def read_stop_words(path: str | Path) -> frozenset[str]:
    """Read words that stay, one a line.

    Raises:
        UserError: the file cannot be read, or a line holds more than a word.
    """
    words = set()
    for number, line in enumerate(read_lines(Path(path)), start=1):
        word = line.strip()
        if len(word.split()) > 1:
            raise UserError(f"{path}:{number}: write one stop word a line")
        if word:
            words.add(word.lower())
    return frozenset(words)


def _stands_alone(text: str, start: int, end: int) -> bool:
    """Whether these letters are a word: no accent parts them, and they are no half of a contraction."""
    before, after = text[start - 1 : start] if start else "", text[end : end + 1]
    if any(mark and unicodedata.category(mark).startswith("M") for mark in (before, after)):
        return False
    if before and before in _APOSTROPHES and start > 1 and text[start - 2].isalpha():
        return False
    if after and after in _APOSTROPHES:
        tail = _LETTERS.match(text, end + 1)
        return tail is None or tail[0].lower() == "s"
    return True
