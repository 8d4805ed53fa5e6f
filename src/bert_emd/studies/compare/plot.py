"""Every seed as a point, the mean as a bar: one panel a task and depth."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

from bert_emd.studies.compare.render import table_title

__all__ = ["draw"]

# Okabe and Ito's colours, which colour-blind readers tell apart; the marks differ in shape too.
_LAST, _BEST, _TEACHER, _TRIVIAL = "#0072B2", "#D55E00", "#009E73", "#666666"
_COLUMNS = 3
_STRETCH = 2.5


def draw(study: Mapping[str, Any], *formats: str) -> dict[str, bytes]:
    """The figure in each of the formats (png, svg), from what comparison.json holds."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    tables = study["tables"]
    # A row of panels a task, where the depths fit beside each other.
    depths = len({table["layers"] for table in tables})
    columns = depths if 1 < depths <= _COLUMNS else min(_COLUMNS, len(tables))
    rows = -(-len(tables) // columns)
    methods = max(len(table["rows"]) for table in tables)
    names = max(len(row["method"]) for table in tables for row in table["rows"])
    left = min(3.5, 0.5 + 0.085 * names)
    figure = Figure(figsize=(columns * (3.6 + left), rows * (1.3 + 0.42 * methods) + 0.6), layout="constrained")
    FigureCanvasAgg(figure)
    metrics = {task["task"]: task["metric"] for task in study["tasks"]}
    teachers = {teacher["task"]: teacher for teacher in study["teachers"]}
    for i, table in enumerate(tables):
        _panel(figure.add_subplot(rows, columns, i + 1), table, table_title(table, metrics), teachers)
    marks = [
        Line2D([], [], marker="o", linestyle="", color=_LAST, label="last, each seed"),
        Line2D([], [], marker="D", linestyle="", markerfacecolor="none", color=_BEST, label="best, each seed"),
        Line2D([], [], marker="|", linestyle="", color=_LAST, markersize=14, markeredgewidth=2.5, label="mean of last"),
        Line2D([], [], marker="|", linestyle="", color=_BEST, markersize=14, markeredgewidth=2.5, label="mean of best"),
        Line2D([], [], color=_TEACHER, linestyle="--", label="the teacher"),
        Line2D([], [], color=_TRIVIAL, linestyle=":", label="the trivial predictor"),
    ]
    figure.legend(handles=marks, loc="outside lower center", ncols=3, frameon=False, fontsize=8)
    made = {}
    for kind in formats:
        stream = io.BytesIO()
        figure.savefig(stream, format=kind, dpi=150, metadata={"Date": None} if kind == "svg" else None)
        made[kind] = stream.getvalue()
    return made


def _panel(axes: Any, table: Mapping[str, Any], title: str, teachers: Mapping[str, Mapping[str, Any]]) -> None:
    found: list[float] = []
    for y, row in enumerate(table["rows"]):
        for kind, offset, style in (
            ("last", -0.16, {"marker": "o", "color": _LAST}),
            ("best", 0.16, {"marker": "D", "facecolors": "none", "edgecolors": _BEST}),
        ):
            scores = [100 * score for score in row["by_seed"][kind].values()]
            found += scores
            # One beside the other, so that seeds of the same score are seen as several.
            places = [
                y + offset + 0.07 * (i - (len(scores) - 1) / 2) / max(1, (len(scores) - 1) / 2)
                for i in range(len(scores))
            ]
            axes.scatter(scores, places, s=22, zorder=3, alpha=0.85, **style)
            if scores:
                mean, colour = 100 * row[kind]["mean"], _LAST if kind == "last" else _BEST
                axes.plot([mean, mean], [y + offset - 0.17, y + offset + 0.17], color=colour, linewidth=2.5, zorder=2)
    axes.set_yticks(range(len(table["rows"])), [_name(row) for row in table["rows"]], fontsize=8)
    axes.set_ylim(len(table["rows"]) - 0.4, -0.6)
    axes.tick_params(axis="x", labelsize=8)
    axes.grid(axis="x", color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    beyond = _lines(axes, found, table, teachers)
    axes.set_title(title + (f"\n{beyond}" if beyond else ""), fontsize=9, loc="left")
    axes.set_xlabel("per cent", fontsize=8)


def _name(row: Mapping[str, Any]) -> str:
    """A row's name, with its start where that does not stand in it already."""
    own, start = row["method"], row["start"]
    return own if own.endswith(f"@{start}") else f"{own}\n({start if len(start) < 30 else '…' + start[-28:]})"


def _lines(axes: Any, found: list[float], table: Mapping[str, Any], teachers: Mapping[str, Mapping[str, Any]]) -> str:
    """Lines for the teacher and the trivial predictor; the text of those that would squeeze the points together."""
    own = [teachers[task] for task in (table["tasks"] if table["task"] is None else [table["task"]])]
    if not found or not all("best" in teacher for teacher in own):
        return ""
    low, high = min(found), max(found)
    span = max(high - low, 1.0)
    beyond = []
    for key, name, colour, style in (("best", "teacher", _TEACHER, "--"), ("trivial", "trivial", _TRIVIAL, ":")):
        value = 100 * sum(teacher[key] for teacher in own) / len(own)
        if max(high, value) - min(low, value) <= _STRETCH * span:
            axes.axvline(value, color=colour, linestyle=style, linewidth=1.3, zorder=1)
        else:
            beyond.append(f"{name} {value:.1f} {'→' if value > high else '←'}")
    return ", ".join(beyond)
