"""What a run says about the rows that chose its checkpoint, and whether its teacher may have been trained on them."""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bert_emd.data import Examples
from bert_emd.training.inputs import RunData

__all__ = ["may_have_seen", "scores_there", "selection_record"]

_LOG = logging.getLogger("bert_emd")


def selection_record(data: RunData, *teachers: object) -> dict[str, Any]:
    """The rows that choose the checkpoint, for run.json and metrics.json.

    Args:
        data: the run's data.
        teachers: the teacher, where there is one: a folder, a hub id or a model.

    Returns:
        ``split``, ``rows``, ``held_out`` (of the training data), ``sha256`` (of the texts, in order), with augmented
        data ``augmented`` (how many rows were left out with them), and with a teacher ``teacher_may_have_seen``.
    """
    sha256 = dataclasses.replace(data.validation, labels=None).fingerprint()
    record: dict[str, Any] = {
        "split": data.selected_on,
        "rows": len(data.validation),
        "held_out": data.held_out,
        "sha256": sha256,
    }
    if data.held_out:
        _LOG.info("%d training rows are held out; they choose the checkpoint", len(data.validation))
    if (left := data.augmented) is not None:
        record["augmented"] = {"held": left.held, "unclear": left.unclear}
        _LOG.info("%s: %d rows that stem from held-out rows are left out", left.kept.source, left.held)
        if left.unclear:
            _LOG.warning(
                "%s: %d more rows are left out, for their source row cannot be told and may be a held-out one",
                left.kept.source, left.unclear,
            )  # fmt: skip
    for teacher in teachers:
        seen = record["teacher_may_have_seen"] = data.held_out and may_have_seen(teacher, sha256)
        if seen:
            _LOG.warning(
                "the teacher may have been trained on the held-out rows, so they judge its students too kindly"
            )
    return record


def may_have_seen(teacher: object, sha256: str) -> bool:
    """Whether held-out rows may have been in a teacher's training: unless its run.json shows that they were not.

    Args:
        teacher: a folder, a hub id or a model; a model in memory may have been trained on anything.
        sha256: of the held-out rows, as `selection_record` gives it.
    """
    if not isinstance(teacher, (str, Path)):
        return True
    try:
        own = json.loads((Path(teacher) / "run.json").read_text(encoding="utf-8"))["selection"]
        apart = own["held_out"] is True and own["sha256"] == sha256 and not own.get("teacher_may_have_seen")
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return True
    return not apart


def scores_there(
    data: RunData, metrics: dict[str, Any], score: Callable[[str, Examples], dict[str, float]], best: str
) -> dict[str, Any]:
    """The best and the last model's scores on the rows that chose between them.

    Args:
        data: the run's data.
        metrics: what metrics.json holds so far; scores of the same rows are taken from it.
        score: scores ``best`` or ``last`` on rows.
        best: the field of metrics.json that holds the best model's scores.
    """
    names = data.validation.task.metrics
    for split, rows in data.reported.items():
        if rows is data.validation:
            several = len(data.reported) > 1
            found = {"best": metrics[best], "last": metrics["last"]}
            return {which: {m: (s[split] if several else s)[m] for m in names} for which, s in found.items()}
    return {which: score(which, data.validation) for which in ("best", "last")}
