"""What a distillation starts from: the shapes of both models before anything is loaded, and the student's weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from transformers import PretrainedConfig, PreTrainedModel

from bert_emd.errors import UserError
from bert_emd.models import StudentShape, build_student, label_names, load_config
from bert_emd.training.config import STUDENT_SHAPE, DistillConfig
from bert_emd.training.mapping import Shape, make_mapping, shape_of
from bert_emd.training.shared import MatchingFields

__all__ = [
    "asked_for",
    "check_depth",
    "check_start",
    "make_student",
    "recorded_encoder",
    "shape_asked_for",
    "start_of",
]


def check_start(config: DistillConfig, teacher: Any, student: Any, student_name: str | None) -> str | None:
    """Refuse, before any weights are loaded, a mapping that these models do not allow and a start that is not there.

    Args:
        config: the resolved configuration.
        teacher: a model, or its folder or hub id.
        student: a model, or None.
        student_name: the student's folder or hub id, where it has one.

    Returns:
        The pretrained encoder whose layers the student gets; None where it gets others.

    Raises:
        UserError: the mapping cannot be defined for these depths, widths or heads, or no pretrained encoder is known.
    """
    big = _config_of(teacher, "the teacher", config.cache_dir)
    if isinstance(student, PreTrainedModel) or student_name is not None:
        named = student if isinstance(student, PreTrainedModel) else student_name
        shape = shape_of(_config_of(named, "the student", config.cache_dir))
    else:
        shape = asked_for(config, big)
    # A student that is too deep has an error of its own.
    if shape.layers <= big.num_hidden_layers:
        make_mapping(config, shape, shape_of(big))
    if config.student_from != "pretrained":
        return None
    if student is not None:
        raise UserError("student_from says whose layers are copied, and the student that was passed has its own")
    name = config.pretrained_model or recorded_encoder(teacher)
    load_config(name, "the pretrained encoder", cache_dir=config.cache_dir)
    return name


def _config_of(model: Any, what: str, cache_dir: str | None) -> PretrainedConfig:
    return model.config if isinstance(model, PreTrainedModel) else load_config(str(model), what, cache_dir=cache_dir)


def asked_for(config: MatchingFields, teacher: PretrainedConfig) -> Shape:
    """The shape of a student that is built from this teacher."""
    like = shape_of(teacher)
    layers = len(config.student_layer_ids) if config.student_layer_ids is not None else config.student_layers
    return Shape(
        layers=layers if layers is not None else max(1, like.layers // 2),
        heads=config.student_num_attention_heads or like.heads,
        width=config.student_hidden_size or like.width,
    )


def recorded_encoder(teacher: Any) -> str:
    """The encoder that the teacher was fine-tuned from, as the run.json in its folder says.

    Raises:
        UserError: there is no such record, or the encoder is not there any more.
    """
    folder = Path(str(getattr(teacher, "name_or_path", teacher)))
    advice = "name the encoder that it was fine-tuned from with --pretrained_model"
    try:
        record = json.loads((folder / "run.json").read_text(encoding="utf-8"))
        name = record.get("model") or record["config"]["model_name_or_path"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise UserError(
            f"student_from pretrained: the teacher {folder} has no record of where it came from; {advice}"
        ) from None
    if not isinstance(name, str) or not name:
        raise UserError(f"student_from pretrained: the record of the teacher {folder} names no encoder; {advice}")
    try:
        load_config(name, "the pretrained encoder")
    except UserError:
        raise UserError(
            f"student_from pretrained: {name}, which the teacher {folder} was fine-tuned from, is not there any more; "
            f"{advice}"
        ) from None
    return name


def make_student(
    config: DistillConfig, teacher: PreTrainedModel, student: Any, student_name: str | None, pretrained: str | None
) -> tuple[PreTrainedModel, str]:
    """The student and one line on where its weights came from.

    Raises:
        UserError: a depth, layer or label that does not fit the teacher, or a checkpoint that does not load.
    """
    if isinstance(student, PreTrainedModel):
        if label_names(student.config) != label_names(teacher.config):
            raise UserError("the student's labels are not the teacher's; set its id2label to the teacher's first")
        check_depth(student, teacher)
        return student.float(), "student: a model in memory, as it was passed"
    built = build_student(
        teacher,
        shape_asked_for(config, student_name),
        checkpoint=student_name,
        fresh=config.no_pretrain,
        pretrained=pretrained,
        seed=config.seed,
        cache_dir=config.cache_dir,
    )
    return built.model, built.origin


def check_depth(student: PreTrainedModel, teacher: PreTrainedModel) -> None:
    """Refuse a model in memory that is deeper than its teacher.

    Raises:
        UserError: it is.
    """
    if student.config.num_hidden_layers > teacher.config.num_hidden_layers:
        raise UserError("the student is deeper than the teacher; take one with at most as many layers")


def shape_asked_for(config: MatchingFields, student_name: str | None) -> StudentShape:
    """What the options say of a student that is made from the teacher.

    Raises:
        UserError: they say something although the student is a checkpoint.
    """
    if student_name is not None and (given := [name for name in STUDENT_SHAPE if getattr(config, name) is not None]):
        raise UserError(f"the student {student_name} brings its own shape; leave {given[0]} out")
    return StudentShape(
        layers=config.student_layers,
        layer_ids=config.student_layer_ids,
        init=config.student_init,
        hidden_size=config.student_hidden_size,
        num_attention_heads=config.student_num_attention_heads,
        intermediate_size=config.student_intermediate_size,
    )


def start_of(config: DistillConfig, student: Any, student_name: str | None) -> str:
    """The start in one word, for tables: teacher, pretrained, fresh, checkpoint or given."""
    if isinstance(student, PreTrainedModel):
        return "given"
    if config.no_pretrain or config.student_init == "fresh" or any(config.sizes):
        return "fresh"
    return "checkpoint" if student_name is not None else config.student_from
