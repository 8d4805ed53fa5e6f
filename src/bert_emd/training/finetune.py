"""Fine-tuning a teacher, or a student without one."""

from __future__ import annotations

import copy
import dataclasses
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase, set_seed

from bert_emd.data import Examples, collator
from bert_emd.errors import UserError
from bert_emd.models import LoadReport, label_names, load_classifier, load_config, load_tokenizer, set_labels
from bert_emd.training.arguments import engine_errors, optimizer_choice, training_arguments
from bert_emd.training.config import FinetuneConfig
from bert_emd.training.evaluation import Evaluator, size_of
from bert_emd.training.execution import encode_for, load_pair, metric_function, plain_model, steps_of, train_and_install
from bert_emd.training.inputs import RunData, Source, load_run_data
from bert_emd.training.outputs import (
    check_output_dir,
    complete_checkpoints,
    files_read,
    make_folder,
    open_output_dir,
    resume_point,
    write_json,
)
from bert_emd.training.preflight import Preflight
from bert_emd.training.records import (
    head_of,
    per_split,
    render_table,
    run_record,
    score_rows,
    selection_note,
    trivial_of,
)
from bert_emd.training.trainer import EncoderTrainer

__all__ = ["FinetuneResult", "finetune"]


@dataclass(frozen=True, kw_only=True)
class FinetuneResult:
    """The best model, its tokenizer, and what metrics.json holds."""

    model: PreTrainedModel = field(repr=False)
    tokenizer: PreTrainedTokenizerBase = field(repr=False)
    metrics: dict[str, Any] = field(repr=False)
    summary: str
    """The final table, ready to print."""


def finetune(
    model: str | Path | PreTrainedModel,
    train: Source,
    *,
    validation: Source = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    config: FinetuneConfig | None = None,
    sources: Mapping[str, str] | None = None,
) -> FinetuneResult:
    """Fine-tune an encoder into a classifier (or regressor).

    Args:
        model: a folder, a hub id or a model.
        train: a file, a `datasets.Dataset`, or None for what the configuration names.
        validation: likewise; None holds out a tenth of the training data, or is the task's own.
        tokenizer: None takes the model's own.
        config: everything else; ``output_dir`` is needed.
        sources: where each configuration value came from, for the record.

    Returns:
        The best model by the main metric; the folder holds it as plain Transformers loads it, with ``metrics.json``.

    Raises:
        UserError: bad input; nothing is overwritten then.
    """
    config = config if config is not None else FinetuneConfig()
    if config.local_rank >= 0 and "LOCAL_RANK" not in os.environ:
        raise UserError("local_rank is set by a launcher that is gone; start several processes with torchrun")
    if model is None or model == "":
        raise UserError("which encoder? Name a folder or a hub id with --model_name_or_path")
    resume = resume_point(config.output_dir, config.resume_from_checkpoint)
    name = None if isinstance(model, PreTrainedModel) else str(model)
    folder = check_output_dir(
        config.output_dir,
        overwrite=config.overwrite_output_dir,
        resume=resume is not None,
        inputs=files_read(config, train, validation, model=model, tokenizer=config.tokenizer_name),
    )
    if name is not None:
        base = load_config(config.config_name or name, "the model", cache_dir=config.cache_dir)
        if config.model_type is not None and config.model_type.lower() != base.model_type:
            raise UserError(
                f"{name} is a {base.model_type} model, not {config.model_type}; mend or leave out --model_type"
            )
        own_tokenizer = config.tokenizer_name or name
        tokenizer = tokenizer or load_tokenizer(
            own_tokenizer, "the model", do_lower_case=config.do_lower_case, cache_dir=config.cache_dir
        )
    if tokenizer is None:
        raise UserError("a model in memory needs its tokenizer; pass tokenizer=")
    # A copy, so that a tokenizer of the caller's keeps its own length; the saved one truncates as the scores were made.
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.model_max_length = config.max_seq_length
    data = load_run_data(config, train, validation)
    names = data.train.task.label_names
    set_seed(config.seed)
    if isinstance(model, PreTrainedModel):
        classifier, report = model.float(), LoadReport(loaded=len(model.state_dict()))
        if label_names(model.config) != names:
            raise UserError(
                f"the model's labels are {label_names(model.config)}, the data's {names}; give it these first"
            )
    else:
        set_labels(base, names)
        classifier, report = load_classifier(
            str(name), "the model", config=base, cache_dir=config.cache_dir, may_resize_head=True
        )
    checks = Preflight(strict=config.strict)
    checks.weights("model", name or "in memory", report, needs_head=False)
    checks.vocabulary(tokenizer, {"model": classifier})
    checks.length("model", classifier, config.max_seq_length)
    train_rows, validation_rows = encode_for(config, data, tokenizer, checks)

    arguments = training_arguments(_with_eval(config), folder, main_metric=data.validation.task.main_metric)
    make_folder(folder)
    with engine_errors():
        trainer = EncoderTrainer(
            model=classifier,
            args=arguments,
            train_dataset=train_rows,
            eval_dataset=validation_rows,
            data_collator=collator(tokenizer, config.max_seq_length if config.pad_to_max_length else None),
            processing_class=tokenizer,
            compute_metrics=metric_function(data.validation),
            optimizer_cls_and_kwargs=optimizer_choice(config),
            early_stopping=config.early_stopping,
        )
    if config.torch_compile:
        classifier.compile(dynamic=True)
    if config.eval_all_checkpoints:
        trainer.args.save_total_limit = None
    open_output_dir(folder, resume=resume is not None)
    record = run_record("finetune", config, sources, _named(data), model=name, findings=checks.findings)
    write_json(folder / "run.json", record)
    seconds = train_and_install(trainer, folder, resume)

    evaluator = Evaluator.of(config, tokenizer)
    best, last = load_pair(folder)
    metrics = head_of(data)
    metrics["trivial"] = per_split(data, lambda rows: trivial_of(data.train, rows))
    metrics["model"] = per_split(data, lambda rows: evaluator.scores(best, rows, show="scoring the best model"))
    metrics["model"] |= size_of(best)
    metrics["last"] = per_split(data, lambda rows: evaluator.scores(last, rows, show="scoring the last model"))
    metrics |= steps_of(folder, trainer, seconds)
    if config.eval_all_checkpoints:
        metrics["checkpoints"] = {
            path.name: per_split(data, lambda rows, path=path: evaluator.scores(plain_model(path), rows))
            for path in complete_checkpoints(folder, resumable=False)
        }
    write_json(folder / "metrics.json", metrics)
    summary = _summary(metrics, data, folder)
    return FinetuneResult(model=best, tokenizer=tokenizer, metrics=metrics, summary=summary)


def _with_eval(config: FinetuneConfig) -> FinetuneConfig:
    if config.evaluate_during_training and config.eval_step is None:
        return dataclasses.replace(config, eval_step=config.logging_steps)
    return config


def _named(data: RunData) -> dict[str, Examples]:
    return {"train": data.train, "validation": data.validation, **data.reported}


def _summary(metrics: dict[str, Any], data: RunData, folder: Path) -> str:
    task = data.validation.task
    rows = score_rows(metrics, data, {"model": "best", "last": "last", "trivial": "trivial predictor"})
    notes = [selection_note(metrics), f"Saved in {folder}"]
    return render_table(f"{task.name}: fine-tuned model", ["model", *task.metrics], rows, notes)
