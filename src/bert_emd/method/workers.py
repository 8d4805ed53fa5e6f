"""Pieces of a batch's attention scores shared out among threads.

A head's products are small and what is copied for them is in many places: a processor's cores gain little from sharing
one piece. Each thread takes pieces of its own instead, all alone with its products: torch lets other threads run while
it computes. (Hidden states are few large products and copies, which torch's own threads share as well.)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future, wait
from typing import TypeVar

import torch

from bert_emd.processes import MOST_THREADS, thread_pool

__all__ = ["piece_of_worker", "shared_out", "worker_count"]

# Elements of one piece of every worker together (128 MiB of float32); backward holds about a third more beside it.
_TOGETHER = 1 << 25

T = TypeVar("T")
R = TypeVar("R")


def worker_count() -> int:
    """Among how many threads a CPU's pieces are shared out: torch's own number, within bounds."""
    # Only OpenMP lets a thread have a number of its own.
    if "backend: OpenMP" not in torch.__config__.parallel_info():
        return 1
    return min(torch.get_num_threads(), MOST_THREADS)


def piece_of_worker(elements: int, workers: int) -> int:
    """How many elements a worker's piece may have: so many, and fewer where many workers would hold too much.

    >>> piece_of_worker(1000, 2), piece_of_worker(1 << 22, 16) == 1 << 21
    (1000, True)
    """
    return max(1, min(elements, _TOGETHER // workers))


def shared_out(pieces: Sequence[T], work: Callable[[Sequence[T]], R], workers: int) -> list[R]:
    """What ``work`` makes of every worker's share of the pieces, without gradients; always in the same order.

    The workers take turns, forwards and then backwards, which is fair to all also where pieces shrink or alternate in
    size; the same pieces meet the same partners whenever this is run again. With one worker, or one piece, the work is
    done in this thread, by as many of torch's threads as there are.

    >>> shared_out([1, 2, 3, 4, 5], list, 2)
    [[1, 4, 5], [2, 3]]
    >>> shared_out([1, 2, 3, 4, 5], list, 1)
    [[1, 2, 3, 4, 5]]
    """
    workers = min(workers, len(pieces))
    if workers < 2:
        with torch.no_grad():
            return [work(list(pieces))]
    shares: list[list[T]] = [[] for _ in range(workers)]
    for i, piece in enumerate(pieces):
        turn, place = divmod(i, workers)
        shares[place if turn % 2 == 0 else workers - 1 - place].append(piece)
    threads, inference = torch.get_num_threads(), torch.is_inference_mode_enabled()

    def alone(share: Sequence[T]) -> R:
        torch.set_num_threads(1)  # of this thread; it is also what threads that are yet to come would start with
        # Modes belong to a thread: what was made in inference mode may be written in it alone.
        with torch.inference_mode(inference), torch.no_grad():
            return work(share)

    pool = thread_pool()
    waiting: list[Future[R]] = []
    try:
        waiting.extend(pool.submit(alone, share) for share in shares)
        return [found.result() for found in waiting]
    finally:
        # Where one failed or the user interrupts, the others still write where the caller's tensors are.
        for found in waiting:
            found.cancel()
        wait(waiting)
        torch.set_num_threads(threads)
