"""Unpacking an archive that nobody vouches for: whole and inside its folder, or not at all."""

from __future__ import annotations

import bz2
import gzip
import lzma
import os
import re
import shutil
import stat
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, cast

from bert_emd.errors import UserError

__all__ = ["is_archive", "unpack"]

GIB = 1 << 30
_CHUNK = 1 << 20
_ALWAYS_FINE = 64 << 20
"""Up to this many bytes may be unpacked whatever the ratio: a small archive of zeros is no bomb."""
_HEADER = 1 << 20
"""What a tar may spend between the end of one member and the start of the next one's data."""
_PART = 255  # bytes of a file name that file systems take
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_UNREADABLE = (
    zipfile.BadZipFile, tarfile.TarError, gzip.BadGzipFile, zlib.error, lzma.LZMAError, EOFError, NotImplementedError,
    RuntimeError, UnicodeError, OverflowError, ValueError,
)  # fmt: skip


def is_archive(path: Path) -> bool:
    """Whether a file begins as an archive that `unpack` knows does, whatever it is called."""
    return _kind(path) is not None


def unpack(
    archive: Path,
    into: Path,
    *,
    limit_bytes: int = 16 * GIB,
    limit_ratio: float = 200,
    limit_entries: int = 10_000,
    wanted: Callable[[str], bool] = lambda name: True,
) -> list[str]:
    """Unpack a zip, tar, tar.gz or tar.bz2 file, which is told by its first bytes.

    The folder appears once everything is in it. Only plain files and folders come out, with this process's permissions
    and today's date; one hostile or damaged member refuses the whole archive, whether it is wanted or not.

    Args:
        archive: the file.
        into: the folder to make; it may be there if it is empty.
        limit_bytes: how much may come out in all, by what the archive announces and by what it gives.
        limit_ratio: how much may come out for each byte of the archive, above 64 MiB.
        limit_entries: how many members there may be.
        wanted: whether a member is to be written, by its name (``folder/file``, with ``/`` everywhere).

    Returns:
        The names of the files written, sorted.

    Raises:
        UserError: the archive is damaged, encrypted or of no known kind; a member would land outside the folder, is a
            link, a device or a sparse file, or comes twice; a limit is passed; the disk is full, or the folder in use.
    """
    kind = _kind(archive)
    if kind is None:
        raise UserError(f"{archive} is neither a zip nor a tar archive; download it again")
    if into.exists() and not (into.is_dir() and not any(into.iterdir())):
        raise UserError(f"{into} is in use, so nothing is unpacked there; name a new folder")
    limits = _Limits(archive, limit_bytes, limit_ratio, limit_entries)
    members = _zip_members if kind == "zip" else _tar_members
    try:
        into.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{into.name}-", dir=into.parent) as safe:
            made = Path(safe) / "unpacked"
            made.mkdir()
            with _told(archive):
                names = list(members(archive, kind, made, limits, wanted))
            if into.exists():
                into.rmdir()
            os.replace(made, into)
    except OSError as error:
        raise UserError(
            f"{archive} cannot be unpacked to {into}: {error.strerror or error}; make room or name another folder"
        ) from error
    return sorted(names)


def _kind(path: Path) -> str | None:
    try:
        with path.open("rb") as file:
            head = file.read(512)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    if head[:4] in (b"PK\x03\x04", b"PK\x05\x06"):
        return "zip"
    if head[:2] == b"\x1f\x8b":
        return "gz"
    if head[:3] == b"BZh":
        return "bz2"
    return "tar" if head[257:262] == b"ustar" else None


@contextmanager
def _told(archive: Path) -> Iterator[None]:
    """Whatever the libraries raise for a damaged archive, in one line."""
    try:
        yield
    except UserError:
        raise
    except (*_UNREADABLE, OSError) as error:
        # bz2 and gzip say with a bare OSError that their data is damaged; those of the disk have a number.
        if isinstance(error, OSError) and error.errno is not None:
            raise
        why = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"{archive} is damaged or not complete ({why}); download it again") from error


class _Limits:
    """Counts members and bytes, and stops at the first too many."""

    def __init__(self, archive: Path, limit_bytes: int, ratio: float, entries: int) -> None:
        self._archive, self._limit, self._ratio, self._most = archive, limit_bytes, ratio, entries
        self._packed = max(1, archive.stat().st_size)
        self._entries = 0

    def entry(self) -> None:
        self._entries += 1
        if self._entries > self._most:
            raise UserError(f"{self._archive} holds more than {self._most} members; it is not unpacked")

    def check(self, total: int) -> None:
        if total > self._limit:
            raise UserError(
                f"{self._archive} unpacks to more than {_size(self._limit)}, which is the most that is taken; "
                "it is not unpacked"
            )
        if total > _ALWAYS_FINE and total > self._ratio * self._packed:
            raise UserError(
                f"{self._archive} is a zip bomb: {_size(self._packed)} that unpack to {_size(total)} or more; "
                "it is not unpacked"
            )


def _size(count: float) -> str:
    for unit in ("bytes", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} {unit}"
        count /= 1024
    return f"{count:.1f} GiB"


def _zip_members(
    archive: Path, kind: str, folder: Path, limits: _Limits, wanted: Callable[[str], bool]
) -> Iterator[str]:
    with zipfile.ZipFile(archive) as opened:
        infos = []
        for info in opened.infolist():
            limits.entry()
            # What was stored, not what `zipfile` made of it: that one cuts the name at a zero.
            name = _safe_name(archive, info.orig_filename, wanted)
            mode = stat.S_IFMT(info.external_attr >> 16)
            if mode not in (0, stat.S_IFREG, stat.S_IFDIR):
                raise _not_plain(archive, name, stat.S_ISLNK(mode))
            if info.flag_bits & 1:
                raise UserError(f"{archive} is encrypted; unpack it yourself and name the folder")
            infos.append((name, info))
        announced = sum(info.file_size for name, info in infos if wanted(name))
        limits.check(announced)
        _check_room(archive, folder, announced)
        total = 0
        for name, info in infos:
            if not wanted(name):
                continue
            if info.is_dir():
                _make_folder(archive, folder, name)
                continue
            with opened.open(info) as source, _new_file(archive, folder, name) as target:
                while chunk := source.read(_CHUNK):
                    total += len(chunk)
                    limits.check(total)
                    target.write(chunk)
            yield name


def _tar_members(
    archive: Path, kind: str, folder: Path, limits: _Limits, wanted: Callable[[str], bool]
) -> Iterator[str]:
    total = 0
    with _decompressed(archive, kind) as raw:
        stream = _Budgeted(archive, raw)
        # A stream cannot be searched: members come one by one, and none before its limits were checked.
        with tarfile.open(fileobj=cast("IO[bytes]", stream), mode="r|", tarinfo=_Header) as opened:
            while (member := opened.next()) is not None:
                limits.entry()
                name = _safe_name(archive, member.name, wanted)
                if not (member.isreg() or member.isdir()) or member.issparse():
                    raise _not_plain(archive, name, member.islnk() or member.issym())
                # Members that are not wanted count too: they have to be read to get past them.
                total += member.size
                limits.check(total)
                if member.isdir():
                    if wanted(name):
                        _make_folder(archive, folder, name)
                    continue
                source = opened.extractfile(member)
                assert source is not None  # it is a plain file
                stream.allow(member.size)
                if wanted(name):
                    _check_room(archive, folder, member.size)
                    with _new_file(archive, folder, name) as target:
                        shutil.copyfileobj(source, target, _CHUNK)
                    yield name
                else:
                    while source.read(_CHUNK):
                        pass
                stream.allow(0)
        while stream.read(_CHUNK):  # up to the checksum of a compressed one
            pass


def _decompressed(archive: Path, kind: str) -> IO[bytes]:
    if kind == "gz":
        return cast("IO[bytes]", gzip.open(archive))
    if kind == "bz2":
        return cast("IO[bytes]", bz2.open(archive))
    return archive.open("rb")


class _Header(tarfile.TarInfo):
    """A header that is damaged or missing is an error; `tarfile` takes one after the first member for the end."""

    @classmethod
    def fromtarfile(cls, tarfile_: tarfile.TarFile) -> _Header:
        try:
            return super().fromtarfile(tarfile_)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]
            raise
        except tarfile.HeaderError as error:
            raise tarfile.ReadError(str(error)) from error


class _Budgeted:
    """A stream that gives no more than a header's worth beyond what was allowed: `tarfile` reads names into memory."""

    def __init__(self, archive: Path, raw: IO[bytes]) -> None:
        self._archive, self._raw, self._left = archive, raw, _HEADER

    def allow(self, count: int) -> None:
        self._left = count + _HEADER

    def read(self, count: int) -> bytes:
        data = self._raw.read(count)
        self._left -= len(data)
        if self._left < 0:
            raise UserError(f"{self._archive} has a member with a header of more than 1 MiB; it is not unpacked")
        return data


def _safe_name(archive: Path, stored: str, wanted: Callable[[str], bool]) -> str:
    """The name of a member inside the folder, with ``/`` between its parts."""
    parts = [part for part in stored.split("/") if part not in ("", ".")]
    if (
        stored.startswith("/")
        or ".." in parts
        or "\\" in stored
        or re.match(r"[A-Za-z]:", stored)
        or any(len(part.encode("utf-8", "surrogateescape")) > _PART for part in parts)
    ):
        raise UserError(f"{archive} holds a member whose name leads out of its folder ({stored!r}); it is not unpacked")
    name = "/".join(parts)
    # Published archives hold leftovers of file managers such as "Icon\r"; nothing is wrong as long as they stay inside.
    if _CONTROL.search(stored) and wanted(name):
        raise UserError(f"{archive} holds a name with control characters ({stored!r}); it is not unpacked")
    return name


def _not_plain(archive: Path, name: str, link: bool) -> UserError:
    what = "a link" if link else "neither a file nor a folder"
    return UserError(f"{archive} holds {name!r}, which is {what}; it is not unpacked")


def _check_room(archive: Path, folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise UserError(
            f"{archive} unpacks to {_size(needed)}, and {folder.parent.parent} has {_size(free)} free; make room"
        )


def _make_folder(archive: Path, folder: Path, name: str) -> None:
    try:
        (folder / name).mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise UserError(f"{archive} holds {name!r} as a file and as a folder; it is not unpacked") from error


def _new_file(archive: Path, folder: Path, name: str) -> IO[bytes]:
    path = folder / name
    if not name:
        raise UserError(f"{archive} holds a file without a name; it is not unpacked")
    _make_folder(archive, folder, name.rpartition("/")[0])
    try:
        return path.open("xb")
    except FileExistsError as error:
        raise UserError(f"{archive} holds {name!r} twice; it is not unpacked") from error
