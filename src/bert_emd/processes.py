"""Which of several processes this one is."""

from __future__ import annotations

import os

__all__ = ["first_process"]


def first_process() -> bool:
    """Whether this is the only process of the run, or the first of those that a launcher started."""
    return os.environ.get("RANK", "0") in ("", "0", "-1")
