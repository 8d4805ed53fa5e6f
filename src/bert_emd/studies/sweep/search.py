"""The whole job: check, open the study, work, report."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import os
import re
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bert_emd.errors import UserError
from bert_emd.studies.sweep.checks import check_models_and_data, check_space, planned_trials, space_of
from bert_emd.studies.sweep.config import SweepConfig
from bert_emd.studies.sweep.space import Space
from bert_emd.training.config import DistillConfig
from bert_emd.training.inputs import RunData
from bert_emd.training.outputs import files_read, make_folder, write_json
from bert_emd.training.yaml_file import read_yaml

if TYPE_CHECKING:
    from bert_emd.studies.sweep.results import Facts

__all__ = ["Plan", "SweepResult", "plan_sweep", "run_sweep", "sweep"]

_FILES = ("study.db", "study.db-journal", "trials.csv", "trials.json", "sweep.md", "best.yaml", "history.png",
          "importances.png", "teacher.json", "run.json")  # fmt: skip
_NOT_COMPARED = (
    "output_dir", "overwrite_output_dir", "resume_from_checkpoint", "strict", "cache_dir", "overwrite_cache",
    "teacher_cache_dir", "do_eval", "do_predict", "logging_steps", "save_steps",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class SweepResult:
    """The best trial's values and score, what trials.json holds, and the final table."""

    values: dict[str, Any]
    score: float
    config: DistillConfig
    """The best trial's configuration, without an output folder."""
    folder: Path
    """The search's folder; best.yaml lies there."""
    trials: list[dict[str, Any]] = field(repr=False)
    importances: dict[str, float]
    summary: str
    """The final table, ready to print."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A checked search that has not begun."""

    config: SweepConfig
    space: Space
    planned: int
    """How many trials there will be."""
    notes: list[str]


def plan_sweep(config: SweepConfig) -> Plan:
    """Return what is going to be searched. Nothing is loaded or written.

    Raises:
        UserError: a space that cannot be searched, or Optuna is missing.
    """
    if importlib.util.find_spec("optuna") is None:
        raise UserError("sweep needs Optuna, which is not installed; install it with: pip install 'bert-emd[sweep]'")
    file = read_yaml(config.space_file, "--space_file", "beta: [0.1, 1, 10]") if config.space_file else None
    space, notes = space_of(config, file)
    check_space(config, space)
    planned = planned_trials(config, space)
    size = space.size()
    if config.n_trials is not None and config.n_trials > planned:
        notes.append(f"the space has {size} combinations only, so there are {size} trials instead of {config.n_trials}")
    elif config.sampler == "grid" and size is not None and planned < size:
        notes.append(f"{planned} of the grid's {size} combinations are tried, drawn at random (seed {config.seed})")
    return Plan(config=config, space=space, planned=planned, notes=notes)


def sweep(config: SweepConfig) -> SweepResult:
    """Search for the options of `distill` that give the best student.

    A trial is one distillation; its score is the task's main metric, in float32, on the data that choose its
    checkpoint. What is reported on other data has no say. Started again with the same configuration, a search goes on
    where it was stopped.

    Args:
        config: every option of a distillation, ``space`` (what is searched) and how; ``output_dir`` is needed.

    Returns:
        The best trial. ``output_dir`` holds trials.csv, trials.json, sweep.md, history.png, importances.png,
        best.yaml, and each trial's records in ``trials/``.

    Raises:
        UserError: bad input; nothing has been run then. Or no trial finished.
    """
    return run_sweep(plan_sweep(config))


def run_sweep(plan: Plan, sources: Mapping[str, str] | None = None) -> SweepResult:
    """Run a planned search; ``sources`` says where each configuration value came from, for the record."""
    from bert_emd.studies.sweep.asking import values_of
    from bert_emd.studies.sweep.results import Facts, best_of, importances_of, rows_of, summary
    from bert_emd.studies.sweep.storage import (
        Worker,
        check_storage,
        compare_settings,
        open_study,
        storage_errors,
        storage_url,
    )
    from bert_emd.studies.sweep.work import Job, sayer, work, work_in_processes

    config, say = plan.config, sayer()
    if os.environ.get("WORLD_SIZE", "1") not in ("", "1"):
        raise UserError("a sweep starts its own processes; run it without torchrun, with --jobs N")
    folder = _checked_folder(config)
    url = storage_url(config.storage, folder)
    if config.storage is not None:
        check_storage(url)
    data = check_models_and_data(config, plan.space)
    facts = Facts(
        config=config, space=plan.space, planned=plan.planned, task=data.validation.task.name,
        metric=data.validation.task.main_metric, selected_on=data.selected_on, reported_on=data.reported_on,
    )  # fmt: skip
    make_folder(folder)
    _start_anew(config, folder)
    if not (folder / "run.json").exists():
        # It tells that the folder is a search's; a refused one leaves the record of the one that is there.
        _write_record(config, sources, data, plan)
    with storage_errors(url), Worker(folder) as worker, worker.turn():
        study = open_study(url, config.study_name)
        compare_settings(study, _settings(config, plan.space, data), dataclasses.asdict(DistillConfig()))
        _write_record(config, sources, data, plan)
    start = time.time()
    job = Job(facts=facts, url=url, deadline=start + config.timeout if config.timeout is not None else None)
    try:
        if config.jobs > 1:
            work_in_processes(job, config.jobs, say)
        else:
            work(job, say)
    finally:
        _write_all(study, facts)
    with storage_errors(url):
        trials = study.get_trials(deepcopy=False)
        best = best_of(trials)
        if best is None or best.value is None:
            raise UserError(_nothing_finished(rows_of(trials, plan.space), folder))
        values = values_of(plan.space, best.params)
        return SweepResult(
            values=values, score=float(best.value), config=config.trial(values), folder=folder,
            trials=rows_of(trials, plan.space), importances=importances_of(study, config.seed),
            summary=summary(study, facts),
        )  # fmt: skip


def _write_all(study: Any, facts: Facts) -> None:
    """Results and plots, whatever the search came to; what ended it is more important than a fault in here."""
    import contextlib

    from optuna.exceptions import OptunaError
    from sqlalchemy.exc import SQLAlchemyError

    from bert_emd.studies.sweep.plots import plot_history, plot_importances
    from bert_emd.studies.sweep.results import importances_of, rows_of, write_results
    from bert_emd.studies.sweep.storage import Worker

    with contextlib.suppress(OptunaError, SQLAlchemyError), Worker(facts.folder) as worker, worker.turn():
        write_results(study, facts)
        rows = rows_of(study.get_trials(deepcopy=False), facts.space)
        if any(row["state"] in ("complete", "pruned") for row in rows):
            plot_history(rows, facts.metric, facts.folder / "history.png")
        if importances := importances_of(study, facts.config.seed):
            finished = sum(row["state"] == "complete" for row in rows)
            plot_importances(importances, finished, facts.folder / "importances.png")


def _nothing_finished(rows: list[dict[str, Any]], folder: Path) -> str:
    reasons = [row["reason"] for row in rows if row["state"] == "failed"]
    if reasons:
        return f"no trial finished; the last failed: {reasons[-1]} (all of them: {folder / 'sweep.md'})"
    return "no trial finished in the time given; the same command goes on, with a larger --timeout or without one"


def _checked_folder(config: SweepConfig) -> Path:
    """The output folder: new, empty, or an earlier search's; nothing is touched yet."""
    if not config.output_dir:
        raise UserError("where should the results go? Name a new folder with --output_dir")
    folder = Path(config.output_dir)
    if folder.exists() and not folder.is_dir():
        raise UserError(f"output_dir {folder} is a file; name a folder")
    here = folder.resolve()
    read = files_read(config, None, None, teacher=config.teacher_model, student=config.student_model)
    for name, value in (read | {"space file": config.space_file}).items():
        if value is not None and Path(value).exists():
            there = Path(value).resolve()
            if here == there or (config.overwrite_output_dir and here in there.parents):
                raise UserError(f"output_dir {folder} is or holds the {name} ({value}); name another folder")
    content = [path for path in folder.iterdir() if path.name != ".run.json.partial"] if folder.is_dir() else []
    if content and not _holds_search(folder):
        raise UserError(f"output_dir {folder} is not empty and holds no earlier sweep; name another")
    if content and config.overwrite_output_dir and config.storage is not None:
        raise UserError("the study is kept elsewhere, and is not overwritten there; name another with --study_name")
    return folder


def _holds_search(folder: Path) -> bool:
    try:
        record = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(record, dict) and record.get("command") == "sweep"


def _start_anew(config: SweepConfig, folder: Path) -> None:
    """With ``overwrite_output_dir``: remove what an earlier search left, unless one is running there."""
    from bert_emd.studies.sweep.storage import is_alive

    if not config.overwrite_output_dir or not _holds_search(folder):
        return
    locks = folder / "workers"
    if any(is_alive(folder, path.stem, None) for path in locks.glob("*.lock") if path.stem != "turn"):
        raise UserError(f"a sweep is running in {folder}; stop it, or leave out --overwrite_output_dir to join it")
    for name, pattern in (("trials", r"\d{4,}"), ("logs", r"\d{4,}\.txt"), ("workers", r"\w+\.lock")):
        if (folder / name).is_dir() and not (folder / name).is_symlink():
            for path in (folder / name).iterdir():
                if re.fullmatch(pattern, path.name) and not path.is_symlink():
                    shutil.rmtree(path) if path.is_dir() else path.unlink()
            if not any((folder / name).iterdir()):
                (folder / name).rmdir()
    # run.json comes last: as long as anything is left to remove, the folder is known as a search's.
    for name in _FILES:
        (folder / name).unlink(missing_ok=True)


def _write_record(config: SweepConfig, sources: Mapping[str, str] | None, data: RunData, plan: Plan) -> None:
    from bert_emd.studies.sweep.storage import masked
    from bert_emd.training.records import run_record

    # A database's password is nobody's business.
    shown = dataclasses.replace(config, storage=masked(config.storage) if config.storage is not None else None)
    record = run_record("sweep", shown, sources, {"train": data.train, "validation": data.validation})
    if record["command_line"] is not None:
        record["command_line"] = [masked(word) for word in record["command_line"]]
    write_json(Path(str(config.output_dir)) / "run.json", record | {"space": plan.space.described()})


def _settings(config: SweepConfig, space: Space, data: RunData) -> dict[str, Any]:
    """All that the scores of a study depend on."""
    fixed = {}
    for f in dataclasses.fields(DistillConfig):
        if f.name in _NOT_COMPARED or f.name in space.dimensions:
            continue
        value = getattr(config, f.name)
        if isinstance(value, str) and (f.name.endswith(("_file", "_dir", "_model"))) and Path(value).exists():
            value = str(Path(value).resolve())
        fixed[f.name] = value
    if "mapping" in fixed and "use_emd" in fixed:
        # One method is one setting, whichever of the switches named it.
        fixed["mapping"] = config.effective_mapping
        del fixed["use_emd"]
    described = {f"space of {name}": text for name, text in space.described().items()}
    return {
        **fixed, **described, "objective": config.objective, "selected_on": data.selected_on,
        "training data": data.train.fingerprint(), "validation data": data.validation.fingerprint(),
    }  # fmt: skip
