"""(2) An epoch on the lengths of real texts: the reference's way, ours (first and later epochs), the bounds."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

from benchmarks.elsewhere import Elsewhere
from benchmarks.harness import CASES, Case, batch_of, build, interleaved, optimised, summary
from benchmarks.sides import distiller_of
from bert_emd.method import Needs
from bert_emd.models import Tap
from bert_emd.training.cache_layout import layout_of
from bert_emd.training.host import keep_freed_memory
from bert_emd.training.teacher_cache import TeacherCache

__all__ = ["epoch", "lengths_of", "synthetic_lengths"]


_NEEDS = {"emd": Needs(embedding=True, hidden=True, attention=True), "kd": Needs()}
# The reference's: whether its process keeps freed memory as ours does.
_REFERENCES = {"reference": False, "reference, freed memory kept": True}
# Our ways: the mapping, and whether the teacher's outputs are written anew.
_OURS = {
    "first epoch": ("emd", True),
    "first epoch, the models alone": ("kd", True),
    "later epochs": ("emd", False),
    "later epochs, the student alone": ("kd", False),
}


def lengths_of(data_dir: str, encoder: str) -> list[int]:
    """Tokens of every training row of a GLUE task's folder."""
    from transformers import AutoTokenizer

    from bert_emd.data import encode, find_task, load_glue

    rows, _ = encode(load_glue(find_task("MRPC"), "train", data_dir), AutoTokenizer.from_pretrained(encoder), 128)
    return [int(n) for n in rows["length"]]


def synthetic_lengths(rows: int = 3668) -> list[int]:
    """As many rows as MRPC has, of about its lengths (mean 53, standard deviation 13)."""
    chance = np.random.default_rng(1)
    return [int(n) for n in np.clip(np.rint(chance.normal(53, 13, rows)), 16, 103)]


def _batches(lengths: Sequence[int], size: int, *, grouped: bool) -> list[list[int]]:
    """Row numbers by batch, shuffled; grouped: within fifty batches of shuffled rows by length, as the engine does."""
    order = list(range(len(lengths)))
    random.Random(1).shuffle(order)
    if grouped:
        big = size * 50
        order = [i for s in range(0, len(order), big) for i in sorted(order[s : s + big], key=lambda i: -lengths[i])]
    return [order[s : s + size] for s in range(0, len(order), size)]


def _typical(batches: list[list[int]], lengths: Sequence[int], sample: int) -> list[list[int]]:
    """The middles of equal parts of an epoch's batches by padded tokens: together they have its mean."""
    by_size = sorted(batches, key=lambda batch: len(batch) * max(lengths[i] for i in batch))
    return [by_size[int((k + 0.5) / sample * len(by_size))] for k in range(sample)]


def epoch(name: str, lengths: list[int], sample: int, repeats: int) -> dict[str, Any]:
    """Seconds an epoch of each way, from a sample of its batches, evenly spaced by size.

    The reference: float32, every batch padded to 128, the last incomplete batch dropped, in processes of its own that
    hand memory out as the C library does, and once more with the setting that this package makes. Ours: bf16 where the
    machine has it, batches of like length padded to their longest; the first epoch writes the teacher's outputs, later
    ones read them. Their bounds are the same without a mapping and without a cache of features: both models alone, and
    the student alone with cached logits. Every way ends its step with AdamW, ours in the fused form that the engine
    takes by default.

    The ways take turns pass by pass: within a pass a step follows a step of the same way, as in an epoch, and an
    untimed step goes before the first.
    """
    case = CASES[name]
    random_order = [b for b in _batches(lengths, case.batch, grouped=False) if len(b) == case.batch]
    grouped = _batches(lengths, case.batch, grouped=True)
    ways = dict.fromkeys(_REFERENCES, random_order) | dict.fromkeys(_OURS, grouped)
    chosen = {way: _typical(b, lengths, sample) for way, b in ways.items()}
    keep_freed_memory()
    with TemporaryDirectory() as folder:
        passes: dict[str, Callable[[], float]] = {
            way: partial(_elsewhere, case, [[lengths[i] for i in b] for b in chosen[way]], keep=keep)
            for way, keep in _REFERENCES.items()
        }
        for way, step in _steps(case, lengths, chosen, Path(folder)).items():
            _, anew = _OURS[way]
            if not anew:
                # What they read has to be there.
                for rows in chosen[way]:
                    step(rows)
            passes[way] = partial(_here, step, chosen[way])
        seconds = interleaved(passes, repeats, warm_up=0)
    found = {
        way: summary([whole * len(batches) / len(chosen[way]) for whole in seconds[way]])
        for way, batches in ways.items()
    }
    return {
        "case": case.name,
        "rows": len(lengths),
        "mean tokens": float(np.mean(lengths)),
        "batches timed": sample,
        "passes": repeats,
        "batches an epoch": {way: len(b) for way, b in ways.items()},
        "seconds an epoch": found,
        "times as fast": {
            other: {w: found[other]["median"] / v["median"] for w, v in found.items()} for other in _REFERENCES
        },
    }


def _elsewhere(case: Case, batches: list[list[int]], *, keep: bool) -> float:
    """Seconds of the reference's pass over batches of these lengths, in a fresh process."""
    with Elsewhere(case, keep=keep) as step:
        step(batches[-1])
        return sum(map(step, batches))


def _here(step: Callable[[list[int]], None], batches: list[list[int]]) -> float:
    """Seconds of a pass of ours over these rows."""
    step(batches[-1])
    start = time.perf_counter()
    for rows in batches:
        step(rows)
    return time.perf_counter() - start


def _steps(case: Case, lengths: list[int], chosen: dict[str, list[list[int]]], folder: Path) -> dict[str, Any]:
    from bert_emd.training.host import has_bf16

    steps: dict[str, Any] = {}
    autocast = partial(torch.autocast, "cpu", torch.bfloat16, enabled=has_bf16(gpu=False))
    for way, (mapping, anew) in _OURS.items():
        teacher, student = build(case)
        distiller = distiller_of(teacher, student, mapping)
        with torch.no_grad(), autocast(), Tap(build(case)[0], _NEEDS[mapping]) as tap:
            outputs, features = tap(**batch_of(case, [8]))
        timed = sorted({i for b in chosen[way] for i in b})
        place = {row: k for k, row in enumerate(timed)}
        cache = TeacherCache(folder / way.replace(" ", "-"), {"way": way}, [lengths[i] for i in timed],
                             layout_of(features, lengths, scores=True), outputs.logits.shape[1])  # fmt: skip
        distiller.cache = cache

        def step(
            rows: list[int], *, anew: bool = anew, distiller: Any = distiller, cache: Any = cache, place: Any = place
        ) -> None:
            places = [place[i] for i in rows]
            if anew:
                cache.forget(places)
            with autocast():
                loss = distiller(**batch_of(case, [lengths[i] for i in rows]), rows=places)["loss"]
            loss.backward()

        steps[way] = optimised(distiller, step, fused=True)
    return steps
