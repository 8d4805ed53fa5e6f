"""A file that is written piece by piece, can be gone on with after a kill, and appears under its name when whole."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from bert_emd.errors import UserError
from bert_emd.training.outputs import write_json

__all__ = ["ResumableFile"]


class ResumableFile:
    """The part of a file that is there so far, beside the target as ``.NAME.partial``, and how far it goes.

    Args:
        target: the name that the whole file gets.
        identity: what the content depends on; an interrupted file of another identity is not gone on with.
    """

    def __init__(self, target: Path, identity: Mapping[str, Any]) -> None:
        self.target = target
        self.identity = json.loads(json.dumps(dict(identity)))
        self.partial = target.with_name(f".{target.name}.partial")
        self.state = target.with_name(f".{target.name}.progress.json")
        self.progress: dict[str, Any] = {}
        """What was said about the last piece that was kept; empty where there is none."""
        self._handle: BinaryIO | None = None

    @contextmanager
    def open(self, *, start_anew: bool) -> Iterator[None]:
        """Go on with what is there, or begin; nobody else writes there meanwhile.

        Args:
            start_anew: give up an interrupted file of another identity instead of refusing.

        Raises:
            UserError: such a file is there, another process is at work, or nothing can be written there.
        """
        try:
            self.target.parent.mkdir(parents=True, exist_ok=True)
            self._handle = os.fdopen(os.open(self.partial, os.O_RDWR | os.O_CREAT, 0o644), "r+b")
        except OSError as error:
            raise UserError(f"{self.target} cannot be written: {error.strerror}; name another --output_file") from error
        try:
            self._lock()
            try:
                kept = self._kept(start_anew=start_anew)
                self._handle.truncate(kept)
                self._handle.seek(kept)
                yield
            finally:
                if self.partial.exists() and not self.state.exists():
                    self.partial.unlink()  # nothing was kept
        finally:
            self._handle.close()
            self._handle = None

    def _lock(self) -> None:
        assert self._handle is not None
        try:
            import fcntl
        except ImportError:  # no such locks on this system
            return
        taken = f"another process is writing {self.target}; wait for it, or name another file"
        try:
            fcntl.flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UserError(taken) from None
        # The other one may have ended since the file was opened, and given it its name: then it is not ours to change.
        if not self.partial.exists() or not os.path.samestat(os.fstat(self._handle.fileno()), self.partial.stat()):
            raise UserError(taken)

    def _kept(self, *, start_anew: bool) -> int:
        """How many bytes of the partial file are good."""
        assert self._handle is not None
        try:
            found = json.loads(self.state.read_text(encoding="utf-8"))
            identity, kept, progress = found["identity"], int(found["bytes"]), dict(found["progress"])
        except (OSError, ValueError, KeyError, TypeError):
            return 0
        if os.fstat(self._handle.fileno()).st_size < kept:
            return 0
        if identity != self.identity:
            if start_anew:
                self.state.unlink()
                return 0
            other = [name for name in self.identity if identity.get(name) != self.identity[name]]
            raise UserError(
                f"{self.partial} is an interrupted file with another {' and '.join(other[:3]) or 'version'}; go on "
                "with the command that began it, or start anew with --overwrite_output_file"
            )
        self.progress = progress
        return kept

    def append(self, text: str, progress: Mapping[str, Any]) -> None:
        """Keep another piece; ``progress`` is what is known again after a kill.

        Raises:
            UserError: there is no room.
        """
        assert self._handle is not None
        try:
            self._handle.write(text.encode("utf-8"))
            self._handle.flush()
            os.fsync(self._handle.fileno())
            self.progress = dict(progress)
            write_json(self.state, {"identity": self.identity, "bytes": self._handle.tell(), "progress": self.progress})
        except OSError as error:
            raise UserError(
                f"{self.partial} cannot be written: {error.strerror}; make room, and the same command goes on"
            ) from error

    def finish(self) -> None:
        """Give the whole file its name."""
        os.replace(self.partial, self.target)
        self.state.unlink(missing_ok=True)
