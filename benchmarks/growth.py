"""(4) How the distances grow with tokens, rows and pairs of layers, beside the plain loop over score tensors."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks.harness import summary
from bert_emd import attention_distances, hidden_distances

__all__ = ["growth", "plot"]

_HEADS, _D_STUDENT, _D_TEACHER, _WIDTH = 12, 26, 64, 768
Pairs = list[tuple[Tensor, Tensor]]


def _loops(student: Pairs, teacher: Pairs, s_hidden: list[Tensor], t_hidden: list[Tensor]) -> list[Tensor]:
    score = [[q @ k.transpose(2, 3) / math.sqrt(q.shape[3]) for q, k in side] for side in (student, teacher)]
    return [
        torch.stack([torch.stack([torch.nn.functional.mse_loss(s, t) for t in theirs]) for s in ours])
        for ours, theirs in ((score[0], score[1]), (s_hidden, t_hidden))
    ]


def _streamed(student: Pairs, teacher: Pairs, s_hidden: list[Tensor], t_hidden: list[Tensor]) -> list[Tensor]:
    return [attention_distances(student, teacher), hidden_distances(s_hidden, t_hidden)]


def _plan(m: int, n: int) -> Tensor:
    """[M, N] with M + N - 1 weights, as a plan has: what lies in both sides' shares of a line from 0 to 1."""
    ends_M, ends_N = (torch.linspace(1, 2, size).cumsum(0) / torch.linspace(1, 2, size).sum() for size in (m, n))
    ends_M = ends_M**1.1  # so that no two ends meet but the last
    starts_M, starts_N = (torch.cat([torch.zeros(1), ends[:-1]]) for ends in (ends_M, ends_N))
    return (torch.minimum(ends_M[:, None], ends_N) - torch.maximum(starts_M[:, None], starts_N)).clamp_min(0)


def _point(batch: int, length: int, m: int, n: int, repeats: int) -> dict[str, Any]:
    def pairs(count: int, d: int, grad: bool) -> Pairs:
        made = [[torch.randn(batch, length, _HEADS, d).transpose(1, 2) for _ in "qk"] for _ in range(count)]
        return [(q.requires_grad_(grad), k.requires_grad_(grad)) for q, k in made]

    student, teacher = pairs(m, _D_STUDENT, True), pairs(n, _D_TEACHER, False)
    s_hidden = [torch.randn(batch, length, _WIDTH, requires_grad=True) for _ in range(m)]
    t_hidden = [torch.randn(batch, length, _WIDTH) for _ in range(n)]
    plan = _plan(m, n)
    sides: dict[str, Callable[..., list[Tensor]]] = {"bert-emd": _streamed, "plain loops": _loops}
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(repeats + 1):
        for name, distances in sides.items():
            start = time.perf_counter()
            costs = distances(student, teacher, s_hidden, t_hidden)
            sum((cost * plan).sum() for cost in costs).backward()  # type: ignore[union-attr]
            if turn:
                seconds[name].append(time.perf_counter() - start)
    return {"B": batch, "L": length, "M": m, "N": n, "seconds": {k: summary(v) for k, v in seconds.items()}}


def growth(repeats: int, *, quick: bool = False) -> dict[str, list[dict[str, Any]]]:
    """Forward and backward of both terms, one size growing at a time; M + N - 1 of the pairs have a gradient."""
    lengths = (32, 64, 128) if quick else (32, 64, 128, 256)
    batches = (4, 8, 16) if quick else (4, 8, 16, 32)
    layers = ((3, 6), (4, 12)) if quick else ((3, 6), (4, 12), (6, 12), (12, 24))
    return {
        "tokens": [_point(8, length, 4, 12, repeats) for length in lengths],
        "rows": [_point(batch, 64, 4, 12, repeats) for batch in batches],
        "pairs of layers": [_point(8, 64, m, n, repeats) for m, n in layers],
    }


def plot(found: dict[str, list[dict[str, Any]]], path: str) -> None:
    """One panel a size, both sides with their spread."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 3.4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, 3)
    size = {"tokens": lambda p: p["L"], "rows": lambda p: p["B"], "pairs of layers": lambda p: p["M"] * p["N"]}
    fixed = {"tokens": "B 8, 4 x 12 layers", "rows": "L 64, 4 x 12 layers", "pairs of layers": "B 8, L 64"}
    for axis, (name, points) in zip(axes, found.items(), strict=True):
        for side, colour in (("plain loops", "#b0562d"), ("bert-emd", "#1f6f8b")):
            values = [p["seconds"][side] for p in points]
            x = [size[name](p) for p in points]
            axis.plot(x, [1e3 * v["median"] for v in values], "o-", color=colour, label=side)
            axis.fill_between(
                x, [1e3 * v["min"] for v in values], [1e3 * v["max"] for v in values], color=colour, alpha=0.2
            )
        axis.set(xscale="log", yscale="log", xlabel=f"{name} ({fixed[name]})")
        axis.set_xticks(x, [str(v) for v in x])
        axis.minorticks_off()
        axis.grid(True, alpha=0.3)
    axes[0].set_ylabel("distances, forward and backward [ms]")
    axes[0].legend(frameon=False)
    figure.savefig(path, dpi=130)
