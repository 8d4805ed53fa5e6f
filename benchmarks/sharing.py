"""(8) The attention distances with their pieces shared out among threads, and with torch's own threads alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from benchmarks.harness import CASES, Case, as_dict, interleaved, summary
from bert_emd import attention_distances
from bert_emd.method import attention_pieces

__all__ = ["sharing"]

# Of a cost's teacher layers the plan uses so many.
_USED = 5
_SIDES = "one", "shared out"


def sharing(names: list[str], repeats: int) -> list[dict[str, Any]]:
    """Forward and backward, full rows, with the case's models' queries and keys; of MRPC's mean length too."""
    found = []
    for case in [replace(CASES["base-4x312"], length=53), *(CASES[name] for name in names)]:
        for bf16 in (False, True):
            work = _work(case, bf16=bf16)
            sides: dict[str, Callable[[], Any]] = {name: partial(_with, name, work) for name in _SIDES}
            seconds = interleaved(sides, repeats)
            found.append(
                {
                    "case": as_dict(case),
                    "precision": "bf16" if bf16 else "float32",
                    "seconds": {name: summary(values) for name, values in seconds.items()},
                }
            )
    return found


def _with(side: str, work: Callable[[], None]) -> None:
    if side == "one":
        with patch.object(attention_pieces, "worker_count", lambda: 1):
            work()
    else:
        work()


def _work(case: Case, *, bf16: bool) -> Callable[[], None]:
    draw = torch.Generator().manual_seed(1)

    def side(model: tuple[int, int, int, int], *, grad: bool) -> list[tuple[Tensor, Tensor]]:
        layers, width, heads, _ = model
        shape = case.batch, case.length, heads, width // heads
        dtype = torch.bfloat16 if bf16 else torch.float32
        made = [[torch.randn(*shape, generator=draw).to(dtype).transpose(1, 2) for _ in "qk"] for _ in range(layers)]
        return [(q.requires_grad_(grad), k.requires_grad_(grad)) for q, k in made]

    student, teacher = side(case.student, grad=True), side(case.teacher, grad=False)
    plan = torch.zeros(len(student), len(teacher))
    for row in plan:
        row[torch.randperm(len(teacher), generator=draw)[:_USED]] = 1 / _USED
    return lambda: attention_distances(student, teacher).backward(plan)  # type: ignore[no-untyped-call]
