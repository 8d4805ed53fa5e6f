"""(7) Whether runs with a switch on end where runs without it end, within the spread of their seeds."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

__all__ = ["SWITCHES", "compared", "switches"]

_TASK = "MRPC"
_OFF = {"bf16": "false", "group_by_length": "false", "torch_compile": "false", "cache_teacher": "false"}
SWITCHES: dict[str, dict[str, str]] = {
    "none": {},
    "bf16": {"bf16": "true"},
    "grouping": {"group_by_length": "true"},
    "compilation": {"torch_compile": "true"},
    "bf16, grouping, cached teacher": {"bf16": "true", "group_by_length": "true", "cache_teacher": "true"},
}
"""What each row of the table turns on, for every seed."""


def switches(data_dir: str, encoder: str, folder: Path, *, threads: int, quick: bool = False) -> dict[str, Any]:
    """The teacher fine-tuned for 3 epochs, then 3 layers of it distilled by emd for 1, with each switch and each of
    three seeds, as many runs at a time as there are threads, one thread each. What is there already is kept.

    Args:
        data_dir: a GLUE folder with MRPC.
        encoder: the pretrained encoder.
        folder: where the runs are kept.
        threads: how many runs at a time.
        quick: two seeds and a few steps.
    """
    teacher = folder / "teacher"
    data = ["--task_name", _TASK, "--data_dir", data_dir, *(["--max_steps", "4"] if quick else [])]
    if not (teacher / "metrics.json").is_file():
        _run(
            "finetune",
            teacher,
            ["--model_name_or_path", encoder, *data, "--num_train_epochs", "3", "--seed", "42"],
            threads,
        )
    seeds = (1, 2) if quick else (1, 2, 3)

    def one(name: str, seed: int) -> dict[str, float]:
        student = folder / f"{name.replace(', ', '+').replace(' ', '-')}-{seed}"
        if not (student / "metrics.json").is_file():
            turned = [part for flag, value in (_OFF | SWITCHES[name]).items() for part in (f"--{flag}", value)]
            _run("distill", student, ["--teacher_model", str(teacher), *data, "--student_layers", "3",
                                      "--mapping", "emd", "--num_train_epochs", "1",
                                      "--seed", str(seed), "--teacher_cache_dir", str(folder / "outputs"),
                                      *turned], 1)  # fmt: skip
        return _end(student, data_dir)

    with ThreadPoolExecutor(threads) as pool:
        waiting = {name: [pool.submit(one, name, seed) for seed in seeds] for name in SWITCHES}
        found = {name: [run.result() for run in runs] for name, runs in waiting.items()}
    return {"task": _TASK, "seeds": list(seeds), "rows": compared(found)}


def compared(found: dict[str, list[dict[str, float]]]) -> dict[str, dict[str, Any]]:
    """For each switch and measure: all values, how far their mean is from that of the runs without any, how far the
    seeds of those lie apart, and whether the first is at most the second."""
    table: dict[str, dict[str, Any]] = {}
    for name, runs in found.items():
        table[name] = {}
        for measure in runs[0]:
            values, plain = ([run[measure] for run in of] for of in (runs, found["none"]))
            away, spread = statistics.mean(values) - statistics.mean(plain), max(plain) - min(plain)
            table[name][measure] = {"values": values, "away": away, "spread": spread, "within": abs(away) <= spread}
    return table


def _run(command: str, output: Path, flags: list[str], threads: int) -> None:
    environment = os.environ | {"OMP_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "false"}
    whole = [sys.executable, "-m", "bert_emd.cli", command, "--output_dir", str(output), *flags]
    done = subprocess.run(whole, capture_output=True, text=True, env=environment)
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(whole)}\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    print(f"  {output.name}", file=sys.stderr, flush=True)


@torch.no_grad()
def _end(run: Path, data_dir: str) -> dict[str, float]:
    """The last model's accuracy and mean cross-entropy on the validation rows, in float32, by plain Transformers."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    from bert_emd.data import find_task, load_glue

    tokenizer = AutoTokenizer.from_pretrained(run / "last")
    model = AutoModelForSequenceClassification.from_pretrained(run / "last").eval()
    rows = load_glue(find_task(_TASK), "validation", data_dir)
    logits, labels = [], torch.tensor(rows.labels)
    for start in range(0, len(rows), 64):
        texts = [column[start : start + 64] for column in (rows.texts, rows.pairs) if column is not None]
        batch = tokenizer(*texts, padding=True, truncation=True, max_length=128, return_tensors="pt")
        logits.append(model(**batch).logits)
    scores = torch.cat(logits)
    own = json.loads((run / "metrics.json").read_text(encoding="utf-8"))["last"]["accuracy"]
    accuracy = float((scores.argmax(1) == labels).double().mean())
    assert accuracy == own, f"{run} reports an accuracy of {own}, and has {accuracy}"
    return {"accuracy": accuracy, "loss": float(torch.nn.functional.cross_entropy(scores, labels))}
