"""The loop over trials, in this process or in several."""

from __future__ import annotations

import dataclasses
import logging
import multiprocessing
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
import torch
from optuna.trial import FrozenTrial, TrialState

from bert_emd.errors import UserError
from bert_emd.studies.sweep.asking import counted, next_trial, pruner_of, stop_trial, try_again, values_of
from bert_emd.studies.sweep.results import Facts, best_of, write_results
from bert_emd.studies.sweep.storage import Worker, open_study, storage_errors
from bert_emd.studies.sweep.trial import Outcome, TeacherScores, run_trial, strip
from bert_emd.training.config import DistillConfig
from bert_emd.training.records import main_of
from bert_emd.training.values import show

__all__ = ["Job", "sayer", "work", "work_in_processes"]

_HOPELESS = 3
_POLL = 0.2


@dataclass(frozen=True, kw_only=True)
class Job:
    """What every worker needs."""

    facts: Facts
    url: str
    deadline: float | None
    """No trial begins after this time, in seconds since 1970."""


def sayer() -> Callable[[str], None]:
    """A function that writes a line to today's standard output, wherever that is redirected to later."""
    stream = sys.stdout

    def say(line: str) -> None:
        stream.write(line + "\n")
        stream.flush()

    return say


def work(job: Job, say: Callable[[str], None]) -> None:
    """Run trials until none is left to begin.

    Raises:
        UserError: the storage failed, or the first trials all did.
    """
    facts = job.facts
    config = facts.config
    with storage_errors(job.url), Worker(facts.folder) as worker, _warnings_shown(say):
        with worker.turn():
            study = open_study(job.url, config.study_name)
        study.pruner = pruner_of(config)
        failures = 0
        while job.deadline is None or time.time() < job.deadline:
            with worker.turn():
                trial = next_trial(
                    study, config, facts.space, facts.planned, output_dir=facts.folder, worker=worker.name, say=say
                )
            if trial is None:
                return
            outcome = _run(study, trial, job, say)
            with worker.turn():
                _record(study, trial, outcome, facts, say)
            failures = failures + 1 if outcome.state == "failed" else 0
            if failures == _HOPELESS and best_of(study.get_trials(deepcopy=False)) is None:
                raise UserError(
                    f"the first {failures} trials failed, so the search stops; the last one: {outcome.reason} "
                    f"(all of them: {facts.folder / 'sweep.md'}; --overwrite_output_dir starts anew)"
                )
        say("the time is up; no further trial begins")


class _Once(logging.Handler):
    """Shows each warning of the trials once, which otherwise goes into their logs."""

    def __init__(self, say: Callable[[str], None]) -> None:
        super().__init__(logging.WARNING)
        self.say, self.seen = say, set[str]()

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        if text not in self.seen:
            self.seen.add(text)
            self.say(f"warning: {text}")


@contextmanager
def _warnings_shown(say: Callable[[str], None]) -> Iterator[None]:
    handler, logger = _Once(say), logging.getLogger("bert_emd")
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)


def _run(study: optuna.Study, trial: optuna.Trial, job: Job, say: Callable[[str], None]) -> Outcome:
    facts, name = job.facts, f"{trial.number:04d}"
    # Inside the search's folder, wherever that is seen from.
    place, values = f"trials/{name}", values_of(facts.space, trial.params)
    folder = facts.folder / place
    done = len(counted(study.get_trials(deepcopy=False)))
    shown = " ".join(f"{key}={'none' if value is None else show(value)}" for key, value in values.items())
    say(f"trial {trial.number} ({done} of {facts.planned} done): {shown}")
    trial.set_user_attr("folder", place)
    try:
        return run_trial(
            trial, _trial_config(facts, values, folder),
            metric=facts.metric,
            objective=facts.config.objective,
            log=facts.folder / "logs" / f"{name}.txt",
            teacher_scores=TeacherScores(facts.folder / "teacher.json"),
            say=lambda line: say(f"  trial {trial.number}, {line}"),
        )  # fmt: skip
    except KeyboardInterrupt:
        frozen = _frozen(study, trial.number)
        stop_trial(study, trial, "interrupted", "stopped by the user")
        try_again(study, frozen, facts.space, kills=int(frozen.user_attrs.get("kills", 0)))
        strip(folder, keep_model=False)
        raise


def _trial_config(facts: Facts, values: dict[str, Any], folder: Path) -> DistillConfig:
    config = facts.config.trial(values, str(folder))
    # Trials are begun again rather than resumed, so they need no checkpoints; the best student is kept all the same.
    quiet = {"disable_tqdm": True, "save_only_model": True}
    return dataclasses.replace(config, save_steps=1_000_000_000, trainer_args=config.trainer_args | quiet)


def _frozen(study: optuna.Study, number: int) -> FrozenTrial:
    return next(t for t in study.get_trials(deepcopy=False) if t.number == number)


def _record(
    study: optuna.Study, trial: optuna.Trial, outcome: Outcome, facts: Facts, say: Callable[[str], None]
) -> None:
    """Tell the study, tidy up and write the results; in the worker's turn."""
    trial.set_user_attr("seconds", outcome.seconds)
    if outcome.state == "failed":
        stop_trial(study, trial, "failed", str(outcome.reason))
        say(f"trial {trial.number} failed after {outcome.seconds:.0f} s: {outcome.reason}")
    elif outcome.state == "pruned":
        trial.set_user_attr("reason", outcome.reason)
        study.tell(trial, state=TrialState.PRUNED, skip_if_finished=True)
        say(f"trial {trial.number} {outcome.reason}, {outcome.seconds:.0f} s")
    else:
        assert outcome.metrics is not None
        metrics = outcome.metrics
        for name in ("best", "last"):
            trial.set_user_attr(name, main_of(metrics["selection"][name], facts.metric))
        if not metrics["optimistic"]:
            key = "student" if facts.config.objective == "best" else "last"
            trial.set_user_attr("reported", {facts.metric: main_of(metrics[key], facts.metric)})
        study.tell(trial, outcome.score, skip_if_finished=True)
    trials = study.get_trials(deepcopy=False)
    best = best_of(trials)
    if outcome.state == "complete" and best is not None:
        say(f"trial {trial.number}: {facts.metric} {outcome.score:.4f}, {outcome.seconds:.0f} s "
            f"(best so far: trial {best.number}, {best.value:.4f})")  # fmt: skip
    _tidy(trials, best, facts)
    write_results(study, facts)


def _tidy(trials: list[FrozenTrial], best: FrozenTrial | None, facts: Facts) -> None:
    for trial in trials:
        place = trial.user_attrs.get("folder")
        if place is None or not trial.state.is_finished():
            continue
        is_best = best is not None and trial.number == best.number
        keep = trial.state == TrialState.COMPLETE and (facts.config.keep_models or is_best)
        strip(facts.folder / place, keep_model=keep)


def work_in_processes(job: Job, jobs: int, say: Callable[[str], None]) -> None:
    """Run ``jobs`` workers side by side until none of them finds a trial to begin.

    Raises:
        UserError: what a worker raised.
    """
    context = multiprocessing.get_context("spawn")
    errors = context.SimpleQueue()
    threads = max(1, torch.get_num_threads() // jobs)
    gpus = _gpus() if not job.facts.config.no_cuda else []
    workers = [
        context.Process(target=_worker, args=(job, errors, threads, gpus[i % len(gpus)] if gpus else None))
        for i in range(jobs)
    ]
    try:
        for worker in workers:
            worker.start()
        while any(worker.is_alive() for worker in workers):
            workers[0].join(_POLL) if workers[0].is_alive() else time.sleep(_POLL)
    except BaseException:
        for worker in workers:
            if worker.pid is not None and worker.is_alive():
                worker.terminate()
        for worker in workers:
            if worker.pid is not None:
                worker.join()
        raise
    if not errors.empty():
        kind, text = errors.get()
        raise (UserError if kind == "user" else RuntimeError)(text)
    if any(worker.exitcode for worker in workers):
        say("a worker was killed; its trial is tried again in this process")
        work(job, say)


def _gpus() -> list[str]:
    """The names of the GPUs that may be used, as CUDA_VISIBLE_DEVICES takes them."""
    count, visible = torch.cuda.device_count(), os.environ.get("CUDA_VISIBLE_DEVICES")
    return visible.split(",")[:count] if visible else [str(i) for i in range(count)]


def _worker(job: Job, errors: Any, threads: int, gpu: str | None) -> None:
    # The process that started this one hears Ctrl-C, and passes it on as SIGTERM.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _interrupt)
    torch.set_num_threads(threads)
    if gpu is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpu
    try:
        work(job, sayer())
    except UserError as error:
        errors.put(("user", str(error)))
    except KeyboardInterrupt:
        pass
    except Exception:
        errors.put(("fault", traceback.format_exc()))


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt
