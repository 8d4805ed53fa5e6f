"""What the options of a distillation may not say together."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from bert_emd.errors import UserError
from bert_emd.method import MAPPINGS

if TYPE_CHECKING:
    from bert_emd.training.config import DistillConfig

__all__ = ["STUDENT_SHAPE", "TINYBERT_SETTINGS", "check_distillation", "tinybert_switches"]

STUDENT_SHAPE = (
    "student_layers", "student_layer_ids", "student_hidden_size", "student_num_attention_heads",
    "student_intermediate_size",
)  # fmt: skip
"""The fields that say what a student built from the teacher looks like."""

TINYBERT_SETTINGS: Mapping[str, Any] = MappingProxyType({
    "learning_rate": 5e-5, "cost_scale": "absolute", "alpha": 1.0, "beta": 1.0,
})  # fmt: skip
"""What the reference's ``tinybert`` has beside its switches."""


def tinybert_switches(pred_distill: bool, schedule: str) -> dict[str, bool]:
    """What ``tinybert`` stands for: the first stage, unless the second or both are asked for."""
    switches = {"use_emd": False, "new_pred_loss": False}
    return switches if pred_distill or schedule == "two-stage" else {"one_step": False, **switches}


def check_distillation(config: DistillConfig) -> None:
    """Refuse options that contradict each other.

    Raises:
        UserError: naming them, and what to do.
    """
    _check_student(config)
    _check_mapping(config)
    _check_stages(config)


def _check_student(config: DistillConfig) -> None:
    if config.student_layers is not None and config.student_layer_ids is not None:
        raise UserError("student_layers and student_layer_ids exclude each other; keep one")
    if config.student_layer_ids is not None and config.student_init != "spread":
        raise UserError("student_layer_ids names the layers, so student_init has no say; keep one")
    if config.student_init != "spread" and (config.student_model is not None or any(config.sizes)):
        raise UserError("student_init says which of the teacher's layers are copied, and none are here; leave it out")
    if config.student_layer_ids is not None and any(config.sizes):
        raise UserError("another size means fresh weights, so student_layer_ids copies nothing; use student_layers")
    copies = config.student_model is None and config.student_init != "fresh" and not any(config.sizes)
    if config.student_from == "pretrained" and not copies:
        raise UserError("student_from says whose layers are copied, and none are here; leave it out")
    if config.student_model is not None:
        for name in STUDENT_SHAPE:
            if getattr(config, name) is not None:
                raise UserError(f"student_model brings its own shape; leave {name} out")
    if config.no_pretrain and config.student_model is None:
        raise UserError("no_pretrain takes the shape of a student_model; name one, or use student_init fresh")


def _check_mapping(config: DistillConfig) -> None:
    known = (*MAPPINGS, "kd", "none")
    if config.mapping not in known:
        raise UserError(f"mapping must be one of {', '.join(known)}, not {config.mapping!r}")
    if config.pkd and config.mapping not in ("uniform", "emd", "pkd"):  # the defaults of now and before
        raise UserError(f"pkd is a mapping of its own and mapping {config.mapping} another; keep one")
    if config.effective_mapping == "manual" and config.layer_map is None:
        raise UserError("mapping manual needs its pairs; give them with --layer_map 1:2,2:4,3:6")
    if config.cache_teacher and config.count_padding and config.has_effect("count_padding"):
        raise UserError("count_padding compares padding too, and cache_teacher keeps none; leave one of them out")


def _check_stages(config: DistillConfig) -> None:
    mapping = config.effective_mapping
    if config.intermediate_max_steps is not None and (
        config.intermediate_max_steps == 0 or config.intermediate_max_steps < -1
    ):
        raise UserError(f"intermediate_max_steps must be a positive number or -1, not {config.intermediate_max_steps}")
    two = config.schedule == "two-stage"
    if config.pred_distill and not config.one_step:
        raise UserError(
            "one_step false leaves the intermediate losses alone, pred_distill the prediction loss alone; keep one"
        )
    if two and (config.pred_distill or not config.one_step):
        switch = "pred_distill" if config.pred_distill else "one_step false"
        raise UserError(f"{switch} is one stage alone and schedule two-stage both; keep one")
    what = "schedule two-stage" if two else "one_step false"
    if (two or not config.one_step) and mapping in ("kd", "none"):
        raise UserError(f"{what} trains the intermediate losses, but mapping {mapping} has none")
    if (two or not config.one_step) and not config.matches:
        raise UserError(f"with use_att, use_rep and use_embedding all false, {what} leaves nothing to learn")
