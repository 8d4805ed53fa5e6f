"""Transformers' own bars and reports, silenced where ours say the same."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["quiet"]


@contextmanager
def quiet(*, bars: bool = True) -> Iterator[None]:
    """While it lasts, Transformers reports errors only and, with ``bars``, shows no progress of local files."""
    from transformers.utils import logging as engine_logging

    level, shown = engine_logging.get_verbosity(), engine_logging.is_progress_bar_enabled()
    engine_logging.set_verbosity_error()
    if bars:
        engine_logging.disable_progress_bar()
    try:
        yield
    finally:
        engine_logging.set_verbosity(level)
        if bars and shown:
            engine_logging.enable_progress_bar()
