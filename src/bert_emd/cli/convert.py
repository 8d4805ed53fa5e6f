"""``bert-emd convert``."""

from __future__ import annotations

import argparse
import re
from typing import TYPE_CHECKING

from bert_emd.cli.common import interruptible, require, resolve_args, show_resolved
from bert_emd.cli.console import console, say, table
from bert_emd.cli.options import OptionParser, add_config_arguments
from bert_emd.processes import first_process

if TYPE_CHECKING:
    from bert_emd.models.convert import Accounts, Variable
    from bert_emd.training.convert import ConvertResult

HELP = "turn a TensorFlow 1 checkpoint of BERT, or an old PyTorch folder, into a folder that Transformers loads"
USAGE = "%(prog)s --checkpoint FOLDER|PREFIX|ARCHIVE --output_dir FOLDER [options]"


def add_arguments(parser: OptionParser) -> None:
    """Add the command's flags."""
    from bert_emd.training.convert import ConvertConfig

    add_config_arguments(parser, ConvertConfig)


def run(args: argparse.Namespace) -> None:
    """Convert, and print what became of every variable."""
    from bert_emd.training.convert import ConvertConfig, convert

    resolved = resolve_args(ConvertConfig, args)
    require(resolved.config, "checkpoint", "output_dir")
    show_resolved(resolved)
    with interruptible(None):
        result = convert(resolved.config, sources=resolved.sources)
    if first_process():
        _show(result)


def _show(result: ConvertResult) -> None:
    out = console()
    out.print()
    out.print(table(_rows(result.accounts), "variable", "number", "shape", "what became of it"))
    model = result.model
    say(f"\n{_sum(result.accounts)}")
    if result.accounts.missing:
        say(f"missing, and started anew by Transformers: {', '.join(result.accounts.missing)}")
    say(
        f"wrote {result.folder}: {result.accounts.architecture}, {model.num_hidden_layers} layers, width "
        f"{model.hidden_size}, {model.num_attention_heads} heads, {model.vocab_size:,} entries"
    )


def _rows(accounts: Accounts) -> list[tuple[str, ...]]:
    """A row for variables that differ in their layer alone, and one for all that an optimiser kept of one kind."""
    groups: dict[tuple[str, str, str], int] = {}
    for variable in sorted(accounts.variables, key=lambda variable: variable.left_out is not None):
        shape = "×".join(map(str, variable.shape)) or "one number"
        name = re.sub(r"(?<=layer[_.])\d+", "*", variable.name)
        if variable.left_out and not variable.unknown and "/" in name:
            name, shape = f"…/{name.rpartition('/')[2]}", "as theirs"
        key = (name, shape, _fate(variable))
        groups[key] = groups.get(key, 0) + 1
    return [(name, str(number), shape, fate) for (name, shape, fate), number in groups.items()]


def _fate(variable: Variable) -> str:
    if variable.left_out:
        return f"left out: {variable.left_out}"
    return "converted, transposed" if variable.transposed else "converted"


def _sum(accounts: Accounts) -> str:
    total, converted = len(accounts.variables), len(accounts.converted)
    unknown = sum(variable.unknown for variable in accounts.variables)
    left = total - converted - unknown
    return f"{total} variables: {converted} converted, {left} left out as no weights of the model, {unknown} unknown"
