"""What a publisher offers under one name: the files to fetch, and the folder of files that they become."""

from __future__ import annotations

import enum
from dataclasses import dataclass

__all__ = ["Bundle", "Kind", "Member", "Remote"]


class Kind(enum.Enum):
    """How the files of a folder come out of what is fetched."""

    ARCHIVE = "unpacked from one archive, in which they lie in a folder of the bundle's name"
    PLAIN = "one file, which only takes its name in the folder"
    MRPC = "built from the paraphrase corpus by the rule of GLUE"


@dataclass(frozen=True, kw_only=True)
class Remote:
    """A file on a publisher's server."""

    host: str
    path: str
    size: int | None = None
    """Bytes, where they are published."""
    sha256: str | None = None
    """Where it is published."""

    @property
    def name(self) -> str:
        """Its own name."""
        return self.path.rpartition("/")[2]


@dataclass(frozen=True, kw_only=True)
class Member:
    """A file of the folder, as it must be."""

    name: str
    checksum: str | None = None
    """As `bert_emd.transfer.checksum_fault` takes it, where it is known."""
    rows: int | None = None
    """Examples in it, by which it is told where its checksum is not known."""


@dataclass(frozen=True, kw_only=True)
class Bundle:
    """A task of GLUE, or a published checkpoint."""

    name: str
    folder: str
    kind: Kind
    remotes: tuple[Remote, ...]
    members: tuple[Member, ...]
    also: tuple[str, ...] = ()
    """Files that are taken along where the archive has them: terms of use."""

    @property
    def size(self) -> int | None:
        """Bytes to fetch, where they are published."""
        sizes = [remote.size for remote in self.remotes]
        return None if None in sizes else sum(size for size in sizes if size is not None)
