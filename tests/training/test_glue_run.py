"""GLUE tasks in their official layout: distilling, evaluating, and the files that the server takes."""

from __future__ import annotations

import csv
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from small_runs import quick_distill, read, sentences, trained, write_csv, write_tsv
from tiny_encoders import PLAIN, save, tiny
from transformers import AutoModelForSequenceClassification, AutoTokenizer, BertTokenizerFast, PreTrainedModel

from bert_emd import EvaluateConfig, UserError, distill, evaluate, predict

NLI = ("entailment", "neutral", "contradiction")


def pairs(count: int, seed: int) -> list[tuple[str, str]]:
    one, two = sentences(count, seed), sentences(count, seed + 50)
    return [(a, b) for (a, _), (b, _) in zip(one, two, strict=True)]


def glue(root: Path) -> Path:
    """MRPC, CoLA, STS-B, MNLI and the diagnostic set with a few rows each, as the official archives spell them."""
    stsb = ["index", "genre", "filename", "year", "old_index", "source1", "source2", "sentence1", "sentence2"]
    mrpc = ["Quality", "#1 ID", "#2 ID", "#1 String", "#2 String"]
    for name, count, seed in (("train", 20, 1), ("dev", 10, 2)):
        rows = [[str(int(i % 3 > 0)), i, i, a, b] for i, (a, b) in enumerate(pairs(count, seed))]
        write_tsv(root / "MRPC" / f"{name}.tsv", mrpc, rows)
        rows = [["gj04", str(i % 2), "*", text] for i, (text, _) in enumerate(sentences(count, seed))]
        write_tsv(root / "CoLA" / f"{name}.tsv", None, rows)
        head = [
            "index",
            "genre",
            "filename",
            "year",
            "old_index",
            "source1",
            "source2",
            "sentence1",
            "sentence2",
            "score",
        ]
        rows = [[i, "g", "f", "2012", i, "s", "s", a, b, f"{(i * 7 % 11) / 2:.3f}"]
                for i, (a, b) in enumerate(pairs(count, seed))]  # fmt: skip
        write_tsv(root / "STS-B" / f"{name}.tsv", head, rows)
    write_tsv(
        root / "MRPC" / "test.tsv", ["index", *mrpc[1:]], [[i, i, i, a, b] for i, (a, b) in enumerate(pairs(7, 3))]
    )
    write_tsv(root / "CoLA" / "test.tsv", ["index", "sentence"], [[i, t] for i, (t, _) in enumerate(sentences(7, 3))])
    rows = [[i, "g", "f", "2012", i, "s", "s", a, b] for i, (a, b) in enumerate(pairs(7, 3))]
    write_tsv(root / "STS-B" / "test.tsv", stsb, rows)
    common = ["index", "promptID", "pairID", "genre", "s1_bp", "s2_bp", "s1_p", "s2_p", "sentence1", "sentence2"]
    for name, labels, count, seed in (
        ("train", ["label1"], 20, 1), ("dev_matched", [f"label{i}" for i in range(1, 6)], 10, 2),
        ("dev_mismatched", [f"label{i}" for i in range(1, 6)], 11, 3),
        ("test_matched", None, 7, 4), ("test_mismatched", None, 8, 5),
    ):  # fmt: skip
        rows = [[i, i, i, "g", "-", "-", "-", "-", a, b] for i, (a, b) in enumerate(pairs(count, seed))]
        if labels is not None:
            rows = [[*row, *[NLI[i % 3]] * len(labels), NLI[i % 3]] for i, row in enumerate(rows)]
            write_tsv(root / "MNLI" / f"{name}.tsv", [*common, *labels, "gold_label"], rows)
        else:
            write_tsv(root / "MNLI" / f"{name}.tsv", common, rows)
    rows = [[i, a, b] for i, (a, b) in enumerate(pairs(9, 6))]
    write_tsv(root / "diagnostic" / "diagnostic.tsv", ["index", "sentence1", "sentence2"], rows)
    return root


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return glue(tmp_path_factory.mktemp("glue"))


def random_teacher(words: BertTokenizerFast, folder: Path, labels: Any, seed: int = 1) -> str:
    return str(save(tiny("bert", layers=4, labels=labels, seed=seed), words, folder))


def plain_logits(folder: Path | str, rows: list[tuple[str, ...]]) -> tuple[PreTrainedModel, torch.Tensor]:
    """One row at a time by plain Transformers."""
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    with torch.no_grad():
        found = [
            model(**tokenizer(*row, truncation=True, max_length=24, return_tensors="pt")).logits[0] for row in rows
        ]
    return model, torch.stack(found)


def classes(folder: Path | str, rows: list[tuple[str, ...]]) -> list[str]:
    model, logits = plain_logits(folder, rows)
    return [model.config.id2label[int(i)] for i in logits.argmax(1)]


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream, delimiter="\t", quoting=csv.QUOTE_NONE))


def test_mrpc(words: BertTokenizerFast, data: Path, tmp_path: Path) -> None:
    teacher = random_teacher(words, tmp_path / "teacher", ("not_equivalent", "equivalent"))
    config = quick_distill(tmp_path / "out", task_name="mrpc", data_dir=str(data))
    metrics = distill(teacher, None, config=config).metrics
    dev = rows_of(data / "MRPC" / "dev.tsv")
    truth = [row["Quality"] for row in dev]
    for key, folder in (("teacher", teacher), ("student", tmp_path / "out"), ("last", tmp_path / "out" / "last")):
        names = classes(folder, [(row["#1 String"], row["#2 String"]) for row in dev])
        guesses = [str(int(name == "equivalent")) for name in names]
        hits = sum(g == t == "1" for g, t in zip(guesses, truth, strict=True))
        wrong = sum(g != t for g, t in zip(guesses, truth, strict=True))
        assert metrics[key]["accuracy"] == pytest.approx(1 - wrong / len(dev))
        assert metrics[key]["f1"] == pytest.approx(2 * hits / (2 * hits + wrong) if hits else 0.0)
    assert (metrics["task"], metrics["metric"], metrics["optimistic"]) == ("MRPC", "accuracy", True)
    assert metrics["selected_on"] == metrics["reported_on"] == "validation"
    assert metrics["trivial"]["accuracy"] == pytest.approx(0.6)  # rows 0, 3, 6 and 9 of 10 are no paraphrases


def test_cola_is_measured_by_matthews_correlation(words: BertTokenizerFast, data: Path, tmp_path: Path) -> None:
    teacher = random_teacher(words, tmp_path / "teacher", ("unacceptable", "acceptable"), seed=3)
    config = quick_distill(tmp_path / "out", task_name="CoLA", data_dir=str(data / "CoLA"), mapping="kd")
    metrics = distill(teacher, None, config=config).metrics
    lines = [line.split("\t") for line in (data / "CoLA" / "dev.tsv").read_text().splitlines()]
    names = classes(tmp_path / "out", [(line[3],) for line in lines])
    counts = {(a, b): 0 for a in (0, 1) for b in (0, 1)}
    for line, name in zip(lines, names, strict=True):
        counts[int(line[1]), int(name == "acceptable")] += 1
    tp, tn, fp, fn = counts[1, 1], counts[0, 0], counts[0, 1], counts[1, 0]
    below = ((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn)) ** 0.5
    assert metrics["student"]["matthews_correlation"] == pytest.approx((tp * tn - fp * fn) / below if below else 0.0)
    assert metrics["metric"] == "matthews_correlation"
    assert metrics["trivial"] == {"matthews_correlation": 0.0}


def ranks(values: list[float]) -> list[float]:
    return [sum(v < x for v in values) + (sum(v == x for v in values) + 1) / 2 for x in values]


def correlation(x: list[float], y: list[float]) -> float:
    mx, my = sum(x) / len(x), sum(y) / len(y)
    top = sum((a - mx) * (b - my) for a, b in zip(x, y, strict=True))
    return top / (sum((a - mx) ** 2 for a in x) * sum((b - my) ** 2 for b in y)) ** 0.5


def test_stsb_is_a_regression(words: BertTokenizerFast, data: Path, tmp_path: Path) -> None:
    teacher = random_teacher(words, tmp_path / "teacher", None)
    config = quick_distill(tmp_path / "out", task_name="sts-b", data_dir=str(data), alpha=0.5)
    metrics = distill(teacher, None, config=config).metrics
    dev = rows_of(data / "STS-B" / "dev.tsv")
    scores = [float(row["score"]) for row in dev]
    for key, folder in (("teacher", teacher), ("student", tmp_path / "out")):
        model, logits = plain_logits(folder, [(row["sentence1"], row["sentence2"]) for row in dev])
        guesses = [float(z) for z in logits[:, 0]]
        assert metrics[key]["pearson"] == pytest.approx(correlation(guesses, scores), abs=1e-4)
        assert metrics[key]["spearmanr"] == pytest.approx(correlation(ranks(guesses), ranks(scores)), abs=1e-9)
    assert (model.config.num_labels, model.config.problem_type) == (1, "regression")
    assert metrics["metric"] == "spearmanr"
    written = predict(EvaluateConfig(
        task_name="STS-B", data_dir=str(data), model_name_or_path=str(tmp_path / "out"), max_seq_length=24,
        output_dir=str(tmp_path / "predictions"), no_cuda=True,
    ))  # fmt: skip
    test = rows_of(data / "STS-B" / "test.tsv")
    _, logits = plain_logits(tmp_path / "out", [(row["sentence1"], row["sentence2"]) for row in test])
    expected = [min(5.0, max(0.0, float(z))) for z in logits[:, 0]]
    assert [path.name for path in written] == ["STS-B.tsv"]
    found = rows_of(written[0])
    assert [row["index"] for row in found] == [str(i) for i in range(7)]
    assert [float(row["prediction"]) for row in found] == pytest.approx(expected, abs=6e-4)


@pytest.fixture(scope="module")
def mnli(data: Path, vocabulary_file: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path, Any]:
    """A run on MNLI whose teacher has the classes in an order of its own."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("mnli")
    words = BertTokenizerFast(vocab=str(vocabulary_file))
    teacher = random_teacher(words, folder / "teacher", ("contradiction", "entailment", "neutral"))
    config = quick_distill(
        folder / "out", task_name="MNLI", data_dir=str(data), num_train_epochs=2.0, learning_rate=1e-2
    )
    return teacher, folder / "out", distill(teacher, None, config=config)


def test_mnli_reports_matched_and_mismatched(mnli: tuple[str, Path, Any], data: Path) -> None:
    teacher, out, result = mnli
    metrics = read(out / "metrics.json")
    assert metrics["rows"] == {"train": 20, "matched": 10, "mismatched": 11}
    for split, file in (("matched", "dev_matched.tsv"), ("mismatched", "dev_mismatched.tsv")):
        dev = rows_of(data / "MNLI" / file)
        for key, folder in (("teacher", teacher), ("student", out), ("last", out / "last")):
            names = classes(folder, [(row["sentence1"], row["sentence2"]) for row in dev])
            right = sum(name == row["gold_label"] for name, row in zip(names, dev, strict=True))
            assert metrics[key][split] == {"accuracy": pytest.approx(right / len(dev))}
        assert split in result.summary
    assert metrics["student"]["parameters"] < metrics["teacher"]["parameters"]
    t, s, t0 = (metrics[key]["matched"]["accuracy"] for key in ("teacher", "student", "trivial"))
    assert metrics["retention"] == pytest.approx(s / t)
    assert metrics["retention_above_trivial"] == (pytest.approx((s - t0) / (t - t0)) if t > t0 else None)


def test_the_servers_files_for_mnli_and_the_diagnostic_set(
    mnli: tuple[str, Path, Any], data: Path, tmp_path: Path
) -> None:
    _, out, _ = mnli
    written = predict(EvaluateConfig(
        task_name="MNLI", data_dir=str(data), model_name_or_path=str(out), output_dir=str(tmp_path),
        max_seq_length=24, no_cuda=True,
    ))  # fmt: skip
    sources = {
        "MNLI-m.tsv": data / "MNLI" / "test_matched.tsv", "MNLI-mm.tsv": data / "MNLI" / "test_mismatched.tsv",
        "AX.tsv": data / "diagnostic" / "diagnostic.tsv",
    }  # fmt: skip
    assert {path.name for path in written} == {path.name for path in tmp_path.iterdir()} == sources.keys()
    for name, source in sources.items():
        rows = rows_of(source)
        names = classes(out, [(row["sentence1"], row["sentence2"]) for row in rows])
        expected = "index\tprediction\n" + "".join(f"{i}\t{label}\n" for i, label in enumerate(names))
        assert (tmp_path / name).read_text() == expected


def test_the_diagnostic_set_is_found_beside_the_tasks_folder_or_left_out(
    mnli: tuple[str, Path, Any], data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    _, out, _ = mnli

    def names(data_dir: Path) -> set[str]:
        written = predict(EvaluateConfig(
            task_name="MNLI", data_dir=str(data_dir), model_name_or_path=str(out), max_seq_length=24,
            output_dir=str(tmp_path / "out"), no_cuda=True, overwrite_output_dir=True,
        ))  # fmt: skip
        return {path.name for path in written}

    assert names(data / "MNLI") == {"MNLI-m.tsv", "MNLI-mm.tsv", "AX.tsv"}
    shutil.copytree(data / "MNLI", tmp_path / "alone" / "MNLI")
    assert names(tmp_path / "alone") == {"MNLI-m.tsv", "MNLI-mm.tsv"}
    assert "AX.tsv is not written" in caplog.text


def test_evaluate_gives_the_scores_of_the_run(mnli: tuple[str, Path, Any], data: Path, tmp_path: Path) -> None:
    _, out, result = mnli
    found = evaluate(EvaluateConfig(
        task_name="MNLI", data_dir=str(data), model_name_or_path=str(out), output_dir=str(tmp_path / "new"),
        max_seq_length=24, no_cuda=True,
    ))  # fmt: skip
    assert found == read(tmp_path / "new" / "evaluation.json")
    assert {split: found[split] for split in ("matched", "mismatched")} == {
        split: result.metrics["student"][split] for split in ("matched", "mismatched")
    }
    assert found["rows"] == {"matched": 10, "mismatched": 11}


def test_predictions_for_a_file_of_the_users_own(teacher: str, files: dict[str, str], tmp_path: Path) -> None:
    rows = sentences(5, seed=9)
    unlabelled = write_csv(tmp_path / "test.csv", [[text] for text, _ in rows], ["text"])
    options: dict[str, Any] = {"model_name_or_path": teacher, "max_seq_length": 24, "no_cuda": True}
    written = predict(EvaluateConfig(**options, test_file=unlabelled, output_dir=str(tmp_path / "out")))
    assert [path.name for path in written] == ["predictions.csv"]
    with written[0].open(newline="") as stream:
        found = list(csv.reader(stream))
    model, logits = plain_logits(teacher, [(text,) for text, _ in rows])
    probabilities = logits.softmax(-1)
    assert found[0] == ["index", "prediction", "probability"]
    for i, (line, p) in enumerate(zip(found[1:], probabilities, strict=True)):
        assert line[:2] == [str(i), model.config.id2label[int(p.argmax())]]
        assert float(line[2]) == pytest.approx(float(p.max()), abs=1e-4)
    scores = evaluate(EvaluateConfig(**options, test_file=files["test_file"]))
    guesses = classes(teacher, [(text,) for text, _ in sentences(16, seed=3)])
    right = sum(g == label for g, (_, label) in zip(guesses, sentences(16, seed=3), strict=True))
    assert scores["test"]["accuracy"] == pytest.approx(right / 16)
    with pytest.raises(UserError, match="no label column"):
        evaluate(EvaluateConfig(**options, test_file=unlabelled))
    with pytest.raises(UserError, match=r"output_dir .* cannot be made"):
        predict(EvaluateConfig(**options, test_file=unlabelled, output_dir=unlabelled))


def test_numbers_for_a_file_of_the_users_own(words: BertTokenizerFast, tmp_path: Path) -> None:
    folder = random_teacher(words, tmp_path / "model", None)
    rows = [" ".join(PLAIN[i : i + 4]) for i in range(3)]
    file = write_csv(tmp_path / "test.csv", [[text] for text in rows], ["text"])
    written = predict(EvaluateConfig(
        model_name_or_path=folder, test_file=file, output_dir=str(tmp_path / "out"), max_seq_length=24, no_cuda=True
    ))  # fmt: skip
    lines = written[0].read_text().splitlines()
    assert lines[0] == "index,prediction"
    expected = plain_logits(folder, [(text,) for text in rows])[1][:, 0].tolist()
    assert [float(line.split(",")[1]) for line in lines[1:]] == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"model_name_or_path": None}, "which model"),
        ({"output_dir": None}, "where should the predictions go"),
        ({"task_name": "MRPCC", "test_file": None}, "did you mean MRPC"),
        ({"task_name": "MRPC"}, "task_name MRPC and test_file exclude each other"),
        ({"task_name": "CoLA", "data_dir": "DATA"}, "label names disagree"),
        ({"task_name": "STS-B", "data_dir": "DATA"}, "predicts classes but the labels of .* are a number"),
        ({"test_file": None}, "which data"),
        ({"max_seq_length": 81}, "at most 80 tokens"),
    ],
)
def test_what_predict_refuses_leaves_no_folder(
    options: dict[str, Any], match: str, teacher: str, files: dict[str, str], data: Path, tmp_path: Path
) -> None:
    given: dict[str, Any] = {
        "model_name_or_path": teacher, "test_file": files["test_file"], "output_dir": str(tmp_path / "out"),
        "max_seq_length": 24, "no_cuda": True, **options,
    }  # fmt: skip
    if given.get("data_dir") == "DATA":
        given |= {"data_dir": str(data), "test_file": None}
    with pytest.raises(UserError, match=match) as error:
        predict(EvaluateConfig(**given))
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


def test_a_regressor_for_classes_is_refused(words: BertTokenizerFast, data: Path, tmp_path: Path) -> None:
    teacher = random_teacher(words, tmp_path / "teacher", None)
    with pytest.raises(UserError, match=r"predicts a number but the labels of .* are classes"):
        distill(teacher, None, config=quick_distill(tmp_path / "out", task_name="MRPC", data_dir=str(data)))
    assert not (tmp_path / "out").exists()


def test_the_augmented_file_is_trained_on(words: BertTokenizerFast, data: Path, tmp_path: Path) -> None:
    shutil.copytree(data / "CoLA", tmp_path / "CoLA")
    rows = [["gj04", str(i % 2), "*", text] for i, (text, _) in enumerate(sentences(31, seed=8))]
    write_tsv(tmp_path / "CoLA" / "train_aug.tsv", None, rows)
    teacher = random_teacher(words, tmp_path / "teacher", ("unacceptable", "acceptable"), seed=3)
    options: dict[str, Any] = {"task_name": "CoLA", "data_dir": str(tmp_path), "mapping": "kd", "aug_train": True}
    metrics = distill(teacher, None, config=quick_distill(tmp_path / "out", **options)).metrics
    assert metrics["rows"] == {"train": 31, "validation": 10}


@pytest.mark.skipif(not os.environ.get("BERT_EMD_DATA"), reason="BERT_EMD_DATA names no folder of real GLUE files")
def test_a_few_steps_on_the_real_rte(words: BertTokenizerFast, tmp_path: Path) -> None:
    """Real rows, most of them longer than 24 tokens: it is warned about, and the scores are over all 277 rows."""
    root = Path(os.environ["BERT_EMD_DATA"]) / "glue"
    teacher = random_teacher(words, tmp_path / "teacher", ("entailment", "not_entailment"))
    config = quick_distill(tmp_path / "out", task_name="RTE", data_dir=str(root), max_steps=3)
    metrics = distill(teacher, None, config=config).metrics
    assert metrics["rows"] == {"train": 2490, "validation": 277}
    dev = rows_of(root / "RTE" / "dev.tsv")
    names = classes(tmp_path / "out", [(row["sentence1"], row["sentence2"]) for row in dev])
    right = sum(name == row["label"] for name, row in zip(names, dev, strict=True))
    assert metrics["student"]["accuracy"] == pytest.approx(right / 277)
    assert [f for f in read(tmp_path / "out" / "run.json")["findings"] if "longer than 24 tokens" in f]


def test_earlier_predictions_and_scores_are_not_written_over(
    teacher: str, files: dict[str, str], tmp_path: Path
) -> None:
    options: dict[str, Any] = {
        "model_name_or_path": teacher, "test_file": files["test_file"], "output_dir": str(tmp_path), "no_cuda": True,
    }  # fmt: skip
    for command, name in ((predict, "predictions.csv"), (evaluate, "evaluation.json")):
        (tmp_path / name).write_text("mine")
        with pytest.raises(UserError, match=rf"{name} is there already; name another folder"):
            command(EvaluateConfig(**options))
        assert (tmp_path / name).read_text() == "mine"
        command(EvaluateConfig(**options, overwrite_output_dir=True))
        assert (tmp_path / name).read_text() != "mine"


def test_a_model_is_scored_at_the_length_it_was_trained_with(
    words: BertTokenizerFast, files: dict[str, str], tmp_path: Path
) -> None:
    """A length at which every text of the file is cut gives other scores than the tokenizer's, if it counted."""
    model = trained(words)
    words.model_max_length = 3
    short = save(model, words, tmp_path / "short")
    found = evaluate(EvaluateConfig(model_name_or_path=str(short), test_file=files["test_file"], no_cuda=True))
    three = evaluate(EvaluateConfig(
        model_name_or_path=str(short), test_file=files["test_file"], no_cuda=True, max_seq_length=3
    ))  # fmt: skip
    longer = evaluate(EvaluateConfig(
        model_name_or_path=str(short), test_file=files["test_file"], no_cuda=True, max_seq_length=24
    ))  # fmt: skip
    assert found["test"] == three["test"] != longer["test"]
