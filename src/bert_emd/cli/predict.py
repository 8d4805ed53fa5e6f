"""``bert-emd predict``."""

from __future__ import annotations

import argparse

from bert_emd.cli.common import predict_and_show, require, resolve_args, show_resolved
from bert_emd.cli.options import OptionParser, add_config_arguments

HELP = "write a saved model's predictions: the GLUE server's files, or a CSV for your own file"
USAGE = "%(prog)s --model_name_or_path FOLDER (--task_name NAME | --test_file FILE) --output_dir FOLDER [options]"


def add_arguments(parser: OptionParser) -> None:
    """Add the command's flags."""
    from bert_emd.training.config import EvaluateConfig

    add_config_arguments(parser, EvaluateConfig)


def run(args: argparse.Namespace) -> None:
    """Predict and print what was written."""
    from bert_emd.training.config import EvaluateConfig

    resolved = resolve_args(EvaluateConfig, args)
    require(resolved.config, "model_name_or_path", "output_dir", data=("task_name", "test_file"))
    show_resolved(resolved)
    predict_and_show(resolved.config)
