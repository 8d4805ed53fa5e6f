"""The whole augmentation: what is written, resumed and refused, and that distillation trains on it."""

from __future__ import annotations

import csv
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from masked_models import ANIMALS, FOODS, PLACES, random_model, sentence, tokenizer_in
from small_runs import quick_distill, sentences, teacher_folder, write_csv, write_tsv
from transformers import BertTokenizerFast

from bert_emd import AugmentConfig, UserError, augment, distill
from bert_emd.data import load_file, load_glue, without_sources
from bert_emd.training.augment import job
from bert_emd.training.augment.resumable import ResumableFile
from bert_emd.training.inputs import load_run_data

KINDS = (ANIMALS, FOODS, PLACES)


@pytest.fixture(scope="module")
def masked(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("masked")
    random_model().save_pretrained(folder)
    tokenizer_in(folder).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Without a head."""
    folder = tmp_path_factory.mktemp("encoder")
    random_model().bert.save_pretrained(folder)
    tokenizer_in(folder).save_pretrained(folder)
    return str(folder)


@pytest.fixture
def train(tmp_path: Path) -> str:
    chance = random.Random(1)
    rows = [(f"{sentence(chance)} and the moonlight, no. {i}", "ab"[i % 2]) for i in range(150)]
    return write_csv(tmp_path / "train.csv", rows)


def config(train: str, **changes: Any) -> AugmentConfig:
    return AugmentConfig(train_file=train, **({"N": 3, "min_similarity": -1.0, "max_seq_length": 30} | changes))


def rows_of(path: Path | str) -> list[dict[str, str]]:
    with Path(path).open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def test_rows_and_their_variants_are_written_and_recorded(masked: str, train: str, tmp_path: Path) -> None:
    result = augment(config(train, model_name_or_path=masked))
    assert (result.path, result.rows, result.candidates) == (tmp_path / "train_aug.csv", 150, "mlm")
    written = rows_of(result.path)
    assert len(written) == result.rows + result.variants > 4 * 100
    at = 0
    for row in rows_of(train):
        assert written[at] == row
        before = row["text"].split()
        while (at := at + 1) < len(written) and written[at]["text"].split()[-1] == before[-1]:
            after = written[at]["text"].split()
            assert written[at]["label"] == row["label"]
            assert len(after) == len(before)
            changed = [k for k in range(len(before)) if after[k] != before[k]]
            assert changed
            assert {before[k] for k in changed} <= {*ANIMALS, *FOODS, *PLACES, "ate", "moonlight,"}
    assert at == len(written)
    record = json.loads((tmp_path / "train_aug.csv.run.json").read_text())
    assert (record["command"], record["result"]["variants"]) == ("augment", result.variants)
    assert record["config"]["seed"] == 42
    assert sorted(p.name for p in tmp_path.iterdir()) == ["train.csv", "train_aug.csv", "train_aug.csv.run.json"]


def test_neighbours_for_all_words_where_there_is_no_head(encoder: str, train: str, caplog: Any) -> None:
    caplog.set_level("INFO", "bert_emd")
    assert augment(config(train, model_name_or_path=encoder)).candidates == "embeddings"
    assert "has no masked language model's head" in caplog.text
    with pytest.raises(UserError, match="is no masked language model"):
        augment(config(train, model_name_or_path=encoder, candidates="mlm", output_file=train.replace("train", "new")))


def test_candidates_embeddings_leaves_the_head_alone(masked: str, encoder: str, train: str, tmp_path: Path) -> None:
    one = augment(
        config(train, model_name_or_path=masked, candidates="embeddings", output_file=str(tmp_path / "1.csv"))
    )
    two = augment(config(train, model_name_or_path=encoder, output_file=str(tmp_path / "2.csv")))
    # The same input embeddings, so the same neighbours.
    assert one.path.read_bytes() == two.path.read_bytes()


def test_glove_neighbours_need_no_model(train: str, tmp_path: Path) -> None:
    glove = tmp_path / "glove.txt"
    angle = {word: k for k, kind in enumerate(KINDS) for word in kind}
    lines = [f"{word} {int(k == 0)} {int(k == 1)} {int(k == 2)} 0.1" for word, k in angle.items()]
    glove.write_text("\n".join([*lines, "moonlight 0 0 0 1", "sunlight 0 0 0 2"]) + "\n")
    result = augment(config(train, glove_embs=str(glove), min_similarity=0.5, N=5))
    assert result.candidates == "embeddings"
    pairs = {(a, b) for row in rows_of(result.path) for a, b in zip(row["text"].split(), PATTERN, strict=False)}
    assert {a for a, b in pairs if b == "ANIMAL"} == set(ANIMALS)
    assert {a for a, b in pairs if b == "FOOD"} == set(FOODS)
    assert {a for a, b in pairs if b == "LIGHT"} == {"moonlight,", "sunlight,"}
    assert {a for a, b in pairs if b == "ate"} == {"ate"}  # not in the table, so it stays


PATTERN = ("the", "ANIMAL", "ate", "the", "FOOD", "in", "the", "PLACE", "and", "the", "LIGHT", "no.", "NUMBER")


def test_words_of_several_pieces_come_from_glove_beside_a_masked_model(masked: str, train: str, tmp_path: Path) -> None:
    (tmp_path / "glove.txt").write_text("moonlight 1 0\nsunlight 1 0.1\ndog 1 0\n")
    result = augment(config(train, model_name_or_path=masked, glove_embs=str(tmp_path / "glove.txt"), N=20))
    lights = {row["text"].split()[10] for row in rows_of(result.path)}
    assert lights == {"moonlight,", "sunlight,", "dog,"}
    assert len({row["text"].split()[1] for row in rows_of(result.path)}) > len(ANIMALS)


@pytest.mark.parametrize("which", ["masked", "encoder"])
def test_the_same_bytes_with_workers_and_after_a_crash(
    which: str, train: str, tmp_path: Path, request: Any, monkeypatch: Any
) -> None:
    model = request.getfixturevalue(which)
    monkeypatch.setattr(job, "_ROWS_LOOKED_UP", 32)
    options: dict[str, Any] = {"model_name_or_path": model}
    whole = augment(config(train, output_file=str(tmp_path / "whole.csv"), **options)).path.read_bytes()
    many = augment(config(train, output_file=str(tmp_path / "many.csv"), workers=2, **options)).path.read_bytes()
    assert many == whole
    other = augment(config(train, output_file=str(tmp_path / "seed.csv"), seed=1, **options)).path.read_bytes()
    assert other != whole

    class Crash(Exception):
        pass

    append = ResumableFile.append
    stopped = config(train, output_file=str(tmp_path / "stopped.csv"), **options)

    def crash(file: ResumableFile, text: str, progress: dict[str, Any]) -> None:
        if progress["rows"] > 64:
            # What was written of the next piece when the power went.
            file._handle.write(b"half a li")
            file._handle.flush()
            raise Crash
        append(file, text, progress)

    monkeypatch.setattr(ResumableFile, "append", crash)
    with pytest.raises(Crash):
        augment(stopped)
    monkeypatch.setattr(ResumableFile, "append", append)
    assert not (tmp_path / "stopped.csv").exists()
    with pytest.raises(UserError, match=r"interrupted file with another seed; .*--overwrite_output_file"):
        augment(config(train, output_file=str(tmp_path / "stopped.csv"), seed=1, **options))
    looked = []
    of = job.Candidates.of
    monkeypatch.setattr(job.Candidates, "of", lambda self, texts: looked.append(len(texts)) or of(self, texts))
    assert augment(stopped).path.read_bytes() == whole
    assert sum(looked) == 150 - 64  # the rows that were kept are not made again
    assert not list(tmp_path.glob(".stopped*"))


def test_a_killed_process_is_gone_on_with(masked: str, tmp_path: Path) -> None:
    chance = random.Random(2)
    train = write_csv(tmp_path / "train.csv", [(sentence(chance) + f" no. {i}", "a") for i in range(2000)])
    options = {"train_file": train, "model_name_or_path": masked, "N": "3", "max_seq_length": "30"}
    words = [word for name, value in options.items() for word in (f"--{name}", value)]
    command = [sys.executable, "-m", "bert_emd.cli", "augment", *words]
    state = tmp_path / ".train_aug.csv.progress.json"
    started = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 200
    while time.monotonic() < deadline and started.poll() is None:
        if state.is_file() and json.loads(state.read_text())["progress"]["rows"] > 0:
            break
        time.sleep(0.01)
    os.kill(started.pid, signal.SIGKILL)
    started.wait()
    assert not (tmp_path / "train_aug.csv").exists()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "going on behind row" in done.stdout
    again = augment(
        AugmentConfig(
            train_file=train, model_name_or_path=masked, N=3, max_seq_length=30, output_file=str(tmp_path / "again.csv")
        )
    )
    assert (tmp_path / "train_aug.csv").read_bytes() == again.path.read_bytes()


def test_two_processes_do_not_write_one_file(tmp_path: Path) -> None:
    one, two = (ResumableFile(tmp_path / "a.csv", {"seed": 1}) for _ in range(2))
    with one.open(start_anew=False):
        one.append("first\n", {"rows": 1})
        with pytest.raises(UserError, match="another process is writing"), two.open(start_anew=True):
            pass
        one.append("second\n", {"rows": 2})
        one.finish()
    assert (tmp_path / "a.csv").read_text() == "first\nsecond\n"
    assert [p.name for p in tmp_path.iterdir()] == ["a.csv"]


def test_a_file_that_another_process_finishes_meanwhile_is_left_alone(tmp_path: Path, monkeypatch: Any) -> None:
    one, two = (ResumableFile(tmp_path / "a.csv", {"seed": 1}) for _ in range(2))
    lock = ResumableFile._lock

    def late(file: ResumableFile) -> None:
        if file is two:  # it has opened the file, and before it asks for the lock the first one ends
            one.append("all of it\n", {"rows": 1})
            one.finish()
            one._handle.close()
        lock(file)

    monkeypatch.setattr(ResumableFile, "_lock", late)
    with (
        one.open(start_anew=False),
        pytest.raises(UserError, match="another process is writing"),
        two.open(start_anew=False),
    ):
        pass
    assert (tmp_path / "a.csv").read_text() == "all of it\n"
    assert [p.name for p in tmp_path.iterdir()] == ["a.csv"]


@pytest.mark.parametrize("content", ["mine", "[1]", '{"command": "distill"}', ""])
def test_a_file_in_the_records_place_is_left_alone(encoder: str, train: str, tmp_path: Path, content: str) -> None:
    (tmp_path / "train_aug.csv.run.json").write_text(content)
    with pytest.raises(UserError, match=r"train_aug\.csv\.run\.json, .* is no such record; move it"):
        augment(config(train, model_name_or_path=encoder))
    assert (tmp_path / "train_aug.csv.run.json").read_text() == content
    assert not (tmp_path / "train_aug.csv").exists()


def test_files_of_one_name_in_two_forms_have_a_record_each(encoder: str, train: str, tmp_path: Path) -> None:
    rows = rows_of(train)
    lines = tmp_path / "train.jsonl"
    lines.write_text("".join(json.dumps(row) + "\n" for row in rows))
    for source in (train, str(lines)):
        augment(config(source, model_name_or_path=encoder))
        record = json.loads((tmp_path / f"train_aug{Path(source).suffix}.run.json").read_text())
        assert record["config"]["train_file"] == source


def test_an_earlier_file_is_replaced_only_when_asked_and_only_if_it_is_ours(
    encoder: str, train: str, tmp_path: Path
) -> None:
    first = augment(config(train, model_name_or_path=encoder))
    with pytest.raises(UserError, match=r"train_aug\.csv is there already; .*--overwrite_output_file"):
        augment(config(train, model_name_or_path=encoder, seed=1))
    before = first.path.read_bytes()
    augment(config(train, model_name_or_path=encoder, seed=1, overwrite_output_file=True))
    assert first.path.read_bytes() != before
    (tmp_path / "mine.csv").write_text("precious")
    for name, message in (
        ("mine.csv", "has left no mine.csv.run.json beside it"),
        ("train.csv", "is read by this command"),
        ("new.tsv", r"must end in \.csv"),
    ):
        with pytest.raises(UserError, match=message):
            augment(
                config(train, model_name_or_path=encoder, output_file=str(tmp_path / name), overwrite_output_file=True)
            )
    assert (tmp_path / "mine.csv").read_text() == "precious"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("cat 1 2\ndog 1\n", r"glove\.txt:2: expected 2 numbers"),
        ("cat 1 2\ndog 1 x\n", r"glove\.txt:2: 'x' is not a number"),
    ],
)
def test_bad_input_leaves_nothing_behind(train: str, tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "glove.txt").write_text(content)
    with pytest.raises(UserError, match=message):
        augment(config(train, glove_embs=str(tmp_path / "glove.txt")))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["glove.txt", "train.csv"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "where should candidates come from"),
        ({"glove_embs": "x", "candidates": "mlm"}, "Name a masked language model"),
        ({"p": 0.0}, "p must be above 0"),
        ({"N": 0}, "N must be at least 1"),
        ({"M": 0}, "M must be at least 1"),
        ({"task_name": "MRPC"}, "exclude each other"),
        ({"candidates": "both"}, "candidates must be one of auto, mlm, embeddings"),
        ({"text_columns": ("a", "b", "c")}, "names 3 columns"),
    ],
)
def test_options_that_make_no_sense(train: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        augment(config(train, **options))


def test_the_published_number_of_variants_of_each_task() -> None:
    published = {"cola": 30, "MRPC": 30, "STS-B": 30, "RTE": 30, "SST-2": 20, "QNLI": 20, "MNLI": 10, "qqp": 10}
    assert {name: AugmentConfig(task_name=name).N for name in published} == published
    assert AugmentConfig(task_name="MNLI", N=4).N == 4


def test_texts_of_control_characters_and_of_megabytes(encoder: str, masked: str, tmp_path: Path) -> None:
    texts = [
        "the dog\x00 ate\x07 bread\x85 in",
        "the dog " * 200_000,
        "!" * 1_000_000,
        "x" * 1_000_000,
        "dog\u2028cat \ufeffgoat",
    ]
    path = tmp_path / "odd.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    for model in (encoder, masked):
        result = augment(
            AugmentConfig(
                train_file=str(path), model_name_or_path=model, N=2, min_similarity=-1.0,
                output_file=str(tmp_path / f"{Path(model).name}.jsonl"),
            )
        )  # fmt: skip
        file = load_file(result.path, needs_labels=False)
        assert [text for text in texts if text in file.texts] == texts
        assert result.variants >= 4


def test_distillation_trains_on_it_without_the_held_out_rows(
    encoder: str, words: BertTokenizerFast, tmp_path: Path
) -> None:
    train = write_csv(tmp_path / "train.csv", sentences(60, seed=3))
    (tmp_path / "glove.txt").write_text(
        "house 1 0\nriver 1 0.1\nroad 1 0.2\nday 1 0\nnight 1 0.1\nsong 1 0.4\nbook 1 0\n"
    )
    augmented = augment(config(train, glove_embs=str(tmp_path / "glove.txt"), N=4))
    teacher = teacher_folder(words, tmp_path / "teacher")
    options = quick_distill(tmp_path / "out", train_file=train, aug_train=True, mapping="kd")
    result = distill(teacher, None, config=options)
    data = load_run_data(options, None, None, augmented=True)
    source, file = load_file(train), load_file(augmented.path)
    held = source.subset([k for k, i in enumerate(source.indices) if i in set(data.validation.indices)])
    assert len(held) == 6
    expected = without_sources(file, source, held)
    assert data.train.texts == expected.kept.texts
    assert not set(held.texts) & set(data.train.texts)
    assert result.metrics["rows"]["train"] == len(expected.kept)
    # With validation rows of their own, nothing is left out; and the file may lie anywhere.
    elsewhere = augmented.path.rename(tmp_path / "moved.csv")
    given = quick_distill(tmp_path / "out", train_file=train, validation_file=train, aug_file=str(elsewhere))
    assert len(load_run_data(given, None, None, augmented=given.augmented).train) == len(file)
    with pytest.raises(UserError, match=r"there is no .*train_aug\.csv; make it with `bert-emd augment"):
        load_run_data(options, None, None, augmented=True)


def test_a_tasks_file_goes_where_distillation_looks_for_it(encoder: str, tmp_path: Path) -> None:
    rows = [("src", i % 2, "", sentence(random.Random(i)) + f" no. {i}") for i in range(60)]
    for name in ("train", "dev"):
        write_tsv(tmp_path / "CoLA" / f"{name}.tsv", None, rows)
    made = augment(
        AugmentConfig(task_name="cola", data_dir=str(tmp_path), model_name_or_path=encoder, N=2, min_similarity=-1.0)
    )
    assert made.path == tmp_path / "CoLA" / "train_aug.tsv"
    options = quick_distill(tmp_path / "out", task_name="CoLA", data_dir=str(tmp_path), aug_train=True)
    assert len(load_run_data(options, None, None, augmented=options.augmented).train) == made.rows + made.variants
    moved = str(made.path.rename(tmp_path / "elsewhere.tsv"))
    held = quick_distill(
        tmp_path / "out", task_name="CoLA", data_dir=str(tmp_path), aug_file=moved, select_on="holdout"
    )
    data = load_run_data(held, None, None, augmented=held.augmented)
    assert data.augmented is not None
    assert data.augmented.unclear == 0
    assert not set(data.validation.texts) & set(data.train.texts)
    assert len(load_glue("CoLA", "train", tmp_path)) == 60
