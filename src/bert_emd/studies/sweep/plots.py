"""The two pictures of a search: its scores over time, and which options mattered."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bert_emd.training.outputs import write_whole

__all__ = ["plot_history", "plot_importances"]

_BLUE, _BROWN, _GREY = "#1f6f8b", "#b0562d", "#9a9a9a"


def _figure(width: float, height: float) -> Any:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _save(figure: Any, path: Path) -> None:
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=130)
    write_whole(path, picture.getvalue())


def plot_history(rows: Sequence[Mapping[str, Any]], metric: str, path: Path) -> None:
    """Every trial as a point, the best so far as a line; pruned ones at the last score they had, failed ones as marks.

    Args:
        rows: as `bert_emd.studies.sweep.results.rows_of` makes them.
        metric: the axis' name.
        path: the PNG file.
    """
    figure = _figure(7.5, 3.6)
    axis = figure.subplots()
    finished = [(row["trial"], row["score"]) for row in rows if row["state"] == "complete"]
    pruned = [(row["trial"], row["evaluations"][-1]) for row in rows if row["state"] == "pruned" and row["evaluations"]]
    failed = [row["trial"] for row in rows if row["state"] == "failed"]
    if finished:
        numbers, scores = zip(*finished, strict=True)
        so_far = [max(scores[: i + 1]) for i in range(len(scores))]
        axis.step([*numbers, max(row["trial"] for row in rows)], [*so_far, so_far[-1]], where="post", color=_BROWN,
                  label="best so far")  # fmt: skip
        axis.plot(numbers, scores, "o", color=_BLUE, label="finished")
    if pruned:
        axis.plot(*zip(*pruned, strict=True), "o", color=_GREY, fillstyle="none", label="pruned, when it stopped")
    if failed:
        bottom = axis.get_xaxis_transform()
        axis.plot(failed, [0.02] * len(failed), "x", color=_BROWN, transform=bottom, label="failed", clip_on=False)
    axis.set(xlabel="trial", ylabel=metric)
    axis.xaxis.get_major_locator().set_params(integer=True)
    axis.grid(True, alpha=0.3)
    if axis.get_legend_handles_labels()[0]:
        axis.legend(frameon=False)
    _save(figure, path)


def plot_importances(importances: Mapping[str, float], trials: int, path: Path) -> None:
    """A bar an option, the most important on top.

    Args:
        importances: parts of the variance, which sum to 1.
        trials: how many they were computed from.
        path: the PNG file.
    """
    figure = _figure(6.5, 1.2 + 0.35 * max(len(importances), 1))
    axis = figure.subplots()
    names = list(importances)[::-1]
    bars = axis.barh(names, [importances[name] for name in names], color=_BLUE)
    axis.bar_label(bars, fmt="%.2f", padding=3)
    axis.set(xlim=(0, 1.1), xlabel=f"part of the scores' variance (fANOVA, {trials} trials)")
    axis.grid(True, axis="x", alpha=0.3)
    axis.set_axisbelow(True)
    _save(figure, path)
