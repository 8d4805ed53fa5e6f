"""What the runs have left: every seed's raw numbers, one record a student."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from bert_emd.studies.compare.plan import Plan, Run
from bert_emd.studies.compare.process import command_of
from bert_emd.training.config import DistillConfig
from bert_emd.training.records import main_of

__all__ = ["collect", "start_of"]


def start_of(config: DistillConfig) -> str:
    """What a student starts from: ``teacher`` or ``pretrained`` (whose layers it gets), a checkpoint, or fresh."""
    if config.student_model is not None:
        return f"fresh, shape of {config.student_model}" if config.no_pretrain else str(config.student_model)
    if config.student_init == "fresh" or any(config.sizes):
        return "fresh"
    return str(getattr(config, "student_from", "teacher"))


def collect(plan: Plan) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The students' and the teachers' records, in the plan's order; scores are those of each run's metrics.json."""
    return [_student(run) for run in plan.students], [_teacher(plan, task.name) for task in plan.tasks]


def _base(run: Run) -> dict[str, Any]:
    ledger = run.ledger
    state = ledger.state
    return {
        "state": state,
        "error": ledger.read().get("error") if state == "failed" else None,
        "folder": str(run.folder),
        "command": command_of(run),
    }


def _student(run: Run) -> dict[str, Any]:
    assert run.method is not None
    assert isinstance(run.config, DistillConfig)
    record: dict[str, Any] = {
        "task": run.task,
        "layers": run.layers,
        "method": run.method.spec,
        "start": start_of(run.config),
        "seed": run.seed,
        **_base(run),
    }
    if record["state"] != "done":
        return record
    metrics = _read(run.folder / "metrics.json")
    metric = metrics["metric"]
    return record | {
        "metric": metric,
        "last": main_of(metrics["last"], metric),
        "best": main_of(metrics["student"], metric),
        "scores": {"last": metrics["last"], "best": metrics["student"]},
        "teacher": main_of(metrics["teacher"], metric),
        "trivial": main_of(metrics["trivial"], metric),
        "selection": metrics["selection"],
        "reported_on": metrics["reported_on"],
        "optimistic": metrics["optimistic"],
        "best_step": metrics["best_step"],
        "last_step": metrics["last_step"],
        "train_seconds": metrics["train_seconds"],
        "wall_seconds": run.ledger.wall_seconds,
        "attempts": len(run.ledger.read().get("attempts", [])),
        "versions": _read(run.folder / "run.json")["versions"],
    }


def _teacher(plan: Plan, task: str) -> dict[str, Any]:
    """A fine-tuned teacher's own scores; of a ready one those that a student's run has measured."""
    teacher = next(t.teacher for t in plan.tasks if t.name == task)
    if isinstance(teacher, Run):
        record: dict[str, Any] = {"task": task, "ready": False, "seed": teacher.seed, **_base(teacher)}
        if record["state"] == "done":
            metrics = _read(teacher.folder / "metrics.json")
            metric = metrics["metric"]
            record |= {
                "metric": metric,
                "last": main_of(metrics["last"], metric),
                "best": main_of(metrics["model"], metric),
                "trivial": main_of(metrics["trivial"], metric),
                "train_seconds": metrics["train_seconds"],
                "wall_seconds": teacher.ledger.wall_seconds,
            }
        return record
    record = {"task": task, "ready": True, "folder": teacher}
    for run in plan.students:
        if run.task == task and run.ledger.state == "done":
            metrics = _read(run.folder / "metrics.json")
            metric = metrics["metric"]
            return record | {
                "metric": metric,
                "best": main_of(metrics["teacher"], metric),
                "trivial": main_of(metrics["trivial"], metric),
                "may_have_seen": bool(metrics["selection"].get("teacher_may_have_seen")),
            }
    return record


def _read(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.read_text(encoding="utf-8")))
