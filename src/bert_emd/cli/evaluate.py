"""``bert-emd evaluate``."""

from __future__ import annotations

import argparse

from bert_emd.cli.common import evaluate_and_show, require, resolve_args, show_resolved
from bert_emd.cli.options import OptionParser, add_config_arguments

HELP = "score a saved model on a task's validation data or on your own file"
USAGE = "%(prog)s --model_name_or_path FOLDER (--task_name NAME | --validation_file FILE | --test_file FILE) [options]"
_DATA = ("task_name", "validation_file", "test_file")


def add_arguments(parser: OptionParser) -> None:
    """Add the command's flags."""
    from bert_emd.training.config import EvaluateConfig

    add_config_arguments(parser, EvaluateConfig)


def run(args: argparse.Namespace) -> None:
    """Evaluate and print the scores."""
    from bert_emd.training.config import EvaluateConfig

    resolved = resolve_args(EvaluateConfig, args)
    require(resolved.config, "model_name_or_path", data=_DATA)
    show_resolved(resolved)
    evaluate_and_show(resolved.config)
