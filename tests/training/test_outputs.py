"""The output folder: what may be written where, and files that appear whole or not at all."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bert_emd import DistillConfig, UserError
from bert_emd.training.outputs import (
    check_output_dir,
    complete_checkpoints,
    files_read,
    install_model,
    open_output_dir,
    resume_point,
    write_json,
)


def check(folder: Path | str | None, *, overwrite: bool = False, resume: bool = False, **inputs: Any) -> Path:
    return check_output_dir(None if folder is None else str(folder), overwrite=overwrite, resume=resume, inputs=inputs)


def filled(folder: Path, *names: str) -> Path:
    for name in names or ("model.safetensors",):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    return folder


def test_a_new_or_an_empty_folder_is_fine_and_checking_makes_nothing(tmp_path: Path) -> None:
    assert check(tmp_path / "a" / "b") == tmp_path / "a" / "b"
    assert not (tmp_path / "a").exists()
    open_output_dir(tmp_path / "a" / "b", resume=False)
    assert check(tmp_path / "a" / "b").is_dir()


@pytest.mark.parametrize("path", [None, ""])
def test_no_folder(path: str | None) -> None:
    with pytest.raises(UserError, match="Name a new folder with --output_dir"):
        check(path)


def test_a_file_in_the_way(tmp_path: Path) -> None:
    filled(tmp_path, "file")
    with pytest.raises(UserError, match="is a file; name a folder"):
        check(tmp_path / "file")
    with pytest.raises(UserError, match="cannot be made"):
        open_output_dir(tmp_path / "file" / "below", resume=False)


def test_a_folder_that_is_not_empty_is_refused_unless_resumed_or_overwritten(tmp_path: Path) -> None:
    filled(tmp_path / "out", "notes.txt")
    with pytest.raises(UserError, match=r"is not empty; name a new one.*--overwrite_output_dir"):
        check(tmp_path / "out")
    check(tmp_path / "out", resume=True)
    check(tmp_path / "out", overwrite=True)
    assert (tmp_path / "out" / "notes.txt").exists()


@pytest.mark.parametrize("overwrite", [True, False])
@pytest.mark.parametrize("resume", [True, False])
def test_the_teachers_own_folder_is_always_refused(overwrite: bool, resume: bool, tmp_path: Path) -> None:
    teacher = filled(tmp_path / "teacher")
    (tmp_path / "link").symlink_to(teacher)
    for name in (teacher, tmp_path / "x" / ".." / "teacher", tmp_path / "link"):
        with pytest.raises(UserError, match="is the teacher's own folder; name another"):
            check(name, overwrite=overwrite, resume=resume, teacher=str(teacher))


@pytest.mark.parametrize(
    ("output", "value", "match"),
    [
        ("out", "out/teacher", "holds the teacher"),
        ("teacher/out", "teacher", "lies in the teacher"),
        ("out", "out/data/MRPC", "holds the teacher"),
        (".", "teacher", "holds the teacher"),
    ],
)
def test_overwriting_around_or_inside_an_input_is_refused(
    output: str, value: str, match: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    filled(tmp_path / value)
    filled(tmp_path / output, "metrics.json")
    with pytest.raises(UserError, match=match):
        check(output, overwrite=True, teacher=value)
    assert (tmp_path / value / "model.safetensors").exists()
    assert (tmp_path / output / "metrics.json").exists()


def test_a_training_file_in_the_folder_is_refused(tmp_path: Path) -> None:
    filled(tmp_path, "vocab.txt")
    with pytest.raises(UserError, match="holds the training file"):
        check(tmp_path, overwrite=True, **{"training file": tmp_path / "vocab.txt"})


def test_hub_ids_and_absent_inputs_are_in_nobodys_way(tmp_path: Path) -> None:
    filled(tmp_path / "out")
    check(tmp_path / "out", overwrite=True, teacher="owner/name", student=None, data="nyu-mll/glue")


def test_every_input_is_watched_wherever_it_was_named() -> None:
    class Model:
        name_or_path = "models/mine"

    config = DistillConfig(data_dir="glue", train_file="a.csv", validation_file="b.csv", test_file="c.csv")
    found = files_read(config, None, None, teacher=Model(), student="student")
    assert found == {
        "data": "glue", "training file": "a.csv", "validation file": "b.csv", "test file": "c.csv",
        "teacher": "models/mine", "student": "student",
    }  # fmt: skip
    Model.name_or_path = ""
    found = files_read(config, Path("d.csv"), object(), teacher=Model(), student=None)
    assert (found["training file"], found["validation file"]) == (Path("d.csv"), None)
    assert found["teacher"] is found["student"] is None


def test_opening_removes_a_runs_files_and_nothing_else(tmp_path: Path) -> None:
    mine = ("notes.txt", "mine/model.safetensors", "checkpoint-x/a", "checkpoints/b", "my-metrics.json", "data/last")
    runs = (
        "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "vocab.txt", "metrics.json",
        "run.json", "layer_mapping.json", "last/config.json", "best/step-3/score.json",
        "checkpoint-3/trainer_state.json", "checkpoint-12/optimizer.pt",
    )  # fmt: skip
    filled(tmp_path, *mine, *runs)
    (tmp_path / "elsewhere").mkdir()
    open_output_dir(tmp_path, resume=True)
    assert all((tmp_path / name).exists() for name in (*mine, *runs))
    open_output_dir(tmp_path, resume=False)
    assert all((tmp_path / name).exists() for name in mine)
    assert not [name for name in runs if (tmp_path / name).exists()]


def test_folders_behind_links_are_not_emptied(tmp_path: Path) -> None:
    treasure = filled(tmp_path / "treasure", "gold")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "last").symlink_to(treasure)
    (tmp_path / "out" / "checkpoint-4").symlink_to(treasure)
    open_output_dir(tmp_path / "out", resume=False)
    assert (treasure / "gold").exists()


def test_where_to_go_on(tmp_path: Path) -> None:
    filled(tmp_path, "checkpoint-5/trainer_state.json", "checkpoint-40/trainer_state.json", "checkpoint-100/model.bin")
    assert [path.name for path in complete_checkpoints(tmp_path)] == ["checkpoint-5", "checkpoint-40"]
    assert complete_checkpoints(tmp_path / "none") == []
    for wanted in (None, "false", "No", "0"):
        assert resume_point(str(tmp_path), wanted) is None
    for wanted in ("true", "Yes", "1"):
        assert resume_point(str(tmp_path), wanted) == tmp_path / "checkpoint-40"
    assert resume_point(str(tmp_path), str(tmp_path / "checkpoint-5")) == tmp_path / "checkpoint-5"
    with pytest.raises(UserError, match="is not a complete checkpoint"):
        resume_point(str(tmp_path), str(tmp_path / "checkpoint-100"))
    with pytest.raises(UserError, match=r"no complete checkpoint in .* to resume from"):
        resume_point(str(tmp_path / "none"), "true")


def test_json_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    write_json(file, {"name": "Zoë"})
    with pytest.raises(TypeError):
        write_json(file, {"name": object()})
    assert json.loads(file.read_text(encoding="utf-8")) == {"name": "Zoë"}
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


def test_a_model_is_installed_without_its_score_and_its_weights_come_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = filled(tmp_path / "best", "config.json", "model.safetensors", "tokenizer.json", "score.json")
    moved: list[str] = []
    import os

    replace = os.replace
    monkeypatch.setattr(
        "bert_emd.training.outputs.os.replace", lambda a, b: (moved.append(Path(b).name), replace(a, b))[1]
    )
    install_model(source, tmp_path / "out", skip=("score.json",))
    assert sorted(moved) == ["config.json", "model.safetensors", "tokenizer.json"]
    assert moved[-1] == "model.safetensors"
    assert {path.name: path.read_text() for path in (tmp_path / "out").iterdir()} == {name: name for name in moved}
