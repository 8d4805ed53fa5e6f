"""Reading text files line by line, with messages that name the line."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from bert_emd.errors import UserError

__all__ = ["as_float32", "parse_number", "read_lines"]

_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?|[+-]?(inf|infinity|nan)", re.IGNORECASE)


def read_lines(path: Path) -> list[str]:
    """Return the lines of a UTF-8 file, without their ends and without a byte-order mark.

    Lines end at ``\\n`` only (one ``\\r`` before it is removed): other characters that Python takes for line ends,
    such as ``\\x85``, occur inside the texts of real data sets. Raises `UserError` for a file that is missing,
    empty or not UTF-8 (with the line).
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        # `error.object` is what was decoded: the bytes after a byte-order mark, which has no line end in it.
        line = bytes(error.object).count(b"\n", 0, error.start) + 1
        raise UserError(f"{path}:{line}: not UTF-8 text: convert the file to UTF-8") from error
    if not text.strip():
        raise UserError(f"{path} is empty: it should hold a header and rows of data")
    lines = text.split("\n")
    if not lines[-1]:
        del lines[-1]
    return [line.removesuffix("\r") for line in lines]


def parse_number(text: str) -> float | None:
    """Return the number that a text spells (it may be infinite or not a number), or None where it spells none."""
    text = text.strip()
    # Stricter than `float`, which also takes "1_000" and digits of other scripts.
    return float(text) if text.isascii() and _NUMBER.fullmatch(text) else None


def as_float32(value: float) -> float:
    """Return the shortest decimal number that rounds to the same float32.

    The hub stores scores as float32 and the TSV files as decimals; after this both sources hold equal numbers.
    """
    return float(str(np.float32(value)))
