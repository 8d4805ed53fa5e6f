"""Bars of transfers on a terminal, and plain lines elsewhere."""

from __future__ import annotations

import sys

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.text import Text

from bert_emd.cli.console import say
from bert_emd.transfer import megabytes

__all__ = ["Bars"]


class Bars:
    """A `bert_emd.transfer.Watcher` that draws on standard error where that is a terminal; a line a file otherwise."""

    def __init__(self) -> None:
        self._console = Console(stderr=True, highlight=False, markup=False)
        self._drawn = sys.stderr.isatty()
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        self._said: tuple[str, int] | None = None

    def begin(self, name: str, total: int | None, done: int) -> None:
        """Begin a bar, or say what is fetched."""
        if not self._drawn:
            if self._said == (name, done):  # only the address is another one
                return
            self._said = (name, done)
            of = (
                "" if total is None else f" ({megabytes(total)}" + (f", {megabytes(done)} of it here)" if done else ")")
            )
            say(f"fetching {name}{of}")
            return
        self._bar = Progress(
            TextColumn("{task.description}", markup=False), BarColumn(), DownloadColumn(), TransferSpeedColumn(),
            TimeRemainingColumn(), console=self._console, transient=True,
        )  # fmt: skip
        self._task = self._bar.add_task(name, total=total, completed=done)
        self._bar.start()

    def moved(self, done: int, total: int | None) -> None:
        """Move the bar."""
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=done, total=total)

    def end(self) -> None:
        """Take the bar away."""
        if self._bar is not None:
            self._bar.stop()
        self._bar = self._task = None

    def note(self, text: str) -> None:
        """Write a line above the bar."""
        if self._bar is not None:
            self._bar.console.print(Text(f"note: {text}"), soft_wrap=True)
        else:
            say(f"note: {text}")
