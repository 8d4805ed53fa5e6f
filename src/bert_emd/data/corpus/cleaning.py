"""Text that any tokenizer can take: no control characters, no piece longer than memory should hold."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

__all__ = ["PIECE", "Cleaner", "cut"]

PIECE = 20_000
"""Characters of a document that are tokenised at a time."""

# Line ends of all kinds and tabs part words; every other control character, a byte-order mark in the middle of a text,
# and what takes the place of damaged bytes belong to no word.
_SPACES = re.compile("[\t\n\v\f\r\x85\u2028\u2029]")
_REMOVED = re.compile("[\x00-\x08\x0e-\x1f\x7f-\x84\x86-\x9f\ufeff\ufffd\ufffe\uffff]")
_SPACE = re.compile(r"\s")


@dataclass
class Cleaner:
    """Removes control characters and counts them.

    >>> cleaner = Cleaner()
    >>> cleaner("one\\x00 two\\x85three"), cleaner.removed
    ('one two three', 1)
    """

    removed: int = 0

    def __call__(self, text: str) -> str:
        text, count = _REMOVED.subn("", text)
        self.removed += count
        return _SPACES.sub(" ", text)


def cut(text: str, limit: int = PIECE) -> Iterator[str]:
    """Cut a text into parts of at most ``limit`` characters, in front of white space where there is any.

    The parts joined are the text; what has no white space (base64, a script that does not part its words) is cut
    at the limit.

    >>> list(cut("one two three", 8))
    ['one two', ' three']
    >>> list(cut("abcdefgh", 3))
    ['abc', 'def', 'gh']
    """
    start = 0
    while len(text) - start > limit:
        end = start + limit
        if not text[end].isspace():
            # Half a part back is far enough: words are shorter.
            found = [m.start() for m in _SPACE.finditer(text, start + limit // 2, end)]
            end = found[-1] if found and found[-1] > start else end
        yield text[start:end]
        start = end
    yield text[start:]
