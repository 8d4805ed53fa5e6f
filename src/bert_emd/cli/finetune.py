"""``bert-emd finetune``."""

from __future__ import annotations

import argparse

from bert_emd.cli.common import (
    evaluate_and_show,
    evaluate_config,
    interruptible,
    predict_and_show,
    require,
    resolve_args,
    show_resolved,
)
from bert_emd.cli.console import say
from bert_emd.cli.options import OptionParser, add_config_arguments

HELP = "fine-tune a pretrained encoder: the teacher of a later distillation"
USAGE = "%(prog)s --model_name_or_path FOLDER (--task_name NAME | --train_file FILE) --output_dir FOLDER [options]"


def add_arguments(parser: OptionParser) -> None:
    """Add the command's flags."""
    from bert_emd.training.config import FinetuneConfig

    add_config_arguments(parser, FinetuneConfig)


def run(args: argparse.Namespace) -> None:
    """Train, unless only evaluation or prediction is asked for; then predict if that is asked for as well."""
    from bert_emd.training.config import FinetuneConfig

    resolved = resolve_args(FinetuneConfig, args)
    config = resolved.config
    train = config.do_train or not (config.do_eval or config.do_predict)
    if train:
        require(config, "model_name_or_path", "output_dir", data=("task_name", "train_file"))
    else:
        require(config, "model_name_or_path", data=("task_name", "validation_file", "test_file"))
    if config.do_predict:
        require(config, "output_dir", data=("task_name", "test_file"))
    show_resolved(resolved)
    if train:
        from bert_emd.training.finetune import finetune

        with interruptible(config.output_dir):
            result = finetune(config.model_name_or_path, None, config=config, sources=resolved.sources)
        say(result.summary)
    elif config.do_eval:
        evaluate_and_show(evaluate_config(config, config.model_name_or_path))
    if config.do_predict:
        predict_and_show(evaluate_config(config, config.output_dir if train else config.model_name_or_path))
