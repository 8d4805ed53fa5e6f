"""Sizes, and whether a disk has room for them."""

from __future__ import annotations

import shutil
from pathlib import Path

from bert_emd.errors import UserError

__all__ = ["check_room", "megabytes"]

_STEP = 1000.0


def megabytes(size: float) -> str:
    """Return a size as people read it.

    >>> megabytes(28_999), megabytes(312_783_507), megabytes(1_344_997_306)
    ('29.0 kB', '312.8 MB', '1.3 GB')
    """
    for unit in ("kB", "MB"):
        size /= _STEP
        if size < _STEP:
            return f"{size:.1f} {unit}"
    return f"{size / _STEP:.1f} GB"


def check_room(folder: Path, needed: int) -> None:
    """Refuse to begin what the disk has no room for.

    Args:
        folder: where it goes; it need not be there yet.
        needed: bytes.

    Raises:
        UserError: less is free.
    """
    there = next(place for place in (folder.absolute(), *folder.absolute().parents) if place.exists())
    free = shutil.disk_usage(there).free
    if free < needed:
        raise UserError(
            f"{folder} has no room: {megabytes(needed)} are needed and {megabytes(free)} are free; make room, or name "
            "a folder on another disk"
        )
