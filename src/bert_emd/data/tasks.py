"""The tasks: the nine of GLUE and its diagnostic set, one table row each, and tasks of the user's own."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Sequence
from dataclasses import dataclass

from bert_emd.data.labels import label_lookup, listing, order_labels
from bert_emd.errors import UserError

__all__ = ["GLUE_TASKS", "Split", "Task", "custom_task", "find_task", "plain_name"]


@dataclass(frozen=True, kw_only=True)
class Split:
    """One split of a GLUE task: what each source calls it."""

    name: str
    """Our name: train, train_aug, validation, test, validation_mismatched, test_mismatched."""
    tsv: str
    """File name in the official folder."""
    hub: str | None
    """Split name on the hub; None where the hub has no such split."""
    columns: tuple[str, ...] = ()
    """The columns of a TSV file without a header; empty where the first line is a header."""
    submission: str | None = None
    """File name that the GLUE server wants for the predictions; test splits only."""

    @property
    def is_test(self) -> bool:
        """Whether the benchmark keeps the labels of this split to itself."""
        return self.submission is not None


@dataclass(frozen=True, kw_only=True)
class Task:
    """What there is to know about a task. What is in the order of `label_names` moves with them."""

    name: str
    """The benchmark's spelling (``SST-2``), or ``custom``."""
    text_columns: tuple[str, ...]
    """One or two text columns, as the hub (or the user's file) names them."""
    label_names: tuple[str, ...] | None
    """Class names in class order; None for regression; empty where the data has no labels and no names were given."""
    metrics: tuple[str, ...]
    """Metric names, the main one first."""
    known_order: bool = True
    """Whether the order of `label_names` was given by somebody, and is not merely alphabetical."""
    positive: int = 1
    """The class that binary F1 is about."""
    hub_name: str = ""
    """Configuration name in nyu-mll/glue."""
    folder_names: tuple[str, ...] = ()
    """Names of the task's folder below a GLUE root, in the spelling of `plain_name`."""
    splits: tuple[Split, ...] = ()
    tsv_text_columns: tuple[str, ...] = ()
    """The text columns as the official TSV names them."""
    tsv_label_column: str = "label"
    tsv_labels: tuple[str, ...] = ()
    """How the official TSV spells each class, in the order of `label_names`."""
    submission_labels: tuple[str, ...] = ()
    """How the GLUE server spells each class, in the order of `label_names`."""
    drops_short_rows: bool = False
    """Whether TSV rows with too few columns are left out (as the hub does) instead of refused."""

    @property
    def is_regression(self) -> bool:
        """Whether the target is a number and not a class."""
        return self.label_names is None

    @property
    def num_labels(self) -> int:
        """Width of a model's output: 1 for regression, else the number of classes (0 where they are not known)."""
        return 1 if self.label_names is None else len(self.label_names)

    @property
    def main_metric(self) -> str:
        """The metric by which checkpoints are chosen."""
        return self.metrics[0]

    def split(self, name: str) -> Split:
        """Return the split of that name. Raises `UserError` where the task has none."""
        for split in self.splits:
            if split.name == name:
                return split
        known = listing([split.name for split in self.splits])
        raise UserError(f"{self.name} has no split {name!r}: use one of {known}")

    def with_label_names(self, label_names: Sequence[str]) -> Task:
        """Return the same task with its classes in another order or spelling (a model's), matched by name.

        A task whose classes are not known takes them as they are. Raises `UserError` where the names disagree.
        """
        if self.label_names is None:
            raise UserError(f"{self.name} is a regression task: it has no label names ({listing(label_names)} given)")
        if not self.label_names:
            label_lookup(label_names)
            return dataclasses.replace(self, label_names=tuple(label_names), known_order=True)
        position = order_labels(self.label_names, label_names)
        old = sorted(range(len(position)), key=position.__getitem__)
        return dataclasses.replace(
            self,
            label_names=tuple(label_names),
            known_order=True,
            positive=position[self.positive] if self.positive < len(position) else self.positive,
            tsv_labels=tuple(self.tsv_labels[i] for i in old) if self.tsv_labels else (),
            submission_labels=tuple(self.submission_labels[i] for i in old) if self.submission_labels else (),
        )


def custom_task(
    label_names: Sequence[str] | None, text_columns: Sequence[str] = ("text",), *, known_order: bool = True
) -> Task:
    """Return a `Task` for the user's own data.

    ``label_names`` are the classes in class order, None for regression, empty for unlabelled data of unknown classes.
    ``known_order`` is False where their order was made up here (sorted). Metrics: accuracy and ``f1_macro``, or
    spearmanr and pearson. Raises `UserError` for one class only, for equal names, and for no or too many columns.
    """
    if not 1 <= len(text_columns) <= 2:
        raise UserError(f"give one or two text columns, not {len(text_columns)} ({listing(text_columns)})")
    if label_names is not None:
        label_lookup(label_names)
        if len(label_names) == 1:
            raise UserError(f"only one label, {label_names[0]!r}: a classifier needs at least two")
    return Task(
        name="custom",
        text_columns=tuple(text_columns),
        label_names=None if label_names is None else tuple(label_names),
        metrics=("spearmanr", "pearson") if label_names is None else ("accuracy", "f1_macro"),
        known_order=known_order,
    )


def find_task(name: str) -> Task:
    """Return the GLUE task of that name, whatever its case, ``-`` and ``_`` (``sst2``, ``STS-B``, ``sts_b``).

    Raises `UserError` with the nearest name where there is none.
    """
    by_name = {plain_name(task.name): task for task in GLUE_TASKS}
    wanted = plain_name(name)
    if wanted in by_name:
        return by_name[wanted]
    nearest = by_name[difflib.get_close_matches(wanted, by_name, n=1, cutoff=0.0)[0]].name
    known = listing([task.name for task in GLUE_TASKS])
    raise UserError(f"unknown task {name!r}: did you mean {nearest}? Known tasks: {known}")


def plain_name(name: str) -> str:
    """Return a task's or folder's name in lower case, without ``-``, ``_`` and spaces around it."""
    return name.strip().lower().replace("-", "").replace("_", "")


def _splits(submission: str, columns: tuple[str, ...] = ()) -> tuple[Split, ...]:
    return (
        Split(name="train", tsv="train.tsv", hub="train", columns=columns),
        Split(name="train_aug", tsv="train_aug.tsv", hub=None, columns=columns),
        Split(name="validation", tsv="dev.tsv", hub="validation", columns=columns),
        Split(name="test", tsv="test.tsv", hub="test", submission=submission),
    )


def _glue(
    name: str,
    text_columns: tuple[str, ...],
    label_names: tuple[str, ...] | None,
    *,
    splits: tuple[Split, ...] | None = None,
    tsv_text_columns: tuple[str, ...] = (),
    tsv_label_column: str = "label",
    tsv_labels: tuple[str, ...] = (),
    metrics: tuple[str, ...] = ("accuracy",),
    folder_names: tuple[str, ...] = (),
    drops_short_rows: bool = False,
) -> Task:
    spelling = tsv_labels or label_names or ()
    return Task(
        name=name,
        text_columns=text_columns,
        label_names=label_names,
        metrics=metrics,
        hub_name=plain_name(name),
        folder_names=(plain_name(name), *folder_names),
        splits=splits or _splits(f"{name}.tsv"),
        tsv_text_columns=tsv_text_columns or text_columns,
        tsv_label_column=tsv_label_column,
        tsv_labels=spelling,
        # The server wants the classes as the official training files spell them.
        submission_labels=spelling,
        drops_short_rows=drops_short_rows,
    )


_BITS = ("0", "1")
_PAIR = ("sentence1", "sentence2")
_NLI = ("entailment", "neutral", "contradiction")
_RTE = ("entailment", "not_entailment")
_MNLI_SPLITS = (
    Split(name="train", tsv="train.tsv", hub="train"),
    Split(name="train_aug", tsv="train_aug.tsv", hub=None),
    Split(name="validation", tsv="dev_matched.tsv", hub="validation_matched"),
    Split(name="validation_mismatched", tsv="dev_mismatched.tsv", hub="validation_mismatched"),
    Split(name="test", tsv="test_matched.tsv", hub="test_matched", submission="MNLI-m.tsv"),
    Split(name="test_mismatched", tsv="test_mismatched.tsv", hub="test_mismatched", submission="MNLI-mm.tsv"),
)
_AX_SPLITS = (Split(name="test", tsv="diagnostic.tsv", hub="test", submission="AX.tsv"),)

# fmt: off
GLUE_TASKS: tuple[Task, ...] = (
    _glue("CoLA", ("sentence",), ("unacceptable", "acceptable"), tsv_labels=_BITS, metrics=("matthews_correlation",),
          splits=_splits("CoLA.tsv", columns=("source", "label", "mark", "sentence"))),
    _glue("SST-2", ("sentence",), ("negative", "positive"), tsv_labels=_BITS),
    _glue("MRPC", _PAIR, ("not_equivalent", "equivalent"), tsv_labels=_BITS, metrics=("accuracy", "f1"),
          tsv_text_columns=("#1 String", "#2 String"), tsv_label_column="Quality"),
    _glue("STS-B", _PAIR, None, tsv_label_column="score", metrics=("spearmanr", "pearson")),
    _glue("QQP", ("question1", "question2"), ("not_duplicate", "duplicate"), tsv_labels=_BITS,
          tsv_label_column="is_duplicate", metrics=("accuracy", "f1"), drops_short_rows=True),
    _glue("MNLI", ("premise", "hypothesis"), _NLI, tsv_text_columns=_PAIR, tsv_label_column="gold_label",
          splits=_MNLI_SPLITS),
    _glue("QNLI", ("question", "sentence"), _RTE),
    _glue("RTE", _PAIR, _RTE),
    _glue("WNLI", _PAIR, ("not_entailment", "entailment"), tsv_labels=_BITS),
    _glue("AX", ("premise", "hypothesis"), _NLI, tsv_text_columns=_PAIR, splits=_AX_SPLITS,
          folder_names=("diagnostic",)),
)
# fmt: on
