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
    write_whole,
)


def check(folder: Path | str | None, *, overwrite: bool = False, resume: bool = False, **inputs: Any) -> Path:
    return check_output_dir(None if folder is None else str(folder), overwrite=overwrite, resume=resume, inputs=inputs)


def filled(folder: Path, *names: str) -> Path:
    for name in names or ("model.safetensors",):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("{}" if path.name == "trainer_state.json" else name)
    return folder


def earlier_run(folder: Path, *names: str) -> Path:
    filled(folder, *names)
    (folder / "run.json").write_text(json.dumps({"command": "distill", "config": {}}))
    return folder


def complete(*names: str) -> list[str]:
    """The files that make these checkpoints resumable."""
    return [f"{name}/{file}" for name in names for file in ("optimizer.pt", "trainer_state.json")]


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


def test_an_earlier_run_is_refused_unless_resumed_or_overwritten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    earlier_run(tmp_path / "out", "notes.txt")
    with pytest.raises(UserError, match=r"is not empty; name a new one.*--overwrite_output_dir"):
        check(tmp_path / "out")
    check(tmp_path / "out", resume=True)
    check(tmp_path / "out", overwrite=True)
    assert (tmp_path / "out" / "notes.txt").exists()
    monkeypatch.setenv("RANK", "1")
    check(tmp_path / "out")


@pytest.mark.parametrize("record", [None, "", "[]", '{"command": "npm"}', '{"config": {}}', "\N{SNOWMAN}"])
@pytest.mark.parametrize("overwrite", [True, False])
def test_a_folder_that_is_no_run_of_ours_is_refused_and_never_emptied(
    record: str | None, overwrite: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = ("vocab.txt", "best/photo.jpg", "last/will.txt", "checkpoint-3/config.json")
    filled(tmp_path, *mine)
    if record is not None:
        (tmp_path / "run.json").write_text(record, encoding="utf-8")
    with pytest.raises(UserError, match="holds no earlier run, so nothing in it is replaced; name another"):
        check(tmp_path, overwrite=overwrite)
    open_output_dir(tmp_path, resume=False)
    assert all((tmp_path / name).exists() for name in mine)
    monkeypatch.setenv("RANK", "1")
    check(tmp_path, overwrite=overwrite)


def test_a_run_killed_while_it_wrote_its_record_has_left_nothing(tmp_path: Path) -> None:
    filled(tmp_path, ".run.json.partial")
    check(tmp_path)


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
    earlier_run(tmp_path / "out")
    check(tmp_path / "out", overwrite=True, teacher="owner/name", student=None, data="nyu-mll/glue")


def test_every_input_is_watched_wherever_it_was_named() -> None:
    class Model:
        name_or_path = "models/mine"

    config = DistillConfig(data_dir="glue", train_file="a.csv", validation_file="b.csv", test_file="c.csv")
    found = files_read(config, None, None, teacher=Model(), student="student")
    assert found == {
        "data": "glue", "training file": "a.csv", "validation file": "b.csv", "test file": "c.csv",
        "augmented file": None, "teacher": "models/mine", "student": "student",
    }  # fmt: skip
    Model.name_or_path = ""
    found = files_read(config, Path("d.csv"), object(), teacher=Model(), student=None)
    assert (found["training file"], found["validation file"]) == (Path("d.csv"), None)
    assert found["teacher"] is found["student"] is None


def test_opening_removes_a_runs_files_and_nothing_else(tmp_path: Path) -> None:
    mine = ("notes.txt", "mine/model.safetensors", "checkpoint-x/a", "checkpoints/b", "my-metrics.json", "data/last",
            "best/photo.jpg", "checkpoint-8/notes.txt", "tokenizer.json/mine")  # fmt: skip
    runs = (
        "config.json", "model.safetensors", "tokenizer_config.json", "vocab.txt", "metrics.json", "run.json",
        "layer_mapping.json", ".metrics.json.partial", "last/config.json", "best/step-3/score.json",
        "best/step-4/model.safetensors", "checkpoint-3/trainer_state.json", "checkpoint-12/config.json",
    )  # fmt: skip
    earlier_run(tmp_path, *mine, *runs)
    (tmp_path / "elsewhere").mkdir()
    open_output_dir(tmp_path, resume=True)
    assert all((tmp_path / name).exists() for name in (*mine, *runs))
    open_output_dir(tmp_path, resume=False)
    assert all((tmp_path / name).exists() for name in mine)
    assert not [name for name in runs if (tmp_path / name).exists()]


def test_an_empty_best_goes_too_and_the_record_goes_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    earlier_run(tmp_path, "config.json", "layer_mapping.json", "best/step-3/score.json")
    gone: list[str] = []
    unlink = Path.unlink
    monkeypatch.setattr(
        Path, "unlink", lambda path, **more: (path.exists() and gone.append(path.name), unlink(path, **more))[1]
    )
    open_output_dir(tmp_path, resume=False)
    assert list(tmp_path.iterdir()) == []
    assert gone == ["config.json", "layer_mapping.json", "run.json"]


def test_folders_behind_links_are_not_emptied(tmp_path: Path) -> None:
    treasure = filled(tmp_path / "treasure", "gold", "config.json", "step-1/config.json")
    earlier_run(tmp_path / "out", "notes.txt")
    (tmp_path / "out" / "best").symlink_to(treasure)
    (tmp_path / "out" / "last").symlink_to(treasure)
    (tmp_path / "out" / "checkpoint-4").symlink_to(treasure)
    open_output_dir(tmp_path / "out", resume=False)
    assert all((treasure / name).exists() for name in ("gold", "config.json", "step-1/config.json"))
    assert not (tmp_path / "out" / "run.json").exists()


def test_where_to_go_on(tmp_path: Path) -> None:
    filled(tmp_path, *complete("checkpoint-5", "checkpoint-40"), "checkpoint-100/model.bin")
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
    with pytest.raises(UserError, match="Name a new folder with --output_dir"):
        resume_point(None, "true")


def test_a_run_goes_on_in_its_own_folder_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    filled(tmp_path / "other", *complete("checkpoint-2", "deep/checkpoint-2"))
    filled(tmp_path / "full", "thesis.txt")
    monkeypatch.chdir(tmp_path)
    for folder, wanted in (("full", "other/checkpoint-2"), ("other", "other/deep/checkpoint-2"), ("new", "other")):
        filled(tmp_path, *complete(wanted))
        with pytest.raises(UserError, match=rf"does not lie in output_dir {folder}; .* --output_dir \S+"):
            resume_point(folder, wanted)
    assert resume_point(str(tmp_path / "other"), "full/../other/checkpoint-2") is not None


def test_a_checkpoint_without_the_optimisers_state_cannot_be_resumed(tmp_path: Path) -> None:
    filled(tmp_path, "checkpoint-7/trainer_state.json", "checkpoint-7/model.safetensors")
    assert complete_checkpoints(tmp_path) == []
    assert complete_checkpoints(tmp_path, resumable=False) == [tmp_path / "checkpoint-7"]
    for wanted in ("true", str(tmp_path / "checkpoint-7")):
        with pytest.raises(UserError, match=r"checkpoint-7 cannot be resumed: it has no optimizer\.pt .*start anew"):
            resume_point(str(tmp_path), wanted)
    filled(tmp_path, *complete("checkpoint-5"))
    assert resume_point(str(tmp_path), "true") == tmp_path / "checkpoint-5"


def test_json_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    write_json(file, {"name": "Zoë"})
    with pytest.raises(TypeError):
        write_json(file, {"name": object()})
    assert json.loads(file.read_text(encoding="utf-8")) == {"name": "Zoë"}
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


def test_text_is_written_as_it_is_and_what_cannot_be_written_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "a.csv"
    write_whole(file, "Zoë\r\n1\n")
    assert file.read_bytes() == "Zoë\r\n1\n".encode()
    with pytest.raises(UserError, match=r"none/a\.csv cannot be written: No such file or directory; make room"):
        write_whole(tmp_path / "none" / "a.csv", "")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("bert_emd.training.outputs.os.replace", full)
    with pytest.raises(UserError, match=r"a\.csv cannot be written: No space left on device"):
        write_whole(file, "new")
    with pytest.raises(UserError, match="No space left on device"):
        install_model(filled(tmp_path / "best"), tmp_path / "out")
    assert file.read_bytes() == "Zoë\r\n1\n".encode()
    assert list(tmp_path.rglob("*.partial")) == []


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


@pytest.mark.parametrize("content", ["", '{"global_step": 9, "log_hist'])
def test_a_checkpoint_whose_last_file_is_half_written_is_none(tmp_path: Path, content: str) -> None:
    """A run may be stopped in the middle of writing it."""
    filled(tmp_path, *(f"checkpoint-{n}/{file}" for n in (3, 9) for file in ("optimizer.pt", "trainer_state.json")))
    (tmp_path / "checkpoint-9" / "trainer_state.json").write_text(content)
    assert resume_point(str(tmp_path), "true") == tmp_path / "checkpoint-3"
    with pytest.raises(UserError, match="checkpoint-9 is not a complete checkpoint"):
        resume_point(str(tmp_path), str(tmp_path / "checkpoint-9"))
