"""What the commands write: plain log lines, tables, and nothing of the engine's chatter."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any

from rich.console import Console
from rich.table import Table

from bert_emd.processes import first_process

__all__ = ["console", "package_logging", "say", "scores_line", "table"]

_PIPE_WIDTH = 120
_QUIET = MappingProxyType({
    "transformers": "TRANSFORMERS_VERBOSITY",
    "datasets": "DATASETS_VERBOSITY",
    "huggingface_hub": "HF_HUB_VERBOSITY",
})  # fmt: skip
"""Libraries that log errors only, unless the user set their variable."""


def console() -> Console:
    """Return a console on today's ``sys.stdout``; where that is no terminal, tables are 120 characters wide."""
    return _Console(highlight=False, markup=False, width=None if sys.stdout.isatty() else _PIPE_WIDTH)


def say(text: str) -> None:
    """Write a line, in the first process only."""
    if first_process():
        console().print(text, soft_wrap=True)


def table(rows: list[tuple[str, ...]], *columns: str, numbers: bool = False) -> Table:
    """Return a plain table. With ``numbers`` every column but the first is set to the right."""
    made = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for i, column in enumerate(columns):
        made.add_column(column, justify="right" if numbers and i else "left", overflow="fold")
    for row in rows:
        made.add_row(*row)
    return made


def scores_line(name: str, scores: Mapping[str, Any]) -> str:
    """Return a split's scores on one line.

    >>> scores_line("validation", {"accuracy": 0.8382, "f1": 0.8878})
    'validation: accuracy 0.8382, f1 0.8878'
    """
    return f"{name}: " + ", ".join(f"{metric} {value:.4f}" for metric, value in scores.items())


@contextmanager
def package_logging() -> Iterator[None]:
    """While it lasts, ``bert_emd`` logs plain lines to stdout and warnings to stderr; others log errors only."""
    for library, variable in _QUIET.items():
        if os.environ.setdefault(variable, "error") == "error":
            logging.getLogger(library).setLevel(logging.ERROR)
    logger, handler = logging.getLogger("bert_emd"), _LineHandler()
    level = logger.level
    logger.setLevel(logging.INFO if first_process() else logging.WARNING)
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


class _LineHandler(logging.Handler):
    """Writes beside a progress bar without tearing it."""

    def emit(self, record: logging.LogRecord) -> None:
        from tqdm import tqdm  # type: ignore[import-untyped]

        message = record.getMessage()
        if record.levelno >= logging.WARNING:
            tqdm.write(f"{record.levelname.lower()}: {message}", file=sys.stderr)
        else:
            tqdm.write(message, file=sys.stdout)


class _Console(Console):
    def on_broken_pipe(self) -> None:
        """Leave it to the command's end, which knows the exit status."""
        raise BrokenPipeError
