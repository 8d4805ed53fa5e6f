"""Drawing and writing out variants, in this process or in several others, in order."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass
from typing import Any

from bert_emd.data.augmentation import Drawn, Slot, Variants

__all__ = ["Block", "drawn"]

# Blocks that wait or are at work, for each process: enough that none idles, few enough to stay small.
_AHEAD = 2


@dataclass(frozen=True)
class Block:
    """Rows that follow each other, with the candidates of their words."""

    first: int
    """The number of the first row."""
    records: list[Any]
    texts: list[tuple[str, ...]]
    slots: list[tuple[list[Slot], ...]]


def drawn(variants: Variants, blocks: Iterable[Block], workers: int) -> Iterator[list[Drawn]]:
    """Yield the variants of each block, in order.

    Args:
        variants: how they are drawn.
        blocks: taken as there is room for them, so that candidates are found meanwhile.
        workers: so many processes; 1 draws in this one.
    """
    if workers == 1:
        for block in blocks:
            yield _draw(variants, block)
        return
    # Started afresh: a fork of a process whose threads are at work may never come to life.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_follow_parent)
    try:
        waiting: deque[Future[list[Drawn]]] = deque()
        for block in blocks:
            waiting.append(pool.submit(_draw, variants, block))
            while len(waiting) > _AHEAD * workers or (waiting and waiting[0].done()):
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def _draw(variants: Variants, block: Block) -> list[Drawn]:
    rows = zip(block.records, block.texts, block.slots, strict=True)
    return [variants.of_row(block.first + i, *row) for i, row in enumerate(rows)]


def _follow_parent() -> None:
    """A Ctrl-C is the parent's to handle; and when the parent is killed, this process ends too."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()

    def watch() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
