"""The search from beginning to end, with tiny encoders; its numbers are computed again by plain Transformers."""

from __future__ import annotations

import csv
import dataclasses
import json
import sqlite3
from pathlib import Path
from typing import Any

import optuna
import pytest
import torch
import yaml
from small_runs import read
from transformers import AutoModelForSequenceClassification, AutoTokenizer, TrainerCallback

from bert_emd import DistillConfig, SweepConfig, UserError, distill, sweep
from bert_emd.cli.config_file import read_config_file
from bert_emd.studies.sweep import trial as trial_module
from bert_emd.studies.sweep.results import importances_of
from bert_emd.studies.sweep.storage import Worker, open_study, storage_url
from bert_emd.training.resolve import resolve
from bert_emd.training.trainer import DistillTrainer

GRID = {"learning_rate": "1e-4,5e-3", "mapping": "emd,uniform,kd"}


def quick(output_dir: Path, teacher: str, files: dict[str, str], **changes: Any) -> SweepConfig:
    settings: dict[str, Any] = {
        "output_dir": str(output_dir), "teacher_model": teacher, **files, "max_seq_length": 24, "train_batch_size": 8,
        "eval_batch_size": 16, "num_train_epochs": 1.0, "no_cuda": True, "bf16": False,
    }  # fmt: skip
    return SweepConfig(**(settings | changes))


def plain_accuracy(folder: Path, file: str) -> float:
    model, tokenizer = AutoModelForSequenceClassification.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    right, rows = 0, list(csv.DictReader(Path(file).read_text(encoding="utf-8").splitlines()))
    for row in rows:
        with torch.no_grad():
            answer = int(model(**tokenizer(row["text"], return_tensors="pt")).logits.argmax())
        right += model.config.id2label[answer] == row["label"]
    return right / len(rows)


@pytest.fixture(scope="module")
def grid(teacher: str, files: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Six trials, every student kept; the data that choose are not those that are reported."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("grid") / "out"
    config = quick(
        folder, teacher, files, space=GRID, sampler="grid", pruner="none", keep_models=True, objective="last"
    )
    with pytest.MonkeyPatch.context() as patch:
        calls: list[int] = []
        original = trial_module.Evaluator.scores

        def scores(self: Any, model: Any, rows: Any, **more: Any) -> Any:
            if model.config.num_hidden_layers == 4:
                calls.append(len(rows))
            return original(self, model, rows, **more)

        patch.setattr(trial_module.Evaluator, "scores", scores)
        result = sweep(config)
    return folder, result, config, calls


def test_a_grid_visits_every_combination_once(grid: Any) -> None:
    folder, result, _, _ = grid
    seen = [(row["values"]["learning_rate"], row["values"]["mapping"]) for row in result.trials]
    assert sorted(seen) == sorted((lr, m) for lr in (1e-4, 5e-3) for m in ("emd", "uniform", "kd"))
    assert {row["state"] for row in result.trials} == {"complete"}
    for row in result.trials:
        config = read(folder / row["folder"] / "run.json")["config"]
        assert {name: config[name] for name in GRID} == row["values"]


def test_scores_are_those_of_plain_transformers_on_the_data_that_choose(grid: Any, files: dict[str, str]) -> None:
    folder, result, _, _ = grid
    for row in result.trials:
        place = folder / row["folder"]
        assert row["last"] == plain_accuracy(place / "last", files["validation_file"]) == row["score"]
        assert row["best"] == plain_accuracy(place, files["validation_file"])
        reported = read(place / "metrics.json")
        assert reported["reported_on"] == "test"
        assert reported["student"]["accuracy"] == plain_accuracy(place, files["test_file"])
    assert result.score == max(row["score"] for row in result.trials)


def test_the_teacher_is_scored_once_for_all_trials(grid: Any) -> None:
    # A look at it before the first step, on the validation data, and the report's, on the test data.
    assert grid[3] == [16, 16]


def test_what_is_left_behind(grid: Any) -> None:
    folder, result, _, _ = grid
    assert {path.name for path in folder.iterdir()} == {
        "best.yaml", "history.png", "importances.png", "logs", "run.json", "study.db", "sweep.md", "teacher.json",
        "trials", "trials.csv", "trials.json", "workers",
    }  # fmt: skip
    for name in ("history.png", "importances.png"):
        assert (folder / name).read_bytes().startswith(b"\x89PNG")
    with (folder / "trials.csv").open(newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    assert [(int(row["trial"]), float(row["score"]), float(row["learning_rate"])) for row in rows] == [
        (row["trial"], row["score"], row["values"]["learning_rate"]) for row in result.trials
    ]
    said = read(folder / "trials.json")
    assert said["trials"] == result.trials
    assert (said["done"], said["planned"], said["selected_on"]) == (6, 6, "validation")
    assert said["importances"] == result.importances
    table = (folder / "sweep.md").read_text(encoding="utf-8").split("## Trials")[1].split("##")[0]
    cells = [line.split(" | ") for line in table.splitlines() if line.startswith("| ")][1:]
    scores = [float(cell[2]) for cell in cells if cell[0] != "| ---"]
    assert scores == sorted((round(row["score"], 4) for row in result.trials), reverse=True)
    assert not list(folder.rglob("checkpoint-*"))
    assert not list(folder.rglob("*.partial"))


def test_the_best_settings_reproduce_the_best_score(grid: Any, files: dict[str, str], tmp_path: Path) -> None:
    folder, result, _, _ = grid
    resolved = resolve(
        DistillConfig, flags={"output_dir": str(tmp_path / "again")}, file=read_config_file(str(folder / "best.yaml"))
    )
    assert resolved.warnings == []
    assert {name: getattr(resolved.config, name) for name in GRID} == result.values
    again = distill(str(resolved.config.teacher_model), None, config=resolved.config)
    assert again.metrics["selection"]["last"]["accuracy"] == result.score
    assert plain_accuracy(tmp_path / "again" / "last", files["validation_file"]) == result.score


def test_best_yaml_holds_every_setting(grid: Any) -> None:
    text = (grid[0] / "best.yaml").read_text(encoding="utf-8")
    set_or_said = {line.removeprefix("# ").partition(":")[0] for line in text.splitlines()[2:]}
    assert set_or_said == {f.name for f in dataclasses.fields(DistillConfig)} - {
        "output_dir", "overwrite_output_dir", "resume_from_checkpoint", "do_eval", "do_predict", "trainer_args",
    }  # fmt: skip
    assert isinstance(yaml.safe_load(text)["learning_rate"], float)


def test_the_same_command_again_runs_nothing(grid: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    _, result, config, _ = grid
    monkeypatch.setattr(trial_module, "distill", lambda *_, **__: pytest.fail("a trial was run"))
    assert sweep(config).trials == result.trials


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"space": {"learning_rate": "1e-4,1e-3"}}, "space of learning_rate: 0.0001,0.005 there, 0.0001,0.001 now"),
        ({"alpha": 1.0}, "alpha: 0.5 there, 1.0 now"),
        ({"objective": "best"}, "objective: last there, best now"),
        ({"test_file": None}, "test_file: "),
    ],
)
def test_a_study_of_other_settings_is_refused(grid: Any, changes: dict[str, Any], said: str) -> None:
    folder, _, config, _ = grid
    before = (folder / "trials.json").read_bytes(), (folder / "run.json").read_bytes()
    with pytest.raises(UserError, match="made with other settings") as caught:
        sweep(SweepConfig(**{**vars(config), **changes}))
    assert said in str(caught.value)
    assert "--study_name" in str(caught.value)
    assert ((folder / "trials.json").read_bytes(), (folder / "run.json").read_bytes()) == before


def test_an_option_that_an_earlier_version_did_not_have_counts_as_its_default(
    grid: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, result, config, _ = grid
    study = open_study(storage_url(None, folder), config.study_name)
    settings = study.user_attrs["settings"]
    study.set_user_attr("settings", {name: value for name, value in settings.items() if name != "beta"})
    monkeypatch.setattr(trial_module, "distill", lambda *_, **__: pytest.fail("a trial was run"))
    try:
        assert sweep(config).trials == result.trials
        with pytest.raises(UserError, match=r"beta: 0\.3 there, 2\.0 now"):
            sweep(dataclasses.replace(config, beta=2.0))
    finally:
        study.set_user_attr("settings", settings)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"space": {"mapping": "skip,emd", "student_layers": "1,2"}},
         "holds mapping=skip student_layers=1, which is refused: mapping skip .* needs a student of 2 layers"),
        ({"space": {"beta": "1,2"}, "mapping": "manual", "layer_map": "1:9"}, "layer_map names teacher layer 9"),
        ({"space": {"layer_map": "1:2/1:9"}, "mapping": "manual"}, "layer_map names teacher layer 9"),
        ({"space": {"T": "1..4"}, "regression": True}, "T is searched but has no effect in any trial: the target is"),
    ],
)  # fmt: skip
def test_what_no_trial_could_do_is_refused_before_the_first(
    teacher: str, files: dict[str, str], tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        sweep(quick(tmp_path / "out", teacher, files, **changes))
    assert not (tmp_path / "out").exists()


def test_other_data_under_the_same_name_are_refused(teacher: str, files: dict[str, str], tmp_path: Path) -> None:
    own = tmp_path / "train.csv"
    lines = Path(files["train_file"]).read_text(encoding="utf-8").splitlines(keepends=True)
    own.write_text("".join(lines), encoding="utf-8")
    config = quick(tmp_path / "out", teacher, files | {"train_file": str(own)}, space={"beta": "1,2"}, n_trials=1)
    sweep(config)
    own.write_text("".join(lines[:-2]), encoding="utf-8")
    with pytest.raises(UserError, match="training data"):
        sweep(config)


class _Killed(BaseException):
    """As if the process were gone."""


def test_a_search_that_was_killed_goes_on(
    teacher: str, files: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = quick(tmp_path / "out", teacher, files, space=GRID, sampler="grid", n_trials=3)
    original = trial_module.distill
    begun: list[tuple[float, str]] = []

    def dies(*args: Any, config: DistillConfig, **more: Any) -> Any:
        begun.append((config.learning_rate, config.mapping))
        if len(begun) == 2:
            raise _Killed
        return original(*args, config=config, **more)

    monkeypatch.setattr(trial_module, "distill", dies)
    with pytest.raises(_Killed):
        sweep(config)
    states = [row["state"] for row in read(tmp_path / "out" / "trials.json")["trials"]]
    assert states == ["complete", "running"]
    result = sweep(config)
    # The second one's values once more, and before any others.
    assert begun[2] == begun[1]
    assert len(begun) == 4
    assert [row["state"] for row in result.trials] == ["complete", "interrupted", "complete", "complete"]
    assert result.trials[2]["again"] == 1
    assert result.trials[2]["values"] == result.trials[1]["values"]
    points = [tuple(row["values"].values()) for row in result.trials if row["state"] == "complete"]
    assert len(set(points)) == 3


def test_an_interruption_is_recorded_and_tried_again(
    teacher: str, files: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = quick(tmp_path / "out", teacher, files, space={"learning_rate": "1e-4..1e-2:log"}, n_trials=2)
    begun: list[float] = []

    class Stops(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if len(begun) == 1 and state.global_step == 2:
                raise KeyboardInterrupt

    original = DistillTrainer.__init__

    def init(self: Any, *, config: DistillConfig, **more: Any) -> None:
        begun.append(config.learning_rate)
        original(self, config=config, **more)
        self.add_callback(Stops())

    monkeypatch.setattr(DistillTrainer, "__init__", init)
    with pytest.raises(KeyboardInterrupt):
        sweep(config)
    (row,) = read(tmp_path / "out" / "trials.json")["trials"]
    assert (row["state"], row["reason"]) == ("interrupted", "stopped by the user")
    assert not list((tmp_path / "out").rglob("*.safetensors"))
    result = sweep(config)
    assert begun[1] == begun[0] != begun[2]
    assert [row["state"] for row in result.trials] == ["interrupted", "complete", "complete"]


def test_a_failed_trial_loses_nothing_else(
    teacher: str, files: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = trial_module.distill

    def breaks(*args: Any, config: DistillConfig, **more: Any) -> Any:
        if config.learning_rate == 2e-3:
            raise RuntimeError("out of luck")
        return original(*args, config=config, **more)

    monkeypatch.setattr(trial_module, "distill", breaks)
    # A learning rate of 1e30 makes every weight infinite.
    space = {"learning_rate": "1e-3,2e-3,1e30"}
    config = quick(tmp_path / "out", teacher, files, space=space, sampler="grid", mapping="kd", logging_steps=1)
    result = sweep(config)
    by_values = {row["values"]["learning_rate"]: row for row in result.trials}
    assert {value: row["state"] for value, row in by_values.items()} == {
        1e-3: "complete",
        2e-3: "failed",
        1e30: "failed",
    }
    assert by_values[1e30]["reason"].startswith("diverged: the loss was nan")
    broken = by_values[2e-3]
    assert broken["reason"].startswith("RuntimeError: out of luck")
    assert "out of luck" in (tmp_path / "out" / broken["folder"] / "error.txt").read_text(encoding="utf-8")
    assert "out of luck" in (tmp_path / "out" / "sweep.md").read_text(encoding="utf-8")
    assert result.values == {"learning_rate": 1e-3}


def test_a_search_in_which_nothing_works_stops(
    teacher: str, files: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def breaks(*_: Any, **__: Any) -> Any:
        raise UserError("no luck at all")

    monkeypatch.setattr(trial_module, "distill", breaks)
    with pytest.raises(UserError, match=r"first 3 trials failed.*no luck at all"):
        sweep(quick(tmp_path / "out", teacher, files, space={"beta": "1..9"}))
    assert len(read(tmp_path / "out" / "trials.json")["trials"]) == 3


def test_hopeless_trials_are_pruned(
    teacher: str, files: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Scores set by hand. At the second evaluation the first two have the median 0.65: the third's best, 0.55, is
    below it, the fourth's, 0.66, is not; the first evaluation decides nothing, and neither does the last."""
    given = iter([[0.5, 0.7, 0.8], [0.6, 0.6, 0.9], [0.4, 0.55, 0.95], [0.1, 0.66, 0.7]])
    original = DistillTrainer.__init__

    def init(self: Any, **more: Any) -> None:
        scores = iter(next(given))
        original(self, **more | {"compute_metrics": lambda _: {"accuracy": next(scores)}})

    monkeypatch.setattr(DistillTrainer, "__init__", init)
    config = quick(
        tmp_path / "out", teacher, files, space={"beta": "1..9"}, sampler="random", n_trials=4, startup_trials=2,
        num_train_epochs=3.0, train_batch_size=24,
    )  # fmt: skip
    rows = sweep(config).trials
    assert [row["evaluations"] for row in rows] == [[0.5, 0.7, 0.8], [0.6, 0.6, 0.9], [0.4, 0.55], [0.1, 0.66, 0.7]]
    assert [row["state"] for row in rows] == ["complete", "complete", "pruned", "complete"]
    assert rows[2]["score"] is None
    assert rows[2]["reason"] == "pruned at step 2 of 3"
    assert not list((tmp_path / "out" / rows[2]["folder"]).glob("*.safetensors"))


def test_values_that_were_tried_are_not_tried_again(teacher: str, files: dict[str, str], tmp_path: Path) -> None:
    config = quick(tmp_path / "out", teacher, files, space={"mapping": "kd,uniform,emd"}, sampler="random", n_trials=10)
    result = sweep(config)
    assert sorted(row["values"]["mapping"] for row in result.trials) == ["emd", "kd", "uniform"]
    # Only the best student is left, the records of all.
    students = [path.parent.name for path in (tmp_path / "out" / "trials").glob("*/model.safetensors")]
    best = max(result.trials, key=lambda row: (row["score"], -row["trial"]))
    assert students == [Path(best["folder"]).name]
    assert len(list((tmp_path / "out" / "trials").glob("*/metrics.json"))) == 3


def test_stages_and_starts_can_be_searched(teacher: str, files: dict[str, str], tmp_path: Path) -> None:
    space = {"schedule": "one-step,two-stage", "layer_map": "1:2,2:4/1:1,2:3"}
    config = quick(tmp_path / "out", teacher, files, space=space, sampler="grid", mapping="manual", keep_models=True)
    result = sweep(config)
    assert [row["state"] for row in result.trials] == ["complete"] * 4
    for row in result.trials:
        place = tmp_path / "out" / row["folder"]
        assert row["score"] == plain_accuracy(place, files["validation_file"])
        record = read(place / "run.json")["config"]
        assert (record["schedule"], record["layer_map"]) == (row["values"]["schedule"], row["values"]["layer_map"])
        assert ("stages" in read(place / "metrics.json")) == (record["schedule"] == "two-stage")
        assert {path.name for path in place.iterdir() if path.is_dir()} == {"last"}


def test_importances_point_at_the_option_that_matters() -> None:
    study = optuna.create_study(direction="maximize", sampler=optuna.samplers.RandomSampler(seed=1))
    study.optimize(
        lambda t: -((t.suggest_float("learning_rate", 0, 1) - 0.3) ** 2) + 0.01 * t.suggest_float("beta", 0, 1), 40
    )
    found = importances_of(study, 0)
    assert list(found) == ["learning_rate", "beta"]
    assert found["learning_rate"] > 0.9
    assert sum(found.values()) == pytest.approx(1)


def test_importances_need_different_scores() -> None:
    study = optuna.create_study(direction="maximize")
    study.optimize(lambda t: 0.0 * t.suggest_float("beta", 0, 1), 6)
    assert importances_of(study, 0) == {}


def test_a_locked_storage_is_one_line(tmp_path: Path) -> None:
    url = storage_url(None, tmp_path)
    open_study(url, "sweep")
    holder = sqlite3.connect(tmp_path / "study.db", isolation_level=None)
    holder.execute("BEGIN EXCLUSIVE")
    try:
        with pytest.raises(UserError, match=r"is locked by another program.*--storage"):
            open_study(url, "sweep", patience=0.1)
    finally:
        holder.close()
    assert open_study(url, "sweep", patience=0.1).study_name == "sweep"


@pytest.mark.parametrize(
    ("storage", "message"),
    [
        ("nothing://x", "--storage is no URL"),
        ("sqlite://", "would be lost at the end"),
        ("{tmp}", "is a folder"),
        ("{tmp}/no/study.db", "there is no folder"),
        ("{tmp}/text.db", "not a database"),
    ],
)
def test_storages_that_cannot_be_used(storage: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "text.db").write_text("no database at all, but long enough to be read as one", encoding="utf-8")
    with pytest.raises(UserError, match=message):
        open_study(storage_url(storage.format(tmp=tmp_path), tmp_path), "sweep", patience=0.1)


def test_a_storage_elsewhere_and_a_second_name(teacher: str, files: dict[str, str], tmp_path: Path) -> None:
    database = tmp_path / "studies.db"
    for name in ("one", "two"):
        config = quick(
            tmp_path / name, teacher, files, space={"beta": "1,2"}, n_trials=1, storage=str(database), study_name=name
        )
        assert len(sweep(config).trials) == 1
        assert not (tmp_path / name / "study.db").exists()
    assert sorted(optuna.get_all_study_names(f"sqlite:///{database}")) == ["one", "two"]


def test_folders_that_are_refused(
    teacher: str, files: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = tmp_path / "full"
    full.mkdir()
    (full / "mine.txt").write_text("precious")
    for overwrite in (False, True):
        with pytest.raises(UserError, match="holds no earlier sweep"):
            sweep(quick(full, teacher, files, space={"beta": "1,2"}, overwrite_output_dir=overwrite))
    assert [path.name for path in full.iterdir()] == ["mine.txt"]
    with pytest.raises(UserError, match="is or holds the teacher"):
        sweep(quick(Path(teacher), teacher, files, space={"beta": "1,2"}))
    with pytest.raises(UserError, match=r"the teacher .* does not exist"):
        sweep(quick(tmp_path / "new", "./nowhere", files, space={"beta": "1,2"}))
    with pytest.raises(UserError, match="the teacher has 4 layers"):
        sweep(quick(tmp_path / "new", teacher, files, space={"student_layers": "1..9"}))
    with pytest.raises(UserError, match="--storage is no URL"):
        sweep(quick(tmp_path / "new", teacher, files, space={"beta": "1,2"}, storage="nothing://x"))
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="without torchrun, with --jobs"):
        sweep(quick(tmp_path / "new", teacher, files, space={"beta": "1,2"}))
    assert not (tmp_path / "new").exists()


def test_starting_anew(teacher: str, files: dict[str, str], tmp_path: Path) -> None:
    config = quick(tmp_path / "out", teacher, files, space={"beta": "1,2"}, n_trials=1)
    sweep(config)
    (tmp_path / "out" / "mine.txt").write_text("precious")
    other = quick(tmp_path / "out", teacher, files, space={"T": "2,3"}, n_trials=1, overwrite_output_dir=True)
    with Worker(tmp_path / "out"), pytest.raises(UserError, match="a sweep is running"):
        sweep(other)
    assert [list(row["values"]) for row in sweep(other).trials] == [["T"]]
    assert (tmp_path / "out" / "mine.txt").read_text() == "precious"


def test_the_record_keeps_no_password(
    teacher: str, files: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from bert_emd.studies.sweep import search

    config = quick(tmp_path / "out", teacher, files, space={"beta": "1,2"}, storage="postgresql://me:hush@host/db")
    monkeypatch.setattr("sys.argv", ["bert-emd", "sweep", "--storage=postgresql://me:hush@host/db"])
    plan = search.plan_sweep(config)
    (tmp_path / "out").mkdir()
    search._write_record(config, {}, search.check_models_and_data(config, plan.space), plan)
    text = (tmp_path / "out" / "run.json").read_text(encoding="utf-8")
    assert "hush" not in text
    assert json.loads(text)["config"]["storage"] == "postgresql://me:***@host/db"
