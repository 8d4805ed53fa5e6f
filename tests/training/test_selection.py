"""Which rows choose the checkpoint (`select_on`), that they are left out of training, and what is said about it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from sklearn.model_selection import train_test_split
from small_runs import LABELS, plain_batches, quick_distill, quick_finetune, read, sentences, write_tsv
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from bert_emd import UserError, distill, finetune
from bert_emd.training.inputs import load_run_data

COLA = dict(zip(LABELS, ("0", "1"), strict=True))


def cola(folder: Path) -> str:
    for name, count, seed in (("train", 60, 1), ("dev", 16, 2)):
        rows = [["s", COLA[label], "*", text] for text, label in sentences(count, seed)]
        write_tsv(folder / "CoLA" / f"{name}.tsv", None, rows)
    return str(folder)


def held_out(count: int, labels: list[int]) -> list[int]:
    """The rows by scikit-learn alone; the classes are numbered as they appear."""
    order = {label: i for i, label in enumerate(dict.fromkeys(labels))}
    _, held = train_test_split(
        range(len(labels)), test_size=count, random_state=13, stratify=[order[label] for label in labels]
    )
    return sorted(held)


def test_of_a_glue_task_a_tenth_of_the_training_rows_chooses_and_dev_is_reported(tmp_path: Path) -> None:
    data_dir = cola(tmp_path)
    rows = sentences(60, 1)
    expected = held_out(6, [LABELS.index(label) for _, label in rows])
    config = quick_distill(tmp_path / "out", task_name="CoLA", data_dir=data_dir, select_on="holdout")
    data = load_run_data(config, None, None)
    assert data.validation.texts == [rows[i][0] for i in expected]
    assert data.train.texts == [text for i, (text, _) in enumerate(rows) if i not in expected]
    assert [text for text, _ in sentences(16, 2)] == data.reported["validation"].texts
    assert (data.optimistic, data.held_out) == (False, True)
    unlabelled = load_run_data(config, None, None, needs_labels=False)
    assert unlabelled.validation.texts == data.validation.texts


def test_augmented_rows_go_with_their_source(tmp_path: Path) -> None:
    data_dir = cola(tmp_path)
    rows = sentences(60, 1)
    variants = [["s", COLA[label], "*", f"{text}{end}"] for text, label in rows for end in ("", " x1", " x2")]
    write_tsv(tmp_path / "CoLA" / "train_aug.tsv", None, variants)
    config = quick_distill(tmp_path / "out", task_name="CoLA", data_dir=data_dir, select_on="holdout", aug_train=True)
    data = load_run_data(config, None, None, augmented=True)
    gone = set(data.validation.texts)
    assert len(gone) == 6
    assert data.train.texts == [v[3] for v in variants if v[3].removesuffix(" x1").removesuffix(" x2") not in gone]
    assert data.augmented is not None
    assert (data.augmented.held, data.augmented.unclear) == (18, 0)
    usual = quick_distill(tmp_path / "out", task_name="CoLA", data_dir=data_dir, aug_train=True)
    assert len(load_run_data(usual, None, None, augmented=True).train) == 180


def test_own_data_with_a_validation_file_and_without(files: dict[str, str], tmp_path: Path) -> None:
    only = {"train_file": files["train_file"]}
    both = only | {"validation_file": files["validation_file"]}
    everything = both | {"test_file": files["test_file"]}

    def loaded(**changes: str):
        return load_run_data(quick_distill(tmp_path, **changes), None, None)

    data = loaded(**both, select_on="holdout")
    assert [len(x) for x in (data.train, data.validation, data.reported["validation"])] == [36, 4, 16]
    assert not data.optimistic
    data = loaded(**only, select_on="holdout")
    assert [len(x) for x in (data.train, data.validation, data.reported["validation"])] == [32, 4, 4]
    assert data.reported["validation"].texts == loaded(**only).validation.texts
    together = data.train.texts + data.validation.texts + data.reported["validation"].texts
    assert sorted(together) == sorted(text for text, _ in sentences(40, 1))
    assert not data.optimistic
    for select_on in ("dev", "holdout"):
        data = loaded(**everything, select_on=select_on)
        assert (len(data.train), len(data.validation), list(data.reported)) == (40, 16, ["test"])
        assert (data.optimistic, data.held_out) == (False, False)
    data = loaded(**only, test_file=files["test_file"])
    assert (len(data.train), len(data.validation), data.held_out) == (36, 4, True)


def test_metrics_tell_the_selection_and_its_scores(teacher: str, files: dict[str, str], tmp_path: Path) -> None:
    own = {"train_file": files["train_file"], "validation_file": files["validation_file"]}
    config = quick_distill(tmp_path / "out", **own, select_on="holdout", eval_step=2)
    result = distill(teacher, None, config=config)
    selection = result.metrics["selection"]
    assert result.metrics["optimistic"] is False
    assert result.metrics["selected_on"] == "a tenth of the training data, held out"
    assert result.metrics["reported_on"] == "validation"
    assert (selection["rows"], selection["held_out"]) == (4, True)
    assert selection["teacher_may_have_seen"] is True  # its folder says nothing about its training
    assert "the teacher may have seen the rows that chose" in result.summary
    assert "chosen on a tenth" in result.summary
    rows = sentences(40, 1)
    held = [rows[i] for i in held_out(4, [LABELS.index(label) for _, label in rows])]
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    for name, folder in (("best", tmp_path / "out"), ("last", tmp_path / "out" / "last")):
        model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
        right = 0
        with torch.no_grad():
            for batch, labels in plain_batches(held, tokenizer, 4):
                right += int((model(**batch).logits.argmax(-1) == labels).sum())
        assert selection[name]["accuracy"] == pytest.approx(right / 4)


def test_a_teacher_is_above_suspicion_only_if_its_record_shows_the_same_held_out_rows(
    teacher: str, files: dict[str, str], tmp_path: Path
) -> None:
    own = {"train_file": files["train_file"], "validation_file": files["validation_file"], "max_steps": 2}

    def seen(folder: str, select_on: str = "holdout", **changes: str) -> object:
        out = tmp_path / f"student-{len(list(tmp_path.iterdir()))}"
        config = quick_distill(out, **(own | changes), select_on=select_on, mapping="kd")
        return distill(folder, None, config=config).metrics["selection"]["teacher_may_have_seen"]

    for select_on in ("holdout", "dev"):
        config = quick_finetune(tmp_path / select_on, **own, select_on=select_on)
        selection = finetune(teacher, None, config=config).metrics["selection"]
        assert selection["held_out"] is (select_on == "holdout")
        assert selection["best"].keys() == selection["last"].keys() == {"accuracy", "f1_macro"}
    assert seen(str(tmp_path / "holdout")) is False
    assert seen(str(tmp_path / "dev")) is True
    # Nothing of the training data chooses here, so there is nothing to have seen.
    assert seen(teacher, select_on="dev") is False
    # The same teacher, but other rows are held out now.
    assert seen(str(tmp_path / "holdout"), train_file=files["test_file"]) is True
    assert read(tmp_path / "holdout" / "run.json")["selection"]["rows"] == 4


def test_select_on_takes_two_words_only(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="select_on must be one of dev, holdout, not 'test'"):
        quick_distill(tmp_path, select_on="test")
