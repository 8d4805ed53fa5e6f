"""The tasks' metrics, by scikit-learn and SciPy."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from scipy import stats
from sklearn import metrics as sk

from bert_emd.data.tasks import Task
from bert_emd.errors import UserError

__all__ = ["score", "trivial_score"]

Metric = Callable[[Task, np.ndarray, np.ndarray], float]


def score(task: Task, logits: np.ndarray, labels: Sequence[float] | np.ndarray) -> dict[str, float]:
    """Score a model's outputs.

    ``logits`` is [rows, classes], or [rows] or [rows, 1] for regression; ``labels`` is [rows]. Returns the task's
    metrics by name, in its order: accuracy, f1 (of the class `Task.positive`), f1_macro, matthews_correlation,
    pearson, spearmanr. Constant predictions, for which a correlation is not defined, score 0.0.

    Raises `UserError` for outputs that are not finite, `ValueError` for shapes that do not fit.
    """
    logits, truth = np.asarray(logits, dtype=np.float64), np.asarray(labels)
    width = () if task.is_regression and logits.ndim == 1 else (task.num_labels,)
    if logits.shape != (len(truth), *width):
        raise ValueError(
            f"{task.name}: logits {logits.shape} do not fit {len(truth)} labels of {task.num_labels} classes"
        )
    if not len(truth):
        raise ValueError(f"{task.name}: no rows to score")
    bad = int((~np.isfinite(logits.reshape(len(truth), -1))).any(axis=1).sum())
    if bad:
        raise UserError(
            f"the model's outputs are not finite in {bad} of {len(truth)} rows: training diverged; "
            "lower the learning rate"
        )
    predictions = logits.reshape(-1) if task.is_regression else logits.argmax(axis=1)
    return {name: _METRICS[name](task, truth, predictions) for name in task.metrics}


def trivial_score(
    task: Task, train_labels: Sequence[float] | np.ndarray, labels: Sequence[float] | np.ndarray
) -> dict[str, float]:
    """Score the trivial predictor: always the most frequent training class (the first of equals).

    Its correlations, and with them every metric of a regression task, are 0.0.
    """
    if task.is_regression:
        return dict.fromkeys(task.metrics, 0.0)
    counts = np.bincount(np.asarray(train_labels, dtype=np.int64), minlength=task.num_labels)
    logits = np.zeros((len(labels), task.num_labels))
    logits[:, counts.argmax()] = 1.0
    return score(task, logits, labels)


def _accuracy(task: Task, truth: np.ndarray, predictions: np.ndarray) -> float:
    return float(np.mean(truth == predictions))


def _f1(task: Task, truth: np.ndarray, predictions: np.ndarray) -> float:
    return float(sk.f1_score(truth == task.positive, predictions == task.positive, zero_division=0))


def _f1_macro(task: Task, truth: np.ndarray, predictions: np.ndarray) -> float:
    return float(sk.f1_score(truth, predictions, average="macro", zero_division=0))


def _correlation(function: Callable[[np.ndarray, np.ndarray], float]) -> Metric:
    """A correlation that is 0.0, silently, where it is not defined."""

    def metric(task: Task, truth: np.ndarray, predictions: np.ndarray) -> float:
        if np.ptp(truth) == 0 or np.ptp(predictions) == 0:
            return 0.0
        with warnings.catch_warnings():
            # Predictions that are all but constant: the number stands, the engine's log is not the place to doubt it.
            warnings.simplefilter("ignore")
            value = float(function(truth, predictions))
        return value if np.isfinite(value) else 0.0

    return metric


_METRICS: Mapping[str, Metric] = {
    "accuracy": _accuracy,
    "f1": _f1,
    "f1_macro": _f1_macro,
    "matthews_correlation": _correlation(sk.matthews_corrcoef),
    "pearson": _correlation(lambda truth, predictions: stats.pearsonr(truth, predictions)[0]),
    "spearmanr": _correlation(lambda truth, predictions: stats.spearmanr(truth, predictions)[0]),
}
