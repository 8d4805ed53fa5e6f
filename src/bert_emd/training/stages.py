"""One stage or two: the intermediate losses first and the prediction loss second, each resumable by itself.

The first stage has a folder of its own, ``intermediate/``: its checkpoints and, at its end, the student, what the
mapping did and, written last, ``stage.json``. The second stage starts from that student with a new optimiser and
schedule; it alone chooses the best and the last student.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, TrainingArguments

from bert_emd.processes import first_process
from bert_emd.training.arguments import training_arguments
from bert_emd.training.config import DistillConfig
from bert_emd.training.execution import plain_model, steps_of, train_and_install
from bert_emd.training.outputs import (
    INTERMEDIATE,
    STAGE_FILE,
    complete_checkpoints,
    first_stage_done,
    resume_point,
    write_json,
)
from bert_emd.training.trainer import DistillTrainer

__all__ = ["Resume", "Stage", "Trained", "find_resume", "stages_of", "train_stages"]

_LOG = logging.getLogger("bert_emd")


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A stage as if it were a run of its own."""

    name: str
    config: DistillConfig
    folder: Path
    arguments: TrainingArguments
    chooses: bool
    """Whether it evaluates and keeps the best student."""


@dataclass(frozen=True, kw_only=True)
class Resume:
    """Where a run goes on: a checkpoint of one of its stages, or the beginning of the second."""

    first: Path | None = None
    """A checkpoint of the first of two stages."""
    last: Path | None = None
    """A checkpoint of the last stage, or of the only one."""


@dataclass(frozen=True, kw_only=True)
class Trained:
    """What is recorded of the training: costs, plans and weights over time, and when and how long."""

    history: list[dict[str, Any]]
    steps: dict[str, Any]


def find_resume(config: DistillConfig) -> Resume | None:
    """The point to go on from, or None when the run starts anew.

    Raises:
        UserError: there is no such checkpoint, it cannot be resumed, or it is another run's.
    """
    wanted = config.resume_from_checkpoint
    if config.schedule == "one-step" or config.output_dir is None or wanted is None:
        found = resume_point(config.output_dir, wanted)
        return None if found is None else Resume(last=found)
    folder = Path(config.output_dir)
    first = folder / INTERMEDIATE
    if wanted.lower() in ("true", "yes", "1"):
        if complete_checkpoints(folder):
            return Resume(last=resume_point(str(folder), wanted))
        if first_stage_done(folder):
            return Resume()
        return Resume(first=resume_point(str(first if complete_checkpoints(first) else folder), wanted))
    if Path(wanted).resolve().parent == first.resolve():
        return Resume(first=resume_point(str(first), wanted))
    found = resume_point(str(folder), wanted)
    return None if found is None else Resume(last=found)


def stages_of(config: DistillConfig, folder: Path, *, main_metric: str) -> list[Stage]:
    """The one stage of a run, or its two.

    Args:
        config: the resolved configuration.
        folder: the output folder.
        main_metric: the metric that chooses the best checkpoint.

    Raises:
        UserError: settings that the engine refuses.
    """
    if config.schedule == "one-step":
        arguments = training_arguments(config, folder, main_metric=main_metric, constant_lr=not config.one_step)
        return [Stage(name="one-step", config=config, folder=folder, arguments=arguments, chooses=True)]
    intermediate = dataclasses.replace(
        config,
        schedule="one-step",
        one_step=False,
        tinybert=False,
        learning_rate=config.intermediate_learning_rate,
        num_train_epochs=config.intermediate_epochs,
        max_steps=config.steps_of_intermediate,
        early_stopping=None,
    )
    prediction = dataclasses.replace(config, schedule="one-step", mapping="kd", pkd=False, use_emd=None, tinybert=False)
    first = training_arguments(intermediate, folder / INTERMEDIATE, main_metric=None, constant_lr=True)
    second = training_arguments(prediction, folder, main_metric=main_metric)
    return [
        Stage(name=INTERMEDIATE, config=intermediate, folder=folder / INTERMEDIATE, arguments=first, chooses=False),
        Stage(name="prediction", config=prediction, folder=folder, arguments=second, chooses=True),
    ]


def train_stages(
    stages: Sequence[Stage],
    first: DistillTrainer,
    trainer_of: Callable[[Stage, PreTrainedModel], DistillTrainer],
    resume: Resume | None,
) -> Trained:
    """Train one stage after the other; what is finished is not trained again.

    Args:
        stages: of `stages_of`.
        first: the first stage's trainer.
        trainer_of: makes the trainer of another stage around a student.
        resume: of `find_resume`.
    """
    last = stages[-1]
    trainer, before = first, None
    if len(stages) > 1:
        if resume is None or resume.first is not None or not first_stage_done(last.folder):
            _LOG.info("stage 1 of 2: the intermediate losses")
            _train_first(stages[0], first, last.folder, resume.first if resume else None)
        else:
            first.distiller.detach()  # the teacher as it was
        _LOG.info("stage 2 of 2: the prediction loss")
        before = json.loads((stages[0].folder / STAGE_FILE).read_text(encoding="utf-8"))
        # Read back also where it was trained just now, so that a resumed run has the very same start.
        trainer = trainer_of(last, plain_model(stages[0].folder))
    seconds = train_and_install(trainer, last.folder, resume.last if resume else None)
    steps = steps_of(last.folder, trainer, seconds)
    if before is None:
        return Trained(history=trainer.history, steps=steps)
    own = {
        "stage": last.name,
        "last_step": steps["last_step"],
        "epochs": steps["epochs"],
        "train_seconds": steps["train_seconds"],
    }
    steps["train_seconds"] = round(before["train_seconds"] + steps["train_seconds"], 1)
    history = json.loads((stages[0].folder / "layer_mapping.json").read_text(encoding="utf-8"))
    end = {"stage": last.name, "step": steps["last_step"], "epoch": steps["epochs"], "weights": {}}
    return Trained(
        history=[*({"stage": stages[0].name, **entry} for entry in history), end],
        steps=steps | {"stages": [before, own]},
    )


def _train_first(stage: Stage, trainer: DistillTrainer, folder: Path, resume: Path | None) -> None:
    if first_process():
        (stage.folder / STAGE_FILE).unlink(missing_ok=True)
        # What an earlier second stage left belongs to another start.
        for checkpoint in complete_checkpoints(folder, resumable=False):
            shutil.rmtree(checkpoint)
    start = time.perf_counter()
    trainer.train(resume_from_checkpoint=str(resume) if resume is not None else None)
    seconds = time.perf_counter() - start
    if trainer.is_world_process_zero():
        trainer.save_product(stage.folder)
        write_json(stage.folder / "layer_mapping.json", trainer.history)
        # Written last: a stage without it was not finished.
        write_json(stage.folder / STAGE_FILE, {
            "stage": stage.name, "last_step": trainer.state.global_step, "epochs": trainer.state.epoch,
            "train_seconds": round(seconds, 1),
        })  # fmt: skip
    trainer.accelerator.wait_for_everyone()
