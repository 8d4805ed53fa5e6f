"""Means, spreads and paired intervals against plain loops and SciPy; which run a difference is taken to."""

from __future__ import annotations

import math

import pytest
from scipy import stats

from bert_emd import UserError
from bert_emd.studies.compare.methods import parse_method, parse_methods
from bert_emd.studies.compare.render import as_markdown
from bert_emd.studies.compare.statistics import over_seeds, over_tasks, paired_difference
from bert_emd.studies.compare.tables import build_tables, reference

A = {1: 0.703, 2: 0.711, 3: 0.696, 4: 0.742}
B = {2: 0.684, 1: 0.694, 3: 0.701, 5: 0.9}


def test_mean_and_deviation_by_hand():
    found = over_seeds({1: 1.0, 2: 2.0, 3: 6.0})
    assert (found["n"], found["mean"]) == (3, 3.0)
    assert found["sd"] == pytest.approx(math.sqrt((4 + 1 + 9) / 2))
    assert over_seeds({7: 0.5}) == {"n": 1, "mean": 0.5, "sd": None}
    assert over_seeds({}) == {"n": 0, "mean": None, "sd": None}


def test_the_paired_interval_is_scipys():
    test = stats.ttest_rel([A[s] for s in (1, 2, 3)], [B[s] for s in (1, 2, 3)])
    interval = test.confidence_interval(0.95)
    found = paired_difference(A, B)
    assert found["n"] == 3
    assert found["mean"] == pytest.approx(sum(A[s] - B[s] for s in (1, 2, 3)) / 3)
    assert (found["low"], found["high"]) == pytest.approx((interval.low, interval.high))


def test_the_interval_of_three_differences_by_hand():
    # Differences 1, 2, 3: mean 2, deviation 1, t of 0.975 with 2 degrees of freedom 4.30265.
    found = paired_difference({1: 1.0, 2: 2.0, 3: 3.0}, {1: 0.0, 2: 0.0, 3: 0.0})
    assert found["high"] == pytest.approx(2 + 4.302653 / math.sqrt(3), abs=1e-6)


def test_below_three_seeds_there_is_no_interval():
    assert paired_difference({1: 0.5, 2: 0.7}, {1: 0.4, 2: 0.4}) == {
        "n": 2, "mean": pytest.approx(0.2), "low": None, "high": None,
    }  # fmt: skip
    assert paired_difference({1: 0.5}, {2: 0.4})["mean"] is None


def test_over_tasks_takes_the_mean_for_each_seed_that_all_have():
    assert over_tasks([{1: 0.2, 2: 0.4, 3: 0.9}, {1: 0.6, 2: 0.8}]) == pytest.approx({1: 0.4, 2: 0.6})
    assert over_tasks([{1: 0.2}, {}]) == {}


def cell(task, method, seed, last, best, **more):
    start = "pretrained" if "@pretrained" in method else "teacher"
    return {"task": task, "layers": 3, "method": method, "start": start, "seed": seed, "state": "done", "last": last,
            "best": best, "wall_seconds": 60.0} | more  # fmt: skip


def test_the_table_over_all_tasks_pairs_the_means_of_each_seed():
    scores = {
        ("A", "none"): [0.50, 0.52, 0.57], ("A", "emd"): [0.55, 0.60, 0.56],
        ("B", "none"): [0.30, 0.20, 0.25], ("B", "emd"): [0.35, 0.31, 0.27],
    }  # fmt: skip
    cells = [cell(t, m, s + 1, x, x + 0.01) for (t, m), values in scores.items() for s, x in enumerate(values)]
    tables = build_tables(cells)
    assert [table["task"] for table in tables] == ["A", "B", None]
    means = {m: [(a + b) / 2 for a, b in zip(scores["A", m], scores["B", m], strict=True)] for m in ("none", "emd")}
    interval = stats.ttest_rel(means["emd"], means["none"]).confidence_interval(0.95)
    row = next(row for row in tables[2]["rows"] if row["method"] == "emd")
    assert row["last"]["mean"] == pytest.approx(sum(means["emd"]) / 3)
    assert row["minus_none"]["against"] == "none"
    assert (row["minus_none"]["last"]["low"], row["minus_none"]["last"]["high"]) == pytest.approx(tuple(interval))
    assert row["minus_kd"] is None
    # A task without any score leaves the mean over all of them blank, not the mean over the others.
    cells = [c | ({"state": "new"} if (c["task"], c["method"]) == ("B", "emd") else {}) for c in cells]
    row = next(row for row in build_tables(cells)[2]["rows"] if row["method"] == "emd")
    assert row["last"] == {"n": 0, "mean": None, "sd": None}


@pytest.mark.parametrize(
    ("method", "starts", "expected"),
    [
        ("emd", {"none": "teacher", "emd": "teacher"}, "none"),
        ("none", {"none": "teacher", "emd": "teacher"}, None),
        ("emd@pretrained", {"none": "teacher", "none@pretrained": "pretrained", "emd@pretrained": "pretrained"},
         "none@pretrained"),
        ("emd", {"none@pretrained": "pretrained", "emd": "teacher"}, "none@pretrained"),
        ("emd", {"none+beta=2": "teacher", "none": "teacher", "emd": "teacher"}, "none"),
        ("none+learning_rate=1e-4", {"none+learning_rate=1e-4": "teacher", "none": "teacher"}, "none"),
        ("none@pretrained", {"none": "teacher", "none@pretrained": "pretrained"}, None),
        ("emd", {"kd": "teacher", "emd": "teacher"}, None),
    ],
)  # fmt: skip
def test_a_difference_is_to_the_baseline_of_the_same_start(method, starts, expected):
    assert reference(method, "none", starts) == expected


def test_a_baseline_of_another_start_is_named_below_the_table():
    cells = [cell("A", m, s, 0.5, 0.5) for m in ("none@pretrained", "emd", "emd@pretrained") for s in (1, 2)]
    cells = [c | {"command": "", "folder": ""} for c in cells]
    study = {"notes": [], "tables": build_tables(cells), "cells": cells, "teachers": [{"task": "A", "ready": True}],
             "tasks": [{"task": "A", "metric": "accuracy"}], "seeds": [1, 2], "command": ""}  # fmt: skip
    text = as_markdown(study)
    assert "- `emd` − none: the difference to `none@pretrained` (start: pretrained)." in text
    assert "`emd@pretrained` − none" not in text
    assert "to the baseline of the same start" in text


def test_a_method_is_a_name_options_and_a_start():
    method = parse_method("emd+rule=softmax+learning-rate=1e+2+seperate=true@pretrained")
    assert (method.name, method.start) == ("emd", "pretrained")
    assert method.options == {"rule": "softmax", "learning_rate": "1e+2", "seperate": "true"}
    assert parse_method("none").start is None


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("emd@scratch", "a start is @teacher or @pretrained, not @scratch"),
        ("emd+bet=1", "unknown key bet; did you mean beta?"),
        ("emd+beta", "not of the form NAME"),
        ("", "not of the form NAME"),
        ("emd+beta=1+beta=2", "sets beta twice"),
        ("emd+seed=3", "seed is not an option of a comparison: --seeds"),
        ("emd+student_layers=3", "student_layers is the same for all methods"),
        ("emd+train_file=x.csv", "train_file is the same for all methods"),
    ],
)
def test_a_method_that_cannot_be_read(spec, message):
    with pytest.raises(UserError, match=message):
        parse_methods([spec])


def test_a_method_that_stands_twice():
    with pytest.raises(UserError, match="methods names emd twice"):
        parse_methods(["emd", "none", "emd"])
