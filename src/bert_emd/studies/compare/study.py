"""The comparison from beginning to end: plan, runs, tables."""

from __future__ import annotations

import json
import logging
import os
import shlex
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bert_emd.errors import UserError
from bert_emd.studies.compare.config import CompareConfig
from bert_emd.studies.compare.plan import Plan, make_plan
from bert_emd.studies.compare.plot import draw
from bert_emd.studies.compare.render import as_csv, as_markdown, as_text
from bert_emd.studies.compare.results import collect
from bert_emd.studies.compare.tables import build_tables
from bert_emd.studies.compare.work import Failure, check_ledgers, locked, work
from bert_emd.training.outputs import check_output_dir, make_folder, remove_checkpoints, write_json, write_whole

__all__ = ["CompareResult", "compare"]

_LOG = logging.getLogger("bert_emd")
_NAME = "comparison"
_FIGURE_EVERY = 60.0
_LAUNCHER = (sys.executable, "-m", "bert_emd.cli.child")


@dataclass(frozen=True, kw_only=True)
class CompareResult:
    """What comparison.json holds, and the runs that failed."""

    study: dict[str, Any] = field(repr=False)
    failures: list[Failure] = field(repr=False)
    summary: str
    """The tables, ready to print."""


def compare(
    config: CompareConfig, *, command: Sequence[str] | None = None, launcher: Sequence[str] = _LAUNCHER
) -> CompareResult:
    """Compare methods over seeds, tasks and depths, each run in a process of its own.

    ``output_dir`` gets ``comparison.md``, ``.csv``, ``.json``, ``.png`` and ``.svg``, written anew after every run, and
    the runs themselves under ``runs/``. Runs that are done there already are kept, and one that was interrupted goes on
    from its checkpoint. A run that fails loses nothing else.

    Args:
        config: what is compared.
        command: the command line that this is, for the record.
        launcher: the words that start a run, before ``distill`` or ``finetune`` and its flags.

    Raises:
        UserError: something cannot be run, or runs in ``output_dir`` were made with other settings; nothing has been
            started then.
    """
    plan = make_plan(config)
    inputs = {name: config.options.get(name) for name in ("data_dir", "train_file", "validation_file", "test_file")}
    inputs |= {"model": config.model_name_or_path}
    inputs |= {f"teacher of {task.name}": task.teacher for task in plan.tasks if isinstance(task.teacher, str)}
    folder = check_output_dir(config.output_dir, overwrite=False, resume=True, inputs=inputs)
    _check_own(folder)
    check_ledgers(plan)
    for run in plan.students:
        for warning in run.warnings if run.seed == config.seeds[0] else ():
            _LOG.warning("%s: %s", run.title, warning)
    make_folder(folder)
    with locked(folder) as lock:
        _announce(plan)
        tables = _Tables(plan, folder, list(command) if command is not None else [])
        tables.write()
        failures = work(plan, launcher, lock, tables.write)
        for run in (*plan.teachers, *plan.students):
            if not config.keep_checkpoints and run.ledger.state == "done":
                remove_checkpoints(run.folder)
        study = tables.write(figure=True)
    return CompareResult(study=study, failures=failures, summary=as_text(study))


def _check_own(folder: Path) -> None:
    """Refuse a folder that holds something else."""
    if not folder.is_dir() or all(path.name.startswith(".") for path in folder.iterdir()):
        return
    try:
        earlier = json.loads((folder / f"{_NAME}.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        earlier = None
    if not isinstance(earlier, dict) or not {"cells", "tables"} <= earlier.keys():
        raise UserError(
            f"output_dir {folder} is not empty and holds no comparison, so nothing in it is replaced; name another"
        )


def _announce(plan: Plan) -> None:
    runs = (*plan.teachers, *plan.students)
    states = [run.ledger.state for run in runs]
    _LOG.info(
        "%d runs: %d methods, %d seeds, %d tasks, %s layers, %d teachers to fine-tune; %d of them are done already",
        len(runs), len(plan.methods), len(plan.config.seeds), len(plan.tasks), " and ".join(map(str, plan.depths)),
        len(plan.teachers), states.count("done"),
    )  # fmt: skip
    for note in plan.notes:
        _LOG.info("%s", note.replace("`", ""))


class _Tables:
    """Writes the tables as far as the runs are done, and now and then the figure, which takes longer."""

    def __init__(self, plan: Plan, folder: Path, command: Sequence[str]) -> None:
        self.plan, self.folder, self.command = plan, folder, shlex.join(command)
        self._drawn = time.monotonic()

    def write(self, *, figure: bool = False) -> dict[str, Any]:
        """All files anew; the figure where it is asked for, or is some time old."""
        study = _study(self.plan, self.command)
        write_json(self.folder / f"{_NAME}.json", study)
        write_whole(self.folder / f"{_NAME}.csv", as_csv(study))
        write_whole(self.folder / f"{_NAME}.md", as_markdown(study))
        if figure or time.monotonic() - self._drawn > _FIGURE_EVERY:
            for kind, content in draw(study, "png", "svg").items():
                write_whole(self.folder / f"{_NAME}.{kind}", content)
            self._drawn = time.monotonic()
        return study


def _study(plan: Plan, command: str) -> dict[str, Any]:
    """What comparison.json holds."""
    cells, teachers = collect(plan)
    return {
        "command": command,
        "seeds": list(plan.config.seeds),
        "select_on": plan.config.select_on,
        "notes": _notes(plan, cells, teachers),
        "tasks": [
            {
                "task": task.name,
                "metric": task.metric,
                "selected_on": task.selected_on,
                "selection_rows": task.selection_rows,
                "reported_on": task.reported_on,
                "optimistic": task.optimistic,
            }
            for task in plan.tasks
        ],
        "teachers": teachers,
        "cells": cells,
        "tables": build_tables(cells),
    }


def _notes(plan: Plan, cells: Sequence[dict[str, Any]], teachers: Sequence[dict[str, Any]]) -> list[str]:
    """What a reader has to know to read the tables."""
    notes = [
        "`last` is the student after the last step, `best` the checkpoint that the selection chose. Scores are in per "
        "cent, from a float32 pass over the saved models. ± is the standard deviation over seeds.",
    ]
    for task in plan.tasks:
        text = f"{task.name}: {task.selection_rows} rows ({task.selected_on}) choose, scores are on {task.reported_on}"
        if task.optimistic:
            text = f"**Optimistic** (select_on dev): {text}; `best` and the teacher were chosen on the reported rows"
        notes.append(f"{text}.")
    shared = "the fine-tuned teacher" if plan.config.student_from == "teacher" else "the pretrained encoder"
    if any(cell["start"] == plan.config.student_from for cell in cells):
        notes.append(f"The methods' common start (student_from {plan.config.student_from}): layers of {shared}.")
    notes += plan.notes
    notes += [
        f"{teacher['task']}: the ready teacher may have seen the rows that choose."
        for teacher in teachers
        if teacher.get("may_have_seen")
    ]
    notes.append(
        "Differences are paired by seed, with a 95 % t interval over the seeds (– below 3 seeds). There is one teacher "
        "a task, the same for every seed, so the teacher's own variance is in neither the spread nor the intervals."
    )
    if len(plan.tasks) > 1:
        notes.append("Over all tasks: the mean over the tasks for each seed first, then as in the other tables.")
    notes.append("The teacher that students learn from is its best checkpoint. Minutes are wall time of a whole run.")
    versions = {json.dumps(cell["versions"], sort_keys=True) for cell in cells if "versions" in cell}
    if len(versions) > 1:
        notes.append("The runs were made with several versions of the libraries (comparison.json has each run's).")
    resumed = sum(cell.get("attempts", 1) > 1 for cell in cells)
    if resumed:
        notes.append(f"{resumed} of the runs were interrupted and went on from a checkpoint.")
    notes.append(f"{plan.config.jobs} at a time, {os.cpu_count()} CPUs.")
    return notes
