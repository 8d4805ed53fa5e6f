"""``bert-emd general-distill``."""

from __future__ import annotations

import argparse

from bert_emd.cli.common import Interrupted, interruptible, require, resolve_args, show_resolved
from bert_emd.cli.console import say
from bert_emd.cli.options import OptionParser, add_config_arguments

HELP = "distil a pre-trained encoder on plain text into a student that any task can start from"
USAGE = (
    "%(prog)s --teacher_model ENCODER --train_corpus FILES --output_dir FOLDER [options]\n"
    "       %(prog)s --teacher_model ENCODER --train_corpus FILES --output_dir CORPUS --prepare_only\n"
    "       %(prog)s --teacher_model ENCODER --pregenerated_data CORPUS --output_dir FOLDER [options]"
)


def add_arguments(parser: OptionParser) -> None:
    """Add the command's flags."""
    from bert_emd.training.general.config import GeneralDistillConfig

    add_config_arguments(parser, GeneralDistillConfig)


def run(args: argparse.Namespace) -> None:
    """Distil; with ``--prepare_only`` only prepare the corpus."""
    from bert_emd.errors import UserError
    from bert_emd.training.general.config import CORPORA, GeneralDistillConfig

    resolved = resolve_args(GeneralDistillConfig, args)
    config = resolved.config
    require(config, "teacher_model", "output_dir")
    if not any(getattr(config, name) for name in CORPORA):
        raise UserError(f"there is no corpus; name one with {' or '.join(f'--{name}' for name in CORPORA)}")
    show_resolved(resolved)
    if config.prepare_only:
        from bert_emd.training.general.job import prepare_corpus

        try:
            say(prepare_corpus(config))
        except KeyboardInterrupt:
            raise Interrupted("what is prepared is kept; the same command goes on from there") from None
        return
    from bert_emd.training.general.job import general_distill

    with interruptible(config.output_dir):
        result = general_distill(config.teacher_model, None, config=config, sources=resolved.sources)
    say(result.summary)
