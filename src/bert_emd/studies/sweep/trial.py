"""One trial: a distillation that reports its evaluations, may be pruned, and leaves little behind."""

from __future__ import annotations

import contextlib
import gc
import hashlib
import json
import math
import multiprocessing
import shutil
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
import torch
from transformers import PreTrainedModel, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from bert_emd.data import Examples
from bert_emd.errors import UserError
from bert_emd.training.config import DistillConfig
from bert_emd.training.distill import distill
from bert_emd.training.evaluation import Evaluator
from bert_emd.training.outputs import write_json
from bert_emd.training.records import main_of

__all__ = ["Outcome", "TeacherScores", "run_trial", "strip"]

_KEPT = ("metrics.json", "run.json", "layer_mapping.json", "error.txt")
_HEARD_EVERY = 60.0


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a trial came to."""

    state: str
    """complete, pruned or failed."""
    score: float | None = None
    reason: str | None = None
    metrics: dict[str, Any] | None = None
    seconds: float = 0.0


class TeacherScores:
    """The teacher's scores, computed once for a set of rows and length and kept in a file for all trials."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __call__(self, teacher: PreTrainedModel, evaluator: Evaluator, rows: Examples) -> dict[str, float]:
        """As `bert_emd.training.distill.distill` asks for them."""
        key = hashlib.sha256(f"{rows.fingerprint()} {evaluator.max_seq_length}".encode()).hexdigest()
        known = self._read()
        if key not in known:
            # Read again: another worker may have written meanwhile.
            known = {**self._read(), key: evaluator.scores(teacher, rows)}
            write_json(self.path, known)
        scores: dict[str, float] = known[key]
        return scores

    def _read(self) -> dict[str, Any]:
        try:
            found: dict[str, Any] = json.loads(self.path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return found


class _Watcher(TrainerCallback):
    """Tells the study each evaluation's score, and stops what diverged or is hopeless."""

    def __init__(self, trial: optuna.Trial, metric: str, say: Callable[[str], None]) -> None:
        self.trial, self.metric, self.say = trial, metric, say
        self.evaluations = 0
        self._heard = time.monotonic()
        self._said = time.monotonic()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """A sign of life every minute; without the process that started this one there is nobody to work for."""
        parent = multiprocessing.parent_process()
        if parent is not None and not parent.is_alive():
            raise KeyboardInterrupt
        now = time.monotonic()
        if now - self._heard >= _HEARD_EVERY:
            self._heard = now
            self.trial.set_user_attr("seen", time.time())
        if now - self._said >= _HEARD_EVERY:
            self._said = now
            self.say(f"step {state.global_step} of {state.max_steps}")

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: Any = None, **_: Any
    ) -> None:
        """A loss that is no number will not become one again."""
        loss = (logs or {}).get("loss")
        if loss is not None and not math.isfinite(float(loss)):
            raise _DivergedError(f"diverged: the loss was {float(loss)} at step {state.global_step}")

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, metrics: Any = None, **_: Any
    ) -> None:
        """Report the score; raise `optuna.TrialPruned` where it is hopeless."""
        name = f"eval_{self.metric}"
        if not metrics or name not in metrics:
            return
        self.evaluations += 1
        score = float(metrics[name])
        self.trial.report(score, self.evaluations)
        self._said = time.monotonic()
        self.say(f"step {state.global_step} of {state.max_steps}: {self.metric} {score:.4f}")
        # A trial that has come to its end has nothing left to save.
        if state.global_step < state.max_steps and self.trial.should_prune():
            raise optuna.TrialPruned(f"pruned at step {state.global_step} of {state.max_steps}")


class _DivergedError(Exception):
    """Training has become meaningless."""


def run_trial(
    trial: optuna.Trial,
    config: DistillConfig,
    *,
    metric: str,
    objective: str,
    log: Path,
    teacher_scores: TeacherScores,
    say: Callable[[str], None],
) -> Outcome:
    """Distil as ``config`` says.

    Args:
        trial: told of every evaluation.
        config: with the trial's own folder.
        metric: the task's main metric.
        objective: ``best`` or ``last``: which student's score counts.
        log: takes what the run prints.
        teacher_scores: shared by the trials.
        say: shows a line of progress.

    Returns:
        The score of the saved student in float32, on the data that chose its checkpoint, or why there is none.
        Whatever goes wrong in the trial is an outcome; interruptions and the storage's errors are raised.
    """
    from sqlalchemy.exc import SQLAlchemyError

    start = time.perf_counter()
    folder = Path(str(config.output_dir))
    log.parent.mkdir(parents=True, exist_ok=True)
    try:
        # Transformers' progress and our own lines would drown the search's.
        with log.open("w", buffering=1, encoding="utf-8") as stream, _output_to(stream):
            result = distill(
                str(config.teacher_model), None, config=config,
                callbacks=[_Watcher(trial, metric, say)], teacher_scores=teacher_scores,
            )  # fmt: skip
        metrics = result.metrics
        score = main_of(metrics["selection"][objective], metric)
        if not math.isfinite(score):
            raise _DivergedError(f"its {metric} is {score}")
        found = Outcome(state="complete", score=score, metrics=metrics)
    except optuna.TrialPruned as end:
        found = Outcome(state="pruned", reason=str(end))
    except (UserError, _DivergedError) as error:
        found = Outcome(state="failed", reason=" ".join(str(error).split()))
    except (SQLAlchemyError, optuna.exceptions.OptunaError):
        raise
    except Exception as error:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "error.txt").write_text(traceback.format_exc(), encoding="utf-8")
        first = " ".join(str(error).split())[:200]
        found = Outcome(state="failed", reason=f"{type(error).__name__}: {first} (see {folder / 'error.txt'})")
    finally:
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    return Outcome(**vars(found) | {"seconds": round(time.perf_counter() - start, 1)})


@contextlib.contextmanager
def _output_to(stream: Any) -> Any:
    with contextlib.redirect_stdout(stream), contextlib.redirect_stderr(stream):
        yield


def strip(folder: Path, *, keep_model: bool) -> None:
    """Remove what a trial left: of a kept one checkpoints and duplicates, of another all but its records.

    Args:
        folder: the trial's own.
        keep_model: its student stays, and the one of the last step in ``last/``.
    """
    if not folder.is_dir() or folder.is_symlink():
        return
    for path in folder.iterdir():
        is_folder = path.is_dir() and not path.is_symlink()
        if is_folder and (not keep_model or path.name != "last"):
            shutil.rmtree(path)
        elif not is_folder and not keep_model and path.name not in _KEPT:
            path.unlink()
