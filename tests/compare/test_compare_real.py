"""Whole comparisons with tiny encoders, their processes and all; scores recomputed with plain Transformers."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from compare_data import config, sentences
from sklearn.metrics import matthews_corrcoef
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from bert_emd import compare

QUICK = {
    "max_steps": 6, "eval_step": 3, "save_steps": 3, "learning_rate": 2e-3, "train_batch_size": 8, "max_seq_length": 24,
}  # fmt: skip


@pytest.fixture(autouse=True)
def _children_find_the_package(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(str(Path(path).resolve()) for path in sys.path if path))


@torch.no_grad()
def plain_score(folder: Path) -> float:
    model, tokenizer = AutoModelForSequenceClassification.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    model.eval()
    rows = sentences(24, 2)
    guesses = [int(model(**tokenizer(text, return_tensors="pt")).logits.argmax()) for text, _ in rows]
    names = [model.config.id2label[guess] for guess in guesses]
    return float(matthews_corrcoef([label for _, label in rows], [name == "acceptable" for name in names]))


def test_two_methods_two_seeds(data, tmp_path):
    out = tmp_path / "out"
    made = config(out, data, options=QUICK, teacher_options={"max_steps": 40, "learning_rate": 3e-3}, jobs=2)
    result = compare(made)
    assert result.failures == []
    study = json.loads((out / "comparison.json").read_text(encoding="utf-8"))
    for cell in study["cells"]:
        assert cell["state"] == "done"
        folder = Path(cell["folder"])
        assert cell["best"] == pytest.approx(plain_score(folder))
        assert cell["last"] == pytest.approx(plain_score(folder / "last"))
        assert cell["selection"]["held_out"] is True
        assert cell["selection"]["teacher_may_have_seen"] is False
        assert not list(folder.glob("checkpoint-*"))
        assert cell["wall_seconds"] >= cell["train_seconds"]
    teacher = study["teachers"][0]
    assert teacher["best"] == pytest.approx(plain_score(Path(teacher["folder"])))
    # All of them were kept away from the same rows.
    records = [json.loads((Path(run["folder"]) / "run.json").read_text()) for run in (teacher, *study["cells"])]
    assert len({record["selection"]["sha256"] for record in records}) == 1
    assert len({record["data"]["train"]["sha256"] for record in records}) == 1
    assert {record["data"]["train"]["rows"] for record in records} == {54}
    written = {path: path.stat().st_mtime_ns for path in out.glob("runs/**/metrics.json")}
    compare(made)
    assert written == {path: path.stat().st_mtime_ns for path in out.glob("runs/**/metrics.json")}


def command(data, out: Path, *more: str) -> subprocess.Popen[str]:
    words = ["compare", "--methods", "none,kd+learning_rate=1e30,kd", "--seeds", "1", "--task_name", "CoLA",
             "--student_layers", "2", "--data_dir", data["glue"], "--model_name_or_path", data["encoder"], "--no_cuda",
             "--output_dir", str(out), "--jobs", "2", "--no_both_starts",
             "--teacher_max_steps", "40", "--teacher_learning_rate", "3e-3",
             "--learning_rate", "2e-3", "--train_batch_size", "8", "--max_seq_length", "24",
             *more]  # fmt: skip
    return subprocess.Popen(
        [sys.executable, "-m", "bert_emd.cli", *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


LONGER = ("--max_steps", "150", "--eval_step", "10", "--save_steps", "10")


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_killed_in_the_middle_with_one_run_that_fails(data, tmp_path, how):
    out = tmp_path / "out"
    process = command(data, out, *LONGER)
    running = out / "runs" / "CoLA" / "2-layers" / "none-seed1"
    deadline = time.monotonic() + 400
    while not list(running.glob("checkpoint-*/trainer_state.json")):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(how)
    _, err = process.communicate(timeout=200)
    assert not (running / "metrics.json").is_file()
    if how == signal.SIGINT:
        assert process.returncode == 130
        assert "the same command again goes on from there" in err
    again = command(data, out, *LONGER)
    text, err = again.communicate(timeout=900)
    assert again.returncode == 1
    assert "CoLA, 2 layers, none, seed 1: goes on from its checkpoint" in text
    assert "error: 1 runs failed, the first of them CoLA, 2 layers, kd+learning_rate=1e30, seed 1" in err
    study = json.loads((out / "comparison.json").read_text(encoding="utf-8"))
    by_method = {cell["method"]: cell for cell in study["cells"]}
    assert by_method["kd+learning_rate=1e30"]["state"] == "failed"
    assert by_method["none"]["attempts"] > 1
    # Resuming is exact: the same numbers as without the interruption.
    fresh = command(data, tmp_path / "fresh", *LONGER, "--methods", "none")
    fresh.communicate(timeout=900)
    other = json.loads((tmp_path / "fresh" / "comparison.json").read_text(encoding="utf-8"))["cells"][0]
    assert (by_method["none"]["last"], by_method["none"]["best"]) == (other["last"], other["best"])
    assert by_method["none"]["last"] == pytest.approx(plain_score(running / "last"))
