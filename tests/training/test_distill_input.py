"""`distill` on data and models of the user's own: what it takes, what it refuses, and that a refusal costs nothing."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from small_runs import LABELS, model_state, quick_distill, read, sentences, trained, write_csv
from tiny_encoders import BAD, GOOD, PLAIN, same_tensors, save, tiny
from transformers import AutoModelForSequenceClassification, AutoTokenizer, BertTokenizerFast

from bert_emd import UserError, distill
from bert_emd.method import MAPPINGS


def test_without_validation_a_tenth_is_held_out_and_the_score_is_optimistic(
    teacher: str, files: dict[str, str], tmp_path: Path
) -> None:
    result = distill(teacher, files["train_file"], config=quick_distill(tmp_path))
    metrics = result.metrics
    assert metrics["selected_on"] == metrics["reported_on"] == "a tenth of the training data, held out"
    assert metrics["optimistic"] is True
    assert metrics["rows"] == {"train": 36, "validation": 4}
    assert {"accuracy", "f1_macro", "retention", "retention_above_trivial"} == metrics["last"].keys()
    assert "the same rows, so the best score is optimistic" in result.summary


def test_alpha_1_needs_no_labels_at_all(teacher: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = [[text] for text, _ in sentences(40, seed=1)]
    train = write_csv(tmp_path / "train.csv", rows, ["text"])
    validation = write_csv(tmp_path / "validation.csv", rows[:8], ["text"])
    config = quick_distill(tmp_path / "out", validation_file=validation)
    metrics = distill(teacher, train, config=config).metrics
    assert metrics["teacher"]["accuracy"] == 1.0  # it agrees with itself
    assert metrics["selected_on"] == "validation (labelled by the teacher)"
    assert "agreement with the teacher" in caplog.text
    plain = [AutoModelForSequenceClassification.from_pretrained(f).eval() for f in (teacher, tmp_path / "out")]
    tokenizer = AutoTokenizer.from_pretrained(teacher)
    answers = []
    for model in plain:
        batch = [tokenizer(text, return_tensors="pt") for (text,) in rows[:8]]
        answers.append([int(model(**inputs).logits.argmax()) for inputs in batch])
    assert metrics["student"]["accuracy"] == sum(a == b for a, b in zip(*answers, strict=True)) / 8


def test_unlabelled_training_rows_with_labelled_validation(teacher: str, files: dict[str, str], tmp_path: Path) -> None:
    rows = [[text] for text, _ in sentences(40, seed=1)]
    train = write_csv(tmp_path / "train.csv", rows, ["text"])
    metrics = distill(
        teacher, train, config=quick_distill(tmp_path / "out", validation_file=files["validation_file"])
    ).metrics
    assert metrics["selected_on"] == "validation"
    assert metrics["trivial"]["accuracy"] == 0.5


def test_alpha_below_1_needs_labels(teacher: str, tmp_path: Path) -> None:
    train = write_csv(tmp_path / "train.csv", [[text] for text, _ in sentences(20, seed=1)], ["text"])
    with pytest.raises(UserError, match=r"no label column .* without labels: --alpha 1"):
        distill(teacher, train, config=quick_distill(tmp_path / "out", alpha=0.5))
    with pytest.raises(UserError, match="no label column") as untaught:
        distill(teacher, train, config=quick_distill(tmp_path / "out", mapping="none"))
    assert "--alpha" not in str(untaught.value)
    assert not (tmp_path / "out").exists()


def test_data_sets_and_models_in_memory_are_the_same_as_files(
    teacher: str, files: dict[str, str], tmp_path: Path
) -> None:
    by_name = quick_distill(tmp_path / "files", **{k: v for k, v in files.items() if k != "test_file"})
    distill(teacher, None, config=by_name)
    train, validation = (
        datasets.Dataset.from_dict({"text": [t for t, _ in rows], "label": [name for _, name in rows]})
        for rows in (sentences(40, seed=1), sentences(16, seed=2))
    )
    distill(
        AutoModelForSequenceClassification.from_pretrained(teacher), train, validation=validation,
        tokenizer=AutoTokenizer.from_pretrained(teacher), config=quick_distill(tmp_path / "memory"),
    )  # fmt: skip
    assert same_tensors(model_state(tmp_path / "files"), model_state(tmp_path / "memory"))


def test_a_student_in_memory_is_the_one_that_is_trained(teacher: str, files: dict[str, str], tmp_path: Path) -> None:
    student = tiny("bert", layers=1, width=8, labels=LABELS, seed=7)
    distill(teacher, None, student=student, config=quick_distill(tmp_path, **files))
    assert same_tensors(model_state(tmp_path / "last"), dict(student.state_dict()))
    with pytest.raises(UserError, match="labels are not the teacher's"):
        distill(teacher, None, student=tiny("bert", layers=1), config=quick_distill(tmp_path / "b", **files))
    deep = tiny("bert", layers=5, labels=LABELS)
    with pytest.raises(UserError, match="deeper than the teacher"):
        distill(teacher, None, student=deep, config=quick_distill(tmp_path / "b", **files))
    with pytest.raises(UserError, match="pass tokenizer="):
        distill(tiny("bert"), None, config=quick_distill(tmp_path / "b", **files))
    assert not (tmp_path / "b").exists()


# The pairs of a student of 3 and a teacher of 4 layers, counted from 0; None: drawn, or all of them.
PAIRS: dict[str, list[tuple[int, int]] | None] = {
    "kd": [], "none": [], "emd": None, "random": None, "uniform": [(0, 1), (1, 2), (2, 3)], "skip": [(0, 1), (1, 2)],
    "pkd": [(0, 1), (1, 2)], "last": [(0, 1), (1, 2)], "reverse": [(0, 3), (1, 2), (2, 1)],
    "all-to-one": [(0, 3), (1, 3), (2, 3)], "manual": [(0, 0), (2, 3)], "minilm": [(2, 3)],
}  # fmt: skip


def test_every_mapping_is_run_below() -> None:
    assert PAIRS.keys() == {*MAPPINGS, "kd", "none"}


@pytest.mark.parametrize("mapping", PAIRS)
def test_every_mapping_runs_and_only_those_that_match_layers_leave_a_history(
    mapping: str, teacher: str, files: dict[str, str], tmp_path: Path
) -> None:
    more = {"layer_map": "1:1,3:4"} if mapping == "manual" else {}
    config = quick_distill(tmp_path, **files, mapping=mapping, student_layers=3, **more)
    result = distill(teacher, None, config=config)
    history = read(tmp_path / "layer_mapping.json")
    assert history == result.mapping
    assert result.metrics["student"]["accuracy"] >= 0.0
    pairs = PAIRS[mapping]
    if pairs == []:
        assert history == []
        return
    entry = history[-1]["relation" if mapping == "minilm" else "hidden"]
    plan, cost = np.array(entry["plan"]), np.array(entry["cost"], dtype=float)
    if pairs is not None:
        assert list(zip(*plan.nonzero(), strict=True)) == pairs
        assert np.isnan(cost[plan == 0]).all()
    assert (cost[plan > 0] > 0).all()
    notes = read(tmp_path / "run.json")["mapping"]
    assert (mapping == "emd") is not any(f"mapping {mapping}" in note for note in notes)


def test_the_published_optimiser_and_constant_rate(teacher: str, files: dict[str, str], tmp_path: Path) -> None:
    options: dict[str, Any] = {
        "optimizer": "bert_adam", "lr_scheduler": "constant", "count_padding": True, "rule": "double-softmax",
        "beta": 0.01, "one_step": False, "group_by_length": False, "logging_steps": 1,
    }  # fmt: skip
    result = distill(teacher, None, config=quick_distill(tmp_path, **files, **options))
    state = read(tmp_path / "checkpoint-5" / "trainer_state.json")
    rates = [entry["learning_rate"] for entry in state["log_history"] if "learning_rate" in entry]
    assert rates == [2e-3] * 5
    for weights in result.mapping[-1]["weights"].values():
        n = len(weights)
        low, high = 1 / (2.718281828 + n - 1), 2.718281828 / (2.718281828 + n - 1)
        assert all(low - 1e-9 <= w <= high + 1e-9 for w in weights)  # what the second softmax confines them to


def test_labels_are_matched_by_name_whatever_their_order(teacher: str, files: dict[str, str], tmp_path: Path) -> None:
    """The same teacher with its outputs in the other order gives the same scores and a student of that order."""
    swapped = AutoModelForSequenceClassification.from_pretrained(teacher)
    with torch.no_grad():
        swapped.classifier.weight.copy_(swapped.classifier.weight.flip(0).clone())
        swapped.classifier.bias.copy_(swapped.classifier.bias.flip(0).clone())
    swapped.config.id2label, swapped.config.label2id = {0: "good", 1: "bad"}, {"good": 0, "bad": 1}
    tokenizer = AutoTokenizer.from_pretrained(teacher)
    save(swapped, tokenizer, tmp_path / "swapped")
    one = distill(teacher, None, config=quick_distill(tmp_path / "a", **files, alpha=0.5))
    two = distill(str(tmp_path / "swapped"), None, config=quick_distill(tmp_path / "b", **files, alpha=0.5))
    assert two.metrics["teacher"]["accuracy"] == one.metrics["teacher"]["accuracy"] > 0.7
    assert read(tmp_path / "b" / "config.json")["id2label"] == {"0": "good", "1": "bad"}
    rows = sentences(16, seed=3)
    right = 0
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "b").eval()
    for text, label in rows:
        right += model.config.id2label[int(model(**tokenizer(text, return_tensors="pt")).logits.argmax())] == label
    assert two.metrics["student"]["accuracy"] == right / 16


def test_other_label_names_are_refused_and_nothing_is_written(
    words: BertTokenizerFast, files: dict[str, str], tmp_path: Path
) -> None:
    save(tiny("bert", layers=2, labels=("sour", "sweet")), words, tmp_path / "teacher")
    with pytest.raises(UserError, match=r"bad|good|unknown label") as error:
        distill(str(tmp_path / "teacher"), None, config=quick_distill(tmp_path / "out", **files))
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


def nameless(words: BertTokenizerFast, folder: Path) -> str:
    model = trained(words)
    model.config.id2label, model.config.label2id = {0: "LABEL_0", 1: "LABEL_1"}, {"LABEL_0": 0, "LABEL_1": 1}
    return str(save(model, words, folder))


def test_a_teacher_without_names_is_warned_about_and_refused_when_strict(
    words: BertTokenizerFast, files: dict[str, str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    unnamed = nameless(words, tmp_path / "teacher")
    with pytest.raises(UserError, match="pass --label_names in the model's order"):
        distill(unnamed, None, config=quick_distill(tmp_path / "out", **files))
    named = {**files, "label_names": LABELS}
    with pytest.raises(UserError, match=r"labels have no names.*bad, good, in this order \(refused by --strict\)"):
        distill(unnamed, None, config=quick_distill(tmp_path / "out", **named, strict=True))
    assert not (tmp_path / "out").exists()
    result = distill(unnamed, None, config=quick_distill(tmp_path / "out", **named))
    assert "are taken to mean bad, good, in this order" in caplog.text
    assert read(tmp_path / "out" / "config.json")["id2label"] == {"0": "bad", "1": "good"}
    assert result.metrics["teacher"]["accuracy"] > 0.7


@pytest.fixture
def earlier(tmp_path: Path) -> Path:
    """An output folder with an earlier run and something of the user's own."""
    folder = tmp_path / "earlier"
    (folder / "checkpoint-7").mkdir(parents=True)
    for name in ("config.json", "model.safetensors", "metrics.json", "notes.txt", "checkpoint-7/trainer_state.json"):
        (folder / name).write_text("{}")
    (folder / "run.json").write_text('{"command": "distill", "config": {}}')
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"student_layers": 9}, "deeper than the teacher"),
        ({"student_layer_ids": (1, 5)}, "names layer 5"),
        ({"student_model": "TEACHERLESS"}, "does not exist|no folder of this name"),
        ({"pkd": True, "mapping": "uniform", "student_layers": 1}, "2 layers or more"),
        ({"max_seq_length": 100}, "reads at most 80 tokens"),
        ({"max_seq_length": 5, "strict": True}, "longer than 5 tokens"),
        ({"text_columns": ("nothing",)}, "no column 'nothing'"),
        ({"trainer_args": {"adam_beta_1": 0.5}}, "unknown field adam_beta_1"),
        ({"label_column": "no", "alpha": 0.5}, "no label column"),
    ],
)  # fmt: skip
def test_a_refused_run_leaves_an_earlier_one_alone(
    options: dict[str, Any], match: str, teacher: str, files: dict[str, str], earlier: Path
) -> None:
    before = contents(earlier)
    with pytest.raises(UserError, match=match) as error:
        distill(teacher, None, config=quick_distill(earlier, **(files | options), overwrite_output_dir=True))
    assert "\n" not in str(error.value)
    assert contents(earlier) == before


def test_overwriting_replaces_a_runs_files_and_nothing_else(teacher: str, files: dict[str, str], earlier: Path) -> None:
    with pytest.raises(UserError, match="is not empty; name a new one"):
        distill(teacher, None, config=quick_distill(earlier, **files))
    distill(teacher, None, config=quick_distill(earlier, **files, overwrite_output_dir=True))
    assert (earlier / "notes.txt").read_text() == "{}"
    assert not (earlier / "checkpoint-7").exists()
    assert read(earlier / "metrics.json")["task"] == "custom"


def test_a_teacher_below_the_trivial_predictor_is_warned_about_and_refused_when_strict(
    words: BertTokenizerFast, files: dict[str, str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = tiny("bert", layers=2, labels=LABELS)
    with torch.no_grad():
        model.classifier.weight.zero_()
        model.classifier.bias.copy_(torch.tensor([1.0, 0.0]))  # always "bad"
    folder = str(save(model, words, tmp_path / "teacher"))
    expected = "the teacher's accuracy on 16 validation rows is 0.5000, the trivial predictor's 0.5000"
    with pytest.raises(UserError, match=f"{expected}.*refused by --strict"):
        distill(folder, None, config=quick_distill(tmp_path / "out", **files, strict=True))
    assert not (tmp_path / "out").exists()
    metrics = distill(folder, None, config=quick_distill(tmp_path / "out", **files, mapping="kd")).metrics
    assert expected in caplog.text
    assert metrics["retention_above_trivial"] is None
    assert metrics["retention"] is not None
    assert [f for f in read(tmp_path / "out" / "run.json")["findings"] if f.startswith(f"warning: {expected}")]


def test_a_teacher_without_a_trained_head_or_with_holes_is_refused(
    teacher: str, files: dict[str, str], tmp_path: Path
) -> None:
    for name, missing, match in (
        ("head", "classifier.weight", "no trained classifier .classifier.weight is not in it"),
        ("pooler", "bert.pooler.dense.weight", "no trained classifier .bert.pooler.dense.weight is not in it"),
        ("hole", "bert.encoder.layer.2.output.dense.weight", "1 weights did not load .bert.encoder.layer.2"),
    ):
        folder = tmp_path / name
        shutil.copytree(teacher, folder)
        weights = model_state(folder)
        del weights[missing]
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(UserError, match=match):
            distill(str(folder), None, config=quick_distill(tmp_path / "out", **files))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("with_tokenizer_config", [True, False])
def test_a_student_with_another_vocabulary_is_refused(
    with_tokenizer_config: bool, teacher: str, files: dict[str, str], tmp_path: Path
) -> None:
    """A published TinyBERT folder has a bare vocab.txt; the same words in another order are another vocabulary."""
    other = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *reversed(GOOD + BAD + PLAIN), *(f"x{i}" for i in range(40))]
    folder = save(tiny("bert", layers=2, labels=LABELS), None, tmp_path / "student")
    (folder / "vocab.txt").write_text("\n".join(other) + "\n")
    if with_tokenizer_config:
        BertTokenizerFast(vocab=str(folder / "vocab.txt")).save_pretrained(folder)
    config = quick_distill(tmp_path / "out", **files, student_model=str(folder))
    with pytest.raises(UserError, match=r"different vocabularies \(90 and 90 tokens, 44 differ\)"):
        distill(teacher, None, config=config)
    assert not (tmp_path / "out").exists()


def test_a_student_whose_table_is_too_small_is_refused(teacher: str, files: dict[str, str], tmp_path: Path) -> None:
    folder = save(tiny("bert", layers=2, labels=LABELS, vocab_size=50), None, tmp_path / "student")
    with pytest.raises(UserError, match="student's vocabulary has 50 tokens but the tokenizer makes 90"):
        distill(teacher, None, config=quick_distill(tmp_path / "out", **files, student_model=str(folder)))


def test_another_architecture_learns_from_bert(teacher: str, files: dict[str, str], tmp_path: Path) -> None:
    """DistilBERT takes no token types, which the teacher's tokenizer makes."""
    folder = save(tiny("distilbert", layers=2, labels=LABELS), None, tmp_path / "student")
    result = distill(teacher, None, config=quick_distill(tmp_path / "out", **files, student_model=str(folder)))
    assert read(tmp_path / "out" / "config.json")["model_type"] == "distilbert"
    assert 0.0 <= result.metrics["student"]["accuracy"] <= 1.0


def test_a_student_given_by_path_brings_its_shape(teacher: str, files: dict[str, str], tmp_path: Path) -> None:
    folder = save(tiny("bert", layers=2, labels=LABELS), None, tmp_path / "student")
    with pytest.raises(UserError, match="brings its own shape; leave student_layers out"):
        distill(teacher, None, student=folder, config=quick_distill(tmp_path / "out", **files, student_layers=1))
