"""From every seed's numbers to tables: one a task and depth, and one a depth over all tasks."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from bert_emd.studies.compare.methods import Method, parse_method
from bert_emd.studies.compare.statistics import over_seeds, over_tasks, paired_difference

__all__ = ["BASELINES", "KINDS", "build_tables", "reference"]

BASELINES = ("none", "kd")
KINDS = ("last", "best")

_Scores = dict[str, dict[str, dict[int, float]]]
"""By method, then last or best, then seed."""


def reference(method: str, baseline: str, starts: Mapping[str, str]) -> str | None:
    """The method that another one's difference is taken to: of the same start, and without options, where there is one.

    Args:
        method: as it was typed.
        baseline: ``none`` or ``kd``.
        starts: each method's start, in the order of the table.

    Returns:
        None where there is no such baseline, or where the method is it itself.
    """
    own = starts[method]
    candidates: list[Method] = [m for m in map(parse_method, starts) if m.name == baseline]
    candidates.sort(key=lambda m: (starts[m.spec] != own, bool(m.options)))
    return candidates[0].spec if candidates and candidates[0].spec != method else None


def build_tables(cells: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """All tables, from the students' records alone.

    Args:
        cells: of `bert_emd.studies.compare.results.collect`, or the ``cells`` of comparison.json.

    Returns:
        For each table ``task`` (null: over all), ``layers`` and ``rows``; for each row the method, its start, and for
        ``last`` and ``best`` number, mean and standard deviation, and the differences to ``none`` and ``kd``.
    """
    tasks = list(dict.fromkeys(cell["task"] for cell in cells))
    tables = []
    for layers in sorted({cell["layers"] for cell in cells}, reverse=True):
        here = [cell for cell in cells if cell["layers"] == layers]
        methods = list(dict.fromkeys(cell["method"] for cell in here))
        starts = {cell["method"]: cell["start"] for cell in here}
        by_task = {task: _scores([c for c in here if c["task"] == task], methods) for task in tasks}
        for task in tasks:
            of_task = [c for c in here if c["task"] == task]
            tables.append({"task": task, "layers": layers, "rows": _rows(by_task[task], starts, of_task)})
        if len(tasks) > 1:
            scores: _Scores = {
                method: {kind: over_tasks([by_task[task][method][kind] for task in tasks]) for kind in KINDS}
                for method in methods
            }
            tables.append({"task": None, "tasks": tasks, "layers": layers, "rows": _rows(scores, starts, here)})
    # The tables over all tasks come last.
    return sorted(tables, key=lambda table: (table["task"] is None, tasks.index(table["task"] or tasks[0])))


def _scores(cells: Sequence[Mapping[str, Any]], methods: Sequence[str]) -> _Scores:
    done = [cell for cell in cells if cell["state"] == "done"]
    return {
        method: {kind: {c["seed"]: c[kind] for c in done if c["method"] == method} for kind in KINDS}
        for method in methods
    }


def _rows(scores: _Scores, starts: Mapping[str, str], cells: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    rows = []
    for method, by_kind in scores.items():
        own = [cell for cell in cells if cell["method"] == method]
        walls = [cell["wall_seconds"] for cell in own if cell["state"] == "done" and cell["wall_seconds"] is not None]
        row: dict[str, Any] = {
            "method": method,
            "start": starts[method],
            "seeds": len({cell["seed"] for cell in own}),
            **{kind: over_seeds(by_kind[kind]) for kind in KINDS},
            "by_seed": {kind: by_kind[kind] for kind in KINDS},
            "wall_seconds": statistics.fmean(walls) if walls else None,
        }
        for baseline in BASELINES:
            against = reference(method, baseline, starts)
            row[f"minus_{baseline}"] = None if against is None else {
                "against": against,
                **{kind: paired_difference(by_kind[kind], scores[against][kind]) for kind in KINDS},
            }  # fmt: skip
        rows.append(row)
    return rows
