"""The unfinished file beside the one that it will become, and what must hold to go on with it."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path
from typing import Any

__all__ = ["Part"]


class Part:
    """``NAME.part`` and, beside it, ``NAME.part.json``: where its bytes came from and how the server marked them.

    Args:
        target: the file that it becomes.
        source: where the bytes come from; those of another source are dropped.
        checksum: what the whole file must have; without one, bytes are gone on with only where the server marks them.
    """

    def __init__(self, target: Path, source: str, checksum: str | None) -> None:
        self.target = target
        self.path = target.with_name(f"{target.name}.part")
        self._record = target.with_name(f"{target.name}.part.json")
        self._source, self._checksum = source, checksum
        self.validator: str | None = None
        """The entity tag or date with which the server marked the file (for ``If-Range``)."""
        self.pieced = False
        """Whether its bytes came in more than one answer."""
        known = self._read()
        if known is None or known.get("source") != source or known.get("checksum") != checksum:
            self.discard()
        else:
            self.validator = known.get("validator")
            self.pieced = self.size > 0
            if self.validator is None and checksum is None:
                self.discard()

    @property
    def size(self) -> int:
        """Bytes that are there."""
        return self.path.stat().st_size if self.path.exists() else 0

    def begin(self, validator: str | None) -> io.FileIO:
        """Open it for its first byte."""
        self.discard()
        self.validator = validator
        record = {"source": self._source, "checksum": self._checksum, "validator": validator}
        self._record.write_text(json.dumps(record) + "\n", encoding="utf-8")
        return io.FileIO(self.path, "w")

    def go_on(self) -> io.FileIO:
        """Open it for the next byte."""
        self.pieced = True
        return io.FileIO(self.path, "a")

    def discard(self) -> None:
        """Drop it."""
        self.path.unlink(missing_ok=True)
        self._record.unlink(missing_ok=True)
        self.validator, self.pieced = None, False

    def finish(self) -> None:
        """Give it its name."""
        with self.path.open("rb+") as file:
            os.fsync(file.fileno())
        os.replace(self.path, self.target)
        self._record.unlink(missing_ok=True)

    def _read(self) -> dict[str, Any] | None:
        try:
            known = json.loads(self._record.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        return known if isinstance(known, dict) else None
