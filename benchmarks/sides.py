"""One training step (forward and backward) of each side."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel

from benchmarks.reference import ReferenceMethod
from bert_emd.method import build_mapping
from bert_emd.method.mappings import MappingOptions
from bert_emd.training.distiller import Distiller, LossOptions

__all__ = ["SIDES", "distiller_of", "lower_bound", "ours", "reference"]

Step = Callable[[dict[str, Tensor]], None]


def lower_bound(teacher: PreTrainedModel, student: PreTrainedModel, *, bf16: bool = False) -> Step:
    """The two models alone: teacher forward, student forward and backward, logits loss."""

    def step(batch: dict[str, Tensor]) -> None:
        student.zero_grad(set_to_none=True)
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            with torch.no_grad():
                target = teacher(**batch).logits
            logits = student(**batch).logits
        (-(F.softmax(target.float(), -1) * F.log_softmax(logits.float(), -1)).mean()).backward()  # type: ignore[no-untyped-call]

    return step


def distiller_of(teacher: PreTrainedModel, student: PreTrainedModel, mapping: str = "emd") -> Distiller:
    """The package's own module, ready to train."""
    options = MappingOptions(num_student=student.config.num_hidden_layers, num_teacher=teacher.config.num_hidden_layers)
    distiller = Distiller(student, teacher, None if mapping == "kd" else build_mapping(mapping, options), LossOptions())
    distiller.attach()
    return distiller.train()


def ours(teacher: PreTrainedModel, student: PreTrainedModel, *, mapping: str = "emd", bf16: bool = False) -> Step:
    """The step of `bert-emd distill --mapping emd`; with mapping kd the two models alone, as this package runs them."""
    distiller = distiller_of(teacher, student, mapping)

    def step(batch: dict[str, Tensor]) -> None:
        distiller.zero_grad(set_to_none=True)
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            loss = distiller(**batch)["loss"]
        loss.backward()

    return step


def reference(teacher: PreTrainedModel, student: PreTrainedModel) -> Step:
    """The reference method, float32 as published."""
    method = ReferenceMethod(student, teacher)

    def step(batch: dict[str, Tensor]) -> None:
        student.zero_grad(set_to_none=True)
        method.fit_dense.zero_grad(set_to_none=True)
        method.loss(batch).backward()  # type: ignore[no-untyped-call]

    return step


SIDES: dict[str, Callable[[PreTrainedModel, PreTrainedModel], Step]] = {
    "lower bound": lower_bound,
    "without mapping": partial(ours, mapping="kd"),
    "bert-emd": ours,
    "lower bound, bf16": partial(lower_bound, bf16=True),
    "without mapping, bf16": partial(ours, mapping="kd", bf16=True),
    "bert-emd, bf16": partial(ours, bf16=True),
    "reference": reference,
}
