"""Presets: published settings as data."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from bert_emd.data.tasks import find_task
from bert_emd.errors import UserError
from bert_emd.training.config import DataConfig, DistillConfig, FinetuneConfig

__all__ = [
    "PRESETS",
    "paper_preset",
    "preset_values",
    "published_values",
    "student_depth",
    "tinybert_preset",
]

PRESETS = ("paper", "tinybert")


class _Row(NamedTuple):
    beta: float
    T_emd: float
    T: float
    learning_rate: float


_TABLE: Mapping[int, Mapping[str, _Row]] = MappingProxyType({
    4: {
        "CoLA": _Row(0.001, 5, 1, 2e-5),
        "MNLI": _Row(0.005, 1, 3, 5e-5),
        "MRPC": _Row(0.001, 10, 1, 2e-5),
        "QQP": _Row(0.005, 1, 3, 2e-5),
        "QNLI": _Row(0.005, 1, 3, 2e-5),
        "RTE": _Row(0.005, 1, 1, 2e-5),
        "SST-2": _Row(0.001, 1, 1, 2e-5),
        "STS-B": _Row(0.005, 1, 1, 3e-5),
    },
    6: {
        "CoLA": _Row(0.001, 1, 7, 2e-5),
        "MNLI": _Row(0.005, 1, 1, 5e-5),
        "MRPC": _Row(0.005, 1, 1, 2e-5),
        "QQP": _Row(0.005, 1, 1, 2e-5),
        "QNLI": _Row(0.001, 1, 1, 5e-5),
        "RTE": _Row(0.005, 1, 1, 2e-5),
        "SST-2": _Row(0.001, 1, 1, 2e-5),
        "STS-B": _Row(0.005, 1, 1, 3e-5),
    },
})  # fmt: skip
"""Best settings for students of 4 and 6 layers (the authors' README of 2022-06-01)."""

_EPOCHS_AND_LENGTH: Mapping[str, tuple[int, int]] = MappingProxyType({
    "CoLA": (50, 64), "MNLI": (5, 128), "MRPC": (20, 128), "SST-2": (8, 64),
    "STS-B": (30, 128), "QQP": (10, 128), "QNLI": (10, 128), "RTE": (20, 128),
})  # fmt: skip


def published_values() -> dict[str, list[float]]:
    """Return every value that stands in the published best settings, by option: the grid that they were found on."""
    rows = [row for table in _TABLE.values() for row in table.values()]
    return {name: sorted({float(getattr(row, name)) for row in rows}) for name in _Row._fields}


_TINYBERT_EPOCHS: Mapping[str, float] = MappingProxyType({"MNLI": 10.0, "QQP": 10.0, "QNLI": 10.0, "CoLA": 50.0})
"""Of the intermediate stage; every other task takes 20."""


def preset_values(cls: type[DataConfig], preset: str, user: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Return what a preset sets, and what is to be said about it.

    ``user`` holds what the user set. Raises `UserError` for a preset that there is not, or not for this command.
    """
    if preset not in PRESETS:
        raise UserError(f"there is no preset {preset!r}; known: {', '.join(PRESETS)}")
    if preset == "tinybert":
        return tinybert_preset(cls, user.get("task_name"), user)
    depth = student_depth(user) if issubclass(cls, DistillConfig) else None
    return paper_preset(cls, user.get("task_name"), depth)


def tinybert_preset(
    cls: type[DataConfig], task_name: str | None, user: Mapping[str, Any] = MappingProxyType({})
) -> tuple[dict[str, Any], list[str]]:
    """Return TinyBERT's task distillation: the intermediate losses of the uniform mapping, then the prediction loss.

    20 epochs at 5e-5 first (MNLI, QQP and QNLI 10, CoLA 50), then 3 at 3e-5. Works for own data too. Where ``user``
    asks for one stage alone (``one_step`` false, ``pred_distill``), its settings are those of that stage.
    Raises `UserError` for another command than distill.
    """
    if not issubclass(cls, DistillConfig):
        raise UserError("preset tinybert is a recipe for `bert-emd distill`; leave it out")
    task = find_task(task_name).name if task_name is not None else None
    first = {"epochs": _TINYBERT_EPOCHS.get(task or "", 20.0), "learning_rate": 5e-5}
    second = {"epochs": 3.0, "learning_rate": 3e-5}
    values: dict[str, Any] = {
        "mapping": "uniform",
        "cost_scale": "absolute",
        "train_batch_size": 32,
        "max_seq_length": 128,
        "alpha": 1.0,
        "T": 1.0,
    }
    first_alone = user.get("one_step") is False or (user.get("tinybert") and user.get("schedule") == "one-step")
    own = first if first_alone else second
    values |= {"num_train_epochs": own["epochs"], "learning_rate": own["learning_rate"]}
    if not (first_alone or user.get("pred_distill")):
        values |= {
            "schedule": "two-stage",
            "intermediate_epochs": first["epochs"],
            "intermediate_learning_rate": first["learning_rate"],
        }
    return values, []


def paper_preset(
    cls: type[DataConfig], task_name: str | None, student_depth: int | None = None
) -> tuple[dict[str, Any], list[str]]:
    """Return the published settings of a task, and what is to be said about them.

    For `FinetuneConfig` the teacher's settings; for `DistillConfig` the table's row for a student of
    ``student_depth`` layers: the 4-layer row up to 4, the 6-layer row from 5 on.
    Raises `UserError` without a task, and for a task or command that has no published settings.
    """
    task = _published_task(task_name)
    if issubclass(cls, FinetuneConfig):
        return {"max_seq_length": 128, "train_batch_size": 32, "learning_rate": 2e-5, "num_train_epochs": 4.0}, []
    if not issubclass(cls, DistillConfig):
        raise UserError("preset paper has settings for training only; leave it out")
    if student_depth is None:
        raise UserError("preset paper depends on the student's depth; name --student_layers")
    depth_class = 4 if student_depth <= 4 else 6
    row, (epochs, length) = _TABLE[depth_class][task], _EPOCHS_AND_LENGTH[task]
    values = {
        "mapping": "emd",
        "cost_scale": "absolute",
        "beta": row.beta,
        "T_emd": float(row.T_emd),
        "T": float(row.T),
        "learning_rate": row.learning_rate,
        "num_train_epochs": float(epochs),
        "max_seq_length": length,
        "alpha": 1.0,
        "theta": 1.0,
        "rule": "double-softmax",
        "count_padding": True,
        "pad_to_max_length": True,
        "lr_scheduler": "constant",
        "optimizer": "bert_adam",
        "weight_decay": 0.01,
        "max_grad_norm": 1.0,
        "train_batch_size": 32,
        "group_by_length": False,
    }
    if student_depth == depth_class:
        return values, []
    layers = "1 layer" if student_depth == 1 else f"{student_depth} layers"
    return values, [
        f"preset paper has no settings for {layers}: those for {depth_class} layers are used (published: 4 and 6)"
    ]


def student_depth(values: Mapping[str, Any]) -> int:
    """Return how many layers the student will have, from the values that the user set.

    ``student_layers``, else the number of ``student_layer_ids``, else the depth of ``student_model``, else half of
    the teacher's. Raises `UserError` where none of them tells.
    """
    if values.get("student_layers") is not None:
        return int(values["student_layers"])
    if values.get("student_layer_ids") is not None:
        return len(values["student_layer_ids"])
    cache_dir = values.get("cache_dir")
    if values.get("student_model") is not None:
        return _model_depth("the student", values["student_model"], cache_dir)
    if values.get("teacher_model") is not None:
        return max(1, _model_depth("the teacher", values["teacher_model"], cache_dir) // 2)
    raise UserError("preset paper depends on the student's depth, and no model tells it; name --student_layers")


def _published_task(task_name: str | None) -> str:
    known = ", ".join(_EPOCHS_AND_LENGTH)
    if task_name is None:
        raise UserError(f"preset paper needs --task_name; settings are published for {known}")
    task = find_task(task_name).name
    if task not in _EPOCHS_AND_LENGTH:
        raise UserError(f"preset paper has no settings for {task}; they are published for {known}")
    return task


def _model_depth(what: str, name: str, cache_dir: str | None) -> int:
    from bert_emd.models import load_config

    try:
        return int(load_config(name, what, cache_dir=cache_dir).num_hidden_layers)
    except UserError as error:
        raise UserError(f"{error} (preset paper takes the student's depth from it; or name --student_layers)") from None
    except (AttributeError, TypeError, ValueError):
        raise UserError(f"{what} {name} does not say how many layers it has; name --student_layers") from None
