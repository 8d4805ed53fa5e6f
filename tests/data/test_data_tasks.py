"""The table of tasks, label names, examples and the held-out rows."""

from __future__ import annotations

import pickle

import numpy as np
import pytest

from bert_emd.data import (
    GLUE_TASKS,
    Examples,
    custom_task,
    find_task,
    holdout,
    match_labels,
    order_labels,
    relabel,
)
from bert_emd.errors import UserError

# Written down from the hub's data set card: configuration, text columns, class names in order.
HUB = {
    "CoLA": ("cola", ("sentence",), ("unacceptable", "acceptable")),
    "SST-2": ("sst2", ("sentence",), ("negative", "positive")),
    "MRPC": ("mrpc", ("sentence1", "sentence2"), ("not_equivalent", "equivalent")),
    "STS-B": ("stsb", ("sentence1", "sentence2"), None),
    "QQP": ("qqp", ("question1", "question2"), ("not_duplicate", "duplicate")),
    "MNLI": ("mnli", ("premise", "hypothesis"), ("entailment", "neutral", "contradiction")),
    "QNLI": ("qnli", ("question", "sentence"), ("entailment", "not_entailment")),
    "RTE": ("rte", ("sentence1", "sentence2"), ("entailment", "not_entailment")),
    "WNLI": ("wnli", ("sentence1", "sentence2"), ("not_entailment", "entailment")),
    "AX": ("ax", ("premise", "hypothesis"), ("entailment", "neutral", "contradiction")),
}


def test_the_table_agrees_with_the_hub():
    assert {task.name: (task.hub_name, task.text_columns, task.label_names) for task in GLUE_TASKS} == HUB


def test_metrics():
    expected = dict.fromkeys(HUB, ("accuracy",)) | {
        "CoLA": ("matthews_correlation",),
        "MRPC": ("accuracy", "f1"),
        "QQP": ("accuracy", "f1"),
        "STS-B": ("spearmanr", "pearson"),
    }
    assert {task.name: task.metrics for task in GLUE_TASKS} == expected
    assert find_task("MRPC").main_metric == "accuracy"
    assert [task.name for task in GLUE_TASKS if task.is_regression] == ["STS-B"]
    assert (find_task("stsb").num_labels, find_task("rte").num_labels, find_task("ax").num_labels) == (1, 2, 3)


def test_tasks_travel_between_processes():
    assert pickle.loads(pickle.dumps(GLUE_TASKS)) == GLUE_TASKS
    assert len(set(GLUE_TASKS)) == 10


@pytest.mark.parametrize("name", ["sts-b", "STSB", "sts_b", "STS-B", " Sts-b "])
def test_names_ignore_case_and_dashes(name):
    assert find_task(name).name == "STS-B"


@pytest.mark.parametrize(("name", "nearest"), [("mnli-mm", "MNLI"), ("mrcp", "MRPC"), ("sst", "SST-2"), ("", "")])
def test_unknown_tasks_are_answered_with_the_nearest(name, nearest):
    with pytest.raises(UserError, match=f"unknown task '{name}': did you mean {nearest}.*Known tasks: CoLA, SST-2"):
        find_task(name)


def test_custom_tasks():
    task = custom_task(("x", "y", "z"), ("a", "b"))
    assert (task.num_labels, task.metrics, task.text_columns) == (3, ("accuracy", "f1_macro"), ("a", "b"))
    assert custom_task(None).metrics == ("spearmanr", "pearson")
    assert custom_task(()).num_labels == 0
    with pytest.raises(UserError, match="at least two"):
        custom_task(("x",))
    with pytest.raises(UserError, match="same name"):
        custom_task(("x y", "X-Y"))


# ------------------------------------------------------------------------------------------------ label names


def test_order_by_name():
    assert order_labels(["a", "b", "c"], ["C", "A", "B"]) == (1, 2, 0)
    with pytest.raises(UserError, match="disagree: the data have a, b, the model a, c;"):
        order_labels(["a", "b"], ["a", "c"])
    with pytest.raises(UserError, match="disagree"):
        order_labels(["a", "b"], ["a", "b", "c"])


UNNAMED = ["LABEL_0", "LABEL_1"]


def test_named_models_are_matched_by_name():
    names = ["not_entailment", "entailment"]
    assert match_labels(names, ["Entailment", "Not-Entailment"]) == ((1, 0), False)
    assert match_labels(["0", "1"], ["1", "0"]) == ((1, 0), False)
    assert match_labels(UNNAMED, ["label_1", "label_0"]) == ((1, 0), False)
    with pytest.raises(UserError, match="disagree"):
        match_labels(["yes", "no"], names, known_order=True)


def test_unnamed_models_are_matched_only_to_a_known_order():
    assert match_labels(UNNAMED, ["negative", "positive"], known_order=True) == ((0, 1), True)
    assert match_labels(["0", "1"], ["negative", "positive"], known_order=True) == ((0, 1), True)
    assert match_labels(UNNAMED, ["0", "1"]) == ((0, 1), True)
    with pytest.raises(UserError, match="pass --label_names in the model's order"):
        match_labels(UNNAMED, ["negative", "positive"])
    with pytest.raises(UserError, match="pass --label_names"):
        match_labels(UNNAMED, ["1", "2"])
    with pytest.raises(UserError, match=r"the model has 2 labels .* the data 3"):
        match_labels(UNNAMED, ["a", "b", "c"], known_order=True)
    # Names that are out of place are names of some other kind.
    with pytest.raises(UserError, match="disagree"):
        match_labels(["LABEL_1", "LABEL_0"], ["negative", "positive"], known_order=True)


# ------------------------------------------------------------------------------------------------ examples


def make(labels, task=None, texts=None):
    texts = texts or [f"text {i}" for i in range(len(labels))]
    return Examples(texts, None, labels, list(range(len(texts))), task or custom_task(("x", "y", "z")), "here")


def test_examples():
    examples = make([0, 2, 2])
    assert len(examples) == 3
    assert examples.label_counts() == {"x": 1, "y": 0, "z": 2}
    part = examples.subset([2, 0])
    assert (part.texts, part.labels, part.indices) == (["text 2", "text 0"], [2, 0], [2, 0])
    with pytest.raises(ValueError, match="3 texts but 2 labels"):
        Examples(["a", "b", "c"], None, [0, 1], [0, 1, 2], custom_task(("x", "y")), "here")


def test_fingerprint_follows_content_and_nothing_else():
    examples = make([0, 2, 2])
    assert examples.fingerprint() == make([0, 2, 2]).fingerprint()
    assert relabel(examples, ["z", "y", "x"]).fingerprint() == examples.fingerprint()
    others = [make([0, 2, 1]), make([0, 2, 2], texts=["text 0", "text 1", "text 2 "]), examples.subset([1, 0, 2])]
    assert len({examples.fingerprint(), *(other.fingerprint() for other in others)}) == 4


def test_relabelling_a_glue_task_moves_all_that_hangs_on_the_order():
    moved = relabel(make([0, 1, 1], find_task("MRPC")), ["Equivalent", "Not_equivalent"])
    assert moved.labels == [1, 0, 0]
    assert moved.task.positive == 0
    assert moved.task.tsv_labels == moved.task.submission_labels == ("1", "0")
    three = find_task("MNLI").with_label_names(["contradiction", "entailment", "neutral"])
    assert three.submission_labels == ("contradiction", "entailment", "neutral")
    with pytest.raises(UserError, match="regression"):
        find_task("STS-B").with_label_names(["a", "b"])


# ------------------------------------------------------------------------------------------------ held-out rows


def test_holdout_is_stratified_and_always_the_same():
    labels = [0] * 100 + [1] * 60 + [2] * 40
    kept, held = holdout(make(labels))
    assert held.label_counts() == {"x": 10, "y": 6, "z": 4}
    assert kept.label_counts() == {"x": 90, "y": 54, "z": 36}
    assert sorted(kept.indices + held.indices) == list(range(200))
    assert kept.indices == sorted(kept.indices)
    again = holdout(make(labels))
    assert (again[0].indices, again[1].indices) == (kept.indices, held.indices)
    assert holdout(make(labels), seed=14)[1].indices != held.indices
    # The very rows, so that a change of them does not pass unseen.
    assert held.indices[:5] == [16, 25, 26, 46, 48]


def test_holdout_takes_the_same_rows_whatever_the_order_of_the_classes():
    labels = [0, 2, 1, 1, 0, 2, 2, 1, 0, 0] * 8
    other = [{0: 2, 1: 0, 2: 1}[label] for label in labels]
    assert holdout(make(labels))[1].indices == holdout(make(other))[1].indices


def test_holdout_of_scores_has_every_part_of_the_scale():
    scores = np.random.default_rng(0).permutation(np.linspace(0.0, 5.0, 500)).tolist()
    kept, held = holdout(make(scores, find_task("STS-B")))
    assert (len(kept), len(held)) == (450, 50)
    assert np.histogram(held.labels, bins=5, range=(0, 5))[0].tolist() == [10, 10, 10, 10, 10]


def test_holdout_of_few_and_of_unlabelled_rows():
    kept, held = holdout(make([0] * 20 + [1] * 20 + [2]))
    assert 40 in kept.indices
    assert held.label_counts()["z"] == 0
    kept, held = holdout(make(None, texts=[str(i) for i in range(50)]), fraction=0.2)
    assert (len(kept), len(held)) == (40, 10)
    for fraction in (0.0, 1.0, -1.0, float("nan")):
        with pytest.raises(UserError, match="between 0 and 1"):
            holdout(make([0, 1]), fraction)
    with pytest.raises(UserError, match="too few rows"):
        holdout(make([0, 1, 2]))
    with pytest.raises(UserError, match="too few rows"):
        holdout(make([0, 0, 1, 1]), 0.9)
