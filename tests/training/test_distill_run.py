"""`distill` from files to the promised folder; its numbers are computed again by plain Transformers."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from small_runs import LABELS, Snapshots, Stop, StopAfter, model_state, quick_distill, read
from tiny_encoders import padded_batch, same_tensors
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from bert_emd import DistillConfig, UserError, distill
from bert_emd.training import trainer as trainer_module

TIMINGS = ("train_seconds", "milliseconds_per_sentence")


def without_times(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: without_times(item) for name, item in value.items() if name not in TIMINGS}
    return value


@pytest.fixture(scope="module")
def run(
    teacher: str, files: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Any, DistillConfig]:
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
    folder, _, _ = run
    record = read(folder / "run.json")
    text = (folder / "run.json").read_text()
    assert "hf_secret" not in text
    assert "HF_TOKEN" not in text
    assert record["command"] == "distill"
    assert record["config"]["learning_rate"] == 5e-3
    assert record["config"]["train_file"] == files["train_file"]
    assert (record["sources"]["learning_rate"], record["sources"]["theta"]) == ("python", "default")
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

    def step(self: Any, model: Any, inputs: Any, *more: Any) -> Any:
        seen.append(inputs["input_ids"][:, 1].tolist())
        return original(self, model, inputs, *more)

    monkeypatch.setattr(trainer_module.DistillTrainer, "training_step", step)
    distill(teacher, None, config=quick_distill(tmp_path, **files, num_train_epochs=2.0))
    first, second = seen[:5], seen[5:]
    assert len(seen) == 10
    assert first != second
    assert sorted(i for batch in first for i in batch) == sorted(i for batch in second for i in batch)


def test_there_must_be_a_checkpoint_to_resume_from(teacher: str, files: dict[str, str], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no complete checkpoint"):
        distill(teacher, None, config=quick_distill(tmp_path / "new", **files, resume_from_checkpoint="true"))
    (tmp_path / "checkpoint-3").mkdir()
    with pytest.raises(UserError, match="is not a complete checkpoint"):
        distill(teacher, None, config=quick_distill(
            tmp_path / "new", **files, resume_from_checkpoint=str(tmp_path / "checkpoint-3")
        ))  # fmt: skip
    assert not (tmp_path / "new").exists()
