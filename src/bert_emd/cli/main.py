"""``bert-emd``: finds the command, and turns what goes wrong into an exit status."""

from __future__ import annotations

import difflib
import importlib
import importlib.metadata
import os
import sys
import traceback
from collections.abc import Sequence
from typing import Any

from bert_emd.errors import UserError

__all__ = ["COMMANDS", "main"]

COMMANDS = (
    "quickstart", "finetune", "distill", "evaluate", "predict", "compare", "sweep", "download", "convert",
    "augment", "general-distill",
)  # fmt: skip
DONE, FAULT, MISTAKE, INTERRUPTED, BROKEN_PIPE = 0, 1, 2, 130, 141


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit status.

    0 done; 2 the user's mistake, told in one line; 1 a fault of ours; 130 interrupted; 141 nobody reads the output
    any more.
    """
    try:
        status = _status(list(sys.argv[1:] if argv is None else argv))
        sys.stdout.flush()
    except BrokenPipeError:
        # What is still buffered would raise once more when Python flushes at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BROKEN_PIPE
    return status


def _status(argv: list[str]) -> int:
    try:
        _run(argv)
    except UserError as error:
        return _fail(MISTAKE, f"error: {' '.join(str(error).split())}")
    except KeyboardInterrupt as error:
        return _fail(INTERRUPTED, "; ".join(("interrupted", *map(str, error.args))))
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else DONE
    except BrokenPipeError:
        raise
    except Exception:
        traceback.print_exc()
        return _fail(FAULT, "this is a fault of bert-emd and not yours; please report it with the lines above")
    return DONE


def _run(argv: list[str]) -> None:
    if not argv:
        raise UserError(f"name a command: {', '.join(COMMANDS)}; `bert-emd --help` says what they do")
    name, rest = argv[0], argv[1:]
    if name in ("-h", "--help", "help"):
        sys.stdout.write(_overview())
        return
    if name == "--version":
        sys.stdout.write(f"bert-emd {_version()}\n")
        return
    if name.startswith("-"):
        raise UserError(f"the command comes first, then its flags such as {name}; commands: {', '.join(COMMANDS)}")
    if name not in COMMANDS:
        close = difflib.get_close_matches(name.lower(), COMMANDS, n=1, cutoff=0.5)
        hint = f"did you mean {close[0]}?" if close else f"known: {', '.join(COMMANDS)}"
        raise UserError(f"unknown command {name!r}; {hint}")

    from bert_emd.cli.console import package_logging
    from bert_emd.cli.options import OptionParser

    command = _module(name)
    with package_logging():
        parser = OptionParser(prog=f"bert-emd {name}", description=command.HELP, usage=command.USAGE)
        command.add_arguments(parser)
        command.run(parser.parse(rest))


def _module(name: str) -> Any:
    return importlib.import_module(f"bert_emd.cli.{name.replace('-', '_')}")


def _overview() -> str:
    widest = max(map(len, COMMANDS))
    lines = [
        "Make a small, fast student out of a fine-tuned transformer encoder.",
        "",
        "usage: bert-emd [--help] [--version] COMMAND [OPTIONS]",
        "",
        "commands:",
        *(f"  {name:<{widest + 2}}{_module(name).HELP}" for name in COMMANDS),
        "",
        "`bert-emd COMMAND --help` lists a command's options.",
    ]
    return "\n".join(lines) + "\n"


def _version() -> str:
    try:
        return importlib.metadata.version("bert-emd")
    except importlib.metadata.PackageNotFoundError:
        return "(not installed)"


def _fail(status: int, line: str) -> int:
    sys.stderr.write(f"{line}\n")
    return status


if __name__ == "__main__":
    sys.exit(main())
