"""``bert-emd distill``."""

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

HELP = "distil a fine-tuned teacher into a smaller, faster student"
USAGE = "%(prog)s --teacher_model FOLDER (--task_name NAME | --train_file FILE) --output_dir FOLDER [options]"


def add_arguments(parser: OptionParser) -> None:
    """Add the command's flags."""
    from bert_emd.training.config import DistillConfig

    add_config_arguments(parser, DistillConfig)


def run(args: argparse.Namespace) -> None:
    """Distil; with ``--do_eval`` or ``--do_predict`` only run the student that is there."""
    from bert_emd.training.config import DistillConfig

    resolved = resolve_args(DistillConfig, args)
    config = resolved.config
    if config.do_eval or config.do_predict:
        require(config, "student_model")
        if config.do_eval:
            require(config, data=("task_name", "validation_file", "test_file"))
        if config.do_predict:
            require(config, "output_dir", data=("task_name", "test_file"))
        show_resolved(resolved)
        student = evaluate_config(config, config.student_model)
        if config.do_eval:
            evaluate_and_show(student)
        if config.do_predict:
            predict_and_show(student)
        return
    require(config, "teacher_model", "output_dir", data=("task_name", "train_file"))
    show_resolved(resolved)
    from bert_emd.training.distill import distill

    with interruptible(config.output_dir):
        result = distill(config.teacher_model, None, student=None, config=config, sources=resolved.sources)
    say(result.summary)
