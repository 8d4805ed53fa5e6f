"""Which of several processes this one is, and the threads it has."""

from __future__ import annotations

import functools
import os
from concurrent.futures import ThreadPoolExecutor

__all__ = ["MOST_THREADS", "first_process", "thread_pool"]

# More would wait for each other's Python.
MOST_THREADS = 16


def first_process() -> bool:
    """Whether this is the only process of the run, or the first of those that a launcher started."""
    return os.environ.get("RANK", "0") in ("", "0", "-1")


def thread_pool() -> ThreadPoolExecutor:
    """The threads of this process, at most `MOST_THREADS`, which live as long as it, as torch's own do.

    New ones for every use would cost a tenth of the work: oneDNN generates code for every thread anew. A forked process
    has none of its parent's threads, so it gets its own.
    """
    return _pool(os.getpid())


# The one thing kept at module level: threads belong to the process, as its environment does.
@functools.lru_cache(maxsize=1)
def _pool(process: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(MOST_THREADS, thread_name_prefix=f"bert-emd-{process}")
