"""The tables as Markdown and CSV, in per cent."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any

from bert_emd.studies.compare.methods import parse_method
from bert_emd.studies.compare.tables import BASELINES, KINDS
from bert_emd.training.records import render_table

__all__ = ["as_csv", "as_markdown", "as_text", "table_markdown", "table_title"]

_HEAD = ("method", "start", "last", "last − none", "last − kd", "best", "best − none", "best − kd",
         "last, each seed", "best, each seed", "minutes")  # fmt: skip


def table_title(table: Mapping[str, Any], metrics: Mapping[str, str]) -> str:
    """What a table is of: task, depth and metric."""
    layers = f"{table['layers']} {'layer' if table['layers'] == 1 else 'layers'}"
    if table["task"] is None:
        return f"All {len(table['tasks'])} tasks, {layers}: the mean of their metrics"
    return f"{table['task']}, {layers}: {metrics[table['task']]}"


def as_markdown(study: Mapping[str, Any]) -> str:
    """comparison.md, from what comparison.json holds."""
    lines = ["# Comparison", "", *(f"- {note}" for note in study["notes"]), ""]
    metrics = {task["task"]: task["metric"] for task in study["tasks"]}
    for table in study["tables"]:
        lines += [f"## {table_title(table, metrics)}", "", *table_markdown(table, study), ""]
    lines += ["![every seed](comparison.png)", ""]
    lines += _missing(study)
    return "\n".join(_without_double_blanks(lines)) + "\n"


def table_markdown(table: Mapping[str, Any], study: Mapping[str, Any]) -> list[str]:
    """One of the tables with the notes that belong to it, without a title.

    Args:
        table: of `bert_emd.studies.compare.tables.build_tables`.
        study: its seeds, cells and teachers are read.
    """
    teachers = {teacher["task"]: teacher for teacher in study["teachers"]}
    lines = [_line(_HEAD), _line(["---"] * len(_HEAD))]
    lines += [_line(_cells(row, table, study["seeds"], study["cells"])) for row in table["rows"]]
    lines += _references(table, teachers)
    notes = [*_kept(table, teachers), *_against(table)]
    return [*lines, "", *(f"- {note}" for note in notes)] if notes else lines


def as_text(study: Mapping[str, Any]) -> str:
    """The tables for a terminal."""
    metrics = {task["task"]: task["metric"] for task in study["tasks"]}
    shown = (0, 1, 2, 3, 4, 5, 10)
    made = []
    for table in study["tables"]:
        rows = [_cells(row, table, study["seeds"], study["cells"]) for row in table["rows"]]
        cells = [[row[i].strip("`") for i in shown] for row in rows]
        made.append(render_table(table_title(table, metrics), [_HEAD[i] for i in shown], cells))
    return "\n\n".join(made)


def _without_double_blanks(lines: Sequence[str]) -> list[str]:
    return [line for i, line in enumerate(lines) if line or (i and lines[i - 1])]


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _cells(
    row: Mapping[str, Any], table: Mapping[str, Any], seeds: Sequence[int], runs: Sequence[Mapping[str, Any]]
) -> list[str]:
    cells = [f"`{row['method']}`", row["start"]]
    for kind in KINDS:
        cells.append(_mean(row[kind], row["seeds"]))
        cells += [_difference(row[f"minus_{baseline}"], kind) for baseline in BASELINES]
    for kind in KINDS:
        by_seed = {int(seed): score for seed, score in row["by_seed"][kind].items()}
        shown = [_percent(by_seed[s]) if s in by_seed else _gap(row, table, s, runs) for s in seeds]
        cells.append(", ".join(shown) if any(shown) else "")
    cells.append(f"{row['wall_seconds'] / 60:.1f}" if row["wall_seconds"] is not None else "")
    return cells


def _gap(row: Mapping[str, Any], table: Mapping[str, Any], seed: int, runs: Sequence[Mapping[str, Any]]) -> str:
    """Blank where a run is missing; a failed one is named."""
    own = (row["method"], table["layers"], seed)
    failed = any(
        (run["method"], run["layers"], run["seed"]) == own
        and run["state"] == "failed"
        and table["task"] in (None, run["task"])
        for run in runs
    )
    return "failed" if failed else ""


def _mean(values: Mapping[str, Any], seeds: int) -> str:
    if values["mean"] is None:
        return ""
    spread = f" ± {_percent(values['sd'])}" if values["sd"] is not None else ""
    part = "" if values["n"] == seeds else f" ({values['n']} of {seeds} seeds)"
    return f"{_percent(values['mean'])}{spread}{part}"


def _difference(values: Mapping[str, Any] | None, kind: str) -> str:
    if values is None:
        return "–"
    d = values[kind]
    if d["mean"] is None:
        return ""
    interval = f"[{_percent(d['low'], '+')}, {_percent(d['high'], '+')}]" if d["low"] is not None else "–"
    return f"{_percent(d['mean'], '+')} {interval}"


def _percent(value: float, sign: str = "") -> str:
    return f"{100 * value:{sign}.1f}"


def _references(table: Mapping[str, Any], teachers: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """The rows of the teacher and of the trivial predictor."""
    own = [teachers[task] for task in (table["tasks"] if table["task"] is None else [table["task"]])]
    if not all("best" in teacher for teacher in own):
        return []

    def mean(key: str) -> str:
        values = [teacher.get(key) for teacher in own]
        found = [value for value in values if value is not None]
        return _percent(sum(found) / len(found)) if len(found) == len(values) else ""

    walls = [teacher.get("wall_seconds") for teacher in own]
    known = [wall for wall in walls if wall is not None]
    minutes = f"{sum(known) / len(known) / 60:.1f}" if len(known) == len(walls) else ""
    seen = ", may have seen the rows that chose" if any(teacher.get("may_have_seen") for teacher in own) else ""
    name = ("ready" if own[0]["ready"] else f"seed {own[0]['seed']}") + seen
    blank = [""] * 2
    return [
        _line([f"the teacher ({name})", "", mean("last"), *blank, mean("best"), *blank, "", "", minutes]),
        _line(["the trivial predictor", "", mean("trivial"), *blank, mean("trivial"), *blank, "", "", ""]),
    ]


def _kept(table: Mapping[str, Any], teachers: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """What the mean of the last students keeps of the teacher's score above the trivial predictor's."""
    teacher = teachers.get(table["task"], {})
    if "best" not in teacher or teacher.get("trivial") is None or teacher["best"] <= teacher["trivial"]:
        return []
    span = teacher["best"] - teacher["trivial"]
    parts = [
        f"`{row['method']}` {(row['last']['mean'] - teacher['trivial']) / span:.1%}"
        for row in table["rows"]
        if row["last"]["mean"] is not None
    ]
    return [f"`last` keeps of the teacher's score above the trivial predictor: {', '.join(parts)}."] if parts else []


def _against(table: Mapping[str, Any]) -> list[str]:
    """Which run a difference is taken to, where it is not the plain baseline of the same start."""
    starts = {row["method"]: row["start"] for row in table["rows"]}
    notes = []
    if len(set(starts.values())) > 1:
        notes.append("Differences are to the baseline of the same start, where there is one.")
    for baseline in BASELINES:
        others: dict[str, list[str]] = {}
        for row in table["rows"]:
            other = (row[f"minus_{baseline}"] or {}).get("against")
            if other is not None and (starts[other] != row["start"] or parse_method(other).options):
                others.setdefault(other, []).append(f"`{row['method']}`")
        for other, methods in others.items():
            notes.append(f"{', '.join(methods)} − {baseline}: the difference to `{other}` (start: {starts[other]}).")
    return notes


def _missing(study: Mapping[str, Any]) -> list[str]:
    failed = [run for run in (*study["teachers"], *study["cells"]) if run.get("state") == "failed"]
    lines = []
    if failed:
        lines += ["## Failed", ""]
        lines += [
            f"- {run.get('method', 'teacher')}, {run['task']}, seed {run['seed']}: {run['error']}" for run in failed
        ]
        lines.append("")
    waiting = [run for run in (*study["teachers"], *study["cells"]) if run.get("state") not in (None, "done")]
    if waiting:
        lines += [f"## Not there yet ({len(waiting)})", "", f"All of it: `{study['command']}`, or one by one:", ""]
        lines += ["```bash", *(run["command"] for run in waiting), "```", ""]
    return lines


def as_csv(study: Mapping[str, Any]) -> str:
    """comparison.csv: the rows of all tables, scores as fractions."""
    stream = io.StringIO(newline="")
    head = ["task", "layers", "metric", "method", "start", "seeds"]
    for kind in KINDS:
        head += [f"{kind}_n", f"{kind}_mean", f"{kind}_sd", f"{kind}_each_seed"]
        for baseline in BASELINES:
            head += [f"{kind}_minus_{baseline}{end}" for end in ("", "_low", "_high", "_n")]
    head += [*(f"{baseline}_is" for baseline in BASELINES), "wall_seconds"]
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(head)
    metrics = {task["task"]: task["metric"] for task in study["tasks"]}
    for table in study["tables"]:
        name = table["task"] if table["task"] is not None else "all tasks"
        for row in table["rows"]:
            line = [
                name,
                table["layers"],
                metrics.get(table["task"], "mean"),
                row["method"],
                row["start"],
                row["seeds"],
            ]
            for kind in KINDS:
                line += [row[kind]["n"], row[kind]["mean"], row[kind]["sd"]]
                line.append(" ".join(f"{seed}:{score}" for seed, score in row["by_seed"][kind].items()))
                for baseline in BASELINES:
                    d = (row[f"minus_{baseline}"] or {}).get(kind, {})
                    line += [d.get(key) for key in ("mean", "low", "high", "n")]
            line += [(row[f"minus_{baseline}"] or {}).get("against") for baseline in BASELINES]
            writer.writerow([*line, row["wall_seconds"]])
    return stream.getvalue()
