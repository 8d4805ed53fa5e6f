"""The reference method in a process of its own, as a script of its own would run it."""

from __future__ import annotations

import multiprocessing
import time
from multiprocessing.connection import Connection
from typing import Any

import torch

from benchmarks.harness import Case, batch_of, build, optimised
from benchmarks.sides import reference
from bert_emd.training.host import keep_freed_memory

__all__ = ["Elsewhere"]

# Seconds in which a process ends that has nothing more to do.
_PATIENCE = 30.0


class Elsewhere:
    """Steps of the reference, AdamW included, in a fresh process for every so many; ``with`` ends the last one.

    How the C library hands memory out is a setting of the whole process, and this package sets it: a reference beside
    it would profit. Left alone it depends on where blocks happen to lie, so one process is one chance.

    Args:
        case: teacher, student and batch.
        steps: of each process; one more goes before them, untimed.
        keep: with this package's setting all the same.
    """

    def __init__(self, case: Case, steps: int, *, keep: bool) -> None:
        self._case, self._steps, self._keep = case, steps, keep
        self._process: Any = None
        self._here: Connection | None = None
        self._left = 0

    def __call__(self, lengths: list[int]) -> float:
        """Seconds of a step on a batch of texts of these lengths, padded to the case's length."""
        if self._left == 0:
            self.close()
            self._start()
            self._ask(lengths)
            self._left = self._steps
        self._left -= 1
        return self._ask(lengths)

    def __enter__(self) -> Elsewhere:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the process: it stops when nobody asks any more, and is stopped if it does not."""
        if self._here is not None:
            self._here.close()
            self._process.join(_PATIENCE)
            if self._process.is_alive():
                self._process.terminate()
                self._process.join()
            self._here, self._left = None, 0

    def _start(self) -> None:
        spawning = multiprocessing.get_context("spawn")
        self._here, there = spawning.Pipe()
        arguments = (there, self._case, self._keep, torch.get_num_threads())
        self._process = spawning.Process(target=_serve, args=arguments, daemon=True)
        self._process.start()
        there.close()

    def _ask(self, lengths: list[int]) -> float:
        assert self._here is not None
        self._here.send(lengths)
        return float(self._here.recv())


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
