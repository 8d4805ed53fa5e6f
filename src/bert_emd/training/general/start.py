"""What a general distillation starts from: the teacher's encoder, the student, and the point to go on from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from bert_emd.data.corpus import TokenStore
from bert_emd.errors import UserError
from bert_emd.models import BuiltStudent, build_student, load_config, load_encoder
from bert_emd.training.effects import OF_MAPPINGS
from bert_emd.training.general.config import GeneralDistillConfig
from bert_emd.training.mapping import make_mapping, shape_of
from bert_emd.training.preflight import Preflight
from bert_emd.training.start import asked_for, check_depth, shape_asked_for
from bert_emd.training.teacher_cache import model_key

__all__ = ["check_same_run", "check_shapes", "load_teacher", "make_encoder_student", "order_record"]

_WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
_TASK_HEADS = ("classifier", "score", "pre_classifier", "qa_outputs")
_LEARNING = (
    "mapping", *OF_MAPPINGS, "optimizer", "learning_rate", "lr_scheduler", "warmup_proportion", "warmup_steps",
    "weight_decay", "adam_epsilon", "max_grad_norm",
)  # fmt: skip


def check_shapes(config: GeneralDistillConfig, teacher: Any, student: Any) -> None:
    """Refuse, before any weights are loaded, a mapping that these models do not allow.

    Raises:
        UserError: there is no such model, or the mapping cannot be defined for these depths, widths or heads.
    """
    big = teacher.config if isinstance(teacher, PreTrainedModel) else _config(str(teacher), "the teacher", config)
    if isinstance(student, PreTrainedModel):
        shape = shape_of(student.config)
    elif student is not None:
        shape = shape_of(_config(str(student), "the student", config))
    else:
        shape = asked_for(config, big)
    # A student that is too deep has an error of its own.
    if shape.layers <= big.num_hidden_layers:
        make_mapping(config.as_distillation(), shape, shape_of(big))


def _config(name: str, what: str, config: GeneralDistillConfig) -> Any:
    return load_config(name, what, cache_dir=config.cache_dir, may_be_file=what == "the student")


def load_teacher(
    teacher: str | Path | PreTrainedModel, config: GeneralDistillConfig, checks: Preflight
) -> PreTrainedModel:
    """The encoder of a model or checkpoint, whatever head it has.

    Raises:
        UserError: it cannot be read, or some of the encoder's weights are not in it.
    """
    if isinstance(teacher, PreTrainedModel):
        encoder: PreTrainedModel = teacher.base_model.float()
        return encoder
    name = str(teacher)
    model, report = load_encoder(name, "the teacher", cache_dir=config.cache_dir)
    checks.weights("teacher", name, report, needs_head=False)
    if tuned := [weight for weight in report.ignored if weight.split(".")[0] in _TASK_HEADS]:
        checks.warn(
            f"the teacher {name} has a head for a task ({tuned[0]}): it is fine-tuned, and general distillation "
            "wants the pre-trained encoder"
        )
    return model


def make_encoder_student(config: GeneralDistillConfig, teacher: PreTrainedModel, student: Any) -> BuiltStudent:
    """The student: a model as it was passed, a checkpoint, a shape with fresh weights, or some of the teacher's layers.

    Args:
        config: what is asked for.
        teacher: an encoder without a head.
        student: a model; a folder, hub id or configuration file; or None.

    Raises:
        UserError: a depth or layer that the teacher does not have, or a checkpoint that does not load.
    """
    if isinstance(student, PreTrainedModel):
        check_depth(student, teacher)
        return BuiltStudent(model=student.base_model.float(), origin="student: a model in memory, as it was passed")
    name = str(student) if student is not None else None
    shape = shape_asked_for(config, name)
    fresh = name is not None and not (_has_weights(name) if config.continue_train is None else config.continue_train)
    return build_student(
        teacher, shape, checkpoint=name, fresh=fresh, seed=config.seed, cache_dir=config.cache_dir, head=False
    )


def _has_weights(name: str) -> bool:
    path = Path(name)
    if path.is_dir():
        return any((path / weights).is_file() for weights in _WEIGHTS)
    return not path.is_file()  # a hub id


def order_record(
    config: GeneralDistillConfig, store: TokenStore, teacher: PreTrainedModel, processes: int
) -> dict[str, Any]:
    """What the order of the examples depends on, and how they are learned from."""
    distillation = config.as_distillation()
    return {
        "corpus": store.identity,
        "sequences": len(store),
        "eval_share": config.eval_share,
        "max_eval_sequences": config.max_eval_sequences,
        "seed": config.trainer_args.get("data_seed", config.seed),
        "train_batch_size": config.train_batch_size,
        "gradient_accumulation_steps": config.gradient_accumulation_steps,
        "processes": processes,
        "teacher": {"sha256": model_key(teacher, teacher.config)},
    } | {name: getattr(distillation, name) for name in _LEARNING}


def check_same_run(folder: Path, order: dict[str, Any]) -> dict[str, Any]:
    """The record of the run that is gone on with, which must see its examples in the same order and learn as before.

    Raises:
        UserError: its record is missing, or something of `order_record` was another.
    """
    try:
        record: dict[str, Any] = json.loads((folder / "run.json").read_text(encoding="utf-8"))
        earlier = record["order"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{folder} has no record of a general distillation to go on with; start anew") from error
    for name, value in json.loads(json.dumps(order)).items():
        if name in earlier and earlier[name] != value:
            detail = "" if isinstance(value, dict) else f" ({earlier[name]}, now {value})"
            raise UserError(
                f"the run in {folder} began with another {name}{detail}, so it would not go on as the same run; "
                "take the same again, or start anew"
            )
    return record
