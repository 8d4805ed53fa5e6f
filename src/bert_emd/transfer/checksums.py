"""Checksums of files: SHA-256 and MD5 as publishers give them, and Git's SHA-1 as the hub gives it for small files."""

from __future__ import annotations

import hashlib
from pathlib import Path

__all__ = ["checksum_fault", "checksum_of", "sha256"]

_BLOCK = 1 << 20
_NAMES = {"sha256": "SHA-256", "md5": "MD5", "git": "Git id"}


def sha256(path: Path) -> str:
    """Return a file's SHA-256 in hexadecimal."""
    return checksum_of(path, "sha256")


def checksum_of(path: Path, kind: str) -> str:
    """Return a file's checksum in hexadecimal.

    Args:
        path: the file.
        kind: sha256; md5; or git, the SHA-1 of a header with the size and of the bytes, which is the name that Git
            gives to a file's content.
    """
    if kind == "sha256":
        made = hashlib.sha256()
    elif kind == "md5":
        made = hashlib.md5(usedforsecurity=False)
    else:
        made = hashlib.sha1(f"blob {path.stat().st_size}\0".encode(), usedforsecurity=False)
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            made.update(block)
    return made.hexdigest()


def checksum_fault(path: Path, checksum: str | None) -> str | None:
    """Say what is wrong with a file, or None where it has the checksum or there is none to compare with.

    Args:
        path: the file.
        checksum: in hexadecimal; one that is not a SHA-256 begins with ``md5:`` or ``git:`` (`checksum_of`).
    """
    if checksum is None:
        return None
    kind, _, wanted = checksum.rpartition(":")
    found = checksum_of(path, kind or "sha256")
    if found == wanted:
        return None
    return f"its {_NAMES[kind or 'sha256']} is {found[:12]}… and should be {wanted[:12]}…"
