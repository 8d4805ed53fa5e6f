"""What a comparison says while it works: bars on a terminal, a line a run in a log file."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from bert_emd.studies.compare.process import Process

__all__ = ["Board"]

_LOG = logging.getLogger("bert_emd")
_HEARTBEAT = 300.0


class Board:
    """Shows how far all runs are, and each that is under way."""

    def __init__(self, total: int, done: int, jobs: int) -> None:
        self.total, self.done, self.jobs = total, done, jobs
        self._walls: list[float] = []
        self._bars: dict[str, TaskID] = {}
        self._spoke = time.monotonic()
        self._progress: Progress | None = None
        if sys.stdout.isatty():
            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
            self._progress = Progress(*columns, console=Console(markup=False, highlight=False), transient=True)
            self._all = self._progress.add_task("all runs", total=total, completed=done)

    def __enter__(self) -> Board:
        if self._progress is not None:
            self._progress.start()
        return self

    def __exit__(self, *_: Any) -> None:
        if self._progress is not None:
            self._progress.stop()

    def say(self, text: str) -> None:
        """A line that stays."""
        self._spoke = time.monotonic()
        if self._progress is not None:
            self._progress.console.print(text, soft_wrap=True)
        else:
            _LOG.info("%s", text)

    def started(self, process: Process) -> None:
        """A run begins or goes on."""
        how = "goes on from its checkpoint" if process.resumed else "started"
        self.say(f"{process.run.title}: {how} (log: {process.ledger.log})")
        if self._progress is not None:
            self._bars[process.run.title] = self._progress.add_task(process.run.title, total=None)

    def ended(self, process: Process, outcome: str) -> None:
        """A run is over."""
        self.done += 1
        wall = process.ledger.wall_seconds
        if wall is not None:
            self._walls.append(wall)
        left = self._left()
        self.say(f"[{self.done}/{self.total}] {process.run.title}: {outcome}" + (f"; {left}" if left else ""))
        if self._progress is not None:
            self._progress.remove_task(self._bars.pop(process.run.title))
            self._progress.update(self._all, completed=self.done)

    def _left(self) -> str:
        rest = self.total - self.done
        if not rest or not self._walls:
            return ""
        minutes = sum(self._walls) / len(self._walls) * rest / self.jobs / 60
        return f"about {minutes:.0f} minutes left" if minutes >= 1 else "less than a minute left"

    def tick(self, running: Sequence[Process]) -> None:
        """Move the bars; in a log file, say now and then how far the runs are."""
        if self._progress is not None:
            for process in running:
                if (steps := process.progress) is not None:
                    self._progress.update(self._bars[process.run.title], completed=steps[0], total=steps[1])
        elif running and time.monotonic() - self._spoke > _HEARTBEAT:
            far = [(process.run.title, process.progress) for process in running]
            self.say("; ".join(f"{title}: step {p[0]} of {p[1]}" if p else f"{title}: at work" for title, p in far))
