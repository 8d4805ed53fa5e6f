"""``bert-emd download``."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from bert_emd.cli.common import Interrupted, resolve_args, show_resolved
from bert_emd.cli.console import console, say, table
from bert_emd.cli.options import OptionParser, add_config_arguments
from bert_emd.errors import UserError

if TYPE_CHECKING:
    from bert_emd.cli.bars import Bars
    from bert_emd.cli.download_config import DownloadConfig
    from bert_emd.data.download import Fault, Remote, Step
    from bert_emd.models.fetch import ModelStep
    from bert_emd.transfer import Failures

HELP = "fetch GLUE and published models: resumed, checked, and there whole or not at all"
USAGE = (
    "%(prog)s --data_dir glue_data --tasks all|CoLA,MRPC,… [--mirror ADDRESS]\n"
    "       %(prog)s --models NAME,… --model_dir models"
)


def add_arguments(parser: OptionParser) -> None:
    """Add the command's flags."""
    from bert_emd.cli.download_config import DownloadConfig

    add_config_arguments(parser, DownloadConfig)


def run(args: argparse.Namespace) -> None:
    """Say what is there and what will be fetched, fetch it, and say how to go on."""
    from bert_emd.cli.bars import Bars
    from bert_emd.cli.download_config import DownloadConfig
    from bert_emd.transfer import masked

    resolved = resolve_args(DownloadConfig, args)
    config = resolved.config
    shown = dataclasses.replace(config, mirror=masked(config.mirror)) if config.mirror else config
    show_resolved(dataclasses.replace(resolved, config=shown))
    try:
        _fetch(config, Bars())
    except KeyboardInterrupt:
        raise Interrupted("what came so far is kept, and the same command goes on from there") from None


def _fetch(config: DownloadConfig, bars: Bars) -> None:
    from bert_emd.data.download import (
        Step,
        checksum_or_none,
        find_bundles,
        glue_fault,
        plan_glue,
    )
    from bert_emd.models.fetch import ModelStep, carry_out_models
    from bert_emd.transfer import Failures, workplace

    tasks = plan_glue(
        config.data_folder, find_bundles(config.tasks or ()), checksums=config.checksums, overwrite=config.overwrite,
        path_to_mrpc=config.mrpc_folder,
    )  # fmt: skip
    failures = Failures(bars, among=len(tasks) + len(config.models or ()))
    planned = _planned_models(config, bars, failures)
    checkpoints = [step for step in planned if isinstance(step, Step)]
    models = [step for step in planned if isinstance(step, ModelStep)]
    sizes = _sizes([*tasks, *checkpoints], config)
    _announce([*tasks, *checkpoints], models, sizes)
    _carry_out(tasks, config.data_folder, config, glue_fault, sizes, bars, failures)
    _carry_out(checkpoints, config.model_folder, config, checksum_or_none, sizes, bars, failures)
    if left := [step for step in models if step.files]:
        files = [(f"{step.folder.name}/{file.name}", file.size or 0) for step in left for file in step.files]
        with (
            failures.collected(*(step.name for step in left)),
            workplace(config.model_folder, files) as work,
        ):
            carry_out_models(left, work, retry=config.retry, watcher=bars, failures=failures, done=_done_model)
    failures.tell()
    _say_next(config, tasks, checkpoints, models)


def _planned_models(config: DownloadConfig, bars: Bars, failures: Failures) -> list[Step | ModelStep]:
    """What is to be done for each model and checkpoint; those of which nothing is known are among the failures."""
    from bert_emd.data.download import find_checkpoint, plan_checkpoint
    from bert_emd.models.fetch import plan_model
    from bert_emd.transfer import UnreachableError

    planned: dict[Path, Step | ModelStep] = {}
    retry = config.retry
    for name in dict.fromkeys(config.models or ()):
        step: Step | ModelStep
        try:
            if (bundle := find_checkpoint(name)) is not None:
                step = plan_checkpoint(
                    bundle, config.model_folder, checksums=config.checksums, overwrite=config.overwrite
                )
            else:
                step = plan_model(
                    name, config.model_folder, mirror=config.mirror, overwrite=config.overwrite, retry=retry,
                    watcher=bars,
                )  # fmt: skip
            if step.folder in planned:
                raise UserError(f"{name} has the same folder as another model, {step.folder}; name another --model_dir")
        except UserError as error:
            failures.add(error, name)
            if isinstance(error, UnreachableError):
                retry = dataclasses.replace(retry, attempts=1)  # the next one will hardly fare better
        else:
            planned[step.folder] = step
    return list(planned.values())


def _sizes(steps: Sequence[Step], config: DownloadConfig) -> dict[Remote, int | None]:
    """What is to be fetched, with its size: the published one, or what the server says."""
    from bert_emd.transfer import addresses, announced_size

    return {
        remote: remote.size
        or announced_size(addresses(remote.host, remote.path, config.mirror), timeout=config.retry.timeout)
        for step in steps
        for remote in step.remotes
    }


def _carry_out(
    steps: Sequence[Step], root: Path, config: DownloadConfig, fault: Fault, sizes: dict[Remote, int | None],
    bars: Bars, failures: Failures,
) -> None:  # fmt: skip
    from bert_emd.data.download import carry_out
    from bert_emd.transfer import workplace

    left = [step for step in steps if not step.whole]
    if not left:
        return
    needed = [(remote.name, sizes[remote] or 0) for step in left for remote in step.remotes]
    with failures.collected(*(step.bundle.name for step in left)), workplace(root, needed) as work:
        carry_out(
            left, work, mirror=config.mirror, checksums=config.checksums, fault=fault, retry=config.retry,
            watcher=bars, failures=failures, done=_done_checked if config.checksums else _done,
        )  # fmt: skip


def _announce(steps: Sequence[Step], models: Sequence[ModelStep], sizes: dict[Remote, int | None]) -> None:
    from bert_emd.transfer import megabytes

    rows: list[tuple[str, ...]] = []
    for step in steps:
        parts = [sizes[remote] for remote in step.remotes]
        known = sum(size or 0 for size in parts)
        unknown = "?" if None in parts else ""
        rows.append((step.bundle.name, str(step.folder), megabytes(known) + unknown if parts else "-", _state(step)))
    for model in models:
        unknown = "?" if any(file.size is None for file in model.files) else ""
        state = f"fetch {len(model.files)} files of {(model.revision or model.source)[:40]}"
        rows.append((
            model.name, str(model.folder), megabytes(model.size) + unknown if model.files else "-",
            state if model.files else "there already and whole: kept",
        ))  # fmt: skip
    if rows:
        console().print(table(rows, "what", "folder", "to fetch", ""))
    total = sum(size or 0 for size in sizes.values()) + sum(model.size for model in models)
    if len(rows) > 1 and total:
        say(f"to fetch in all: {megabytes(total)}")
    for model in models:
        if any(file.name.endswith(".bin") for file in model.files):
            say(f"note: {model.name} has no safetensors; `bert-emd convert` makes them of its pytorch_model.bin")


def _state(step: Step) -> str:
    from bert_emd.data.labels import listing

    if step.whole:
        return "there already and whole: kept"
    built = f"build from {next(iter(step.local.values())).parent}" if step.local else "fetch"
    if step.faults:
        return f"{built}; replace {listing(list(step.faults))}"
    return f"{built}; {listing(step.missing)} missing" if step.folder.exists() else built


def _done_checked(step: Step) -> None:
    _done(step, " with the published checksums")


def _done(step: Step, checked: str = "") -> None:
    count = len(step.bundle.members)
    say(f"{step.bundle.name}: {count} file{'s' if count > 1 else ''}{checked} in {step.folder}")


def _done_model(step: ModelStep) -> None:
    say(f"{step.name}: {len(step.files)} files in {step.folder}")


def _say_next(
    config: DownloadConfig, tasks: Sequence[Step], checkpoints: Sequence[Step], models: Sequence[ModelStep]
) -> None:
    model = next((str(step.folder) for step in models), "ENCODER")
    trained = [step.bundle.name for step in tasks if len(step.bundle.members) > 1]
    if trained:
        say(
            f"next: bert-emd finetune --model_name_or_path {model} --task_name {trained[0]} "
            f"--data_dir {config.data_folder} --output_dir runs/teacher"
        )
    for step in checkpoints:
        say(
            f"next: bert-emd convert --tf_checkpoint_path {step.folder} --bert_config_file {step.folder} "
            f"--pytorch_dump_path {step.folder}-torch"
        )
