"""``bert-emd sweep``."""

from __future__ import annotations

import argparse
import dataclasses
from typing import TYPE_CHECKING

from bert_emd.cli.common import Interrupted, require, resolve_args, show_resolved
from bert_emd.cli.console import say
from bert_emd.cli.options import OptionParser, add_config_arguments
from bert_emd.errors import UserError

if TYPE_CHECKING:
    from bert_emd.studies.sweep.config import SweepConfig
    from bert_emd.studies.sweep.search import Plan
    from bert_emd.training.resolve import Resolved

HELP = "search for the options of distill that give the best student"
USAGE = (
    "%(prog)s --teacher_model FOLDER (--task_name NAME | --train_file FILE) --output_dir FOLDER\n"
    "       --space learning_rate=1e-5..1e-3:log beta=0.1,1,10 [options of distill, for every trial]"
)


def add_arguments(parser: OptionParser) -> None:
    """Add the command's flags."""
    from bert_emd.studies.sweep.config import SweepConfig

    add_config_arguments(parser, SweepConfig, lists=("space",))


def run(args: argparse.Namespace) -> None:
    """Search, or go on with a search."""
    from bert_emd.studies.sweep.config import SweepConfig
    from bert_emd.studies.sweep.search import plan_sweep, run_sweep
    from bert_emd.studies.sweep.space import split_assignments

    if hasattr(args, "space"):
        args.space = split_assignments(args.space)
    resolved = resolve_args(SweepConfig, args)
    config = resolved.config
    require(config, "teacher_model", "output_dir", data=("task_name", "train_file"))
    plan = plan_sweep(config)
    both = [name for name in plan.space.dimensions if resolved.sources.get(name) == "flag"]
    if both:
        raise UserError(f"--{both[0]} gives one value and the space several; leave one of them out")
    show_resolved(_as_shown(resolved, plan))
    try:
        result = run_sweep(plan, sources=resolved.sources)
    except KeyboardInterrupt:
        raise Interrupted("trials that are done are kept; the same command goes on with the others") from None
    say(result.summary)


def _as_shown(resolved: Resolved[SweepConfig], plan: Plan) -> Resolved[SweepConfig]:
    """What holds for all trials, the space as it was understood, and no password."""
    from bert_emd.studies.sweep.checks import idle_options
    from bert_emd.studies.sweep.storage import masked

    config = resolved.config
    idle = idle_options(config, plan.space) | {"save_steps": "trials are begun again, not resumed"}
    warnings = [f"{name} has no effect: {why}" for name, why in idle.items() if resolved.sources[name] != "default"]
    return dataclasses.replace(
        resolved,
        config=dataclasses.replace(
            config, space=plan.space.described(), storage=masked(config.storage) if config.storage else None
        ),
        unused=idle | dict.fromkeys(plan.space.dimensions, "it is searched"),
        notes=[*resolved.notes, *plan.notes],
        warnings=warnings,
    )
