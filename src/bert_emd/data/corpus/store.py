"""Packed sequences on disk: written once, piece by piece, then read from any place without being loaded."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from bert_emd.errors import UserError

__all__ = ["StoreWriter", "TokenStore", "is_store", "sequence_bytes"]

_TOKENS, _LENGTHS, _META, _PROGRESS = "tokens.bin", "lengths.bin", "corpus.json", "progress.json"
_FORMAT = 1
_OURS = {_TOKENS, _LENGTHS, *(name for file in (_META, _PROGRESS) for name in (file, f".{file}.partial"))}


def is_store(folder: Path) -> bool:
    """Whether a folder holds a finished store; a user's own file may have the name of its description."""
    return (folder / _META).is_file() and any((folder / name).is_file() for name in (_TOKENS, _LENGTHS))


def token_type(vocabulary: int) -> Any:
    """The smallest whole numbers that hold every token id."""
    return np.uint16 if vocabulary <= 1 << 16 else np.uint32


def sequence_bytes(length: int, vocabulary: int) -> int:
    """Room that a sequence takes on the disk."""
    return length * int(np.dtype(token_type(vocabulary)).itemsize) + 4


class TokenStore:
    """Sequences of token ids in a memory-mapped file.

    Args:
        folder: what `StoreWriter` finished.

    Raises:
        UserError: it is no store, or files of it are missing or of another size.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        try:
            self.meta: dict[str, Any] = json.loads((folder / _META).read_text(encoding="utf-8"))
            self.length, self.count = int(self.meta["length"]), int(self.meta["sequences"])
            self.identity: dict[str, Any] = self.meta["identity"]
            kind = np.dtype(self.meta["dtype"])
            sizes = {_TOKENS: self.count * self.length * kind.itemsize, _LENGTHS: self.count * 4}
            whole = all((folder / name).stat().st_size == size for name, size in sizes.items())
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(f"{folder} holds no prepared corpus ({error}); prepare it again") from error
        if not whole or self.meta.get("format") != _FORMAT:
            raise UserError(f"the prepared corpus {folder} is damaged or of another version; prepare it again")
        self._kind = kind
        self._open()

    def _open(self) -> None:
        self._tokens: np.ndarray = np.memmap(
            self.folder / _TOKENS, dtype=self._kind, mode="r", shape=(self.count, self.length)
        )
        self._lengths: np.ndarray = np.memmap(self.folder / _LENGTHS, dtype=np.uint32, mode="r", shape=(self.count,))

    def __len__(self) -> int:
        return self.count

    def rows(self, indices: Sequence[int] | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Token ids [n, longest of these] int64 and their lengths [n] int64."""
        lengths = np.asarray(self._lengths[np.asarray(indices)], dtype=np.int64)
        longest = int(lengths.max()) if len(lengths) else 0
        return np.asarray(self._tokens[np.asarray(indices), :longest], dtype=np.int64), lengths

    def __getstate__(self) -> dict[str, Any]:
        # A process that loads batches opens the files itself: pickled, the mapping would be all of its content.
        return {name: value for name, value in self.__dict__.items() if name not in ("_tokens", "_lengths")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ |= state
        self._open()


class StoreWriter:
    """Writes a store into ``NAME.partial`` beside its place, and moves it there when it is whole.

    What was kept survives a kill: the same identity goes on behind it.

    Args:
        target: the folder to make.
        identity: what the content depends on.
        length: tokens of a sequence.
        vocabulary: how many token ids there are.
    """

    def __init__(self, target: Path, identity: dict[str, Any], *, length: int, vocabulary: int) -> None:
        self.target = target
        self.partial = target.with_name(f"{target.name}.partial")
        self.identity = json.loads(json.dumps(identity))
        self.length, self.kind = length, token_type(vocabulary)
        self.vocabulary = vocabulary
        self.sequences = self.tokens = 0

    @contextmanager
    def open(self) -> Iterator[dict[str, Any] | None]:
        """Take the place for this process alone; gives what was said when something was last kept, or None.

        Raises:
            UserError: the folder cannot be made, or something that is not ours lies where the store is written.
        """
        try:
            self.target.parent.mkdir(parents=True, exist_ok=True)
            with _locked(self.target), self._files() as progress:
                yield progress
        except OSError as error:
            raise self._failed(error) from error

    @contextmanager
    def _files(self) -> Iterator[dict[str, Any] | None]:
        if self.partial.is_dir() and any(path.name not in _OURS for path in self.partial.iterdir()):
            raise UserError(f"{self.partial} is in the way and holds files that are not ours; move it or name another")
        progress = self._kept()
        if progress is None:
            shutil.rmtree(self.partial, ignore_errors=True)
            self.partial.mkdir()
        size = self.length * np.dtype(self.kind).itemsize
        with (
            (self.partial / _TOKENS).open("ab") as self._token_file,
            (self.partial / _LENGTHS).open("ab") as self._length_file,
        ):
            self._token_file.truncate(self.sequences * size)
            self._length_file.truncate(self.sequences * 4)
            yield progress

    def _kept(self) -> dict[str, Any] | None:
        try:
            found = json.loads((self.partial / _PROGRESS).read_text(encoding="utf-8"))
            sequences, tokens, progress = int(found["sequences"]), int(found["tokens"]), dict(found["progress"])
            there = (self.partial / _TOKENS).stat().st_size // (self.length * np.dtype(self.kind).itemsize)
            there = min(there, (self.partial / _LENGTHS).stat().st_size // 4)
        except (OSError, ValueError, KeyError, TypeError):
            return None
        if found.get("identity") != self.identity or there < sequences:
            return None
        self.sequences, self.tokens = sequences, tokens
        return progress

    def append(self, rows: np.ndarray, lengths: np.ndarray) -> None:
        """Write sequences [n, length] with their lengths [n]."""
        self._token_file.write(rows.astype(self.kind).tobytes())
        self._length_file.write(lengths.astype(np.uint32).tobytes())
        self.sequences += len(rows)
        self.tokens += int(lengths.sum())

    def keep(self, progress: dict[str, Any]) -> None:
        """What was written is not lost any more; ``progress`` says how to go on behind it."""
        for file in (self._token_file, self._length_file):
            file.flush()
            os.fsync(file.fileno())
        found = {"identity": self.identity, "sequences": self.sequences, "tokens": self.tokens, "progress": progress}
        _write_whole(self.partial / _PROGRESS, found)

    def finish(self, **more: Any) -> TokenStore:
        """Say that all is there, and move it to its place."""
        for file in (self._token_file, self._length_file):
            file.close()
        meta = {
            "format": _FORMAT, "length": self.length, "sequences": self.sequences, "tokens": self.tokens,
            "vocabulary": self.vocabulary, "dtype": np.dtype(self.kind).name, "identity": self.identity, **more,
        }  # fmt: skip
        (self.partial / _PROGRESS).unlink(missing_ok=True)
        _write_whole(self.partial / _META, meta)
        if self.target.is_dir() and not any(self.target.iterdir()):
            self.target.rmdir()
        self.partial.rename(self.target)
        return TokenStore(self.target)

    def discard(self) -> None:
        """Leave nothing behind."""
        shutil.rmtree(self.partial, ignore_errors=True)

    def _failed(self, error: OSError) -> UserError:
        if error.errno == errno.ENOSPC:
            return UserError(f"no room is left for the prepared corpus in {self.target.parent}; make room there")
        return UserError(
            f"the prepared corpus cannot be written to {self.target}: {error.strerror or error}; name another folder"
        )


def _write_whole(path: Path, values: dict[str, Any]) -> None:
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")
    os.replace(partial, path)


@contextmanager
def _locked(target: Path) -> Iterator[None]:
    """Wait until no other process writes the same store."""
    try:
        import fcntl
    except ImportError:  # no such locks on this system
        yield
        return
    lock = target.with_name(f".{target.name}.lock")
    while True:
        with lock.open("w") as handle:
            fcntl.flock(handle, fcntl.LOCK_EX)
            # Whoever held it before may have removed the file that was waited for.
            if not lock.exists() or lock.stat().st_ino != os.fstat(handle.fileno()).st_ino:
                continue
            try:
                yield
            finally:
                lock.unlink(missing_ok=True)
            return
