"""Where a publisher's file may be had: from the publisher, from a mirror of it, or from a folder."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import unquote, urlsplit

from bert_emd.errors import UserError

__all__ = ["addresses", "is_local", "masked", "mirror_folder"]

_SECRET = re.compile(r"(?<=//)[^/@]*@")


def addresses(host: str, path: str, mirror: str | None) -> tuple[str | Path, ...]:
    """Return the places to look for a file in, in that order.

    Args:
        host: the publisher's, with its scheme.
        path: the file's path there.
        mirror: None, or a base address or folder that stands for the host; in it the file lies at its path, or right
            at the top under its name.

    Raises:
        UserError: the mirror is neither an address nor a folder.

    >>> addresses("https://a.example", "glue/data/CoLA.zip", "https://b.example/copy/")
    ('https://b.example/copy/glue/data/CoLA.zip', 'https://b.example/copy/CoLA.zip')
    """
    name = path.rpartition("/")[2]
    if mirror is None:
        return (f"{host}/{path}",)
    if is_local(mirror):
        folder = mirror_folder(mirror)
        return (folder / path, folder / name)
    base = mirror.rstrip("/")
    return (f"{base}/{path}", f"{base}/{name}")


def is_local(mirror: str) -> bool:
    """Whether a mirror is a folder and not an address."""
    return urlsplit(mirror).scheme not in ("http", "https")


def mirror_folder(mirror: str) -> Path:
    """Return the folder that a mirror names, by its path or by ``file://``.

    Raises:
        UserError: there is no such folder.
    """
    split = urlsplit(mirror)
    folder = Path(unquote(split.path)) if split.scheme == "file" else Path(mirror)
    if not folder.is_dir():
        raise UserError(f"mirror {masked(mirror)} is no folder; give an address that begins https://, or a folder")
    return folder


def masked(address: str | Path) -> str:
    """Return an address for messages and records: without user name and password.

    >>> masked("https://me:secret@b.example/copy")
    'https://…@b.example/copy'
    """
    return _SECRET.sub("…@", str(address))
