"""Doing the runs: several at a time, a teacher before its students, none lost by another's failure."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from bert_emd.errors import UserError
from bert_emd.studies.compare.board import Board
from bert_emd.studies.compare.ledger import teacher_print
from bert_emd.studies.compare.plan import Plan, Run
from bert_emd.studies.compare.process import Process, environments
from bert_emd.training.config import DistillConfig
from bert_emd.training.outputs import remove_checkpoints
from bert_emd.training.records import main_of

__all__ = ["Failure", "check_ledgers", "locked", "work"]

_TICK = 0.2
_LOCK_PATIENCE = 45.0


@dataclass(frozen=True, kw_only=True)
class Failure:
    """A run that ended badly."""

    run: Run
    status: int
    error: str


def check_ledgers(plan: Plan) -> None:
    """Refuse to mix with runs that were made with other settings, data or teachers.

    Raises:
        UserError: naming what differs.
    """
    for run in (*plan.teachers, *plan.students):
        if run.teacher is not None and run.ledger.state == "done" and run.teacher.ledger.state != "done":
            raise UserError(
                f"{run.folder} is done, but its teacher {run.teacher.folder} is not there any more; "
                "name another --output_dir"
            )
        run.ledger.check(run.config, run.data, _teacher_print(run))


def _teacher_print(run: Run) -> str | None:
    if run.teacher is not None:
        return teacher_print(run.teacher.folder) if run.teacher.ledger.state == "done" else None
    return teacher_print(str(run.config.teacher_model)) if isinstance(run.config, DistillConfig) else None


@contextmanager
def locked(folder: Path) -> Iterator[int | None]:
    """Only one comparison at a time works in a folder; its runs hold the lock as well, until the last has ended.

    Raises:
        UserError: another one is at work there.
    """
    try:
        import fcntl
    except ImportError:  # no such locks on this system
        yield None
        return
    handle = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        # Runs of a comparison that was killed need a moment to end.
        deadline = time.monotonic() + _LOCK_PATIENCE
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError:
                if time.monotonic() > deadline:
                    raise UserError(
                        f"another comparison is at work in {folder}; wait for it, or name another --output_dir"
                    ) from None
                time.sleep(_TICK)
        yield handle
    finally:
        os.close(handle)


@contextmanager
def _terminable() -> Iterator[None]:
    """Take a SIGTERM as a Ctrl-C, so that the runs are stopped in good order."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def work(plan: Plan, launcher: Sequence[str], lock: int | None, changed: Callable[[], object]) -> list[Failure]:
    """Do all runs that are not done yet.

    Args:
        plan: what there is to do.
        launcher: the words before a run's own arguments.
        lock: of `locked`; the runs inherit it.
        changed: called after each run that ended.

    Returns:
        The runs that failed; students of a teacher that failed are not among them, they were not started.
    """
    waiting = [run for run in (*plan.teachers, *plan.students) if run.ledger.state != "done"]
    total = len(plan.teachers) + len(plan.students)
    jobs = plan.config.jobs
    slots = environments(jobs, os.environ, _cores(), torch.cuda.device_count())
    running: dict[int, Process] = {}
    failures: list[Failure] = []
    with Board(total, total - len(waiting), jobs) as board, _terminable():
        try:
            while waiting or running:
                for slot in range(jobs):
                    if slot in running or (run := _next(waiting, list(running.values()))) is None:
                        continue
                    waiting.remove(run)
                    running[slot] = Process(run, launcher, slots[slot], teacher=_teacher_print(run), lock=lock)
                    board.started(running[slot])
                for slot, process in list(running.items()):
                    status = process.poll()
                    if status is None:
                        continue
                    del running[slot]
                    if status != 0:
                        error = process.error(status)
                        failures.append(Failure(run=process.run, status=status, error=error))
                        _give_up(process.run, waiting, board)
                        board.ended(process, f"failed: {error} (log: {process.ledger.log})")
                    else:
                        if not plan.config.keep_checkpoints:
                            remove_checkpoints(process.run.folder)
                        board.ended(process, _outcome(process))
                    changed()
                board.tick(list(running.values()))
                if running:
                    time.sleep(_TICK)
        except BaseException:
            for process in running.values():
                process.interrupt()
            for process in running.values():
                process.stop()
            with suppress(Exception):
                changed()
            raise
    return failures


def _next(waiting: Sequence[Run], running: Sequence[Process]) -> Run | None:
    """The first run that nothing holds back."""
    for run in waiting:
        if run.teacher is not None and run.teacher.ledger.state != "done":
            continue
        # The first of several that share a teacher's outputs on disk makes the file that the others then find.
        if isinstance(run.config, DistillConfig) and run.config.cache_teacher:
            beside = [p for p in running if isinstance(p.run.config, DistillConfig) and p.run.task == run.task]
            if any(p.run.config.cache_teacher and p.progress is None for p in beside):  # type: ignore[attr-defined]
                continue
        return run
    return None


def _give_up(failed: Run, waiting: list[Run], board: Board) -> None:
    """Without their teacher students cannot be trained."""
    orphans = [run for run in waiting if run.teacher is failed]
    for run in orphans:
        waiting.remove(run)
    if orphans:
        board.say(f"{failed.task}: {len(orphans)} students are left out, for their teacher failed")


def _outcome(process: Process) -> str:
    metrics = json.loads((process.run.folder / "metrics.json").read_text(encoding="utf-8"))
    metric = metrics["metric"]
    last, best = (
        100 * main_of(metrics[key], metric) for key in ("last", "student" if "student" in metrics else "model")
    )
    minutes = (process.ledger.wall_seconds or 0) / 60
    return f"{metric} last {last:.1f}, best {best:.1f} ({minutes:.1f} minutes)"


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
