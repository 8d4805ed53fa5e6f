"""Keeping the best model of a run by its main metric."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from bert_emd.training.outputs import complete_checkpoints, write_json

if TYPE_CHECKING:
    from bert_emd.training.trainer import EncoderTrainer

__all__ = ["BestKeeper", "best_checkpoint"]


class BestKeeper(TrainerCallback):
    """Keeps the best model by the main metric, at whichever evaluation it appears, whatever is saved otherwise.

    While the run goes on, ``best/`` also holds the best at each checkpoint's step: a run that is resumed there starts
    with it, whatever was found later.
    """

    def __init__(self, trainer: EncoderTrainer) -> None:
        self.trainer = trainer

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Forget what an earlier run, or the part of this one that is trained again, left in the folder."""
        if state.is_world_process_zero:
            output_dir = Path(args.output_dir)
            resumed = [folder for folder, values in _kept(output_dir) if values["step"] <= state.global_step]
            _keep_only(output_dir, resumed if state.global_step else [])

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> TrainerControl:
        """The last step is evaluated too, so that the last model takes part in the choice."""
        # An evaluation once an epoch sees the last step anyway.
        if args.eval_strategy == "steps" and state.global_step >= state.max_steps:
            control.should_evaluate = True
        return control

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: dict[str, float] | None = None,
        **_: Any,
    ) -> None:
        """Save the model if it is better than the best so far."""
        name = f"eval_{str(args.metric_for_best_model).removeprefix('eval_')}"
        if not state.is_world_process_zero or not metrics or name not in metrics:
            return
        score = metrics[name] if args.greater_is_better else -metrics[name]
        folder = Path(args.output_dir) / "best"
        held = best_checkpoint(Path(args.output_dir))
        if held is not None and held[1] >= score:
            return
        step = folder / f"step-{state.global_step}"
        shutil.rmtree(step, ignore_errors=True)
        self.trainer.save_product(step)
        # The score is written last: a folder without it was not finished.
        write_json(step / "score.json", {"step": state.global_step, "score": score})

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """A checkpoint is complete: what is the best at none of them will not be asked for any more."""
        if state.is_world_process_zero:
            output_dir = Path(args.output_dir)
            steps = [int(path.name.rpartition("-")[2]) for path in complete_checkpoints(output_dir)]
            best = [best_checkpoint(output_dir, step) for step in (*steps, state.global_step)]
            _keep_only(output_dir, [entry[0] for entry in best if entry is not None])

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Only the best of all is left."""
        if state.is_world_process_zero:
            best = best_checkpoint(Path(args.output_dir))
            _keep_only(Path(args.output_dir), [best[0]] if best is not None else [])


def _kept(output_dir: Path) -> list[tuple[Path, dict[str, Any]]]:
    """The finished models in ``best/``, each with its step and score."""
    files = (output_dir / "best").glob("step-*/score.json")
    return [(file.parent, json.loads(file.read_text(encoding="utf-8"))) for file in files]


def _keep_only(output_dir: Path, folders: Sequence[Path]) -> None:
    for path in (output_dir / "best").glob("step-*"):
        if path not in folders and path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)


def best_checkpoint(output_dir: Path, last_step: int | None = None) -> tuple[Path, float, int] | None:
    """The best model kept so far: its folder, its score (the negative of a metric that should be small), its step.

    Args:
        output_dir: the run's folder.
        last_step: leave out what was found later.
    """
    found = [(folder, float(values["score"]), int(values["step"])) for folder, values in _kept(output_dir)]
    found = [entry for entry in found if last_step is None or entry[2] <= last_step]
    return max(found, key=lambda entry: (entry[1], -entry[2])) if found else None
