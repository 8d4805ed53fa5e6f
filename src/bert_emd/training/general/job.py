"""General distillation: from a pre-trained encoder and plain text to a student that any task can start from."""

from __future__ import annotations

import copy
import logging
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import AutoModel, PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback

from bert_emd.data.corpus import TokenStore, is_store
from bert_emd.errors import UserError
from bert_emd.models import has_tokenizer, load_tokenizer, quiet
from bert_emd.processes import first_process
from bert_emd.training.arguments import engine_errors, optimizer_choice, training_arguments
from bert_emd.training.distill import DistillResult, matching_notes
from bert_emd.training.evaluation import size_of
from bert_emd.training.general.config import GeneralDistillConfig
from bert_emd.training.general.corpus import CorpusSource, check_apart, corpus_inputs, corpus_of, prepare
from bert_emd.training.general.rows import split_rows
from bert_emd.training.general.start import (
    check_same_run,
    check_shapes,
    load_teacher,
    make_encoder_student,
    order_record,
)
from bert_emd.training.general.trainer import GeneralTrainer
from bert_emd.training.outputs import (
    check_output_dir,
    install_model,
    make_folder,
    open_output_dir,
    resume_point,
    write_json,
)
from bert_emd.training.preflight import Preflight
from bert_emd.training.records import render_table, run_record

__all__ = ["general_distill", "prepare_corpus"]

_LOG = logging.getLogger("bert_emd")


def general_distill(
    teacher: str | Path | PreTrainedModel | None,
    corpus: CorpusSource,
    *,
    student: str | Path | PreTrainedModel | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    config: GeneralDistillConfig | None = None,
    sources: Mapping[str, str] | None = None,
    callbacks: Sequence[TrainerCallback] = (),
) -> DistillResult:
    r"""Distil a pre-trained encoder into a small student on plain text, without labels.

    The loss is the sum of the mapping's terms, those of them that it has,

    .. math:: L = L_{att} + L_{hid} + L_{rel} + L_{emb}

    on sequences of ``max_seq_length`` tokens packed from the corpus: TinyBERT's general distillation (Jiao et al.,
    Findings of EMNLP 2020), with any mapping.

    Args:
        teacher: a folder, a hub id or an encoder; a head that it has is left out.
        corpus: text, JSON-lines or Parquet files, folders of them, a prepared corpus, a `datasets.Dataset` with a
            column of text, or None for what the configuration names.
        student: a folder, a hub id, a configuration file or a model to start from; None builds it as the configuration
            says.
        tokenizer: None takes the teacher's own.
        config: everything else; ``output_dir`` is needed.
        sources: where each configuration value came from, for the record.
        callbacks: the engine's callbacks, beside our own.

    Returns:
        The student after the last step. ``output_dir`` holds it as plain Transformers loads it, without a head, with
        ``metrics.json``, ``run.json`` and ``layer_mapping.json``; `distill` takes the folder as its student.

    Raises:
        UserError: bad input; nothing is overwritten then.
    """
    config = config if config is not None else GeneralDistillConfig()
    if config.prepare_only:
        raise UserError("prepare_only makes no student; leave it out")
    start = student if student is not None else config.student_model
    resume = resume_point(config.output_dir, config.resume_from_checkpoint)
    folder = check_output_dir(
        config.output_dir,
        overwrite=config.overwrite_output_dir,
        resume=resume is not None,
        inputs=_read(config, corpus, teacher, start),
    )
    check_apart(config, corpus, folder)
    checks = Preflight(strict=config.strict)
    if teacher is None or teacher == "":
        raise UserError("which teacher? Name its folder or hub id with --teacher_model")
    check_shapes(config, teacher, start)
    tokenizer = _tokenizer(config, teacher, tokenizer)
    text = corpus_of(config, corpus)
    big = load_teacher(teacher, config, checks)
    built = make_encoder_student(config, big, start)
    small = built.model
    _LOG.info("%s", built.origin)
    brought = str(start) if isinstance(start, (str, Path)) and Path(start).is_dir() else None
    other = load_tokenizer(brought, "the student") if brought is not None and has_tokenizer(brought) else None
    checks.vocabulary(tokenizer, {"teacher": big, "student": small}, other)
    for what, model in (("teacher", big), ("student", small)):
        checks.length(what, model, config.max_seq_length)

    arguments = training_arguments(config, folder, main_metric=None, evaluates=config.eval_share > 0)
    store = prepare(config, text, tokenizer)
    train_rows, held_rows = split_rows(store, config.eval_share, config.max_eval_sequences)
    order = order_record(config, store, big, arguments.world_size)
    earlier = check_same_run(folder, order) if resume is not None else None
    new = not folder.exists()
    make_folder(folder)
    try:
        with engine_errors():
            trainer = GeneralTrainer(
                student=small,
                teacher=big,
                config=config.as_distillation(),
                args=arguments,
                train_dataset=train_rows,
                eval_dataset=held_rows if len(held_rows) else None,
                processing_class=tokenizer,
                optimizer_cls_and_kwargs=optimizer_choice(config),
                callbacks=list(callbacks),
            )
        notes = matching_notes(trainer, config)
        for note in notes:
            _LOG.info("%s", note)
        before = earlier["held_out_at_start"] if earlier is not None else _measured(trainer)
    except UserError:
        if new and first_process():
            shutil.rmtree(folder, ignore_errors=True)
        raise
    open_output_dir(folder, resume=resume is not None)
    described = _described(store, train_rows, held_rows)
    record = run_record(
        "general-distill", config, sources, {}, corpus=described, order=order, student=built.origin, mapping=notes,
        findings=checks.findings, held_out_at_start=before,
    )  # fmt: skip
    write_json(folder / "run.json", record)

    began = time.perf_counter()
    trainer.train(resume_from_checkpoint=str(resume) if resume is not None else None)
    seconds = time.perf_counter() - began
    if trainer.is_world_process_zero():
        trainer.save_product(folder / "last")
        install_model(folder / "last", folder)
        shutil.rmtree(folder / "last")
    trainer.accelerator.wait_for_everyone()
    write_json(folder / "layer_mapping.json", trainer.history)
    result = _plain(folder)
    small.load_state_dict(result.state_dict())  # what is measured is what was saved
    metrics = _metrics(trainer, config, big, result, described, before, _measured(trainer), seconds)
    write_json(folder / "metrics.json", metrics)
    return DistillResult(
        student=result,
        tokenizer=tokenizer,
        metrics=metrics,
        mapping=trainer.history,
        summary=_summary(metrics, folder),
    )


def prepare_corpus(config: GeneralDistillConfig, corpus: CorpusSource = None) -> str:
    """``--prepare_only``: the corpus as packed sequences in ``output_dir``, for any number of later runs.

    Returns:
        One line on what to do with it.

    Raises:
        UserError: text that cannot be read, or a folder that holds something else.
    """
    if not config.teacher_model:
        raise UserError("whose tokenizer? Name the teacher's folder or hub id with --teacher_model")
    if not config.output_dir:
        raise UserError("where should the prepared corpus go? Name a new folder with --output_dir")
    folder = Path(config.output_dir)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        kind = "holds a prepared corpus already" if is_store(folder) else "is not empty"
        raise UserError(f"output_dir {folder} {kind}; name a new folder")
    if folder.resolve() == Path.cwd() or folder.name in ("", ".."):
        raise UserError(f"output_dir {folder} is the folder that you are in; name a new one")
    for name, path in corpus_inputs(config, corpus).items():
        if Path(path).is_dir() and folder.resolve() == Path(path).resolve():
            raise UserError(f"output_dir {folder} is the {name} itself; name another")
    check_apart(config, corpus, folder)
    text = corpus_of(config, corpus)
    store = prepare(config, text, _tokenizer(config, config.teacher_model, None), folder)
    return (
        f"prepared {store.meta['documents']:,} documents as {len(store):,} sequences of {store.length} tokens in "
        f"{folder}; distil on them with --pregenerated_data {folder}"
    )


def _read(
    config: GeneralDistillConfig, corpus: CorpusSource, teacher: Any, student: Any
) -> dict[str, str | Path | None]:
    models = {"teacher": teacher, "student": student}
    named = {name: getattr(model, "name_or_path", model) for name, model in models.items()}
    found = {name: value if isinstance(value, (str, Path)) and str(value) else None for name, value in named.items()}
    return found | corpus_inputs(config, corpus)


def _tokenizer(
    config: GeneralDistillConfig, teacher: Any, given: PreTrainedTokenizerBase | None
) -> PreTrainedTokenizerBase:
    if given is None:
        if isinstance(teacher, PreTrainedModel):
            raise UserError("a teacher in memory needs its tokenizer; pass tokenizer=")
        given = load_tokenizer(
            str(teacher), "the teacher", do_lower_case=config.do_lower_case, cache_dir=config.cache_dir
        )
    # A copy, so that a tokenizer of the caller's keeps its own length.
    tokenizer = copy.deepcopy(given)
    tokenizer.model_max_length = config.max_seq_length
    return tokenizer


def _plain(folder: Path) -> PreTrainedModel:
    with quiet():
        model: PreTrainedModel = AutoModel.from_pretrained(folder)
    return model


def _measured(trainer: GeneralTrainer) -> dict[str, float] | None:
    if trainer.eval_dataset is None:
        return None
    # Outside of training the engine has not put the models where they run.
    trainer.distiller.to(trainer.args.device)
    trainer.distiller.attach()
    try:
        return trainer.measure()
    finally:
        trainer.distiller.detach()


def _described(store: TokenStore, train: Any, held: Any) -> dict[str, Any]:
    return {
        "source": store.meta["source"],
        "prepared": str(store.folder),
        "documents": store.meta["documents"],
        "control_characters_removed": store.meta["removed"],
        "sequence_length": store.length,
        "sequences": {"train": len(train), "held_out": len(held)},
        "tokens": {"all": store.meta["tokens"], "held_out": held.tokens},
        "identity": store.identity,
    }


def _metrics(
    trainer: GeneralTrainer,
    config: GeneralDistillConfig,
    teacher: PreTrainedModel,
    student: PreTrainedModel,
    corpus: dict[str, Any],
    before: dict[str, float] | None,
    after: dict[str, float] | None,
    seconds: float,
) -> dict[str, Any]:
    state, args = trainer.state, trainer.args
    return {
        "task": "general distillation",
        "metric": "loss",
        "mapping": config.mapping,
        "held_out": {"sequences": corpus["sequences"]["held_out"], "start": before, "end": after},
        "course": trainer.course,
        "corpus": {name: corpus[name] for name in ("source", "documents", "sequence_length", "sequences", "tokens")},
        "teacher": size_of(teacher),
        "student": size_of(student),
        "last_step": state.global_step,
        "epochs": state.epoch,
        "processes": args.world_size,
        "train_seconds": round(seconds, 1),
    }


def _summary(metrics: dict[str, Any], folder: Path) -> str:
    held = metrics["held_out"]
    notes = [
        f"Held-out sequences: {held['sequences']}; after step {metrics['last_step']} "
        f"({metrics['epochs']:.2f} epochs, {metrics['train_seconds']:.0f} s)",
        f"Student of {metrics['student']['parameters'] / 1e6:.1f} M parameters (teacher "
        f"{metrics['teacher']['parameters'] / 1e6:.1f} M) saved in {folder}; "
        f"distil it for a task with --student_model {folder}",
    ]
    if held["start"] is None:
        return "\n".join(["general distillation: nothing was held out, so nothing was measured", *notes[1:]])
    names = list(held["start"])
    rows = [
        [when, *(f"{held[key][name]:.4f}" for name in names)]
        for when, key in (("at the start", "start"), ("at the end", "end"))
    ]
    return render_table("general distillation: held-out losses", ["", *names], rows, notes)
