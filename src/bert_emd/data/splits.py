"""Holding out rows for validation."""

from __future__ import annotations

import math

import numpy as np
from sklearn.model_selection import train_test_split

from bert_emd.data.examples import Examples
from bert_emd.errors import UserError

__all__ = ["holdout"]

_SCORE_BINS = 5


def holdout(examples: Examples, fraction: float = 0.1, seed: int = 13) -> tuple[Examples, Examples]:
    """Split the rows into ``(kept, held)``, both in the order of the source; the same arguments give the same rows.

    ``held`` has ``fraction`` of the rows (rounded up, and no fewer than there are classes), stratified by class, or
    by five quantile bins of the score. A class with a single row is kept. Rows without labels are split at random.
    Raises `UserError` for a fraction outside (0, 1) and for too few rows.
    """
    if not 0.0 < fraction < 1.0:
        raise UserError(f"the held-out fraction must lie between 0 and 1, not {fraction}")
    strata = _strata(examples)
    sizes = np.bincount(strata)
    # A stratum of one row can be on one side only.
    eligible = np.flatnonzero(sizes[strata] > 1)
    groups = int((sizes > 1).sum())
    count = max(math.ceil(fraction * len(examples)), groups)
    if not groups or len(eligible) - count < groups:
        raise UserError(
            f"{examples.source} has too few rows ({len(examples)}) to hold out {count} for validation: "
            "give a validation file, or add rows"
        )
    _, held = train_test_split(eligible, test_size=count, random_state=seed, shuffle=True, stratify=strata[eligible])
    chosen = np.zeros(len(examples), dtype=bool)
    chosen[held] = True
    return examples.subset(np.flatnonzero(~chosen).tolist()), examples.subset(np.flatnonzero(chosen).tolist())


def _strata(examples: Examples) -> np.ndarray:
    """Return the stratum number of each row, [rows]."""
    if examples.labels is None:
        return np.zeros(len(examples), dtype=np.int64)
    labels = np.asarray(examples.labels)
    if not examples.task.is_regression:
        # Numbered as they appear, so that the same rows are held out whatever order a model's classes have.
        _, first, label = np.unique(labels, return_index=True, return_inverse=True)
        return np.argsort(np.argsort(first))[label]
    edges = np.quantile(labels, np.linspace(0.0, 1.0, _SCORE_BINS + 1)[1:-1])
    return np.searchsorted(edges, labels, side="right").astype(np.int64)
