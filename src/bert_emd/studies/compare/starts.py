"""What the students start from, and whether they can."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bert_emd.errors import UserError
from bert_emd.studies.compare.config import CompareConfig
from bert_emd.studies.compare.methods import Method, from_both_starts
from bert_emd.training.config import DistillConfig
from bert_emd.training.start import check_start, recorded_encoder

__all__ = ["check_student", "copies_layers", "with_starts"]

_OWN_WEIGHTS = ("student_model", "student_hidden_size", "student_num_attention_heads", "student_intermediate_size")


def with_starts(
    config: CompareConfig, methods: list[Method], ready: Mapping[str | None, str]
) -> tuple[list[Method], list[str]]:
    """The methods, ``none`` and ``kd`` from both starts where they are asked for, and what is to be said about it.

    Args:
        config: of the comparison.
        methods: as they were typed.
        ready: the folders of teachers that are not fine-tuned here.
    """
    wanted = from_both_starts(methods, config.student_from)
    if not config.both_starts or len(wanted) == len(methods) or not copies_layers(config.options):
        return methods, []
    added = " and ".join(f"`{method.name}`" for method in wanted if method not in methods)
    verb = "are" if " and " in added else "is"
    if config.student_from == "teacher" and not (config.model_name_or_path or config.options.get("pretrained_model")):
        for folder in ready.values():
            try:
                recorded_encoder(folder)
            except UserError as error:
                return methods, [f"{added} {verb} not shown from the pretrained encoder too: {error}."]
    return wanted, [
        f"{added} {verb} shown from both starts: a student that is copied from its teacher is not untaught."
    ]


def copies_layers(options: Mapping[str, Any]) -> bool:
    """Whether the students get layers of another model, so that it can be asked whose."""
    return options.get("student_init") != "fresh" and all(options.get(name) is None for name in _OWN_WEIGHTS)


def check_student(method: Method, layers: int, config: DistillConfig, teacher: str, total: int) -> None:
    """Refuse what `distill` would, before anything is trained.

    Args:
        method: the row.
        layers: the student's depth.
        config: of one of its runs.
        teacher: the ready teacher, or the encoder that it is made from.
        total: the teacher's depth.

    Raises:
        UserError: the student cannot be made, or its mapping not be defined.
    """
    if layers > total:
        raise UserError(f"students of {layers} layers are deeper than the teacher of {total}; ask for at most {total}")
    if config.student_layer_ids is not None and max(config.student_layer_ids) > total:
        raise UserError(f"method {method.spec!r}: student_layer_ids names a layer behind the teacher's last, {total}")
    try:
        check_start(config, teacher, None, config.student_model)
    except UserError as error:
        depth = "1 layer" if layers == 1 else f"{layers} layers"
        raise UserError(f"method {method.spec!r}, {depth}: {error}") from error
