"""What a run writes down about itself: run.json, metrics.json, and the tables it prints."""

from __future__ import annotations

import dataclasses
import io
import platform
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from bert_emd.data import Examples, trivial_score
from bert_emd.training.checked import CheckedConfig
from bert_emd.training.inputs import RunData
from bert_emd.training.resolve import with_sources_from_defaults
from bert_emd.training.shared import TrainFields

__all__ = [
    "config_record",
    "head_of",
    "main_of",
    "per_split",
    "render_table",
    "retention",
    "run_record",
    "score_rows",
    "selection_note",
    "trivial_of",
    "versions",
]

_PACKAGES = ("bert-emd", "torch", "transformers", "accelerate", "datasets", "POT", "numpy", "scikit-learn", "scipy")


def run_record(
    command: str, config: TrainFields, sources: Mapping[str, str] | None, data: Mapping[str, Examples], **more: Any
) -> dict[str, Any]:
    """Everything needed to run it again: configuration and where each value came from, versions, data, machine."""
    return {
        **config_record(command, config, sources, config.without_effect()),
        "versions": versions(),
        "machine": {
            "processor": platform.machine(),
            "threads": torch.get_num_threads(),
            "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() and not config.no_cuda else None,
        },
        "data": {
            name: {
                "source": rows.source,
                "rows": len(rows),
                "dropped": rows.dropped,
                "labels": rows.label_counts(),
                "sha256": rows.fingerprint(),
            }
            for name, rows in data.items()
        },
        **more,
    }


def config_record(
    command: str, config: CheckedConfig, sources: Mapping[str, str] | None, not_used: Mapping[str, str]
) -> dict[str, Any]:
    """The configuration, where each value came from, and what had no effect."""
    return {
        "command": command,
        "command_line": sys.argv if sources is not None else None,
        "config": dataclasses.asdict(config),
        "sources": dict(sources if sources is not None else with_sources_from_defaults(config)),
        "not_used": dict(not_used),
    }


def versions() -> dict[str, str | None]:
    """Python's version and those of the packages that results depend on."""
    return {"python": platform.python_version(), **{name: _version(name) for name in _PACKAGES}}


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def trivial_of(train: Examples, reported: Examples) -> dict[str, float]:
    """The trivial predictor's scores: the most frequent training class, or zero correlation."""
    assert reported.labels is not None
    known = train.labels if train.labels is not None else reported.labels
    return trivial_score(reported.task, known, reported.labels)


def head_of(data: RunData) -> dict[str, Any]:
    """The first fields of metrics.json."""
    return {
        "task": data.validation.task.name,
        "metric": data.validation.task.main_metric,
        "selected_on": data.selected_on,
        "reported_on": data.reported_on,
        "optimistic": data.optimistic,
        "rows": {"train": len(data.train), **{name: len(rows) for name, rows in data.reported.items()}},
    }


def per_split(data: RunData, score: Any) -> dict[str, Any]:
    """Scores of the one reported split, or by split where there are two (MNLI)."""
    found = {name: score(rows) for name, rows in data.reported.items()}
    return next(iter(found.values())) if len(found) == 1 else found


def main_of(scores: dict[str, Any], metric: str) -> float:
    """The main metric, of the first split where there are two."""
    return float(scores[metric] if metric in scores else next(iter(scores.values()))[metric])


def retention(student: float, teacher: float, trivial: float) -> dict[str, float | None]:
    """What the student keeps: s/t, and (s - t0)/(t - t0); null where the teacher is not above zero or t0."""
    return {
        "retention": student / teacher if teacher > 0 else None,
        "retention_above_trivial": (student - trivial) / (teacher - trivial) if teacher > trivial else None,
    }


def score_rows(metrics: Mapping[str, Any], data: RunData, models: Mapping[str, str]) -> list[list[str]]:
    """The rows of a final table, one a model and reported split: a name, the task's metrics.

    Args:
        metrics: what metrics.json holds.
        data: the run's data.
        models: from a field of metrics.json to the name it is shown under.
    """
    several = len(data.reported) > 1
    return [
        [
            f"{shown}, {split}" if several else shown,
            *(f"{(metrics[key][split] if several else metrics[key])[m]:.4f}" for m in data.validation.task.metrics),
        ]
        for key, shown in models.items()
        for split in data.reported
    ]


def selection_note(metrics: Mapping[str, Any]) -> str:
    """Which rows chose the checkpoint and which the scores are of."""
    return (
        f"Checkpoint chosen on {metrics['selected_on']} (step {metrics['best_step']} of {metrics['last_step']}), "
        f"scores on {metrics['reported_on']}"
        + (" (the same rows, so the best score is optimistic)" if metrics["optimistic"] else "")
        + (
            "; the teacher may have seen the rows that chose"
            if metrics["selection"].get("teacher_may_have_seen")
            else ""
        )
    )


def render_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], notes: Sequence[str] = ()) -> str:
    """A small table as text, numbers to the right."""
    table = Table(title=title, title_justify="left")
    for i, name in enumerate(columns):
        table.add_column(name, justify="left" if i == 0 else "right", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    stream = io.StringIO()
    console = Console(file=stream, width=120)
    console.print(table)
    return "\n".join([stream.getvalue().rstrip(), *notes])
