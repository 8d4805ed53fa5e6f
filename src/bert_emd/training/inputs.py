"""Which examples a run trains on, chooses its checkpoint on, and reports on."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import datasets

from bert_emd.data import (
    Augmented,
    Examples,
    Task,
    augmented_path,
    find_task,
    from_dataset,
    holdout,
    load_file,
    load_glue,
    match_labels,
    read_glue_tsv,
    relabel,
    without_sources,
)
from bert_emd.errors import MissingLabelsError, UserError
from bert_emd.training.config import DataConfig, DistillConfig, RunConfig

__all__ = ["Aligned", "RunData", "Source", "align", "load_run_data", "load_test", "validation_splits"]

_LOG = logging.getLogger("bert_emd")

Source: TypeAlias = "str | Path | datasets.Dataset | None"

_TENTH = "a tenth of the training data, held out"
_REST_TENTH = "a tenth of the other training data, held out"


@dataclass(frozen=True, kw_only=True)
class RunData:
    """The examples of a run."""

    train: Examples
    validation: Examples
    """Chooses the checkpoint."""
    reported: dict[str, Examples]
    """What the scores are reported on, by split; for MNLI matched and mismatched."""
    selected_on: str
    reported_on: str
    optimistic: bool
    """Whether the reported split also chose the checkpoint."""
    held_out: bool = False
    """Whether `validation` was taken out of the training rows."""
    augmented: Augmented | None = None
    """What became of augmented rows that stem from held-out ones."""

    def map(self, change: Any) -> RunData:
        """The same with every set of examples changed, each of them once."""
        done: dict[int, Examples] = {}

        def once(examples: Examples) -> Examples:
            if id(examples) not in done:
                done[id(examples)] = change(examples)
            return done[id(examples)]

        return dataclasses.replace(
            self,
            train=once(self.train),
            validation=once(self.validation),
            reported={name: once(rows) for name, rows in self.reported.items()},
        )


@dataclass(frozen=True, kw_only=True)
class Aligned:
    """Examples whose labels count as the model's outputs do."""

    examples: Examples
    assumed: bool = field(default=False)
    """Whether the model's labels have no names, so that their order had to be taken on trust."""


def align(examples: Examples, model_names: Sequence[str] | None) -> Aligned:
    """Number the labels as the model's outputs are numbered, matched by name.

    Raises:
        UserError: the names disagree, or one predicts classes and the other is a number.
    """
    task = examples.task
    if (model_names is None) != task.is_regression:
        kinds = ("a number", "classes")
        of_model, of_data = (kinds[names is not None] for names in (model_names, task.label_names))
        raise UserError(
            f"the model predicts {of_model} but the labels of {examples.source} are {of_data}; use another model"
        )
    if model_names is None:
        return Aligned(examples=examples)
    if not task.label_names:
        return Aligned(examples=relabel(examples, model_names))
    try:
        _, assumed = match_labels(model_names, task.label_names, known_order=task.known_order)
    except UserError as error:
        raise UserError(f"{examples.source}: {error}") from error
    # A model without names keeps the data's names, which are better than none.
    return Aligned(examples=examples if assumed else relabel(examples, model_names), assumed=assumed)


def load_run_data(
    config: RunConfig,
    train: Source,
    validation: Source,
    *,
    model_names: Sequence[str] | None = None,
    regression: bool | None = None,
    needs_labels: bool = True,
    augmented: str | bool = False,
) -> RunData:
    """Everything a run reads.

    Args:
        config: names the task or the files.
        train: wins over the configuration when given.
        validation: likewise.
        model_names: the teacher's classes, to which the user's own labels are matched.
        regression: whether the model predicts a number; None takes it from the data.
        needs_labels: whether training uses labels.
        augmented: train on this augmented file of the training data; True is the one beside them.

    Raises:
        UserError: data that are missing or malformed.
    """
    if config.task_name is not None:
        if train is not None or validation is not None:
            raise UserError(
                f"task_name {config.task_name} names the data already; pass either it or train and validation"
            )
        return _glue(config, needs_labels=needs_labels, augmented=augmented)
    names = config.label_names if config.label_names is not None else _real_names(model_names)
    kind = config.regression if config.regression is not None else regression

    def load(source: Source, what: str, labels_needed: bool) -> Examples | None:
        if source is None:
            return None
        options: dict[str, Any] = {
            "text_columns": config.text_columns,
            "label_column": config.label_column,
            "label_names": names,
            "regression": kind,
            "needs_labels": labels_needed,
        }
        if not isinstance(source, (str, Path, datasets.Dataset)):
            raise UserError(
                f"the {what} data are a {type(source).__name__}; pass a path or a datasets.Dataset "
                "(datasets.Dataset.from_list makes one of a list of rows)"
            )
        with nullcontext() if what == "test" else _labels_for(config):
            if isinstance(source, datasets.Dataset):
                return from_dataset(source, source=f"the {what} data", **options)
            return load_file(source, **options)

    rows = load(train if train is not None else config.train_file, "training", needs_labels)
    if rows is None:
        raise UserError("which data? Name a GLUE task with --task_name, or your own file with --train_file")
    if names is None and rows.task.label_names:
        names = rows.task.label_names
    if rows.labels is not None:
        # Scores that happen to be whole in one of the files are scores all the same.
        kind = rows.task.is_regression
    held = load(validation if validation is not None else config.validation_file, "validation", needs_labels)
    test = load(config.test_file, "test", True)
    for other in (held, test):
        if other is not None and (other.pairs is None) != (rows.pairs is None):
            one, two = ("one text column", "two")[:: 1 if rows.pairs is None else -1]
            raise UserError(f"{rows.source} has {one}, {other.source} {two}; name the same with --text_columns")
    given = held is not None
    source = rows
    if held is None:
        rows, held = holdout(rows)
    split = "validation" if given else _TENTH
    if test is not None:
        data = RunData(
            train=rows, validation=held, reported={"test": test},
            selected_on=split, reported_on="test", optimistic=False, held_out=not given,
        )  # fmt: skip
    elif config.select_on == "holdout":
        rows, chooser = holdout(rows)
        data = RunData(
            train=rows, validation=chooser, reported={"validation": held},
            selected_on=_TENTH if given else _REST_TENTH, reported_on=split, optimistic=False, held_out=True,
        )  # fmt: skip
    else:
        data = RunData(
            train=rows, validation=held, reported={"validation": held},
            selected_on=split, reported_on=split, optimistic=True, held_out=not given,
        )  # fmt: skip
    if not augmented:
        return data
    more = load(
        _augmented_file(augmented, train if train is not None else config.train_file), "augmented", needs_labels
    )
    assert more is not None
    return _on_augmented(data, more, source)


@contextmanager
def _labels_for(config: RunConfig) -> Iterator[None]:
    """Where a distillation needs labels only for a part of its loss, say how it does without."""
    try:
        yield
    except MissingLabelsError as error:
        if isinstance(config, DistillConfig) and config.new_pred_loss and 0 < config.effective_alpha < 1:
            raise MissingLabelsError(f"{error} (or learn from the teacher alone, without labels: --alpha 1)") from None
        raise


def _augmented_file(augmented: str | bool, train: Source) -> str | Path:
    """The user's own augmented file."""
    if isinstance(augmented, str):
        return augmented
    if not isinstance(train, (str, Path)):
        raise UserError("aug_train looks beside a training file, and there is none; name the file with aug_file")
    path = augmented_path(Path(train))
    if not path.is_file():
        raise UserError(
            f"there is no {path}; make it with `bert-emd augment --train_file {train}`, or name one with --aug_file"
        )
    return path


def _on_augmented(data: RunData, more: Examples, source: Examples) -> RunData:
    """The same run trained on an augmented file, without what stems from rows that are held out."""
    if (more.pairs is None) != (source.pairs is None):
        raise UserError(f"{more.source} and {source.source} differ in their text columns; augment the same columns")
    kept = set(data.train.indices)
    positions = [k for k, index in enumerate(source.indices) if index not in kept]
    if not positions:
        return dataclasses.replace(data, train=more)
    cleaned = without_sources(more, source, source.subset(positions))
    return dataclasses.replace(data, train=cleaned.kept, augmented=cleaned)


def _glue(config: RunConfig, *, needs_labels: bool, augmented: str | bool) -> RunData:
    assert config.task_name is not None
    task = find_task(config.task_name)
    with _labels_for(config):
        if isinstance(augmented, str):
            train = read_glue_tsv(Path(augmented), task, task.split("train_aug"), needs_labels=needs_labels)
        else:
            train = _split(config, task, "train_aug" if augmented else "train", needs_labels=needs_labels)
    reported = validation_splits(config, None)
    if config.select_on == "holdout":
        source = _split(config, task, "train", needs_labels=needs_labels) if augmented else train
        kept, held = holdout(source)
        data = RunData(
            train=kept, validation=held, reported=reported,
            selected_on=_TENTH, reported_on="validation", optimistic=False, held_out=True,
        )  # fmt: skip
        return _on_augmented(data, train, source) if augmented else data
    return RunData(
        train=train,
        validation=next(iter(reported.values())),
        reported=reported,
        selected_on="validation",
        reported_on="validation",
        optimistic=True,
    )


def _split(config: DataConfig, task: Task, split: str, *, needs_labels: bool = True) -> Examples:
    return load_glue(
        task, split, config.data_dir, config.cache_dir, needs_labels=needs_labels, refresh=config.overwrite_cache
    )


def validation_splits(config: DataConfig, model_names: Sequence[str] | None) -> dict[str, Examples]:
    """The labelled rows that scores are reported on, by split name.

    Raises:
        UserError: data that are missing or malformed.
    """
    if config.task_name is not None:
        task = find_task(config.task_name)
        wanted = [s.name for s in task.splits if s.name.startswith("validation")]
        if not wanted:
            raise UserError(f"{task.name} has no labelled split; use `bert-emd predict` with its test data")
        names = ["matched", "mismatched"] if len(wanted) == 2 else ["validation"]
        return {name: _split(config, task, split) for name, split in zip(names, wanted, strict=True)}
    files = {"validation": config.validation_file, "test": config.test_file}
    found = {name: _own_file(config, path, model_names, needs_labels=True) for name, path in files.items() if path}
    if found:
        return found
    raise UserError("which data? Name a GLUE task with --task_name, or your own file with --validation_file")


def load_test(config: DataConfig, model_names: Sequence[str] | None) -> list[tuple[str, Examples]]:
    """The unlabelled rows that predictions are made for, each with its split's name.

    For MNLI also the diagnostic set, where its file is found beside the task's.

    Raises:
        UserError: data that are missing or malformed.
    """
    if config.task_name is None:
        if config.test_file is None:
            raise UserError("which data? Name a GLUE task with --task_name, or your own file with --test_file")
        return [("test", _own_file(config, config.test_file, model_names, needs_labels=False))]
    task = find_task(config.task_name)
    found = [(split.name, _split(config, task, split.name)) for split in task.splits if split.is_test]
    if task.name == "MNLI":
        found += _diagnostic(config)
    return found


def _diagnostic(config: DataConfig) -> list[tuple[str, Examples]]:
    here = config.data_dir
    places = [here] if here is None or not Path(here).is_dir() else [here, str(Path(here).resolve().parent)]
    for place in places:
        try:
            return [("test", _split(dataclasses.replace(config, data_dir=place), find_task("AX"), "test"))]
        except UserError as error:
            if not str(error).startswith("no "):
                raise
    _LOG.warning("the diagnostic set is not beside MNLI, so AX.tsv is not written")
    return []


def _own_file(config: DataConfig, path: str, model_names: Sequence[str] | None, *, needs_labels: bool) -> Examples:
    return load_file(
        path,
        text_columns=config.text_columns,
        label_column=config.label_column,
        label_names=config.label_names if config.label_names is not None else _real_names(model_names),
        regression=config.regression if config.regression is not None else model_names is None,
        needs_labels=needs_labels,
    )


def _real_names(names: Sequence[str] | None) -> tuple[str, ...] | None:
    """The model's label names, unless they are only LABEL_0, LABEL_1, …"""
    if names is None or all(name.upper().startswith("LABEL_") for name in names):
        return None
    return tuple(names)
