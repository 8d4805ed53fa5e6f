"""The script that makes docs/results: its tables against SciPy, its data, the commands of what is not there."""

from __future__ import annotations

import csv
import importlib.util
import json
import shlex
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml
from scipy import stats

from bert_emd import DistillConfig
from bert_emd.cli import compare as compare_command
from bert_emd.cli.options import OptionParser

FOLDER = Path(__file__).resolve().parents[1] / "docs" / "results"
MANUAL = "manual+layer_map=1:1,2:3"
SCORES = {
    "none": [0.50, 0.53, 0.51],
    "kd": [0.52, 0.57, 0.56],
    "emd": [0.58, 0.57, 0.61],
}


@pytest.fixture(scope="module")
def pages() -> ModuleType:
    sys.path.insert(0, str(FOLDER))
    try:
        spec = importlib.util.spec_from_file_location("pages", FOLDER / "pages.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(FOLDER))
    return module


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Pages of a study of two tasks, of which nothing is run."""
    here = tmp_path / "results"
    here.mkdir()
    studies = {
        "both": {
            "command": "bert-emd compare --data_dir GLUE --model_name_or_path ENCODER --beta 2 --output_dir OUT",
            "tasks": {
                "CoLA": {"metric": "matthews_correlation"},
                "QNLI-9k": {"metric": "accuracy", "title": "QNLI", "options": {"--data_dir": "QNLI_9K"}},
            },
            "layers": [2],
            "methods": ["none", "kd", "emd", MANUAL],
            "seeds": [1, 2, 3],
        },
        "search": {"search": "bert-emd sweep --space beta=1,2"},
    }
    (here / "studies.json").write_text(json.dumps(studies))
    (here / "page.md").write_text("# A page\n\nText.\n\n<!-- study both -->\nold\n<!-- end -->\n\nMore.\n\n"
                                  "<!-- study search -->\n<!-- end -->\n")  # fmt: skip
    return here


def cell(task: str, method: str, seed: int, score: float, glue: str, out: str) -> dict[str, Any]:
    return {
        "task": task, "layers": 2, "method": method, "start": "teacher", "seed": seed, "state": "done", "error": None,
        "folder": f"{out}/runs/x", "metric": "accuracy", "last": score, "best": score + 0.01, "teacher": 0.8,
        "trivial": 0.3, "selection": {"sha256": "a"}, "optimistic": False, "wall_seconds": 60.0,
        "versions": {"torch": "2", "numpy": "2"},
        "command": f"bert-emd distill --task_name {task} --data_dir {glue} --learning_rate 0.0001 --seed {seed} "
        f"--output_dir {out}/runs/x --teacher_model {out}/runs/t --student_layers 2 --mapping {method}",
    }  # fmt: skip


def finished(folder: Path, task: str, glue: str, scores: dict[str, list[float]], **changes: Any) -> Path:
    """The folder of a comparison of one task."""
    folder.mkdir()
    cells = [cell(task, m, s, x, glue, str(folder)) | changes for m, xs in scores.items() for s, x in enumerate(xs, 1)]
    cells.append({"task": task, "layers": 2, "method": MANUAL, "start": "teacher", "seed": 1, "state": "failed"})
    study = {
        "command": f"bert-emd compare --task_name {task} --data_dir {glue} --model_name_or_path /home/me/minilm "
        f"--beta 3 --output_dir {folder}",
        "seeds": [1, 2, 3], "cells": cells, "tasks": [{"task": task, "metric": "accuracy"}],
        "teachers": [{"task": task, "ready": False, "seed": 42, "best": 0.8, "last": 0.8, "trivial": 0.3,
                      "folder": f"{folder}/t", "command": f"bert-emd finetune --output_dir {folder}/t"}],
    }  # fmt: skip
    (folder / "comparison.json").write_text(json.dumps(study))
    return folder


def test_what_is_not_run_is_blank_and_its_command_runs_it(pages: ModuleType, root: Path) -> None:
    pages.main(["--root", str(root), "write"])
    text = (root / "page.md").read_text()
    assert text.startswith("# A page\n\nText.\n\n<!-- study both -->\n")
    assert "old" not in text
    assert "| `emd` | teacher |  |  |  |  |  |  |  |  |  |" in text
    assert text.count("<details>") == text.count("</details>") == text.count("\n### ")
    lines = [shlex.split(line) for line in text.splitlines() if line.startswith("bert-emd compare")]
    parser = OptionParser(prog="x", description="")
    compare_command.add_arguments(parser)
    made = [compare_command._config(vars(parser.parse(words[2:]))) for words in lines]
    assert [config.task_name for config in made] == [("CoLA",), ("QNLI",)]
    assert [config.options["data_dir"] for config in made] == ["GLUE", "QNLI_9K"]
    for config in made:
        assert config.methods == ("none", "kd", "emd", MANUAL)
        assert (config.seeds, config.student_layers) == ((1, 2, 3), (2,))
    assert "Not run yet:\n\n```bash\nbert-emd sweep --space beta=1,2\n```" in text


def test_collected_runs_fill_the_tables_and_the_data(pages: ModuleType, root: Path, tmp_path: Path) -> None:
    one = finished(tmp_path / "one", "CoLA", "/data/glue", SCORES)
    two = finished(tmp_path / "two", "QNLI", "/data/qnli", {"none": [0.7], "emd": [0.75]})
    pages.main(["--root", str(root), "collect", "both", str(one)])
    pages.main(["--root", str(root), "collect", "both", str(two), "--replace", "/data/qnli=QNLI_9K"])
    pages.main(["--root", str(root), "write"])
    pages.main(["--root", str(root), "check"])
    rows = list(csv.DictReader((root / "data" / "both.csv").open()))
    assert {(r["task"], r["method"], int(r["seed"])): float(r["last"]) for r in rows} == {
        **{("CoLA", m, s): x for m, xs in SCORES.items() for s, x in enumerate(xs, 1)},
        ("QNLI-9k", "none", 1): 0.7, ("QNLI-9k", "emd", 1): 0.75,
    }  # fmt: skip
    data = (root / "data" / "both.json").read_text()
    assert str(tmp_path) not in data
    assert "/home/me" not in data
    assert "/data" not in data
    assert "--data_dir QNLI_9K --model_name_or_path ENCODER --beta 3 --output_dir OUT" in data
    text = (root / "page.md").read_text()
    interval = stats.ttest_rel(SCORES["emd"], SCORES["kd"]).confidence_interval(0.95)
    mean = sum(a - b for a, b in zip(SCORES["emd"], SCORES["kd"], strict=True)) / 3
    line = next(line for line in text.splitlines() if line.startswith("| `emd`"))
    assert f"{100 * mean:+.1f} [{100 * interval.low:+.1f}, {100 * interval.high:+.1f}]" in line
    assert "58.0, 57.0, 61.0" in line
    # (0.5867 - 0.3) / (0.8 - 0.3)
    assert "`emd` 57.3%" in text
    # One of three seeds on the other task, and what is left of it.
    assert "75.0 (1 of 3 seeds)" in text
    parts = {part.splitlines()[0]: part for part in text.split("\n### ")[1:]}
    assert ["<details>" in parts[f"{task}, 2 layers: accuracy"] for task in ("CoLA", "QNLI-9k")] == [False, False]
    left = [
        line
        for line in text.splitlines()
        if line.startswith("bert-emd compare") and "--task_name QNLI --" in line and "--seeds" in line
    ]
    assert [shlex.split(line)[shlex.split(line).index("--seeds") + 1] for line in left] == ["2,3", "1,2,3"]
    assert all("--beta 3" in line for line in left)  # as the others were made
    assert (root / "data" / "both.png").read_bytes().startswith(b"\x89PNG")
    (root / "page.md").write_text(text.replace("58.0", "59.0"))
    with pytest.raises(SystemExit, match=r"page\.md is not what the data make of it"):
        pages.main(["--root", str(root), "check"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"teacher": 0.81}, "other teacher"),
        ({"selection": {"sha256": "b"}}, "other rows that choose"),
        ({"optimistic": True}, "other rows that choose"),
        ({"command": "bert-emd distill --task_name CoLA --learning_rate 0.1 --seed 1"}, "other common options"),
        ({"seed": 4}, "seed 4, which the study does not have"),
        ({"error": None, "reported_on": "/home/you/dev.csv"}, "the path /home/you/dev.csv would be published"),
    ],
)
def test_runs_that_cannot_be_compared_are_refused(
    pages: ModuleType, root: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    pages.main(["--root", str(root), "collect", "both", str(finished(tmp_path / "one", "CoLA", "glue", SCORES))])
    before = (root / "data" / "both.json").read_text()
    other = finished(tmp_path / "two", "CoLA", "glue", {"none": [0.5]}, **changes)
    with pytest.raises(SystemExit, match=message):
        pages.main(["--root", str(root), "collect", "both", str(other)])
    assert (root / "data" / "both.json").read_text() == before


def test_a_search_has_its_trials_and_its_best_settings(pages: ModuleType, root: Path, tmp_path: Path) -> None:
    folder = tmp_path / "search"
    folder.mkdir()
    trial = {"seconds": 90.0, "evaluations": [0.5]}
    (folder / "trials.json").write_text(json.dumps({
        "task": "MRPC", "metric": "accuracy", "objective": "best", "selected_on": "held-out rows", "planned": 2,
        "space": {"beta": "1,2"}, "best_trial": 1, "importances": {},
        "trials": [trial | {"trial": 0, "state": "pruned", "score": None, "values": {"beta": 1.0}},
                   trial | {"trial": 1, "state": "complete", "score": 0.712, "values": {"beta": 2.0}}],
    }))  # fmt: skip
    command = ["/x/bert-emd", "sweep", "--data_dir", "/data/glue", "--teacher_model", "/t", "--output_dir", str(folder)]
    (folder / "run.json").write_text(json.dumps({"command_line": command, "versions": {"torch": "2"}}))
    (folder / "best.yaml").write_text("# Trial 1\nbeta: 2.0\ndata_dir: /data/glue\ntest_file: null\n")
    pages.main(["--root", str(root), "collect", "search", str(folder)])
    pages.main(["--root", str(root), "write"])
    text = (root / "page.md").read_text()
    assert "| 1 | complete | **71.2** | 2 | 1.5 |" in text
    assert "| 0 | pruned |  | 1 | 1.5 |" in text
    assert "bert-emd sweep --data_dir GLUE --teacher_model TEACHER --output_dir OUT" in text
    assert "```yaml\nbeta: 2.0\ndata_dir: GLUE\n```" in text


def test_the_pages_are_what_their_data_make_of_them(pages: ModuleType) -> None:
    pages.main(["check"])


def test_the_defaults_are_the_searchs_best_trial() -> None:
    data = json.loads((Path(__file__).parents[1] / "docs/results/data/recipe-search.json").read_text(encoding="utf-8"))
    (search,) = data["searches"]
    best = yaml.safe_load("\n".join(search["best_settings"]))
    # What says nothing of how a student learns: the data, the models, and where the checkpoint is chosen.
    own = {
        "task_name", "data_dir", "teacher_model", "student_layers", "select_on", "cache_teacher", "teacher_cache_dir",
    }  # fmt: skip
    # bf16 is seen from the machine.
    settings = {name: value for name, value in best.items() if name not in own | {"bf16"}}
    assert settings.keys() >= {"learning_rate", "num_train_epochs", "mapping", "alpha", "beta", "cost_scale"}
    defaults = DistillConfig()
    rate = settings.pop("learning_rate")
    assert defaults.learning_rate == pytest.approx(rate, rel=1e-4)
    assert {name: getattr(defaults, name) for name in settings} == settings
