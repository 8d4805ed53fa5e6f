"""The folder of what is under way: one download at a time, and gone when nothing is left in it."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import filelock

from bert_emd.errors import UserError
from bert_emd.transfer.room import check_room

__all__ = ["workplace"]

_NAME, _LOCK = ".downloads", "lock"


@contextmanager
def workplace(root: Path, needed: Iterable[tuple[str, int]]) -> Iterator[Path]:
    """While it lasts, no other download works in ``root``; gives the folder in it for what is under way.

    What an interrupted download leaves there is kept for the next one.

    Args:
        root: the folder that gets the results; made where it is not there.
        needed: path in the folder for what is under way and bytes of each file that is going to be fetched.

    Raises:
        UserError: another download is at work there, the disk has no room, or the folder cannot be made.
    """
    work, new = root / _NAME, not root.exists()
    try:
        work.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{root} cannot be made: {error.strerror or error}; name another folder") from error
    lock = filelock.FileLock(work / _LOCK, timeout=0)
    try:
        lock.acquire()
    except filelock.Timeout as error:
        raise UserError(f"another download is at work in {root}; wait until it has ended") from error
    except OSError as error:
        raise UserError(f"{root} cannot be written to: {error.strerror or error}; name another folder") from error
    try:
        check_room(root, sum(max(0, size - _there(work / path)) for path, size in needed))
        yield work
    finally:
        lock.release()
        if {path.name for path in work.iterdir()} <= {_LOCK}:
            shutil.rmtree(work, ignore_errors=True)
            if new:
                with suppress(OSError):  # it is not empty: all went well
                    root.rmdir()


def _there(path: Path) -> int:
    """Bytes of a file that are there, under its name or as a part."""
    places = (path, path.with_name(f"{path.name}.part"))
    return max((place.stat().st_size for place in places if place.is_file()), default=0)
