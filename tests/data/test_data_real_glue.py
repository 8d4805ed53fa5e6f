"""The real GLUE files, against counts taken from them by awk and against a second, naive reader."""

from __future__ import annotations

from pathlib import Path

import datasets
import numpy as np
import pytest

from bert_emd.data import Examples, find_task, load_glue

ACCEPTABLE = ("unacceptable", "acceptable")
SENTIMENT = ("negative", "positive")
EQUIVALENT = ("not_equivalent", "equivalent")
ENTAILMENT = ("entailment", "not_entailment")
WINOGRAD = ("not_entailment", "entailment")

# task, split, file, lines of header, text columns, label column, class names (hub order), counts in that order, rows
FILES = [
    ("CoLA", "train", "glue/CoLA/train.tsv", 0, (3,), 1, ACCEPTABLE, (2528, 6023), 8551),
    ("CoLA", "validation", "glue/CoLA/dev.tsv", 0, (3,), 1, ACCEPTABLE, (322, 721), 1043),
    ("CoLA", "test", "glue/CoLA/test.tsv", 1, (1,), None, ACCEPTABLE, (), 1063),
    ("SST-2", "train", "glue/SST-2/train.tsv", 1, (0,), 1, SENTIMENT, (29780, 37569), 67349),
    ("SST-2", "validation", "glue/SST-2/dev.tsv", 1, (0,), 1, SENTIMENT, (428, 444), 872),
    ("SST-2", "test", "glue/SST-2/test.tsv", 1, (1,), None, SENTIMENT, (), 1821),
    ("MRPC", "train", "glue/MRPC/train.tsv", 1, (3, 4), 0, EQUIVALENT, (1194, 2474), 3668),
    ("MRPC", "validation", "glue/MRPC/dev.tsv", 1, (3, 4), 0, EQUIVALENT, (129, 279), 408),
    ("MRPC", "test", "glue/MRPC/test.tsv", 1, (3, 4), None, EQUIVALENT, (), 1725),
    ("STS-B", "train", "glue/STS-B/train.tsv", 1, (7, 8), 9, None, (), 5749),
    ("STS-B", "validation", "glue/STS-B/dev.tsv", 1, (7, 8), 9, None, (), 1500),
    ("STS-B", "test", "glue/STS-B/test.tsv", 1, (7, 8), None, None, (), 1379),
    ("QNLI", "validation", "glue/QNLI/dev.tsv", 1, (1, 2), 3, ENTAILMENT, (2702, 2761), 5463),
    ("QNLI", "test", "glue/QNLI/test.tsv", 1, (1, 2), None, ENTAILMENT, (), 5463),
    ("QNLI", "train", "glue-qnli-9k/QNLI/train.tsv", 1, (1, 2), 3, ENTAILMENT, (4523, 4476), 8999),
    ("RTE", "train", "glue/RTE/train.tsv", 1, (1, 2), 3, ENTAILMENT, (1249, 1241), 2490),
    ("RTE", "validation", "glue/RTE/dev.tsv", 1, (1, 2), 3, ENTAILMENT, (146, 131), 277),
    ("RTE", "test", "glue/RTE/test.tsv", 1, (1, 2), None, ENTAILMENT, (), 3000),
    ("WNLI", "train", "glue/WNLI/train.tsv", 1, (1, 2), 3, WINOGRAD, (323, 312), 635),
    ("WNLI", "validation", "glue/WNLI/dev.tsv", 1, (1, 2), 3, WINOGRAD, (40, 31), 71),
    ("WNLI", "test", "glue/WNLI/test.tsv", 1, (1, 2), None, WINOGRAD, (), 146),
    (
        "AX",
        "test",
        "glue/diagnostic/diagnostic.tsv",
        1,
        (1, 2),
        None,
        ("entailment", "neutral", "contradiction"),
        (),
        1104,
    ),
]

# The sums of the scores, by awk.
SCORE_SUMS = {"train": 15528.043397, "validation": 3545.861333}

# The benchmark's own words for "0" and "1"; the other tasks' files hold the words.
BITS = {"CoLA": ACCEPTABLE, "SST-2": SENTIMENT, "MRPC": EQUIVALENT, "WNLI": WINOGRAD}


def naive_rows(path: Path, header_lines: int) -> list[list[str]]:
    content = path.read_bytes()
    if content.startswith(b"\xef\xbb\xbf"):
        content = content[3:]
    records = content.split(b"\n")
    if records[-1] == b"":
        records.pop()
    return [[cell.decode() for cell in record.split(b"\t")] for record in records[header_lines:]]


def load(real_data: Path, task: str, split: str, file: str) -> Examples:
    return load_glue(task, split, real_data / Path(file).parts[0])


@pytest.mark.parametrize(
    ("task", "split", "file", "header", "texts", "label", "names", "counts", "rows"),
    FILES,
    ids=[f"{row[0]}-{row[1]}" for row in FILES],
)
def test_every_row_of_the_real_files(real_data, task, split, file, header, texts, label, names, counts, rows):
    examples = load(real_data, task, split, file)
    naive = naive_rows(real_data / file, header)

    assert len(examples) == len(naive) == rows
    assert examples.texts == [row[texts[0]] for row in naive]
    assert examples.pairs == ([row[texts[1]] for row in naive] if len(texts) == 2 else None)
    assert examples.indices == list(range(rows))
    assert examples.dropped == 0
    assert examples.task.label_names == names

    if label is None:
        assert examples.labels is None
    elif names is None:
        assert all(type(value) is float for value in examples.labels)
        # The hub keeps scores as float32.
        raw = [float(row[label]) for row in naive]
        assert np.array_equal(np.array(examples.labels, np.float32), np.array(raw, np.float32))
        assert examples.labels == pytest.approx(raw, abs=5e-7, rel=0)
        assert sum(examples.labels) == pytest.approx(SCORE_SUMS[split], abs=1e-4)
    else:
        words = [BITS[task][int(row[label])] if task in BITS else row[label] for row in naive]
        assert [names[value] for value in examples.labels] == words
        assert all(type(value) is int for value in examples.labels)
        assert examples.label_counts() == dict(zip(names, counts, strict=True))


def test_the_traps_are_really_in_the_files(real_data):
    """The rows that break other readers, as they stand in the files."""
    cola = load_glue("CoLA", "validation", real_data / "glue")
    assert cola.texts[-1] == "John talked to Bill about himself."
    assert sum("\x08" in text for text in load_glue("CoLA", "train", real_data / "glue").texts) > 0
    assert load_glue("SST-2", "train", real_data / "glue").texts[0] == "hide new secretions from the parental units "
    mrpc = load_glue("MRPC", "validation", real_data / "glue")
    assert mrpc.pairs[0].startswith('" The foodservice pie business')
    rte = load_glue("RTE", "train", real_data / "glue")
    assert any("\x80" in text or "\x99" in text for text in rte.texts + rte.pairs)


@pytest.mark.parametrize("spelling", ["glue", "glue/MRPC"])
def test_the_root_and_the_task_folder_give_the_same(real_data, spelling):
    assert load_glue("mrpc", "train", real_data / spelling).label_counts() == {
        "not_equivalent": 1194,
        "equivalent": 2474,
    }


@pytest.mark.parametrize("name", ["MRPC", "STS-B", "RTE"])
def test_the_same_rows_from_parquet(real_data, tmp_path, name):
    """The real rows, written by hand in the hub's schema, are the same examples."""
    task, file, header, texts, label, names = next(
        (find_task(row[0]), row[2], *row[3:7]) for row in FILES if row[:2] == (name, "validation")
    )
    naive = naive_rows(real_data / file, header)
    feature = datasets.Value("float32") if names is None else datasets.ClassLabel(names=list(names))
    read = float if names is None else (int if name in BITS else names.index)
    rows = {
        "sentence1": [row[texts[0]] for row in naive],
        "sentence2": [row[texts[1]] for row in naive],
        "label": [read(row[label]) for row in naive],
        "idx": list(range(len(naive))),
    }
    features = datasets.Features(
        {
            "sentence1": datasets.Value("string"),
            "sentence2": datasets.Value("string"),
            "label": feature,
            "idx": datasets.Value("int32"),
        }
    )
    folder = tmp_path / task.hub_name
    folder.mkdir()
    datasets.Dataset.from_dict(rows, features=features).to_parquet(folder / "validation-00000-of-00001.parquet")
    official, hub = load_glue(name, "validation", real_data / "glue"), load_glue(name, "validation", tmp_path)
    assert (official.texts, official.pairs, official.labels, official.indices) == (
        hub.texts,
        hub.pairs,
        hub.labels,
        hub.indices,
    )
    assert official.fingerprint() == hub.fingerprint()
