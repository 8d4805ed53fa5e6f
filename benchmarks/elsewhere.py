"""The reference method in a process of its own, as a script of its own would run it."""

from __future__ import annotations

import multiprocessing
import time
from multiprocessing.connection import Connection

import torch

from benchmarks.harness import Case, batch_of, build, optimised
from benchmarks.sides import reference
from bert_emd.training.host import keep_freed_memory

__all__ = ["Elsewhere"]

# Seconds in which a process ends that has nothing more to do.
_PATIENCE = 30.0


class Elsewhere:
    """Steps of the reference, AdamW included, in a fresh process, which ``with`` ends.

    How the C library hands memory out is a setting of the whole process, and this package sets it: a reference beside
    it would profit. Left alone it depends on where blocks happen to lie, so one process is one chance.

    Args:
        case: teacher, student and batch.
        keep: with this package's setting all the same.
    """

    def __init__(self, case: Case, *, keep: bool) -> None:
        spawning = multiprocessing.get_context("spawn")
        self._here, there = spawning.Pipe()
        arguments = (there, case, keep, torch.get_num_threads())
        self._process = spawning.Process(target=_serve, args=arguments, daemon=True)
        self._process.start()
        there.close()

    def __call__(self, lengths: list[int]) -> float:
        """Seconds of a step on a batch of texts of these lengths, padded to the case's length."""
        self._here.send(lengths)
        return float(self._here.recv())

    def __enter__(self) -> Elsewhere:
        return self

    def __exit__(self, *_: object) -> None:
        # It stops when nobody asks any more, and is stopped if it does not.
        self._here.close()
        self._process.join(_PATIENCE)
        if self._process.is_alive():
            self._process.terminate()
            self._process.join()


def _serve(there: Connection, case: Case, keep: bool, threads: int) -> None:
    torch.set_num_threads(threads)
    if keep:
        keep_freed_memory()
    teacher, student = build(case)
    step = optimised(student, reference(teacher, student), fused=False)
    while True:
        try:
            lengths = there.recv()
        except EOFError:
            return
        start = time.perf_counter()
        batch = batch_of(case, [*(min(n, case.length) for n in lengths), case.length])
        step({name: tensor[:-1] for name, tensor in batch.items()})
        there.send(time.perf_counter() - start)
