"""``bert-emd compare``."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from typing import Any

from bert_emd.cli.common import Interrupted
from bert_emd.cli.config_file import read_config_file
from bert_emd.cli.console import say
from bert_emd.cli.options import OptionParser, add_config_arguments, add_field_arguments
from bert_emd.errors import UserError

HELP = "method against method: seeds, tasks and depths in one table, with intervals"
USAGE = (
    "%(prog)s --methods A,B (--task_name NAMES | --train_file FILE) "
    "(--model_name_or_path ENCODER | --teacher_model FOLDER) --output_dir FOLDER [options]"
)


def add_arguments(parser: OptionParser) -> None:
    """Add the comparison's own flags, then those of `distill` for all students and those of the teachers."""
    from bert_emd.studies.compare.config import NOT_SHARED, TEACHER_PREFIX, CompareConfig, teacher_fields
    from bert_emd.training.config import DistillConfig, FinetuneConfig
    from bert_emd.training.resolve import field_types

    own = dataclasses.fields(CompareConfig)
    add_field_arguments(parser, own, field_types(CompareConfig))  # type: ignore[arg-type]
    add_config_arguments(parser, DistillConfig, leave_out={f.name for f in own} | set(NOT_SHARED) | {"preset"})
    add_field_arguments(parser, teacher_fields(), field_types(FinetuneConfig), prefix=TEACHER_PREFIX)
    short = parser.add_argument_group("teacher: short names")
    short.add_argument(f"--{TEACHER_PREFIX}epochs", default=argparse.SUPPRESS, metavar="X", help="num_train_epochs")
    parser.refused = NOT_SHARED


def run(args: argparse.Namespace) -> None:
    """Run what is not there yet and print the tables; exit status 1 where a run failed."""
    from bert_emd.studies.compare.study import compare

    config = _config(vars(args))
    try:
        result = compare(config, command=["bert-emd", *sys.argv[1:]])
    except KeyboardInterrupt:
        raise Interrupted(
            f"what is done is kept in {config.output_dir}; the same command again goes on from there"
        ) from None
    say(f"\n{result.summary}\n\nTables, every seed and a figure: {config.output_dir}/comparison.md, .csv, .json, .png")
    if not result.failures:
        return
    first = result.failures[0]
    done = any(cell["state"] == "done" for cell in result.study["cells"])
    if not done and all(failure.status == 2 for failure in result.failures):
        raise UserError(f"no run could be made; {first.run.title}: {first.error}")
    sys.stderr.write(
        f"error: {len(result.failures)} runs failed, the first of them {first.run.title}: {first.error}; "
        f"its log is {first.run.ledger.log}, and the same command tries again\n"
    )
    raise SystemExit(1)


def _config(flags: dict[str, Any]) -> Any:
    """Sort flags and keys of the configuration file: the comparison's, the teachers', those of all students."""
    from bert_emd.studies.compare.config import TEACHER_PREFIX, CompareConfig, option_name
    from bert_emd.training.config import DistillConfig
    from bert_emd.training.resolve import spellings

    own = {f.name for f in dataclasses.fields(CompareConfig)} - {"options", "teacher_options"}
    path = flags.pop("config", None)
    sorted_values: dict[str, dict[str, Any]] = {"own": {}, "teacher": {}, "students": {}}
    for given, prefix in ((read_config_file(path) if path else {}, ""), (flags, "--")):
        for written, value in given.items():
            name = str(written).replace("-", "_")
            if name in own:
                sorted_values["own"][name] = value
            elif name.startswith(TEACHER_PREFIX) and name not in spellings(DistillConfig):
                sorted_values["teacher"][name] = value
            else:
                sorted_values["students"][option_name(name, prefix=prefix)] = value
    return CompareConfig(
        **sorted_values["own"], options=sorted_values["students"], teacher_options=sorted_values["teacher"]
    )
