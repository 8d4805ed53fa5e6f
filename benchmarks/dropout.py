"""(7) A student alone, forward and backward: torch's dropout against ours, and no dropout at all."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from benchmarks.harness import CASES, as_dict, batch_of, build, interleaved, summary
from bert_emd.models import attach_quick_dropout
from bert_emd.training.host import has_bf16, keep_freed_memory

__all__ = ["dropout"]


def dropout(names: list[str], repeats: int) -> list[dict[str, Any]]:
    """Seconds of a student's forward and backward, every way with a model of its own, taking turns."""
    keep_freed_memory()
    found = []
    for name in names:
        case = CASES[name]
        steps: dict[str, Callable[[], None]] = {}
        for bf16 in (False, True) if has_bf16(gpu=False) else (False,):
            for way in ("torch", "bert-emd", "none", "none, bert-emd"):
                student = build(case)[1]
                if way.endswith("bert-emd"):
                    attach_quick_dropout(student)
                if way.startswith("none"):
                    student.eval()
                steps[f"{way}, bf16" if bf16 else way] = partial(_step, student, batch_of(case), bf16)
        rows = {way: summary(values) for way, values in interleaved(steps, repeats).items()}
        plain = {way: rows["torch, bf16" if way.endswith("bf16") else "torch"]["median"] for way in rows}
        found.append(
            {
                "case": as_dict(case),
                "seconds": rows,
                "times as fast": {way: plain[way] / value["median"] for way, value in rows.items()},
            }
        )
    return found


def _step(student: Any, batch: dict[str, torch.Tensor], bf16: bool) -> None:
    student.zero_grad(set_to_none=True)
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        logits = student(**batch).logits
    logits.float().square().sum().backward()
