"""What a search leaves behind: trials.csv, trials.json, sweep.md and best.yaml."""

from __future__ import annotations

import csv
import dataclasses
import io
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
import yaml
from optuna.trial import FrozenTrial, TrialState

from bert_emd.studies.sweep.asking import counted, values_of
from bert_emd.studies.sweep.config import SweepConfig
from bert_emd.studies.sweep.space import Space
from bert_emd.training.config import DistillConfig
from bert_emd.training.outputs import write_json, write_whole
from bert_emd.training.records import render_table
from bert_emd.training.values import show

__all__ = ["Facts", "best_of", "best_yaml", "importances_of", "ranked", "rows_of", "summary", "write_results"]

_LEAST_FOR_IMPORTANCES = 4
_NOT_IN_BEST = ("output_dir", "overwrite_output_dir", "resume_from_checkpoint", "do_eval", "do_predict")
_PATHS = ("teacher_model", "student_model", "pretrained_model", "data_dir", "train_file", "validation_file",
          "test_file", "cache_dir", "teacher_cache_dir")  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What a search is about."""

    config: SweepConfig
    space: Space
    planned: int
    task: str
    metric: str
    selected_on: str
    reported_on: str

    @property
    def folder(self) -> Path:
        """The output folder."""
        return Path(str(self.config.output_dir))


def best_of(trials: Sequence[FrozenTrial]) -> FrozenTrial | None:
    """The finished trial with the highest score, the earliest of equals."""
    finished = [t for t in trials if t.state == TrialState.COMPLETE and t.value is not None]
    return max(finished, key=lambda t: (t.value, -t.number), default=None)


def importances_of(study: optuna.Study, seed: int) -> dict[str, float]:
    """How much of the scores' variance each option explains (fANOVA over the finished trials), the largest first.

    Empty below four finished trials, and where all of them have the same score.

    Hutter, Hoos, Leyton-Brown: An Efficient Approach for Assessing Hyperparameter Importance, ICML 2014.
    """
    finished = [t for t in study.get_trials(deepcopy=False) if t.state == TrialState.COMPLETE]
    if len(finished) < _LEAST_FOR_IMPORTANCES or len({t.value for t in finished}) < 2:
        return {}
    evaluator = optuna.importance.FanovaImportanceEvaluator(seed=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return {
            name: float(v) for name, v in optuna.importance.get_param_importances(study, evaluator=evaluator).items()
        }


def rows_of(trials: Sequence[FrozenTrial], space: Space) -> list[dict[str, Any]]:
    """One entry a trial that was begun, in the order of their numbers."""
    rows = []
    for t in trials:
        outcome = t.user_attrs.get("outcome")
        if t.state == TrialState.WAITING or outcome == "repeated":
            continue
        names = {TrialState.COMPLETE: "complete", TrialState.PRUNED: "pruned", TrialState.RUNNING: "running"}
        values = values_of(space, t.params)
        rows.append({
            "trial": t.number,
            "state": names.get(t.state, outcome or "interrupted"),
            "score": t.value if t.state == TrialState.COMPLETE else None,
            "values": {name: list(v) if isinstance(v, tuple) else v for name, v in values.items()},
            "evaluations": [t.intermediate_values[step] for step in sorted(t.intermediate_values)],
            "best": t.user_attrs.get("best"),
            "last": t.user_attrs.get("last"),
            "seconds": t.user_attrs.get("seconds"),
            "reason": t.user_attrs.get("reason"),
            "again": t.user_attrs.get("again"),
            "folder": t.user_attrs.get("folder"),
        })  # fmt: skip
    return rows


def ranked(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """By score, then those without one."""
    order = {"complete": 0, "pruned": 1, "running": 2, "failed": 3}
    shown = [row for row in rows if row["state"] in order]
    return sorted(shown, key=lambda row: (order[row["state"]], -(row["score"] or 0.0), row["trial"]))


def write_results(study: optuna.Study, facts: Facts) -> None:
    """Write all but the plots, each file whole or not at all."""
    trials = study.get_trials(deepcopy=False)
    rows, best = rows_of(trials, facts.space), best_of(trials)
    importances = importances_of(study, facts.config.seed)
    write_json(facts.folder / "trials.json", {
        "task": facts.task, "metric": facts.metric, "objective": facts.config.objective,
        "selected_on": facts.selected_on, "reported_on": facts.reported_on, "space": facts.space.described(),
        "sampler": facts.config.sampler, "pruner": facts.config.pruner, "seed": facts.config.seed,
        "planned": facts.planned, "done": len(counted(trials)),
        "best_trial": best.number if best is not None else None, "importances": importances, "trials": rows,
    })  # fmt: skip
    write_whole(facts.folder / "trials.csv", _csv(rows, facts.space))
    write_whole(facts.folder / "sweep.md", _markdown(rows, best, importances, facts))
    if best is not None:
        write_whole(facts.folder / "best.yaml", best_yaml(facts, best))


def _csv(rows: Sequence[Mapping[str, Any]], space: Space) -> str:
    text = io.StringIO(newline="")
    names = list(space.dimensions)
    plain = ("best", "last", "seconds", "again", "folder", "reason")
    writer = csv.writer(text)
    writer.writerow(["trial", "state", "score", *names, "evaluations", *plain])
    for row in rows:
        values = [_exact(row["values"][name]) if name in row["values"] else "" for name in names]
        fixed = ["" if row[name] is None else row[name] for name in plain]
        score = "" if row["score"] is None else row["score"]
        writer.writerow([row["trial"], row["state"], score, *values, len(row["evaluations"]), *fixed])
    return text.getvalue()


def _exact(value: Any) -> str:
    return repr(value) if isinstance(value, float) else _cell(value)


def _cell(value: Any) -> str:
    return "none" if value is None else show(value)


def best_yaml(facts: Facts, best: FrozenTrial) -> str:
    """The best trial's settings as ``bert-emd distill --config`` takes them; those without effect as comments."""
    config = facts.config.trial(values_of(facts.space, best.params))
    idle = config.without_effect()
    lines = [
        f"# Trial {best.number} of a search on {facts.task}: {facts.metric} {best.value:.4f} on {facts.selected_on}.",
        "# bert-emd distill --config best.yaml --output_dir FOLDER",
    ]
    for f in dataclasses.fields(DistillConfig):
        value = getattr(config, f.name)
        if f.name in _NOT_IN_BEST or (f.name == "trainer_args" and not value):
            continue
        if f.name in _PATHS and value is not None and Path(value).exists():
            value = str(Path(value).resolve())
        line = f"{f.name}: {_yaml(value)}"
        lines.append(f"# {line}  (not used: {idle[f.name]})" if f.name in idle else line)
    return "\n".join(lines) + "\n"


def _yaml(value: Any) -> str:
    """One value on one line."""
    plain = list(value) if isinstance(value, tuple) else value
    text = yaml.safe_dump(plain, default_flow_style=True, sort_keys=False, allow_unicode=True, width=100_000)
    return text.strip().removesuffix("...").strip()


def _markdown(
    rows: Sequence[Mapping[str, Any]], best: FrozenTrial | None, importances: Mapping[str, float], facts: Facts
) -> str:
    names = list(facts.space.dimensions)
    counts = {state: sum(row["state"] == state for row in rows) for state in ("complete", "pruned", "failed")}
    lines = [
        f"# Search on {facts.task}",
        "",
        f"{sum(counts.values())} of {facts.planned} trials done: {counts['complete']} finished, {counts['pruned']} "
        f"pruned, {counts['failed']} failed. Score: {facts.metric} of the {facts.config.objective} student on "
        f"{facts.selected_on}. Sampler {facts.config.sampler}, pruner {facts.config.pruner}, seed {facts.config.seed}.",
        "",
        *[f"- {name}: {_escaped(text)}" for name, text in facts.space.described().items()],
    ]
    if best is not None:
        values = values_of(facts.space, best.params)
        lines += ["", "## Best", "", f"Trial {best.number}, {facts.metric} {best.value:.4f}: "
                  + ", ".join(f"{name} {_escaped(_cell(values[name]))}" for name in names)
                  + ". `bert-emd distill --config best.yaml --output_dir FOLDER` runs it again."]  # fmt: skip
        reported = best.user_attrs.get("reported")
        if reported:
            lines += ["", f"On {facts.reported_on}, which had no say in the search: "
                      + ", ".join(f"{k} {v:.4f}" for k, v in reported.items()) + "."]  # fmt: skip
        lines += ["", f"This score is the highest of {counts['complete']} on the same rows, so it flatters: confirm "
                  "the settings with other seeds, and on data that had no say."]  # fmt: skip
    header = ["trial", "state", facts.metric, *names, "evaluations", "seconds"]
    lines += ["", "## Trials", "", _row(header), _row(["---"] * len(header))]
    for row in ranked(rows):
        score = f"{row['score']:.4f}" if row["score"] is not None else "–"
        cells = [_escaped(_cell(row["values"][name])) if name in row["values"] else "–" for name in names]
        seconds = "–" if row["seconds"] is None else f"{row['seconds']:.0f}"
        lines.append(_row([str(row["trial"]), row["state"], score, *cells, str(len(row["evaluations"])), seconds]))
    lines += ["", "## Importances", ""]
    if importances:
        lines += [f"Part of the scores' variance that each option explains (fANOVA, {counts['complete']} trials).", "",
                  _row(["option", "importance"]), _row(["---", "---"]),
                  *[_row([name, f"{value:.2f}"]) for name, value in importances.items()]]  # fmt: skip
    else:
        lines += [f"They need {_LEAST_FOR_IMPORTANCES} finished trials with different scores."]
    failed = [row for row in rows if row["state"] == "failed"]
    if failed:
        lines += ["", "## Failed", "", *[f"- trial {row['trial']}: {_escaped(str(row['reason']))}" for row in failed]]
    return "\n".join(lines) + "\n"


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _escaped(text: str) -> str:
    for sign in "\\|<>*_`":
        text = text.replace(sign, f"\\{sign}" if sign not in "<>" else {"<": "&lt;", ">": "&gt;"}[sign])
    return text


def summary(study: optuna.Study, facts: Facts) -> str:
    """The final table, ready to print."""
    trials = study.get_trials(deepcopy=False)
    rows, best = ranked(rows_of(trials, facts.space)), best_of(trials)
    names = list(facts.space.dimensions)
    shown = [
        [str(row["trial"]), row["state"], f"{row['score']:.4f}" if row["score"] is not None else "–",
         *(_cell(row["values"][n]) if n in row["values"] else "–" for n in names)]
        for row in rows[:10]
    ]  # fmt: skip
    notes = [f"{len(rows) - 10} more in {facts.folder / 'sweep.md'}"] if len(rows) > 10 else []
    if best is not None:
        notes += [
            f"Best: trial {best.number}, {facts.metric} {best.value:.4f} on {facts.selected_on}; as the highest of "
            "several on the same rows it flatters, so confirm it with other seeds",
            f"Its settings: {facts.folder / 'best.yaml'}, for bert-emd distill --config",
        ]
        reported = best.user_attrs.get("reported")
        if reported:
            scores = ", ".join(f"{name} {value:.4f}" for name, value in reported.items())
            notes.append(f"On {facts.reported_on}, which had no say in the search: {scores}")
    title = f"{facts.task}: {len(counted(trials))} of {facts.planned} trials done"
    return render_table(title, ["trial", "state", facts.metric, *names], shown, notes)
