"""Collect the runs of run.sh into runs.json and the tables of general.md: python docs/results/general/table.py OUT"""

from __future__ import annotations

import json
import statistics
import sys
from pathlib import Path
from typing import Any

from bert_emd.studies.compare.statistics import paired_difference

HERE = Path(__file__).resolve().parent
TASKS = {"MRPC": "accuracy", "STS-B": "spearmanr"}
ARMS = {
    "fresh": "fresh weights",
    "general": "after general distillation",
    "augmented": "after general distillation, with augmentation",
}
SEEDS = (1, 2, 3)
KEPT = ("accuracy", "f1", "spearmanr", "pearson")


def seconds(out: Path, name: str) -> int | None:
    """Wall time of a step, all its parts together."""
    file = out / "times" / name
    return sum(map(int, file.read_text().split())) if file.is_file() else None


def collect(out: Path) -> dict[str, Any]:
    """One record a finished run and the times of the steps before, merged with what runs.json already holds."""
    path = HERE / "runs.json"
    known: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {"runs": {}, "times": {}}
    for file in sorted(out.glob("*/*/metrics.json")):
        task, run = file.parent.parent.name, file.parent.name
        metrics = json.loads(file.read_text())
        best = metrics["student"] if "student" in metrics else metrics["model"]
        name = run.replace("-seed", "-")
        known["runs"][f"{task}/{run}"] = {
            "last": {k: v for k, v in metrics["last"].items() if k in KEPT},
            "best": {k: v for k, v in best.items() if k in KEPT},
            "last_step": metrics["last_step"],
            "trivial": metrics["trivial"],
            "wall_seconds": seconds(out, f"{task}-{name}"),
        }
    steps = ["corpus", "prepare", "general", *(f"{task}-augment" for task in TASKS)]
    known["times"] |= {name: found for name in steps if (found := seconds(out, name)) is not None}
    if (out / "general" / "metrics.json").is_file():
        metrics = json.loads((out / "general" / "metrics.json").read_text())
        known["general"] = {k: metrics[k] for k in ("held_out", "course", "corpus", "last_step", "epochs", "student")}
    path.write_text(json.dumps(known, indent=1) + "\n")
    return known


def table(found: dict[str, Any], task: str) -> list[str]:
    """Markdown rows of one task."""
    metric, runs = TASKS[task], found["runs"]
    lines = [
        f"| {task}, {metric} | last: mean ± sd | last, each seed | best: mean ± sd | steps | minutes, each seed |",
        "|---|---|---|---|---|---|",
    ]
    for arm, title in ARMS.items():
        records = [runs.get(f"{task}/{arm}-seed{seed}") for seed in SEEDS]
        cells = []
        for key in ("last", "best"):
            scores = [100 * run[key][metric] for run in records if run is not None]
            whole = len(scores) == len(records)
            cells.append(f"{statistics.mean(scores):.1f} ± {statistics.stdev(scores):.1f}" if whole else "")
            if key == "last":
                cells.append(", ".join(f"{100 * r[key][metric]:.1f}" if r is not None else "–" for r in records))
        cells.append(", ".join(sorted({str(r["last_step"]) for r in records if r is not None})))
        minutes = (f"{r['wall_seconds'] / 60:.1f}" if r is not None and r["wall_seconds"] else "–" for r in records)
        cells.append(", ".join(minutes))
        lines.append(f"| {title} | {' | '.join(cells)} |")
    teacher = runs.get(f"{task}/teacher")
    if teacher is not None:
        minutes = f"{teacher['wall_seconds'] / 60:.1f}" if teacher["wall_seconds"] else "–"
        score, best = 100 * teacher["last"][metric], 100 * teacher["best"][metric]
        lines.append(f"| the teacher, 6 layers, width 384 (seed 42) | {score:.1f} | | {best:.1f} | | {minutes} |")
        lines.append(f"| the trivial predictor | {100 * teacher['trivial'][metric]:.1f} | | | | |")
    return lines


def worth(found: dict[str, Any]) -> list[str]:
    """What each step is worth by `last`, paired by seed, with its interval."""
    lines = ["| by `last`, paired by seed, 95 % t interval | MRPC | STS-B |", "|---|---|---|"]
    for arm, baseline in (("general", "fresh"), ("augmented", "general")):
        cells = []
        for task, metric in TASKS.items():
            own, other = (
                {
                    seed: 100 * run["last"][metric]
                    for seed in SEEDS
                    if (run := found["runs"].get(f"{task}/{of}-seed{seed}"))
                }
                for of in (arm, baseline)
            )
            found_of = paired_difference(own, other)
            known = found_of["low"] is not None
            cells.append("{mean:+.1f} [{low:+.1f}, {high:+.1f}]".format(**found_of) if known else "")
        lines.append(f"| {ARMS[arm]}, less {ARMS[baseline]} | {' | '.join(cells)} |")
    return lines


def before(found: dict[str, Any]) -> list[str]:
    """Markdown rows of what is done once: preparing, general distillation, augmentation."""
    titles = {
        "corpus": "writing the text",
        "prepare": "preparing the corpus",
        "general": "general distillation",
        **{f"{task}-augment": f"augmenting {task}" for task in TASKS},
    }
    times = found["times"]
    lines = ["| once | minutes |", "|---|---|"]
    lines += [f"| {title} | {times[name] / 60:.1f} |" for name, title in titles.items() if name in times]
    if "general" in found:
        held = found["general"]["held_out"]
        terms = ", ".join(f"{name} {held['start'][name]:.3f} → {held['end'][name]:.3f}" for name in held["start"])
        lines += ["", f"Held-out losses of the general distillation, start → end: {terms}."]
    return lines


def main() -> None:
    """Write runs.json and put the tables between general.md's markers."""
    found = collect(Path(sys.argv[1]))
    blocks = ["\n".join(before(found)), *("\n".join(table(found, task)) for task in TASKS), "\n".join(worth(found))]
    page = HERE.parent / "general.md"
    text = page.read_text()
    start, end = "<!-- tables -->", "<!-- end of tables -->"
    head, tail = text.split(start)[0], text.split(end)[1]
    page.write_text(f"{head}{start}\n\n" + "\n\n".join(blocks) + f"\n\n{end}{tail}")


if __name__ == "__main__":
    main()
