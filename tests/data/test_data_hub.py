"""Rows in the schema of nyu-mll/glue: Parquet files, saved data sets, and what the hub is asked for."""

from __future__ import annotations

import re
from pathlib import Path

import datasets
import pytest
from data_helpers import STSB_HEAD, write

from bert_emd.data import find_task, load_glue
from bert_emd.errors import UserError


def parquet(path: Path, columns: dict, label: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    features = {name: datasets.Value("string") for name in columns}
    features |= {"label": label, "idx": datasets.Value("int32")}
    datasets.Dataset.from_dict(columns, features=datasets.Features(features)).to_parquet(path)
    return path


def mrpc_rows(labels: list[int]) -> dict:
    return {"sentence1": ["a ", "b", '"c'], "sentence2": ["d", "e", "f"], "label": labels, "idx": [0, 1, 2]}


OURS = datasets.ClassLabel(names=["not_equivalent", "equivalent"])
PERMUTED = datasets.ClassLabel(names=["equivalent", "not_equivalent"])
SPELLED = datasets.ClassLabel(names=["Equivalent", "Not-Equivalent"])


@pytest.mark.parametrize(
    ("feature", "labels"),
    [
        (OURS, [1, 0, 1]),
        (PERMUTED, [0, 1, 0]),
        (SPELLED, [0, 1, 0]),
        (datasets.Value("int64"), [1, 0, 1]),
        (datasets.Value("string"), ["equivalent", "not_equivalent", "equivalent"]),
    ],
    ids=["hub order", "permuted", "other spelling", "no names", "words"],
)
@pytest.mark.parametrize(
    "file", ["mrpc/train-00000-of-00001.parquet", "train-00000-of-00001.parquet", "MRPC/train.parquet"]
)
def test_parquet_labels_are_matched_by_name(tmp_path, feature, labels, file):
    parquet(tmp_path / file, mrpc_rows(labels), feature)
    write(
        tmp_path / "official/MRPC/train.tsv",
        '\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String\n1\t7\t8\ta \td\n0\t7\t8\tb\te\n1\t7\t8\t"c\tf\n',
    )
    hub, official = load_glue("MRPC", "train", tmp_path), load_glue("MRPC", "train", tmp_path / "official")
    for field in ("texts", "pairs", "labels", "indices", "task", "dropped"):
        assert getattr(hub, field) == getattr(official, field), field
    assert hub.labels == [1, 0, 1]
    assert hub.fingerprint() == official.fingerprint()


def test_parquet_shards_are_read_in_order(tmp_path):
    for part, text in enumerate("ab"):
        rows = {"sentence": [text], "label": [part], "idx": [part]}
        parquet(
            tmp_path / f"sst2/train-0000{part}-of-00002.parquet",
            rows,
            datasets.ClassLabel(names=["negative", "positive"]),
        )
    examples = load_glue("SST-2", "train", tmp_path)
    assert (examples.texts, examples.labels, examples.indices) == (["a", "b"], [0, 1], [0, 1])


def test_mnli_parquet_has_four_evaluation_splits(tmp_path):
    names = datasets.ClassLabel(names=["contradiction", "entailment", "neutral"])
    for split, label in (("validation_matched", 1), ("validation_mismatched", 2), ("test_matched", -1)):
        rows = {"premise": [split], "hypothesis": ["b"], "label": [label], "idx": [0]}
        parquet(tmp_path / f"mnli/{split}-00000-of-00001.parquet", rows, names)
    assert load_glue("MNLI", "validation", tmp_path).labels == [0]
    assert load_glue("MNLI", "validation_mismatched", tmp_path).labels == [1]
    test = load_glue("MNLI", "test", tmp_path)
    assert (test.texts, test.labels) == (["test_matched"], None)
    with pytest.raises(UserError, match=r"no test_mismatched\.tsv or test_mismatched-"):
        load_glue("MNLI", "test_mismatched", tmp_path)


def test_diagnostic_from_either_source(tmp_path):
    write(tmp_path / "tsv/diagnostic/diagnostic.tsv", "index\tsentence1\tsentence2\n0\tA cat.\tNo cat.")
    rows = {"premise": ["A cat."], "hypothesis": ["No cat."], "label": [-1], "idx": [0]}
    names = datasets.ClassLabel(names=["entailment", "neutral", "contradiction"])
    parquet(tmp_path / "hub/ax/test-00000-of-00001.parquet", rows, names)
    official, hub = (load_glue("AX", "test", tmp_path / source) for source in ("tsv", "hub"))
    assert official.fingerprint() == hub.fingerprint()
    assert official.labels is hub.labels is None


def test_scores_are_equal_from_either_source(tmp_path):
    """The hub stores float32: 3.8 is 3.7999999523… there, and 4.57142857142857 is 4.571428775…, in short 4.571429."""
    values = ["4.57142857142857", "3.800", "0", "2.533"]
    rows = "".join(f"{i}\tg\tf\ty\t1\ts\ts\ta\tb\t{value}\n" for i, value in enumerate(values))
    write(tmp_path / "tsv/train.tsv", STSB_HEAD + rows)
    columns = {"sentence1": ["a"] * 4, "sentence2": ["b"] * 4, "label": [float(v) for v in values], "idx": [0, 1, 2, 3]}
    parquet(tmp_path / "hub/train-00000-of-00001.parquet", columns, datasets.Value("float32"))
    official, hub = (load_glue("STS-B", "train", tmp_path / source) for source in ("tsv", "hub"))
    assert official.labels == hub.labels == [4.571429, 3.8, 0.0, 2.533]


def test_a_saved_dataset_dict(tmp_path):
    rows = datasets.Dataset.from_dict(
        {"sentence": ["a", "b"], "label": [1, 0], "idx": [0, 1]},
        features=datasets.Features(
            {
                "sentence": datasets.Value("string"),
                "label": datasets.ClassLabel(names=["positive", "negative"]),
                "idx": datasets.Value("int32"),
            }
        ),
    )
    datasets.DatasetDict({"train": rows}).save_to_disk(tmp_path / "sst2")
    assert load_glue("SST-2", "train", tmp_path).labels == [0, 1]
    with pytest.raises(UserError, match=r"no dev\.tsv or validation"):
        load_glue("SST-2", "validation", tmp_path)


@pytest.mark.parametrize(
    ("labels", "feature", "message"),
    [
        ([0, 1, 0], datasets.ClassLabel(names=["no", "yes"]), r"row 0: unknown label 'no': MRPC has not_equivalent"),
        ([0, 1, 2], datasets.Value("int64"), r"row 2: unknown label 2"),
        ([0, 1, -1], OURS, r"row 2: unknown label -1"),
        ([-1, -1, -1], OURS, "has no labels"),
    ],
)
def test_bad_parquet_labels(tmp_path, labels, feature, message):
    parquet(tmp_path / "train-00000-of-00001.parquet", mrpc_rows(labels), feature)
    with pytest.raises(UserError, match=message):
        load_glue("MRPC", "train", tmp_path)


def test_bad_parquet_files(tmp_path):
    write(tmp_path / "rte/train-00000-of-00001.parquet", "not parquet")
    with pytest.raises(UserError, match=r"cannot read .*train-00000-of-00001\.parquet"):
        load_glue("RTE", "train", tmp_path)
    parquet(tmp_path / "rte/validation-00000-of-00001.parquet", {"text": ["a"], "label": [0], "idx": [0]}, OURS)
    with pytest.raises(UserError, match=r"no column 'sentence1' \(found: text, label, idx\)"):
        load_glue("RTE", "validation", tmp_path)
    rows = {"sentence1": ["a"], "sentence2": ["b"], "label": [float("nan")], "idx": [0]}
    parquet(tmp_path / "stsb/train-00000-of-00001.parquet", rows, datasets.Value("float32"))
    with pytest.raises(UserError, match="row 0: score nan"):
        load_glue("STS-B", "train", tmp_path)
    rows = {"sentence1": [None], "sentence2": ["b"], "label": [0], "idx": [0]}
    parquet(tmp_path / "wnli/train-00000-of-00001.parquet", rows, datasets.Value("int64"))
    with pytest.raises(UserError, match="row 0: column 'sentence1' holds None"):
        load_glue("WNLI", "train", tmp_path)


@pytest.mark.parametrize(("data_dir", "hub_id"), [(None, "nyu-mll/glue"), ("somebody/glue-copy", "somebody/glue-copy")])
def test_the_hub_is_asked_for_the_right_split(monkeypatch, data_dir, hub_id):
    asked = []

    def load_dataset(*args, **kwargs):
        asked.append((args, kwargs))
        names = ["neutral", "contradiction", "entailment"]
        features = {"premise": datasets.Value("string"), "hypothesis": datasets.Value("string")}
        features |= {"label": datasets.ClassLabel(names=names), "idx": datasets.Value("int32")}
        rows = {"premise": ["a"], "hypothesis": ["b"], "label": [2], "idx": [0]}
        return datasets.Dataset.from_dict(rows, features=datasets.Features(features))

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    examples = load_glue("MNLI", "validation_mismatched", data_dir, cache_dir="kept")
    assert asked == [((hub_id, "mnli"), {"split": "validation_mismatched", "cache_dir": "kept", "download_mode": None})]
    assert examples.labels == [0]
    assert examples.source == f"{hub_id} (mnli, validation_mismatched)"


def test_a_hub_that_cannot_be_reached_is_told_in_one_line(monkeypatch):
    def load_dataset(*args, **kwargs):
        raise ConnectionError("no\nroute")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(UserError, match=r"cannot load MRPC \(train\) from 'nyu-mll/glue' on the hub: no route"):
        load_glue("MRPC", "train")
    with pytest.raises(UserError, match=r"there is no folder 'nowhere/MRPC', and cannot load MRPC"):
        load_glue("MRPC", "train", "nowhere/MRPC")
    with pytest.raises(UserError, match=re.escape("the hub has no split 'train_aug'")):
        load_glue(find_task("MRPC"), "train_aug")


@pytest.mark.parametrize(("refresh", "mode"), [(False, None), (True, "force_redownload")])
def test_refresh_asks_the_hub_for_a_new_download(
    monkeypatch: pytest.MonkeyPatch, refresh: bool, mode: str | None
) -> None:
    asked: list[str | None] = []

    def load_dataset(*_: object, download_mode: str | None, **__: object) -> datasets.Dataset:
        asked.append(download_mode)
        return datasets.Dataset.from_dict({"sentence": ["Good."], "label": [1], "idx": [0]})

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert load_glue("SST-2", "validation", refresh=refresh).label_counts() == {"negative": 0, "positive": 1}
    assert asked == [mode]
