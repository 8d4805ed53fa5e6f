"""`distill` from files to the promised folder; its numbers are computed again by plain Transformers."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from safetensors.torch import load_file
from small_runs import LABELS, Snapshots, Stop, StopAfter, quick_distill, sentences, trained, write_csv
from tiny_encoders import BAD, GOOD, PLAIN, padded_batch, same_tensors, save, tiny
from transformers import AutoModelForSequenceClassification, AutoTokenizer, BertTokenizerFast

from bert_emd import DistillConfig, UserError, distill
from bert_emd.training import trainer as trainer_module

TIMINGS = ("train_seconds", "milliseconds_per_sentence")


def read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def without_times(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: without_times(item) for name, item in value.items() if name not in TIMINGS}
    return value


def model_state(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


# One run, looked at from all sides ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(teacher: str, files: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any, DistillConfig]:
    """Two epochs with a narrower student; also what the environment must not leak into the record."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("run") / "student"
    config = quick_distill(
        folder, **files, num_train_epochs=2.0, student_hidden_size=12, student_num_attention_heads=3, eval_step=4,
        save_steps=3, logging_steps=3, learning_rate=5e-3,
    )  # fmt: skip
    before = model_state(Path(teacher))
    os.environ["HF_TOKEN"] = "hf_secret_of_this_test"
    try:
        result = distill(teacher, None, config=config)
    finally:
        del os.environ["HF_TOKEN"]
    assert same_tensors(model_state(Path(teacher)), before)
    return folder, result, config


def test_the_promised_files_are_there_and_nothing_pickled(run: Any) -> None:
    folder = run[0]
    names = {path.name for path in folder.iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "metrics.json", "run.json",
            "layer_mapping.json", "last", "best", "checkpoint-10"} <= names  # fmt: skip
    assert not [name for name in names if name.endswith((".bin", ".pt", ".pth", ".pkl", ".partial"))]
    assert not [name for name in names if name.startswith(".")]
    for path in (folder, folder / "last"):
        for file in path.iterdir():
            assert not file.is_file() or file.read_bytes()[:2] not in (b"\x80\x02", b"\x80\x04", b"PK")
    assert {path.name for path in (folder / "last").iterdir()} == {
        "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json",
    }  # fmt: skip
    assert [path.name for path in folder.glob("checkpoint-*")] == ["checkpoint-10"]


def test_the_saved_student_is_plain_and_without_the_projection(run: Any) -> None:
    folder, result, _ = run
    assert not [name for name in model_state(folder) if not name.startswith(("bert.", "classifier."))]
    assert "bert_emd" not in (folder / "config.json").read_text()
    plain = AutoModelForSequenceClassification.from_pretrained(folder)
    assert (plain.config.hidden_size, plain.config.num_hidden_layers, plain.config.num_attention_heads) == (12, 2, 3)
    assert [plain.config.id2label[i] for i in range(2)] == list(LABELS)
    assert plain.dtype == torch.float32
    assert AutoTokenizer.from_pretrained(folder).model_max_length == 24
    batch = padded_batch()
    assert torch.equal(plain.eval()(**batch).logits, result.student.eval()(**batch).logits)
    assert any("projection" in name for name in load_file(folder / "checkpoint-10" / "distiller.safetensors"))


SCORER = """
import json, sys
sys.modules["bert_emd"] = None
import csv, torch
torch.set_num_threads(1)
from transformers import AutoModelForSequenceClassification, AutoTokenizer, pipeline
found = []
for folder, file in json.loads(sys.argv[1]):
    rows = list(csv.DictReader(open(file, newline="", encoding="utf-8")))
    classify = pipeline("text-classification", model=folder, tokenizer=folder, device="cpu")
    piped = [answer["label"] for answer in classify([row["text"] for row in rows], truncation=True, batch_size=1)]
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    direct = []
    with torch.no_grad():
        for row in rows:
            inputs = tokenizer(row["text"], truncation=True, max_length=24, return_tensors="pt")
            direct.append(model.config.id2label[int(model(**inputs).logits.argmax())])
    assert piped == direct, (piped, direct)
    names = sorted({row["label"] for row in rows})
    f1 = 0.0
    for name in names:
        hits = sum(p == name == row["label"] for p, row in zip(direct, rows))
        wrong = sum((p == name) != (row["label"] == name) for p, row in zip(direct, rows))
        f1 += 2 * hits / (2 * hits + wrong) / len(names)
    found.append({"accuracy": sum(p == row["label"] for p, row in zip(direct, rows)) / len(rows), "f1_macro": f1})
print(json.dumps(found))
"""


def test_the_scores_are_those_of_plain_transformers_without_this_package(
    run: Any, teacher: str, files: dict[str, str]
) -> None:
    folder, result, _ = run
    jobs = [(str(path), files["test_file"]) for path in (folder, folder / "last", Path(teacher))]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-c", SCORER, json.dumps(jobs)], capture_output=True, text=True, check=False, env=environment
    )
    assert done.returncode == 0, done.stderr[-2000:]
    student, last, big = json.loads(done.stdout.splitlines()[-1])
    metrics = read(folder / "metrics.json")
    assert metrics == result.metrics
    for key, expected in (("student", student), ("last", last), ("teacher", big)):
        assert {name: metrics[key][name] for name in expected} == pytest.approx(expected, abs=1e-12)
    assert big["accuracy"] > 0.7  # the teacher knows something, so the comparison means something
    assert metrics["trivial"] == pytest.approx({"accuracy": 0.5, "f1_macro": 1 / 3})
    t, s, final = big["accuracy"], student["accuracy"], last["accuracy"]
    assert metrics["retention"] == pytest.approx(s / t)
    assert metrics["retention_above_trivial"] == pytest.approx((s - 0.5) / (t - 0.5))
    assert metrics["last"]["retention"] == pytest.approx(final / t)
    assert metrics["last"]["retention_above_trivial"] == pytest.approx((final - 0.5) / (t - 0.5))


def test_metrics_say_where_they_come_from(run: Any, teacher: str) -> None:
    folder, _, _ = run
    metrics = read(folder / "metrics.json")
    assert metrics["task"] == "custom"
    assert metrics["metric"] == "accuracy"
    assert (metrics["selected_on"], metrics["reported_on"], metrics["optimistic"]) == ("validation", "test", False)
    assert metrics["rows"] == {"train": 40, "test": 16}
    assert (metrics["last_step"], metrics["epochs"]) == (10, 2.0)
    assert metrics["best_step"] in (4, 8, 10)
    assert metrics["train_seconds"] > 0
    for key, path in (("teacher", Path(teacher)), ("student", folder)):
        count = sum(tensor.numel() for tensor in model_state(path).values())
        assert metrics[key]["parameters"] == count
        assert metrics[key]["megabytes"] == round(4 * count / 1e6, 2)
        assert metrics[key]["milliseconds_per_sentence"] > 0


def test_the_record_of_the_run(run: Any, files: dict[str, str]) -> None:
    folder, _, config = run
    record = read(folder / "run.json")
    text = (folder / "run.json").read_text()
    assert "hf_secret" not in text
    assert "HF_TOKEN" not in text
    assert record["command"] == "distill"
    assert record["config"]["learning_rate"] == 5e-3
    assert record["config"]["train_file"] == files["train_file"]
    assert (record["sources"]["learning_rate"], record["sources"]["alpha"]) == ("python", "default")
    assert record["sources"].keys() == record["config"].keys()
    assert "T_emd" in record["not_used"]
    assert record["config"]["seed"] == 42
    assert record["versions"]["torch"] == torch.__version__.split("+")[0] or record["versions"]["torch"]
    assert record["versions"]["python"] == ".".join(map(str, sys.version_info[:3]))
    data = record["data"]
    assert (data["train"]["rows"], data["train"]["labels"]) == (40, {"bad": 20, "good": 20})
    assert data["test"]["source"] == files["test_file"]
    prints = [data[name]["sha256"] for name in ("train", "validation", "test")]
    assert all(re.fullmatch("[0-9a-f]{64}", value) for value in prints)
    assert len(set(prints)) == 3
    assert "all weights fresh" in record["student"]
    assert [finding for finding in record["findings"] if finding.startswith("labels agree by name: bad, good")]


def test_costs_plans_and_weights_over_time(run: Any) -> None:
    folder, result, _ = run
    history = read(folder / "layer_mapping.json")
    assert history == result.mapping
    assert [entry["step"] for entry in history] == [3, 6, 9, 10]
    for entry in history:
        for term in ("attention", "hidden"):
            cost, plan = torch.tensor(entry[term]["cost"]), torch.tensor(entry[term]["plan"], dtype=torch.float64)
            assert cost.shape == plan.shape == (2, 4)
            assert (cost > 0).all()
            assert float(plan.sum()) == pytest.approx(1.0)
        for name, weights in entry["weights"].items():
            assert len(weights) == (2 if name.endswith("student") else 4)
            assert sum(weights) == pytest.approx(1.0)
    # The plan of a step has the weights that the step before left behind as its margins; 9 and 10 follow each other.
    plan = torch.tensor(history[3]["hidden"]["plan"], dtype=torch.float64)
    assert plan.sum(1).tolist() == pytest.approx(history[2]["weights"]["hidden_student"], rel=1e-6)
    assert plan.sum(0).tolist() == pytest.approx(history[2]["weights"]["hidden_teacher"], rel=1e-6)


def test_the_table_at_the_end(run: Any) -> None:
    _, result, config = run
    for word in ("teacher", "student (best)", "student (last)", "accuracy", "parameters", "ms/sentence"):
        assert word in result.summary
    assert f"{result.metrics['student']['accuracy']:.4f}" in result.summary
    assert f"Saved in {config.output_dir}" in result.summary
    assert "optimistic" not in result.summary


# The best, seeds and resuming -----------------------------------------------------------------------------------------


def test_the_folder_holds_the_peak_and_last_the_last(
    teacher: str, files: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = [0.1, 0.9, 0.4, 0.3, 0.2]
    monkeypatch.setattr("bert_emd.training.distill.metric_function", lambda _: lambda __: {"accuracy": script.pop(0)})
    snapshots = Snapshots(monkeypatch)
    result = distill(teacher, None, config=quick_distill(tmp_path, **files, eval_step=1, save_steps=5))
    assert snapshots.evaluations == [1, 2, 3, 4, 5]
    assert result.metrics["best_step"] == 2
    assert same_tensors(model_state(tmp_path), snapshots.by_step[2])
    assert same_tensors(model_state(tmp_path / "last"), snapshots.by_step[5])
    assert same_tensors(result.student.state_dict(), snapshots.by_step[2])


def test_early_stopping_through_the_configuration(
    teacher: str, files: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = [0.5, 0.4, 0.3, 0.9, 0.9]
    monkeypatch.setattr("bert_emd.training.distill.metric_function", lambda _: lambda __: {"accuracy": script.pop(0)})
    config = quick_distill(tmp_path, **files, eval_step=1, early_stopping=2)
    metrics = distill(teacher, None, config=config).metrics
    assert (metrics["best_step"], metrics["last_step"]) == (1, 3)


def test_equal_seeds_give_equal_numbers_and_others_do_not(teacher: str, files: dict[str, str], tmp_path: Path) -> None:
    def student(name: str, seed: int, noise: int) -> tuple[Any, Any]:
        torch.manual_seed(noise)
        folder = tmp_path / name
        result = distill(teacher, None, config=quick_distill(folder, **files, seed=seed, student_hidden_size=8))
        return model_state(folder), without_times(result.metrics)

    one, again, other = student("a", 5, 0), student("b", 5, 1), student("c", 6, 0)
    assert same_tensors(one[0], again[0])
    assert one[1] == again[1]
    assert not torch.equal(one[0]["classifier.weight"], other[0]["classifier.weight"])


@pytest.mark.parametrize(
    ("saving", "crash_at", "resume_from"),
    [({}, 7, 5), ({"save_steps": 3}, 4, 3), ({"save_steps": 3, "group_by_length": False}, 8, 6)],
    ids=["after an epoch", "within an epoch", "within an epoch, in random order"],
)
def test_a_resumed_run_ends_as_one_that_never_stopped(
    saving: dict[str, Any], crash_at: int, resume_from: int,
    teacher: str, files: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Dropout, batches by length, a projection, layer weights, learning rate, optimiser, early stopping: all go on."""
    options: dict[str, Any] = {
        **files, "num_train_epochs": 2.0, "student_hidden_size": 8, "eval_step": 2, "early_stopping": 9, **saving,
    }  # fmt: skip
    straight = distill(teacher, None, config=quick_distill(tmp_path / "straight", **options))
    with monkeypatch.context() as patch:
        original = trainer_module.EncoderTrainer.__init__

        def with_crash(self: Any, *args: Any, **kwargs: Any) -> None:
            original(self, *args, **kwargs)
            self.add_callback(StopAfter(crash_at))

        patch.setattr(trainer_module.EncoderTrainer, "__init__", with_crash)
        with pytest.raises(Stop):
            distill(teacher, None, config=quick_distill(tmp_path / "resumed", **options))
    assert not (tmp_path / "resumed" / "metrics.json").exists()
    assert [path.name for path in (tmp_path / "resumed").glob("checkpoint-*")] == [f"checkpoint-{resume_from}"]
    torch.manual_seed(999)
    resumed = distill(
        teacher, None, config=quick_distill(tmp_path / "resumed", **options, resume_from_checkpoint="true")
    )
    for part in (".", "last"):
        assert same_tensors(model_state(tmp_path / "straight" / part), model_state(tmp_path / "resumed" / part))
    last = [load_file(tmp_path / name / "checkpoint-10" / "distiller.safetensors") for name in ("straight", "resumed")]
    assert same_tensors(*last)
    assert without_times(straight.metrics) == without_times(resumed.metrics)
    assert straight.mapping == resumed.mapping


def test_rows_come_in_another_order_every_epoch(
    teacher: str, files: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[list[int]] = []
    original = trainer_module.DistillTrainer.training_step
    monkeypatch.setattr(
        trainer_module.DistillTrainer, "training_step",
        lambda self, model, inputs, *a: (seen.append(inputs["input_ids"][:, 1].tolist()), original(self, model, inputs, *a))[1],
    )  # fmt: skip
    distill(teacher, None, config=quick_distill(tmp_path, **files, num_train_epochs=2.0))
    first, second = seen[:5], seen[5:]
    assert len(seen) == 10
    assert first != second
    assert sorted(sum(first, [])) == sorted(sum(second, []))


def test_there_must_be_a_checkpoint_to_resume_from(teacher: str, files: dict[str, str], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no complete checkpoint"):
        distill(teacher, None, config=quick_distill(tmp_path / "new", **files, resume_from_checkpoint="true"))
    (tmp_path / "checkpoint-3").mkdir()
    with pytest.raises(UserError, match="is not a complete checkpoint"):
        distill(teacher, None, config=quick_distill(
            tmp_path / "new", **files, resume_from_checkpoint=str(tmp_path / "checkpoint-3")
        ))  # fmt: skip
    assert not (tmp_path / "new").exists()


# Data of the user's own -----------------------------------------------------------------------------------------------


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


def test_alpha_1_needs_no_labels_at_all(
    teacher: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
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


def test_unlabelled_training_rows_with_labelled_validation(
    teacher: str, files: dict[str, str], tmp_path: Path
) -> None:
    rows = [[text] for text, _ in sentences(40, seed=1)]
    train = write_csv(tmp_path / "train.csv", rows, ["text"])
    metrics = distill(
        teacher, train, config=quick_distill(tmp_path / "out", validation_file=files["validation_file"])
    ).metrics
    assert metrics["selected_on"] == "validation"
    assert metrics["trivial"]["accuracy"] == 0.5


def test_alpha_below_1_needs_labels(teacher: str, tmp_path: Path) -> None:
    train = write_csv(tmp_path / "train.csv", [[text] for text, _ in sentences(20, seed=1)], ["text"])
    with pytest.raises(UserError, match="no label column"):
        distill(teacher, train, config=quick_distill(tmp_path / "out", alpha=0.5))
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


def test_a_student_in_memory_is_the_one_that_is_trained(
    teacher: str, files: dict[str, str], tmp_path: Path
) -> None:
    student = tiny("bert", layers=1, width=8, labels=LABELS, seed=7)
    distill(teacher, None, student=student, config=quick_distill(tmp_path, **files))
    assert same_tensors(model_state(tmp_path / "last"), dict(student.state_dict()))
    with pytest.raises(UserError, match="labels are not the teacher's"):
        distill(teacher, None, student=tiny("bert", layers=1), config=quick_distill(tmp_path / "b", **files))
    with pytest.raises(UserError, match="deeper than the teacher"):
        deep = tiny("bert", layers=5, labels=LABELS)
        distill(teacher, None, student=deep, config=quick_distill(tmp_path / "b", **files))
    with pytest.raises(UserError, match="pass tokenizer="):
        distill(tiny("bert"), None, config=quick_distill(tmp_path / "b", **files))
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize("mapping", ["kd", "none", "uniform", "pkd"])
def test_every_mapping_runs_and_only_those_that_match_layers_leave_a_history(
    mapping: str, teacher: str, files: dict[str, str], tmp_path: Path
) -> None:
    result = distill(teacher, None, config=quick_distill(tmp_path, **files, mapping=mapping))
    history = read(tmp_path / "layer_mapping.json")
    assert history == result.mapping
    assert result.metrics["student"]["accuracy"] >= 0.0
    if mapping == "uniform":
        assert history[-1]["hidden"]["plan"] == [[0, 1, 0, 0], [0, 0, 0, 1]]
        assert history[-1]["hidden"]["cost"][0][0] is None
    else:
        assert history == []


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


# Labels ---------------------------------------------------------------------------------------------------------------


def test_labels_are_matched_by_name_whatever_their_order(
    teacher: str, files: dict[str, str], tmp_path: Path
) -> None:
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


# Refusals before anything is touched ----------------------------------------------------------------------------------


@pytest.fixture
def earlier(tmp_path: Path) -> Path:
    """An output folder with an earlier run and something of the user's own."""
    folder = tmp_path / "earlier"
    (folder / "checkpoint-7").mkdir(parents=True)
    for name in ("config.json", "model.safetensors", "metrics.json", "notes.txt", "checkpoint-7/trainer_state.json"):
        (folder / name).write_text("{}")
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"student_layers": 9}, "deeper than the teacher"),
        ({"student_layer_ids": (1, 5)}, "names layer 5"),
        ({"student_model": "TEACHERLESS"}, "does not exist|no folder of this name"),
        ({"pkd": True, "student_layers": 1}, "2 layers or more"),
        ({"max_seq_length": 100}, "reads at most 80 tokens"),
        ({"max_seq_length": 5, "strict": True}, "longer than 5 tokens"),
        ({"text_columns": ("nothing",)}, "no column 'nothing'"),
        ({"trainer_args": {"lr_scheduler_kwargs": 3}}, "lr_scheduler_kwargs"),
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


def test_overwriting_replaces_a_runs_files_and_nothing_else(
    teacher: str, files: dict[str, str], earlier: Path
) -> None:
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
    from safetensors.torch import save_file

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
    with pytest.raises(UserError, match="vocabulary has 50 tokens but the teacher's tokenizer makes 90"):
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
