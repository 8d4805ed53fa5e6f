"""Distilling a student: from a teacher and data to a plain Hugging Face folder and an honest report."""

from __future__ import annotations

import copy
import dataclasses
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback

from bert_emd.data import Examples, collator
from bert_emd.errors import UserError
from bert_emd.models import has_tokenizer, label_names, load_classifier, load_tokenizer, set_labels
from bert_emd.training.arguments import engine_errors, optimizer_choice
from bert_emd.training.config import DistillConfig
from bert_emd.training.evaluation import Evaluator, size_of, timed
from bert_emd.training.execution import encode_for, load_pair, metric_function, plain_model
from bert_emd.training.inputs import RunData, Source, align, load_run_data
from bert_emd.training.outputs import (
    check_output_dir,
    files_read,
    make_folder,
    open_output_dir,
    write_json,
)
from bert_emd.training.preflight import TEACHER_ROWS, Preflight
from bert_emd.training.records import (
    head_of,
    main_of,
    per_split,
    render_table,
    retention,
    run_record,
    score_rows,
    selection_note,
    trivial_of,
)
from bert_emd.training.selection import scores_there, selection_record
from bert_emd.training.shared import MatchingFields
from bert_emd.training.stages import Stage, find_resume, stages_of, train_stages
from bert_emd.training.start import check_start, make_student, start_of
from bert_emd.training.trainer import DistillTrainer

__all__ = ["DistillResult", "distill", "matching_notes"]

_LOG = logging.getLogger("bert_emd")


@dataclass(frozen=True, kw_only=True)
class DistillResult:
    """The saved student, its tokenizer, what metrics.json holds, and costs, plans and layer weights over time."""

    student: PreTrainedModel = field(repr=False)
    tokenizer: PreTrainedTokenizerBase = field(repr=False)
    metrics: dict[str, Any] = field(repr=False)
    mapping: list[dict[str, Any]] = field(repr=False)
    summary: str
    """The final table, ready to print."""


def distill(
    teacher: str | Path | PreTrainedModel,
    train: Source,
    *,
    student: str | Path | PreTrainedModel | None = None,
    validation: Source = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    config: DistillConfig | None = None,
    sources: Mapping[str, str] | None = None,
    callbacks: Sequence[TrainerCallback] = (),
    teacher_scores: Callable[[PreTrainedModel, Evaluator, Examples], dict[str, float]] | None = None,
) -> DistillResult:
    """Distil a fine-tuned teacher into a small student.

    Args:
        teacher: a folder, a hub id or a model with a fine-tuned head.
        train: a file, a `datasets.Dataset`, or None for what the configuration names. With alpha 1 no labels needed.
        student: a folder, a hub id or a model to start from; None builds it from the teacher as the configuration
            says.
        validation: a file or data set that chooses the best checkpoint; None holds out a tenth of the training data,
            or is the task's own. Without labels, agreement with the teacher is what is measured.
        tokenizer: None takes the teacher's own.
        config: everything else; ``output_dir`` is needed.
        sources: where each configuration value came from, for the record.
        callbacks: the engine's callbacks, beside our own.
        teacher_scores: how the teacher is scored on examples, for runs that share one; None runs it over them.

    Returns:
        The best student by the main metric. ``output_dir`` holds it as plain Transformers loads it, with
        ``metrics.json``, ``run.json`` and ``layer_mapping.json``.

    Raises:
        UserError: bad input; nothing is overwritten then.
    """
    config = config if config is not None else DistillConfig()
    teacher_scores = teacher_scores if teacher_scores is not None else _score_teacher
    if teacher is None or teacher == "":
        raise UserError("which teacher? Name its folder or hub id with --teacher_model")
    resume = find_resume(config)
    checks = Preflight(strict=config.strict)
    student_name = str(student) if isinstance(student, (str, Path)) else config.student_model
    folder = check_output_dir(
        config.output_dir,
        overwrite=config.overwrite_output_dir,
        resume=resume is not None,
        inputs=files_read(
            config, train, validation, teacher=teacher, student=student or student_name, encoder=config.pretrained_model
        ),
    )
    pretrained = check_start(config, teacher, student, student_name)
    if isinstance(teacher, PreTrainedModel):
        big = teacher.float()
    else:
        big, report = load_classifier(str(teacher), "the teacher", cache_dir=config.cache_dir)
        checks.weights("teacher", str(teacher), report)
        tokenizer = tokenizer or load_tokenizer(
            str(teacher), "the teacher", do_lower_case=config.do_lower_case, cache_dir=config.cache_dir
        )
    if tokenizer is None:
        raise UserError("a teacher in memory needs its tokenizer; pass tokenizer=")
    # A copy, so that a tokenizer of the caller's keeps its own length; the saved one truncates as the scores were made.
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.model_max_length = config.max_seq_length

    names = label_names(big.config)
    data = load_run_data(
        config, train, validation, model_names=names, regression=names is None,
        needs_labels=config.needs_labels(regression=names is None), augmented=config.augmented,
    )  # fmt: skip
    assumed = align(data.validation, names).assumed
    data = data.map(lambda rows: align(rows, names).examples)
    checks.labels(data.validation.task.label_names, assumed)
    if assumed:
        set_labels(big.config, data.validation.task.label_names)
    small, origin = make_student(config, big, student, student_name, pretrained)
    _LOG.info("%s", origin)
    other, brought = None, student_name or pretrained
    if brought is not None and has_tokenizer(brought):
        other = load_tokenizer(
            brought, "the student", do_lower_case=config.do_lower_case if pretrained else None,
            cache_dir=config.cache_dir,
        )  # fmt: skip
    checks.vocabulary(tokenizer, {"teacher": big, "student": small}, other)
    for what, model in (("teacher", big), ("student", small)):
        checks.length(what, model, config.max_seq_length)

    evaluator = Evaluator.of(config, tokenizer)
    labelled = next((rows for rows in (data.validation, *data.reported.values()) if rows.labels is not None), None)
    if labelled is None:
        checks.fine("no labelled rows, so whether the teacher is above the trivial predictor is not checked")
    else:
        # Evenly spaced: files are often sorted by label.
        sample = labelled.subset(range(0, len(labelled), -(-len(labelled) // TEACHER_ROWS)))
        checks.teacher_score(teacher_scores(big, evaluator, sample), data.train, sample)
    data = _with_teacher_labels(data, big, evaluator)
    train_rows, validation_rows = encode_for(config, data, tokenizer, checks)

    stages = stages_of(config, folder, main_metric=data.validation.task.main_metric)
    make_folder(folder)
    padded = config.pad_to_max_length or config.count_padding

    def trainer_of(stage: Stage, model: PreTrainedModel) -> DistillTrainer:
        with engine_errors():
            return DistillTrainer(
                student=model,
                teacher=big,
                config=stage.config,
                args=stage.arguments,
                train_dataset=train_rows,
                eval_dataset=validation_rows if stage.chooses else None,
                data_collator=collator(tokenizer, config.max_seq_length if padded else None),
                processing_class=tokenizer,
                compute_metrics=metric_function(data.validation),
                optimizer_cls_and_kwargs=optimizer_choice(stage.config),
                early_stopping=stage.config.early_stopping,
                callbacks=list(callbacks),
            )

    first = trainer_of(stages[0], small)
    notes = matching_notes(first, config)
    for note in notes:
        _LOG.info("%s", note)
    open_output_dir(folder, resume=resume is not None)
    record = run_record(
        "distill", config, sources, {"train": data.train, "validation": data.validation, **data.reported},
        student=origin, mapping=notes, findings=checks.findings, selection=selection_record(data, teacher),
    )  # fmt: skip
    write_json(folder / "run.json", record)
    trained = train_stages(stages, first, trainer_of, resume)
    write_json(folder / "layer_mapping.json", trained.history)

    metrics = _measure(data, folder, evaluator, big, lambda rows: teacher_scores(big, evaluator, rows))
    metrics["selection"] = record["selection"] | metrics["selection"]
    metrics |= {"student_from": start_of(config, student, student_name), "start": origin} | trained.steps
    write_json(folder / "metrics.json", metrics)
    best = plain_model(folder)
    return DistillResult(
        student=best,
        tokenizer=tokenizer,
        metrics=metrics,
        mapping=trained.history,
        summary=_summary(metrics, data, folder),
    )


def matching_notes(trainer: DistillTrainer, config: MatchingFields) -> list[str]:
    """What is said before the first step about how the two models are compared."""
    distiller = trainer.distiller
    notes = list(distiller.mapping.notes) if distiller.mapping is not None else []
    if distiller.projection is not None:
        first: Any = distiller.projection[0]
        notes.append(
            f"projection: {first.in_features} to {first.out_features}, "
            f"{'one for all layers' if config.share_param else 'one a layer'}, trained with the student and left out "
            "of what is saved"
        )
    return notes + [tap.note for tap in (distiller.student_tap, distiller.teacher_tap) if tap is not None and tap.note]


def _with_teacher_labels(data: RunData, teacher: PreTrainedModel, evaluator: Evaluator) -> RunData:
    """Where the validation rows have no labels, what is measured is agreement with the teacher."""
    unlabelled = [rows.labels is None for rows in (data.validation, *data.reported.values())]
    if not any(unlabelled):
        return data
    _LOG.warning("the validation data have no labels: scores are the agreement with the teacher")

    def labelled(rows: Examples) -> Examples:
        if rows.labels is not None or rows is data.train:
            return rows
        logits = evaluator.logits(teacher, rows, show="labelling by the teacher")
        labels = logits[:, 0].tolist() if rows.task.is_regression else logits.argmax(1).tolist()
        return dataclasses.replace(rows, labels=labels)

    mark = " (labelled by the teacher)"
    return dataclasses.replace(
        data.map(labelled),
        selected_on=data.selected_on + mark * unlabelled[0],
        reported_on=data.reported_on + mark * any(unlabelled[1:]),
    )


def _score_teacher(teacher: PreTrainedModel, evaluator: Evaluator, rows: Examples) -> dict[str, float]:
    return evaluator.scores(teacher, rows, show="scoring the teacher")


def _measure(
    data: RunData,
    folder: Path,
    evaluator: Evaluator,
    teacher: PreTrainedModel,
    teacher_scores: Callable[[Examples], dict[str, float]],
) -> dict[str, Any]:
    """metrics.json: both models' scores, sizes and times, from the saved folder reloaded in float32."""
    best, last = load_pair(folder)
    metrics = head_of(data)
    metrics["trivial"] = per_split(data, lambda rows: trivial_of(data.train, rows))
    metrics["teacher"] = per_split(data, teacher_scores)
    metrics["student"] = per_split(data, lambda rows: evaluator.scores(best, rows, show="scoring the best student"))
    metrics["last"] = per_split(data, lambda rows: evaluator.scores(last, rows, show="scoring the last student"))
    by_name = {"best": best, "last": last}
    metrics["selection"] = scores_there(
        data, metrics, lambda name, rows: evaluator.scores(by_name[name], rows), "student"
    )
    times = timed([teacher, best], evaluator, data.validation)
    for key, model, milliseconds in (("teacher", teacher, times[0]), ("student", best, times[1])):
        metrics[key] |= size_of(model) | {"milliseconds_per_sentence": milliseconds}
    metric = metrics["metric"]
    t, s, t0 = (main_of(metrics[key], metric) for key in ("teacher", "student", "trivial"))
    metrics |= retention(s, t, t0)
    metrics["last"] |= retention(main_of(metrics["last"], metric), t, t0)
    return metrics


def _summary(metrics: dict[str, Any], data: RunData, folder: Path) -> str:
    task = data.validation.task
    rows = score_rows(metrics, data, {"teacher": "teacher", "student": "student (best)", "last": "student (last)"})
    # The last student is of the best one's size and speed.
    costs = [metrics[key] for key in ("teacher", "student", "student") for _ in data.reported]
    for row, cost in zip(rows, costs, strict=True):
        row.append(f"{cost['parameters'] / 1e6:.1f} M")
        row.append(f"{cost['megabytes']:.1f}")
        row.append(f"{cost['milliseconds_per_sentence']:.1f}")
    kept = metrics["retention_above_trivial"]
    notes = [
        f"The student has {kept:.1%} of the teacher's {task.main_metric} above the trivial predictor's "
        f"{main_of(metrics['trivial'], task.main_metric):.4f}" if kept is not None
        else "The teacher is not above the trivial predictor",
        selection_note(metrics),
        f"Saved in {folder}",
    ]  # fmt: skip
    return render_table(
        f"{task.name}: distillation", ["model", *task.metrics, "parameters", "MB", "ms/sentence"], rows, notes
    )
