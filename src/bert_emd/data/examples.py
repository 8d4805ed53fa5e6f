"""One in-memory shape for the examples of every source."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass

from bert_emd.data.labels import order_labels
from bert_emd.data.tasks import Task

__all__ = ["Examples", "relabel"]


@dataclass(frozen=True)
class Examples:
    """Rows of text with their labels, in the order of the source."""

    texts: list[str]
    pairs: list[str] | None
    """The second texts, where the task has two."""
    labels: list[int] | list[float] | None
    """Positions in ``task.label_names``, or scores for regression; None where there are none."""
    indices: list[int]
    """Each row's number in the source (0-based), or the hub's ``idx``: what a prediction file refers to."""
    task: Task
    source: str
    """Path or hub id, for messages."""
    dropped: int = 0
    """Rows of the source that were left out."""

    def __post_init__(self) -> None:
        for name, column in (("pairs", self.pairs), ("labels", self.labels), ("indices", self.indices)):
            if column is not None and len(column) != len(self.texts):
                raise ValueError(f"{len(self.texts)} texts but {len(column)} {name}")

    def __len__(self) -> int:
        return len(self.texts)

    def subset(self, indices: Sequence[int]) -> Examples:
        """Return the rows at these positions (0-based, of this object), in that order."""
        return dataclasses.replace(
            self,
            texts=[self.texts[i] for i in indices],
            pairs=None if self.pairs is None else [self.pairs[i] for i in indices],
            labels=None if self.labels is None else [self.labels[i] for i in indices],
            indices=[self.indices[i] for i in indices],
        )

    def label_counts(self) -> dict[str, int]:
        """Return label name -> number of rows, in class order; empty for regression and for unlabelled rows."""
        names = self.task.label_names
        if not names or self.labels is None:
            return {}
        counts = [0] * len(names)
        for label in self.labels:
            counts[int(label)] += 1
        return dict(zip(names, counts, strict=True))

    def fingerprint(self) -> str:
        """Return a sha256 (hex) of texts and labels, in order.

        Classes enter by name, and neither `source` nor `indices` do: the same rows give the same fingerprint from
        any source and under any order of the classes.
        """
        digest = hashlib.sha256()
        names = self.task.label_names
        for i, text in enumerate(self.texts):
            pair = None if self.pairs is None else self.pairs[i]
            label = None if self.labels is None else self.labels[i]
            shown = names[int(label)] if names and label is not None else label
            digest.update(json.dumps([text, pair, shown]).encode() + b"\n")
        return digest.hexdigest()


def relabel(examples: Examples, label_names: Sequence[str]) -> Examples:
    """Re-express the labels in another order of the class names (a model's ``id2label``), matched by name.

    The task of the result has these names, in this order. Raises `UserError`, listing both, where the names disagree.
    """
    task = examples.task.with_label_names(label_names)
    if examples.labels is None or not examples.task.label_names:
        return dataclasses.replace(examples, task=task)
    position = order_labels(examples.task.label_names, label_names)
    return dataclasses.replace(examples, task=task, labels=[position[int(label)] for label in examples.labels])
