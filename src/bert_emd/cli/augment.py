"""``bert-emd augment``."""

from __future__ import annotations

import argparse

from bert_emd.cli.common import Interrupted, require, resolve_args, show_resolved
from bert_emd.cli.console import say
from bert_emd.cli.options import OptionParser, add_config_arguments
from bert_emd.errors import UserError

HELP = "more training data: variants of each row with words replaced, as TinyBERT makes them"
USAGE = (
    "%(prog)s --model_name_or_path MODEL (--task_name NAME --data_dir FOLDER | --train_file FILE)\n"
    "       [--glove_embs FILE] [--output_file FILE] [options]"
)


def add_arguments(parser: OptionParser) -> None:
    """Add the command's flags."""
    from bert_emd.training.augment.config import AugmentConfig

    add_config_arguments(parser, AugmentConfig)


def run(args: argparse.Namespace) -> None:
    """Augment, or go on where an earlier call was interrupted."""
    from bert_emd.training.augment.config import AugmentConfig

    resolved = resolve_args(AugmentConfig, args)
    config = resolved.config
    require(config, data=("task_name", "train_file"))
    if config.model_name_or_path is None and config.glove_embs is None:
        raise UserError(
            "where should candidates come from? Name a masked language model or an encoder with --model_name_or_path, "
            "or a GloVe file with --glove_embs"
        )
    show_resolved(resolved)
    from bert_emd.training.augment.job import augment

    try:
        result = augment(config, sources=resolved.sources)
    except KeyboardInterrupt:
        raise Interrupted("rows that are done are kept; the same command goes on from there") from None
    say(result.summary)
    if config.task_name is not None:
        data = f"--task_name {config.task_name} --data_dir {config.data_dir or 'FOLDER'}"
    else:
        data = f"--train_file {config.train_file}"
    place = "--aug_train" if config.output_file is None else f"--aug_file {result.path}"
    say(f"train on it: bert-emd distill {data} {place} …")
