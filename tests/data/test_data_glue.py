"""Official GLUE files made by hand, and every way in which one can be wrong."""

from __future__ import annotations

from pathlib import Path

import pytest
from data_helpers import STSB_HEAD, write

from bert_emd.data import load_glue
from bert_emd.errors import UserError

MNLI_HEAD = "index promptID pairID genre sentence1_binary_parse sentence2_binary_parse sentence1_parse sentence2_parse"
MNLI_TRAIN = f"{MNLI_HEAD} sentence1 sentence2 label1 gold_label".replace(" ", "\t")
MNLI_DEV = f"{MNLI_HEAD} sentence1 sentence2 label1 label2 label3 label4 label5 gold_label".replace(" ", "\t")
MNLI_TEST = f"{MNLI_HEAD} sentence1 sentence2".replace(" ", "\t")
QQP_HEAD = "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate\n"


def mnli_row(index: int, *rest: str) -> str:
    return "\t".join([str(index), "p", "q", "fiction", "( a )", "( b )", "(ROOT a)", "(ROOT b)", *rest])


@pytest.fixture
def mnli(tmp_path: Path) -> Path:
    folder = tmp_path / "MNLI"
    write(
        folder / "train.tsv",
        "\n".join(
            [
                MNLI_TRAIN,
                # label1 is an annotator's word, not the gold one.
                mnli_row(0, "One.", "Two.", "contradiction", "neutral"),
                mnli_row(1, ' "Three ', "Four", "entailment", "entailment"),
                mnli_row(2, "Five\x85six", "Seven\u2028eight", "neutral", "contradiction"),
            ]
        )
        + "\n",
    )
    five = ("neutral", "neutral", "neutral", "neutral", "neutral")
    for name, gold in (("matched", "entailment"), ("mismatched", "contradiction")):
        write(folder / f"dev_{name}.tsv", f"{MNLI_DEV}\n{mnli_row(0, name, 'b', *five, gold)}\n")
        write(folder / f"test_{name}.tsv", f"{MNLI_TEST}\n{mnli_row(0, name, 'b')}\n")
    return tmp_path


def test_mnli_reads_gold_labels_by_header_name(mnli):
    train = load_glue("MNLI", "train", mnli)
    assert train.texts == ["One.", ' "Three ', "Five\x85six"]
    assert train.pairs == ["Two.", "Four", "Seven\u2028eight"]
    assert [train.task.label_names[label] for label in train.labels] == ["neutral", "entailment", "contradiction"]


@pytest.mark.parametrize(
    ("split", "text", "labels"),
    [
        ("validation", "matched", [0]),
        ("validation_mismatched", "mismatched", [2]),
        ("test", "matched", None),
        ("test_mismatched", "mismatched", None),
    ],
)
def test_mnli_splits(mnli, split, text, labels):
    examples = load_glue("mnli", split, mnli / "MNLI")
    assert (examples.texts, examples.labels) == ([text], labels)


def test_qqp_drops_and_counts_short_rows_as_the_hub_does(tmp_path):
    write(
        tmp_path / "QQP/train.tsv",
        QQP_HEAD + "1\t1\t2\tHow?\tWhy?\t0\n2\t3\t4\tcut off here\nrest\t1\n3\t5\t6\tWho?\t\t1\n",
    )
    examples = load_glue("QQP", "train", tmp_path)
    assert (examples.texts, examples.pairs, examples.labels) == (["How?", "Who?"], ["Why?", ""], [0, 1])
    assert examples.dropped == 2
    # The hub numbers the rows of the file, those it drops included.
    assert examples.indices == [0, 3]


def test_qqp_refuses_long_rows(tmp_path):
    write(tmp_path / "train.tsv", QQP_HEAD + "1\t1\t2\tHow?\tWhy?\t0\n1\t1\t2\tHow?\tWhy?\t0\textra\n")
    with pytest.raises(UserError, match=r"train\.tsv:3: expected 6 tab-separated columns, found 7"):
        load_glue("QQP", "train", tmp_path)


def test_line_ends_bom_quotes_and_spaces(tmp_path):
    write(
        tmp_path / "train.tsv",
        b'\xef\xbb\xbfsentence\tlabel\r\n"open quote \t1\r\ncr\r inside\t0\r\n two  \x0c \xc2\x85 \t1',
    )
    examples = load_glue("SST-2", "train", tmp_path)
    assert examples.texts == ['"open quote ', "cr\r inside", " two  \x0c \x85 "]
    assert examples.labels == [1, 0, 1]


def test_cola_has_no_header_but_its_test_file_has(tmp_path):
    write(tmp_path / "cola/train.tsv", "gj04\t1\t\tFine.\nks08\t0\t*\tFine not.\n")
    write(tmp_path / "cola/train_aug.tsv", "gj04\t1\t\tFine.\ngj04\t1\t\tGood.\n")
    write(tmp_path / "cola/test.tsv", "index\tsentence\n0\tWho?\n")
    train = load_glue("CoLA", "train", tmp_path)
    assert (train.texts, train.labels) == (["Fine.", "Fine not."], [1, 0])
    assert train.label_counts() == {"unacceptable": 1, "acceptable": 1}
    assert load_glue("CoLA", "train_aug", tmp_path).texts == ["Fine.", "Good."]
    assert load_glue("CoLA", "test", tmp_path).texts == ["Who?"]


def test_labels_may_be_absent_only_when_they_are_not_needed(tmp_path):
    write(tmp_path / "train.tsv", "sentence\nonly text\n")
    assert load_glue("SST-2", "train", tmp_path, needs_labels=False).labels is None
    with pytest.raises(UserError, match=r"train\.tsv:1: no column 'label'"):
        load_glue("SST-2", "train", tmp_path)
    write(tmp_path / "dev.tsv", "sentence\tlabel\ntext\t1\n")
    assert load_glue("SST-2", "validation", tmp_path, needs_labels=False).labels == [1]


RTE_HEAD = "index\tsentence1\tsentence2\tlabel\n"


@pytest.mark.parametrize(
    ("task", "content", "message"),
    [
        (
            "RTE",
            RTE_HEAD + "0\ta\tb\tentailment\n1\ta\tb\n",
            r"train\.tsv:3: expected 4 tab-separated columns, found 3",
        ),
        ("RTE", RTE_HEAD + "0\ta\tb\tentailment\n\n", r"train\.tsv:3: expected 4 .* found 1"),
        ("RTE", RTE_HEAD + "0\ta\tb\tc\tentailment\n", r"train\.tsv:2: expected 4 .* found 5"),
        ("RTE", RTE_HEAD + "0\ta\tb\tmaybe\n", r"train\.tsv:2: unknown label 'maybe': RTE has entailment, not_entail"),
        ("RTE", RTE_HEAD + "0\ta\tb\t1\n", r"train\.tsv:2: unknown label '1'"),
        (
            "RTE",
            "index\tsentence1\tlabel\n0\ta\tentailment\n",
            r"train\.tsv:1: no column 'sentence2' .*sentence1, label",
        ),
        ("RTE", "", r"train\.tsv is empty"),
        ("RTE", b"\xef\xbb\xbf", r"train\.tsv is empty"),
        ("RTE", "\n\n", r"train\.tsv is empty"),
        ("RTE", RTE_HEAD, r"train\.tsv has no rows"),
        ("RTE", RTE_HEAD.encode() + b"0\ta\tb\tentailment\n1\tcaf\xe9\tb\tentailment\n", r"train\.tsv:3: not UTF-8"),
        ("RTE", b"\xef\xbb\xbf" + RTE_HEAD.encode() + b"0\t\xff\tb\tentailment\n", r"train\.tsv:2: not UTF-8"),
        ("RTE", b"\xff\xfei\x00n\x00", r"train\.tsv:1: not UTF-8"),
        ("CoLA", "gj04\t1\t\tFine.\ngj04\tx\t\tFine.\n", r"train\.tsv:2: unknown label 'x': CoLA has 0, 1"),
        ("CoLA", "gj04\t1\t\tFine.\ngj04\t1\tFine.\n", r"train\.tsv:2: expected 4 .* found 3"),
        ("SST-2", "sentence\tlabel\nok\t2\n", r"train\.tsv:2: unknown label '2': SST-2 has 0, 1"),
        (
            "STS-B",
            STSB_HEAD + "0\tg\tf\ty\t1\ts\ts\ta\tb\tfive\n",
            r"train\.tsv:2: score 'five' is not a finite number",
        ),
        ("STS-B", STSB_HEAD + "0\tg\tf\ty\t1\ts\ts\ta\tb\tnan\n", r"train\.tsv:2: score 'nan'"),
        ("STS-B", STSB_HEAD + "0\tg\tf\ty\t1\ts\ts\ta\tb\t1_0\n", r"train\.tsv:2: score '1_0'"),
        ("STS-B", STSB_HEAD + "0\tg\tf\ty\t1\ts\ts\ta\tb\t\u0663\n", r"train\.tsv:2: score '\u0663'"),
        ("QQP", QQP_HEAD + "1\tshort\n", r"train\.tsv has no rows"),
        ("QQP", QQP_HEAD + "1\t1\t2\ta\tb\t\n", r"train\.tsv:2: unknown label ''"),
    ],
)
def test_malformed_files_are_refused_with_file_and_line(tmp_path, task, content, message):
    write(tmp_path / "train.tsv", content)
    with pytest.raises(UserError, match=message) as caught:
        load_glue(task, "train", tmp_path)
    assert "\n" not in str(caught.value)
    assert str(tmp_path) in str(caught.value)


def test_a_missing_file_says_where_it_was_looked_for(tmp_path, monkeypatch):
    write(tmp_path / "RTE/dev.tsv", RTE_HEAD + "0\ta\tb\tentailment\n")
    with pytest.raises(UserError, match=r"no train\.tsv or train-\*\.parquet for RTE") as caught:
        load_glue("RTE", "train", tmp_path)
    assert f"looked in {tmp_path / 'RTE'}, {tmp_path}" in str(caught.value)
    with pytest.raises(UserError, match="no folder"):
        load_glue("RTE", "train", "./nowhere")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"^no folder 'RTE/tsv': give --data_dir"):
        load_glue("RTE", "train", "RTE/tsv")
    with pytest.raises(UserError, match="is not a folder"):
        load_glue("RTE", "train", tmp_path / "RTE/dev.tsv")
    with pytest.raises(UserError, match=r"RTE has no split 'dev': use one of train, train_aug, validation, test"):
        load_glue("RTE", "dev", tmp_path)
    with pytest.raises(UserError, match=r"no train_aug\.tsv for RTE: .*make it with `bert-emd augment --task_name RTE"):
        load_glue("RTE", "train_aug", tmp_path)


@pytest.mark.parametrize("folder", ["SST-2", "sst-2", "sst2", "SST_2", "."])
def test_folder_names_ignore_case_and_dashes(tmp_path, folder):
    write(tmp_path / folder / "dev.tsv", "sentence\tlabel\nfine\t1\n")
    assert load_glue("sst2", "validation", tmp_path).texts == ["fine"]
