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
from bert_emd.training.config import RunConfig
from bert_emd.training.resolve import with_sources_from_defaults

__all__ = ["render_table", "retention", "run_record", "trivial_of"]

_PACKAGES = ("bert-emd", "torch", "transformers", "accelerate", "datasets", "POT", "numpy", "scikit-learn", "scipy")


def run_record(
    command: str, config: RunConfig, sources: Mapping[str, str] | None, data: Mapping[str, Examples], **more: Any
) -> dict[str, Any]:
    """Everything needed to run it again: configuration and where each value came from, versions, data, machine."""
    return {
        "command": command,
        "command_line": sys.argv if sources is not None else None,
        "config": dataclasses.asdict(config),
        "sources": dict(sources if sources is not None else with_sources_from_defaults(config)),
        "not_used": config.unused(),
        "versions": {"python": platform.python_version(), **{name: _version(name) for name in _PACKAGES}},
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


def retention(student: float, teacher: float, trivial: float) -> dict[str, float | None]:
    """What the student keeps: s/t, and (s - t0)/(t - t0); null where the teacher is not above zero or t0."""
    return {
        "retention": student / teacher if teacher > 0 else None,
        "retention_above_trivial": (student - trivial) / (teacher - trivial) if teacher > trivial else None,
    }


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
