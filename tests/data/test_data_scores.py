"""Metrics against numbers worked out by hand, and the server's files byte by byte."""

from __future__ import annotations

import math
import warnings
from pathlib import Path

import numpy as np
import pytest

from bert_emd.data import custom_task, find_task, score, trivial_score, write_submission
from bert_emd.errors import UserError


def one_hot(predictions, classes):
    return np.eye(classes)[predictions]


# True positives 3, false positives 1, false negatives 2, true negatives 4.
TRUTH = [1, 1, 1, 1, 1, 0, 0, 0, 0, 0]
GUESS = [1, 1, 1, 0, 0, 1, 0, 0, 0, 0]


def test_accuracy_and_f1():
    scores = score(find_task("MRPC"), one_hot(GUESS, 2), TRUTH)
    assert list(scores) == ["accuracy", "f1"]
    assert scores["accuracy"] == pytest.approx(7 / 10)
    assert scores["f1"] == pytest.approx(2 * 3 / (2 * 3 + 1 + 2))


def test_f1_stays_with_its_class_under_another_order():
    moved = find_task("QQP").with_label_names(["duplicate", "not_duplicate"])
    flipped = score(moved, one_hot([1 - g for g in GUESS], 2), [1 - t for t in TRUTH])
    assert flipped == pytest.approx(score(find_task("QQP"), one_hot(GUESS, 2), TRUTH))
    assert flipped["f1"] == pytest.approx(6 / 9)


def test_matthews_correlation():
    expected = (3 * 4 - 1 * 2) / math.sqrt((3 + 1) * (3 + 2) * (4 + 1) * (4 + 2))
    assert score(find_task("CoLA"), one_hot(GUESS, 2), TRUTH) == {"matthews_correlation": pytest.approx(expected)}


def test_macro_f1():
    # Class 0: F1 2/3; class 1: 2/3; class 2: 1.
    scores = score(custom_task(("x", "y", "z")), one_hot([0, 0, 1, 2], 3), [0, 1, 1, 2])
    assert scores == {"accuracy": 0.75, "f1_macro": pytest.approx((2 / 3 + 2 / 3 + 1) / 3)}


@pytest.mark.parametrize("shape", [(4,), (4, 1)])
def test_correlations(shape):
    predictions, truth = np.array([1.0, 2.0, 3.0, 10.0]), [1.0, 3.0, 2.0, 4.0]
    scores = score(find_task("STS-B"), predictions.reshape(shape), truth)
    # Deviations (-3, -2, -1, 6) and (-1.5, .5, -.5, 1.5): 13 / sqrt(50 * 5); rank differences 0, 1, 1, 0.
    assert list(scores) == ["spearmanr", "pearson"]
    assert scores["pearson"] == pytest.approx(13 / math.sqrt(50 * 5))
    assert scores["spearmanr"] == pytest.approx(1 - 6 * 2 / (4 * 15))


@pytest.mark.parametrize("constant", ["predictions", "labels", "both", "one row"])
def test_constant_predictions_score_zero_in_silence(constant):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        varied, same = np.array([0, 1, 0, 1]), np.array([1, 1, 1, 1])
        rows = 1 if constant == "one row" else 4
        truth = (same if constant in ("labels", "both") else varied)[:rows]
        guess = (same if constant in ("predictions", "both") else varied)[:rows]
        assert score(find_task("CoLA"), one_hot(guess, 2), truth) == {"matthews_correlation": 0.0}
        assert score(find_task("STS-B"), guess.astype(float), truth.astype(float)) == {"spearmanr": 0.0, "pearson": 0.0}
        nearly = np.array([1.0, 1.0 + 1e-16, 1.0, 1.0 + 2e-16]) * 1e8
        assert all(math.isfinite(x) for x in score(find_task("STS-B"), nearly, varied.astype(float)).values())
        assert score(find_task("MRPC"), one_hot([0, 0], 2), [1, 1]) == {"accuracy": 0.0, "f1": 0.0}


def test_diverged_models_and_wrong_shapes():
    logits = one_hot(GUESS, 2)
    logits[3, 1] = np.nan
    with pytest.raises(UserError, match="not finite in 1 of 10 rows: training diverged"):
        score(find_task("MRPC"), logits, TRUTH)
    with pytest.raises(UserError, match="diverged"):
        score(find_task("STS-B"), np.array([1.0, np.inf]), [1.0, 2.0])
    with pytest.raises(ValueError, match="do not fit"):
        score(find_task("MNLI"), one_hot(GUESS, 2), TRUTH)
    with pytest.raises(ValueError, match="do not fit"):
        score(find_task("MRPC"), one_hot(GUESS, 2), TRUTH[:-1])


def test_the_trivial_predictor():
    train = [1, 1, 0]
    assert trivial_score(find_task("MRPC"), train, [1, 1, 1, 0]) == {"accuracy": 0.75, "f1": pytest.approx(6 / 7)}
    assert trivial_score(find_task("MRPC"), [0, 0, 1], [1, 1, 1, 0]) == {"accuracy": 0.25, "f1": 0.0}
    assert trivial_score(find_task("CoLA"), train, [1, 0]) == {"matthews_correlation": 0.0}
    assert trivial_score(find_task("STS-B"), [1.5, 2.0], [1.0, 3.0]) == {"spearmanr": 0.0, "pearson": 0.0}
    assert trivial_score(custom_task(("x", "y", "z")), [2, 2, 1], [2, 1])["accuracy"] == 0.5


# ------------------------------------------------------------------------------------------------ submissions

SERVER_FILES = [
    ("CoLA", "test", "CoLA.tsv", ["acceptable", "unacceptable"], ["1", "0"]),
    ("SST-2", "test", "SST-2.tsv", ["positive", "negative"], ["1", "0"]),
    ("MRPC", "test", "MRPC.tsv", ["equivalent", "not_equivalent"], ["1", "0"]),
    ("QQP", "test", "QQP.tsv", ["duplicate", "not_duplicate"], ["1", "0"]),
    ("MNLI", "test", "MNLI-m.tsv", ["neutral", "entailment", "contradiction"], ["neutral", "entailment"]),
    ("MNLI", "test_mismatched", "MNLI-mm.tsv", ["neutral", "entailment", "contradiction"], ["neutral", "entailment"]),
    ("QNLI", "test", "QNLI.tsv", ["not_entailment", "entailment"], ["not_entailment", "entailment"]),
    ("RTE", "test", "RTE.tsv", ["Not Entailment", "ENTAILMENT"], ["not_entailment", "entailment"]),
    ("WNLI", "test", "WNLI.tsv", ["entailment", "not_entailment"], ["1", "0"]),
    ("AX", "test", "AX.tsv", ["contradiction", "neutral", "entailment"], ["contradiction", "neutral"]),
    ("MRPC", "test", "MRPC.tsv", ["LABEL_0", "LABEL_1"], ["0", "1"]),
]


@pytest.mark.parametrize(("task", "split", "file", "names", "words"), SERVER_FILES)
def test_the_servers_files(tmp_path, task, split, file, names, words):
    """Output 0 wins in the first row, output 1 in the second: what is written is the name, in the server's spelling."""
    logits = one_hot([0, 1], len(names))
    path = write_submission(find_task(task), split, logits, names, [0, 1], tmp_path / "new")
    assert path == tmp_path / "new" / file
    assert path.read_bytes() == f"index\tprediction\n0\t{words[0]}\n1\t{words[1]}\n".encode()
    assert list((tmp_path / "new").iterdir()) == [path]


@pytest.mark.parametrize("shape", [(5,), (5, 1)])
def test_similarity_scores_are_clipped(tmp_path, shape):
    logits = np.array([-0.3, 5.2, 3.14159, -0.0, 2.0]).reshape(shape)
    path = write_submission(find_task("STS-B"), "test", logits, None, [0, 1, 2, 3, 7], tmp_path)
    assert path.name == "STS-B.tsv"
    expected = b"index\tprediction\n0\t0.000\n1\t5.000\n2\t3.142\n3\t0.000\n7\t2.000\n"
    assert path.read_bytes() == expected


def test_submissions_that_cannot_be_written(tmp_path):
    task, logits = find_task("RTE"), one_hot([0, 1], 2)
    with pytest.raises(UserError, match="takes no predictions for RTE validation"):
        write_submission(task, "validation", logits, ["entailment", "not_entailment"], [0, 1], tmp_path)
    with pytest.raises(UserError, match="disagree"):
        write_submission(task, "test", logits, ["yes", "no"], [0, 1], tmp_path)
    with pytest.raises(UserError, match="not finite"):
        write_submission(task, "test", logits * np.nan, ["entailment", "not_entailment"], [0, 1], tmp_path)
    with pytest.raises(ValueError, match="2 rows of logits for 3 indices"):
        write_submission(task, "test", logits, ["entailment", "not_entailment"], [0, 1, 2], tmp_path)
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match="cannot write"):
        write_submission(task, "test", logits, ["entailment", "not_entailment"], [0, 1], tmp_path / "file")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_an_interrupted_write_leaves_the_old_file(tmp_path, monkeypatch):
    (tmp_path / "RTE.tsv").write_text("old")

    def fail(self, target):
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(KeyboardInterrupt):
        write_submission(
            find_task("RTE"), "test", one_hot([0, 1], 2), ["entailment", "not_entailment"], [0, 1], tmp_path
        )
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("RTE.tsv", "old")]
