"""Prediction files exactly as the GLUE test server wants them."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from bert_emd.data.labels import match_labels
from bert_emd.data.tasks import Task
from bert_emd.errors import UserError

__all__ = ["write_submission"]


def write_submission(
    task: Task,
    split: str,
    logits: np.ndarray,
    model_label_names: Sequence[str] | None,
    indices: Sequence[int],
    folder: str | Path,
) -> Path:
    """Write the predictions of a test split as the server's file (``MRPC.tsv``, ``MNLI-mm.tsv``, …); return its path.

    ``logits`` is [rows, classes] in the order of ``model_label_names`` ([rows] or [rows, 1] for STS-B, whose names
    may be None); ``indices`` are the rows' numbers. A class is spelled by the model's name for it, never by its
    number; STS-B scores are clipped to [0, 5] and have three decimals. The file appears whole or not at all.

    Raises `UserError` for a split that the server does not take, label names that disagree with the task's and
    outputs that are not finite; `ValueError` for shapes that do not fit.
    """
    part = task.split(split)
    if part.submission is None:
        raise UserError(f"the GLUE server takes no predictions for {task.name} {split}: use a test split")
    logits = np.asarray(logits, dtype=np.float64)
    if len(logits) != len(indices):
        raise ValueError(f"{len(logits)} rows of logits for {len(indices)} indices")
    if not np.isfinite(logits).all():
        raise UserError("the model's outputs are not finite: its training diverged; train it again at a lower rate")
    spelled = _scores(logits) if task.label_names is None else _classes(task, logits, model_label_names or ())
    lines = ["index\tprediction", *(f"{index}\t{word}" for index, word in zip(indices, spelled, strict=True))]
    path = Path(folder) / part.submission
    _write_whole(path, "\n".join(lines) + "\n")
    return path


def _scores(logits: np.ndarray) -> list[str]:
    if logits.reshape(-1).shape != (len(logits),):
        raise ValueError(f"logits {logits.shape} are not one score a row")
    # Adding 0.0 turns -0.0 into 0.0, which would print a sign.
    return [f"{value:.3f}" for value in np.clip(logits.reshape(-1), 0.0, 5.0) + 0.0]


def _classes(task: Task, logits: np.ndarray, model_label_names: Sequence[str]) -> list[str]:
    if logits.ndim != 2 or logits.shape[1] != len(model_label_names):
        raise ValueError(f"logits {logits.shape} do not fit {len(model_label_names)} label names")
    outputs, _ = match_labels(model_label_names, task.label_names or (), known_order=task.known_order)
    spelling = {output: task.submission_labels[label] for label, output in enumerate(outputs)}
    return [spelling[int(output)] for output in logits.argmax(axis=1)]


def _write_whole(path: Path, text: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error
    temporary = Path(name)
    try:
        with os.fdopen(handle, "w", encoding="utf-8", newline="\n") as file:
            file.write(text)
        temporary.chmod(0o644)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
