"""The command: several processes on one study, kills, Ctrl-C, and mistakes in one line."""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from small_runs import read

from bert_emd.cli.main import main
from bert_emd.errors import UserError
from bert_emd.studies.sweep import search

Command = Callable[..., list[str]]


@pytest.fixture
def command(teacher: str, files: dict[str, str], tmp_path: Path) -> Command:
    """The command line of a search in ``tmp_path/out``, with further words."""

    def made(*more: str) -> list[str]:
        data = [word for name, path in files.items() if name != "test_file" for word in (f"--{name}", path)]
        return [
            "sweep", "--teacher_model", teacher, *data, "--output_dir", str(tmp_path / "out"), "--max_seq_length", "24",
            "--train_batch_size", "8", "--num_train_epochs", "1", "--no_cuda", "--no-bf16", *more,
        ]  # fmt: skip

    return made


def start(words: list[str]) -> subprocess.Popen[str]:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    return subprocess.Popen(
        [sys.executable, "-m", "bert_emd.cli", *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env=environment, preexec_fn=_hears_ctrl_c,
    )  # fmt: skip


def _hears_ctrl_c() -> None:
    """Where the tests themselves run in the background, they and all they start are deaf to it."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def wait_for(file: Path, text: str, process: subprocess.Popen[str]) -> None:
    while process.poll() is None and not (file.exists() and text in file.read_text(encoding="utf-8")):
        time.sleep(0.05)
    assert process.poll() is None, process.communicate()


def points(rows: list[dict[str, Any]]) -> Counter[tuple[Any, ...]]:
    return Counter(tuple(row["values"].values()) for row in rows if row["state"] == "complete")


def test_two_workers_do_not_repeat_trials(command: Command, tmp_path: Path) -> None:
    space = ["--space", "mapping=emd,uniform,kd", "learning-rate=1e-4,1e-3", "--sampler", "random", "--jobs", "2"]
    process = start(command(*space))
    out, err = process.communicate()
    assert process.returncode == 0, err
    rows = read(tmp_path / "out" / "trials.json")["trials"]
    assert points(rows) == Counter((m, lr) for m in ("emd", "uniform", "kd") for lr in (1e-4, 1e-3))
    assert len(rows) == 6
    assert "6 of 6 trials done" in out
    assert out.count("(best so far: ") == 6


@pytest.mark.slow
def test_the_same_command_twice_is_one_search(command: Command, tmp_path: Path) -> None:
    words = command("--space", "learning_rate=1e-5..1e-2:log", "--n_trials", "5")
    processes = [start(words), start(words)]
    for process in processes:
        _, err = process.communicate()
        assert process.returncode == 0, err
    rows = read(tmp_path / "out" / "trials.json")["trials"]
    assert len(points(rows)) == 5 == len(rows)


def test_a_killed_process_and_ctrl_c(command: Command, tmp_path: Path) -> None:
    """SIGKILL, then the same command and Ctrl-C. (That the next one ends it is tested without processes.)"""
    slow = command("--space", "beta=0.1..10:log", "--n_trials", "2", "--num_train_epochs", "400", "--eval_step", "400")
    first = start(slow)
    log = tmp_path / "out" / "logs"
    wait_for(log / "0000.txt", "truncation", first)
    first.kill()
    first.communicate()
    second = start(slow)
    wait_for(log / "0001.txt", "truncation", second)
    second.send_signal(signal.SIGINT)
    out, err = second.communicate()
    assert second.returncode == 130
    assert (
        err.splitlines()[-1] == "interrupted; trials that are done are kept; the same command goes on with the others"
    )
    assert "trial 0 was running when its process was killed; its values are tried again" in out
    rows = read(tmp_path / "out" / "trials.json")["trials"]
    assert [(row["state"], row["reason"]) for row in rows] == [
        ("interrupted", "its process was killed"), ("interrupted", "stopped by the user"),
    ]  # fmt: skip
    assert rows[0]["values"] == rows[1]["values"]
    assert not list((tmp_path / "out").rglob("*.safetensors"))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--space", "learning_rat=1e-5..1e-3"], "did you mean learning_rate?"),
        (["--space", "T=8..1"], "8 is above 1"),
        (["--space", "mapping=emd,foo"], "mapping=foo, which is refused"),
        (["--space", "beta"], "is no name=values"),
        (["--space"], "--space needs a value"),
        ([], "what should be searched?"),
        (["--space_file", "nowhere.yaml"], "--space_file nowhere.yaml: there is no such file"),
        (["--beta", "3", "--space", "beta=1,2"], "--beta gives one value and the space several"),
        (["--space", "beta=1,2", "--jobs", "0"], "jobs must be at least 1"),
        (["--space", "beta=1,2", "--sampler", "tp"], "--sampler must be one of tpe, random, grid"),
        (["--space", "beta=1,2", "--smapler", "tpe"], "did you mean --sampler?"),
        (["--space", "beta=1,2", "--storage", "nothing://x"], "--storage is no URL"),
        (["--space", "beta=1,2", "--resume_from_checkpoint"], "goes on by itself"),
        (["--space", "student_layers=1..9"], "the teacher has 4 layers"),
    ],
)
def test_mistakes_are_one_line(
    words: list[str], message: str, command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(command(*words)) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ")
    assert message in err
    assert err.count("\n") == 1


def test_without_optuna(
    command: Command, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == "optuna" else real(name, *a))
    assert main(command("--space", "beta=1,2")) == 2
    assert "pip install 'bert-emd[sweep]'" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_space_file_an_option_for_all_trials_and_what_is_shown(
    command: Command, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    seen: list[search.Plan] = []

    def stops(plan: search.Plan, sources: Any = None) -> Any:
        seen.append(plan)
        raise UserError("enough")

    monkeypatch.setattr(search, "run_sweep", stops)
    file = tmp_path / "space.yaml"
    file.write_text("beta: [0.1, 1]\n", encoding="utf-8")
    run = tmp_path / "run.yaml"
    run.write_text("theta: 2\nspace:\n  T: 1..8:int\n", encoding="utf-8")
    words = ["--space_file", str(file), "--config", str(run), "--storage", "postgresql://me:hush@host/db"]
    assert main(command(*words)) == 2
    out = " ".join(capsys.readouterr().out.split())
    (plan,) = seen
    assert plan.config.theta == 2
    assert plan.space.described() == {"beta": "0.1,1", "T": "1..8:int"}
    assert "space beta=0.1,1 T=1..8:int config" in out
    assert "theta 2 config" in out
    assert "hush" not in out
