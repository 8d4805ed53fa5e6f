"""Which trial comes next, and what became of each: by Optuna's samplers, one worker at a time.

A trial's outcome is Optuna's state, and for failed ones the attribute ``outcome``:

    failed        it cannot be run or diverged: counted, its reason recorded
    interrupted   its process was stopped or killed: not counted, its values are tried again
    repeated      its values had been tried already: not counted, others are taken
"""

from __future__ import annotations

import itertools
import random
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import FrozenTrial, Trial, TrialState

from bert_emd.studies.sweep.config import SweepConfig
from bert_emd.studies.sweep.space import Choices, Dimension, Space
from bert_emd.studies.sweep.storage import is_alive
from bert_emd.training.values import show

__all__ = ["counted", "distributions", "label", "next_trial", "pruner_of", "stop_trial", "try_again", "values_of"]

_MOST_KILLS = 3
_MOST_REPEATS = 20
_LARGEST_LISTED = 100_000


def label(value: Any) -> Any:
    """A choice as the storage keeps it, which knows no lists."""
    return show(value) if isinstance(value, tuple) else value


def distributions(space: Space) -> dict[str, BaseDistribution]:
    """The space in Optuna's terms."""
    return {name: _distribution(dimension) for name, dimension in space.dimensions.items()}


def _distribution(dimension: Dimension) -> BaseDistribution:
    if isinstance(dimension, Choices):
        return CategoricalDistribution([label(option) for option in dimension.options])
    if dimension.whole:
        step = int(dimension.step) if dimension.step is not None else 1
        return IntDistribution(int(dimension.low), int(dimension.high), log=dimension.log, step=step)
    return FloatDistribution(dimension.low, dimension.high, log=dimension.log, step=dimension.step)


def values_of(space: Space, params: Mapping[str, Any]) -> dict[str, Any]:
    """A trial's values as the options take them."""
    found = dict(params)
    for name, dimension in space.dimensions.items():
        if isinstance(dimension, Choices) and name in found:
            found[name] = next(option for option in dimension.options if label(option) == found[name])
    return found


def pruner_of(config: SweepConfig) -> optuna.pruners.BasePruner:
    """What stops hopeless trials."""
    if config.pruner == "none":
        return optuna.pruners.NopPruner()
    # Evaluations are counted from 1.
    return optuna.pruners.MedianPruner(n_startup_trials=config.startup_trials, n_warmup_steps=config.pruner_warmup + 1)


def _sampler(config: SweepConfig, taken: int) -> optuna.samplers.BaseSampler:
    # With the number of trials in it, the seed gives a search that was stopped the same next trial, and workers
    # different ones.
    seed = (config.seed + taken) % 2**32
    if config.sampler == "tpe":
        return optuna.samplers.TPESampler(n_startup_trials=config.startup_trials, seed=seed)
    return optuna.samplers.RandomSampler(seed=seed)


def counted(trials: Iterable[FrozenTrial]) -> list[FrozenTrial]:
    """The trials that are done: finished, pruned, or failed for a reason of their own."""
    return [
        t for t in trials
        if t.state in (TrialState.COMPLETE, TrialState.PRUNED)
        or (t.state == TrialState.FAIL and t.user_attrs.get("outcome") == "failed")
    ]  # fmt: skip


def stop_trial(study: optuna.Study, trial: FrozenTrial | Trial, outcome: str, reason: str) -> None:
    """Record a trial as failed, with its outcome and reason."""
    handle = trial if isinstance(trial, Trial) else Trial(study, trial._trial_id)
    handle.set_user_attr("outcome", outcome)
    handle.set_user_attr("reason", reason)
    study.tell(trial.number, state=TrialState.FAIL, skip_if_finished=True)


def try_again(study: optuna.Study, trial: FrozenTrial, space: Space, *, kills: int) -> None:
    """Queue an interrupted trial's values."""
    if set(trial.params) == set(space.dimensions):
        study.enqueue_trial(dict(trial.params), user_attrs={"again": trial.number, "kills": kills})


def _reclaim(study: optuna.Study, space: Space, output_dir: Path, say: Callable[[str], None]) -> None:
    """Record the trials whose process is gone, and queue their values."""
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        attributes = trial.user_attrs
        if is_alive(output_dir, attributes.get("worker"), attributes.get("seen")):
            continue
        kills = int(attributes.get("kills", 0)) + 1
        if kills >= _MOST_KILLS:
            reason = f"its process was killed {kills} times"
            say(f"trial {trial.number}: {reason}; it is not tried again")
            stop_trial(study, trial, "failed", reason)
            continue
        say(f"trial {trial.number} was running when its process was killed; its values are tried again")
        stop_trial(study, trial, "interrupted", "its process was killed")
        try_again(study, trial, space, kills=kills)


def next_trial(
    study: optuna.Study,
    config: SweepConfig,
    space: Space,
    planned: int,
    *,
    output_dir: Path,
    worker: str,
    say: Callable[[str], None],
) -> Trial | None:
    """Return the next trial, already taken by this worker, or None where none is left to begin.

    To be called in the worker's turn.
    """
    _reclaim(study, space, output_dir, say)
    trials = study.get_trials(deepcopy=False)
    running = [t for t in trials if t.state == TrialState.RUNNING]
    done = counted(trials)
    if len(done) + len(running) >= planned:
        return None
    tried = {_point(t.params) for t in (*done, *running)}
    for _ in range(_MOST_REPEATS):
        trials = study.get_trials(deepcopy=False)
        if config.sampler == "grid" and not any(t.state == TrialState.WAITING for t in trials):
            point = next((p for p in _grid(space, config.seed) if _point(p) not in tried), None)
            if point is None:
                return None
            study.enqueue_trial(point)
        study.sampler = _sampler(config, len(trials))
        trial = study.ask(distributions(space))
        if _point(trial.params) not in tried:
            trial.set_user_attr("worker", worker)
            trial.set_user_attr("seen", time.time())
            return trial
        stop_trial(study, trial, "repeated", "these values had been tried already")
        if (size := space.size()) is not None and size <= _LARGEST_LISTED:
            left = [p for p in _grid(space, config.seed) if _point(p) not in tried]
            if not left:
                return None
            study.enqueue_trial(random.Random(config.seed + len(trials)).choice(left))
    return None


def _grid(space: Space, seed: int) -> list[dict[str, Any]]:
    """Every combination, shuffled, so that a part of the grid is a fair sample of it."""
    names = list(space.dimensions)
    values = [[label(v) for v in space.dimensions[name].values() or []] for name in names]
    points = [dict(zip(names, point, strict=True)) for point in itertools.product(*values)]
    random.Random(seed).shuffle(points)
    return points


def _point(params: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    return tuple(sorted((name, repr(value)) for name, value in params.items()))
