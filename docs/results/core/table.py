"""Collect the runs of run.sh into runs.json and the tables of core.md: python docs/results/core/table.py OUT"""

from __future__ import annotations

import json
import statistics
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
TASKS = {"MRPC": "accuracy", "STS-B": "spearmanr", "CoLA": "matthews_correlation"}
METHODS = {"emd": "emd (earth mover's mapping)", "kd": "kd (prediction loss alone)", "none": "none (no teacher)"}
SEEDS = {3: (1, 2, 3), 2: (1,)}
KEPT = ("accuracy", "f1", "spearmanr", "pearson", "matthews_correlation")


def collect(out: Path) -> list[dict[str, Any]]:
    """One record a finished run, merged with what runs.json already holds."""
    path = HERE / "runs.json"
    known = {record["run"]: record for record in (json.loads(path.read_text()) if path.is_file() else [])}
    for file in sorted(out.glob("**/metrics.json")):
        metrics = json.loads(file.read_text())
        versions = json.loads((file.parent / "run.json").read_text())["versions"]
        best = metrics["student"] if "student" in metrics else metrics["model"]
        known[str(file.parent.relative_to(out))] = {
            "run": str(file.parent.relative_to(out)),
            "last": {k: v for k, v in metrics["last"].items() if k in KEPT},
            "best": {k: v for k, v in best.items() if k in KEPT},
            "best_step": metrics["best_step"],
            "last_step": metrics["last_step"],
            "trivial": metrics["trivial"],
            "train_seconds": metrics["train_seconds"],
            "torch": versions["torch"],
            "transformers": versions["transformers"],
        }
    records = [known[name] for name in sorted(known)]
    path.write_text(json.dumps(records, indent=1) + "\n")
    return records


def table(records: list[dict[str, Any]], task: str, layers: int) -> list[str]:
    """Markdown rows of one task and depth."""
    metric, by_run = TASKS[task], {record["run"]: record for record in records}
    lines = [
        f"| {task}, {layers} layers, {metric} | last: mean ± sd | last, each seed | best: mean ± sd | best, each seed "
        "| minutes of training |",
        "|---|---|---|---|---|---|",
    ]
    for method, title in METHODS.items():
        runs = [by_run.get(f"{task}/{layers}-layers/{method}-seed{seed}") for seed in SEEDS[layers]]
        cells = []
        for key in ("last", "best"):
            scores = [100 * run[key][metric] for run in runs if run is not None]
            complete = len(scores) == len(runs)
            spread = f" ± {statistics.stdev(scores):.1f}" if complete and len(scores) > 2 else ""
            cells.append(f"{statistics.mean(scores):.1f}{spread}" if complete else "")
            cells.append(", ".join(f"{100 * run[key][metric]:.1f}" if run is not None else "–" for run in runs))
        minutes = ", ".join(f"{run['train_seconds'] / 60:.1f}" if run is not None else "–" for run in runs)
        lines.append(f"| {title} | {' | '.join(cells)} | {minutes} |")
    teacher = by_run.get(f"{task}/teacher")
    if teacher is not None:
        lines.append(
            f"| the teacher, 6 layers (seed 42) | {100 * teacher['last'][metric]:.1f} | "
            f"| {100 * teacher['best'][metric]:.1f} | | {teacher['train_seconds'] / 60:.1f} |"
        )
        lines.append(f"| the trivial predictor | {100 * teacher['trivial'][metric]:.1f} | | | | |")
    return lines


def main() -> None:
    """Write runs.json and put the tables between core.md's markers."""
    records = collect(Path(sys.argv[1]))
    blocks = ["\n".join(table(records, task, layers)) for layers in SEEDS for task in TASKS]
    page = HERE.parent / "core.md"
    text = page.read_text()
    start, end = "<!-- tables -->", "<!-- end of tables -->"
    head, tail = text.split(start)[0], text.split(end)[1]
    page.write_text(f"{head}{start}\n\n" + "\n\n".join(blocks) + f"\n\n{end}{tail}")


if __name__ == "__main__":
    main()
