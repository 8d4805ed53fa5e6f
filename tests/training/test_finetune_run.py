"""`finetune` from an encoder without a head to a teacher, and what it refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from small_runs import LABELS, Snapshots, model_state, quick_distill, quick_finetune, read, sentences, write_csv
from tiny_encoders import same_tensors, save, tiny
from transformers import AutoModel, AutoModelForSequenceClassification, AutoTokenizer, BertTokenizerFast

from bert_emd import UserError, distill, finetune


@pytest.fixture
def encoder(words: BertTokenizerFast, tmp_path: Path) -> str:
    """A pretrained encoder as it is published: no classifier in it."""
    model = tiny("bert", layers=2, seed=4, initializer_range=0.1)
    return str(save(model.bert, words, tmp_path / "encoder"))


def test_an_encoder_becomes_a_teacher(encoder: str, files: dict[str, str], tmp_path: Path) -> None:
    out = tmp_path / "out"
    config = quick_finetune(out, **files, num_train_epochs=8.0, learning_rate=1e-2)
    result = finetune(encoder, None, config=config)
    metrics = read(out / "metrics.json")
    assert metrics == result.metrics
    names = {path.name for path in out.iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "metrics.json", "run.json", "last"} <= names
    assert not [name for name in names if name.endswith((".bin", ".pt", ".pth", ".pkl"))]
    tokenizer = AutoTokenizer.from_pretrained(out)
    rows = sentences(16, seed=3)
    for key, folder in (("model", out), ("last", out / "last")):
        plain = AutoModelForSequenceClassification.from_pretrained(folder).eval()
        right = 0
        for text, label in rows:
            right += plain.config.id2label[int(plain(**tokenizer(text, return_tensors="pt")).logits.argmax())] == label
        assert metrics[key]["accuracy"] == pytest.approx(right / 16)
    assert metrics["model"]["accuracy"] > metrics["trivial"]["accuracy"] == 0.5
    assert (metrics["selected_on"], metrics["reported_on"], metrics["optimistic"]) == ("validation", "test", False)
    assert metrics["model"]["parameters"] == sum(t.numel() for t in model_state(out).values())
    record = read(out / "run.json")
    assert record["command"] == "finetune"
    assert "fresh: classifier.bias, classifier.weight" in record["findings"][0]
    assert "trivial predictor" in result.summary
    # and it serves as a teacher as it is
    student = distill(out, None, config=quick_distill(tmp_path / "student", **files)).metrics
    assert student["teacher"]["accuracy"] == metrics["model"]["accuracy"]


def test_it_starts_from_the_encoders_weights(encoder: str, files: dict[str, str], tmp_path: Path) -> None:
    config = quick_finetune(tmp_path / "out", **files, max_steps=1, learning_rate=1e-9, warmup_steps=0)
    finetune(encoder, None, config=config)
    before, after = AutoModel.from_pretrained(encoder).state_dict(), model_state(tmp_path / "out")
    assert all(torch.allclose(after[f"bert.{name}"], tensor, atol=1e-7) for name, tensor in before.items())


def test_equal_seeds_give_equal_models(encoder: str, files: dict[str, str], tmp_path: Path) -> None:
    def run(name: str, seed: int) -> dict[str, torch.Tensor]:
        torch.manual_seed(len(name))
        finetune(encoder, None, config=quick_finetune(tmp_path / name, **files, seed=seed))
        return model_state(tmp_path / name)

    one, again, other = run("a", 1), run("bbb", 1), run("c", 2)
    assert same_tensors(one, again)
    assert not torch.equal(one["classifier.weight"], other["classifier.weight"])


def test_the_peak_is_on_top_and_every_checkpoint_can_be_kept(
    encoder: str, files: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = [0.9, 0.2, 0.4]
    monkeypatch.setattr("bert_emd.training.finetune.metric_function", lambda _: lambda __: {"accuracy": script.pop(0)})
    snapshots = Snapshots(monkeypatch)
    config = quick_finetune(tmp_path / "out", **files, eval_step=2, save_steps=2, eval_all_checkpoints=True)
    metrics = finetune(encoder, None, config=config).metrics
    assert same_tensors(model_state(tmp_path / "out"), snapshots.by_step[2])
    assert same_tensors(model_state(tmp_path / "out" / "last"), snapshots.by_step[5])
    assert metrics["best_step"] == 2
    assert metrics["checkpoints"].keys() == {"checkpoint-2", "checkpoint-4", "checkpoint-5"}
    assert metrics["checkpoints"]["checkpoint-5"] == {k: metrics["last"][k] for k in ("accuracy", "f1_macro")}


def test_evaluating_during_training_means_at_every_log(
    encoder: str, files: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    snapshots = Snapshots(monkeypatch)
    finetune(encoder, None, config=quick_finetune(tmp_path / "out", **files, evaluate_during_training=True))
    assert snapshots.evaluations == [2, 4, 5]


def test_numbers_are_learnt_as_a_regression(encoder: str, tmp_path: Path) -> None:
    rows = [(text, f"{i % 2 + 0.5}") for i, (text, _) in enumerate(sentences(40, seed=1))]
    train = write_csv(tmp_path / "train.csv", rows)
    metrics = finetune(encoder, train, config=quick_finetune(tmp_path / "out")).metrics
    assert metrics["metric"] == "spearmanr"
    assert metrics["trivial"] == {"spearmanr": 0.0, "pearson": 0.0}
    config = read(tmp_path / "out" / "config.json")
    assert (len(config["id2label"]), config["problem_type"]) == (1, "regression")
    assert metrics["selected_on"] == "a tenth of the training data, held out"
    assert metrics["optimistic"] is True


def test_models_and_data_in_memory(words: BertTokenizerFast, tmp_path: Path) -> None:
    rows = sentences(40, seed=1)
    train = datasets.Dataset.from_dict({"text": [t for t, _ in rows], "label": [name for _, name in rows]})
    model = tiny("bert", layers=2, labels=LABELS)
    finetune(model, train, tokenizer=words, config=quick_finetune(tmp_path / "out"))
    assert same_tensors(model_state(tmp_path / "out" / "last"), dict(model.state_dict()))
    with pytest.raises(UserError, match="pass tokenizer="):
        finetune(model, train, config=quick_finetune(tmp_path / "b"))
    with pytest.raises(UserError, match=r"labels are \('no', 'yes'\), the data's \('bad', 'good'\)"):
        finetune(tiny("bert"), train, tokenizer=words, config=quick_finetune(tmp_path / "b"))
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize(
    ("model", "options", "match"),
    [
        ("", {}, "which encoder"),
        ("nothing-there", {}, "no folder of this name"),
        ("ENCODER", {"model_type": "roberta"}, "is a bert model, not roberta"),
        ("ENCODER", {"max_seq_length": 81}, "the model reads at most 80 tokens.*set --max_seq_length 80"),
        ("ENCODER", {"max_seq_length": 5, "strict": True}, r"longer than 5 tokens and truncated.*refused by --strict"),
        ("ENCODER", {"train_file": None}, "which data"),
        ("ENCODER", {"train_file": "none.csv"}, "none.csv"),
        ("ENCODER", {"output_dir": None}, "where should the results go"),
        ("ENCODER", {"trainer_args": {"optim": "sgd"}}, "optim is not available"),
    ],
)
def test_what_is_refused_is_told_in_one_line_and_nothing_is_written(
    model: str, options: dict[str, Any], match: str, encoder: str, files: dict[str, str], tmp_path: Path
) -> None:
    import dataclasses

    model = encoder if model == "ENCODER" else model
    out = options.get("output_dir", tmp_path / "out")
    given = {name: value for name, value in (files | options).items() if name != "output_dir"}
    config = quick_finetune(tmp_path / "out", **given)
    if out is None:
        config = dataclasses.replace(config, output_dir=None)
    with pytest.raises(UserError, match=match) as error:
        finetune(model, None, config=config)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (b"", "train.csv is empty"),
        (b"text,label\n", "train.csv"),
        (b"text,label\ngood day\n", "train.csv:2"),
        (b"text,label\ngood \xff day,good\n", "train.csv:2: not UTF-8"),
        (b"words,label\ngood day,good\n", "which column holds the text"),
        (b"text,label\ngood day,good\nbad day,\n", "train.csv:3"),
        (b"text,label\ngood day,good\nnice day,good\n", "only one label"),
    ],
)
def test_a_bad_file_is_told_with_its_line(content: bytes, match: str, encoder: str, tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_bytes(content)
    with pytest.raises(UserError, match=match) as error:
        finetune(encoder, tmp_path / "train.csv", config=quick_finetune(tmp_path / "out"))
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


def test_a_refused_run_leaves_an_earlier_one_alone(encoder: str, files: dict[str, str], tmp_path: Path) -> None:
    out = tmp_path / "out"
    finetune(encoder, None, config=quick_finetune(out, **files, max_steps=1))
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    with pytest.raises(UserError, match="longer than 5 tokens"):
        finetune(encoder, None, config=quick_finetune(
            out, **files, overwrite_output_dir=True, strict=True, max_seq_length=5
        ))  # fmt: skip
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before


def test_an_encoder_with_holes_is_refused(encoder: str, files: dict[str, str], tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    file = Path(encoder) / "model.safetensors"
    weights = load_file(file)
    del weights["encoder.layer.1.attention.self.key.weight"]
    save_file(weights, file, metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"1 weights did not load .*layer\.1\.attention\.self\.key"):
        finetune(encoder, None, config=quick_finetune(tmp_path / "out", **files))
    assert not (tmp_path / "out").exists()
