"""(1) A step's time and peak memory against the two models alone and against the reference method."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from benchmarks.harness import CASES, Case, as_dict, batch_of, build, interleaved, peak_of, summary
from benchmarks.sides import SIDES
from bert_emd.method import Needs
from bert_emd.models import Tap
from bert_emd.training.host import has_bf16, keep_freed_memory

__all__ = ["memory", "times"]


def times(names: list[str], repeats: int) -> list[dict[str, Any]]:
    """Seconds a step of every side, interleaved, and ratios to the lower bound of the same precision.

    bfloat16 takes part where the machine has it. Freed memory is kept between steps for all sides, as runs do.
    """
    keep_freed_memory()
    chosen = {name: make for name, make in SIDES.items() if not name.endswith("bf16") or has_bf16(gpu=False)}
    found = []
    for name in names:
        case = CASES[name]
        batch = batch_of(case)
        # Every side has models of its own: what one does to them (attention, tapping) must not reach the others.
        sides = {side: make(*build(case)) for side, make in chosen.items()}
        # Until the heap has grown to what all sides need, new pages cost a part of a step.
        steps: dict[str, Callable[[], Any]] = {side: partial(step, batch) for side, step in sides.items()}
        seconds = interleaved(steps, repeats, warm_up=3)
        rows = {side: summary(values) for side, values in seconds.items()}
        bounds = {side: "lower bound, bf16" if side.endswith("bf16") else "lower bound" for side in rows}
        over = {s: rows[s]["median"] / rows[bound]["median"] for s, bound in bounds.items() if s != bound}
        found.append({"case": as_dict(case), "seconds": rows, "over the lower bound": over})
    return found


def memory(names: list[str]) -> list[dict[str, Any]]:
    """Peak bytes above the loaded models, each side in a process of its own, beside what the tapped tensors need.

    bfloat16 takes part where the machine has it, with its own bound.
    """
    found = []
    for name in names:
        case = CASES[name]
        for ending in ("", ", bf16") if has_bf16(gpu=False) else ("",):
            bound, ours = f"lower bound{ending}", f"bert-emd{ending}"
            sides = (bound, ours) if ending else (bound, ours, "reference")
            peaks = {side: peak_of(name, side, torch.get_num_threads()) for side in sides}
            tapped = _tapped(case, bf16=bool(ending))
            floor = peaks[bound] + tapped
            found.append(
                {
                    "case": as_dict(case),
                    "precision": "bf16" if ending else "float32",
                    "bytes": peaks | {"tapped teacher tensors": tapped},
                    "over lower bound plus tapped": {s: peaks[s] / floor for s in sides if s != bound},
                }
            )
    return found


def _tapped(case: Case, *, bf16: bool) -> int:
    """Bytes of the teacher's hidden states, queries and keys of all layers, and its embeddings, as made."""
    tap = Tap(build(case)[0], Needs(embedding=True, hidden=True, attention=True))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=bf16), tap:
        _, features = tap(**batch_of(case))
    tensors = [features.embedding, *features.hidden, *(t for pair in features.attention if pair for t in pair)]
    return sum(t.numel() * t.element_size() for t in tensors if t is not None)
