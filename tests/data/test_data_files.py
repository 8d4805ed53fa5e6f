"""The user's own files and data sets in memory."""

from __future__ import annotations

import datasets
import pytest

from bert_emd.data import from_dataset, load_file, relabel
from bert_emd.errors import UserError

CSV = 'id,text,label\n1,"Hello, ""you""",spam\n2,"two\nlines",ham\n3,three,spam\n'
TSV = 'id\ttext\tlabel\n1\t"Hello, ""you"""\tspam\n2\t"two\nlines"\tham\n3\tthree\tspam\n'
JSON = (
    '{"text": "Hello, \\"you\\"", "label": "spam"}\n\n{"label": "ham", "text": "two\\nlines"}\n'
    '{"text": "three", "label": "spam"}\n'
)


def save(folder, name, content):
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", CSV),
        ("a.csv", "\ufeff" + CSV),
        ("a.csv", CSV.replace("three,spam\n", "three,spam")),
        ("a.csv", CSV + "\n\n"),
        ("A.TSV", TSV),
        ("a.jsonl", JSON),
        ("a.json", JSON),
    ],
    ids=["csv", "csv with bom", "no newline at the end", "blank lines", "tsv", "jsonl", "json"],
)
def test_all_formats_give_the_same(tmp_path, name, content):
    examples = load_file(save(tmp_path, name, content))
    assert examples.texts == ['Hello, "you"', "two\nlines", "three"]
    assert examples.pairs is None
    assert examples.task.label_names == ("ham", "spam")
    assert examples.labels == [1, 0, 1]
    assert examples.indices == [0, 1, 2]
    assert examples.task.metrics == ("accuracy", "f1_macro")
    assert not examples.task.known_order
    assert examples.source == str(tmp_path / name)


def test_crlf_files_keep_their_texts(tmp_path):
    examples = load_file(save(tmp_path, "a.csv", "text,label\r\none,x\r\ntwo,y\r\n"))
    assert (examples.texts, examples.task.label_names) == (["one", "two"], ("x", "y"))


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ("label,text", ("text",)),
        ("sentence,label", ("sentence",)),
        ("text,text_pair,labels", ("text", "text_pair")),
        ("sentence2,sentence1,label", ("sentence1", "sentence2")),
        ("premise,hypothesis,label", ("premise", "hypothesis")),
        ("question,sentence,label", ("question", "sentence")),
        ("question1,question2,score", ("question1", "question2")),
    ],
)
def test_columns_are_guessed(tmp_path, header, expected):
    names = header.split(",")
    rows = "".join(",".join(f"{name}-{i}" for name in names) + "\n" for i in range(2))
    examples = load_file(save(tmp_path, "a.csv", header + "\n" + rows))
    assert examples.task.text_columns == expected
    assert examples.texts == [f"{expected[0]}-0", f"{expected[0]}-1"]
    assert examples.pairs == ([f"{expected[1]}-0", f"{expected[1]}-1"] if len(expected) == 2 else None)


def test_columns_can_be_named(tmp_path):
    path = save(tmp_path, "a.csv", "text,body,kind\nx,one,p\ny,two,q\n")
    examples = load_file(path, text_columns=["body"], label_column="kind")
    assert (examples.texts, examples.task.label_names) == (["one", "two"], ("p", "q"))
    assert load_file(path, text_columns="body,text", label_column="kind").pairs == ["x", "y"]
    with pytest.raises(UserError, match=r"no column 'bdy' \(found: 'text', 'body', 'kind'\): mend --text_columns"):
        load_file(path, text_columns=["bdy"], label_column="kind")
    with pytest.raises(UserError, match=r"no label column .*\(found: 'text', 'body', 'kind'\): name it"):
        load_file(path)
    with pytest.raises(UserError, match="no label column 'kin'"):
        load_file(path, label_column="kin")
    with pytest.raises(UserError, match="one or two text columns, not 3"):
        load_file(path, text_columns=["text", "body", "kind"], needs_labels=False)


def test_unknown_text_column_names_the_flag(tmp_path):
    path = save(tmp_path, "a.csv", "review,label\ngood,1\n")
    with pytest.raises(UserError, match=r"Found: review, label; .*--text_columns"):
        load_file(path)


def labelled(tmp_path, labels, **options):
    rows = "".join(f"t{i},{label}\n" for i, label in enumerate(labels))
    return load_file(save(tmp_path, "a.csv", "text,label\n" + rows), **options)


def test_integers_are_class_names_in_numeric_order(tmp_path):
    examples = labelled(tmp_path, ["10", "9", "1", "10"])
    assert examples.task.label_names == ("1", "9", "10")
    assert examples.labels == [2, 1, 0, 2]
    assert labelled(tmp_path, ["b10", "b9"]).task.label_names == ("b10", "b9")
    json = load_file(save(tmp_path, "a.jsonl", '{"text": "a", "label": 1}\n{"text": "b", "label": 0}\n'))
    assert (json.task.label_names, json.labels) == (("0", "1"), [1, 0])


def test_fractions_are_scores(tmp_path):
    examples = labelled(tmp_path, ["1", "2.5", "-3e-1"])
    assert examples.task.is_regression
    assert examples.labels == [1.0, 2.5, -0.3]
    assert examples.task.metrics == ("spearmanr", "pearson")
    assert labelled(tmp_path, ["1", "2"], regression=True).labels == [1.0, 2.0]
    assert labelled(tmp_path, ["1.5", "2.5"], regression=False).task.label_names == ("1.5", "2.5")
    with pytest.raises(UserError, match=r"a\.csv:3: score 'high' .* not a finite number"):
        labelled(tmp_path, ["1", "high"], regression=True)
    with pytest.raises(UserError, match=r"a\.csv:3: score 'inf'"):
        labelled(tmp_path, ["1.5", "inf"])
    with pytest.raises(UserError, match=r"label names .* for a regression task"):
        labelled(tmp_path, ["1", "2"], regression=True, label_names=["1", "2"])


def test_given_names_settle_the_order_whatever_their_spelling(tmp_path):
    examples = labelled(
        tmp_path, ["not entailment", "Entailment", "NOT-entailment"], label_names=["Not_Entailment", "entailment"]
    )
    assert examples.labels == [0, 1, 0]
    assert examples.task.label_names == ("Not_Entailment", "entailment")
    assert examples.task.known_order
    with pytest.raises(UserError, match=r"a\.csv:3: unknown label 'c' in column 'label': known: a, b"):
        labelled(tmp_path, ["a", "c"], label_names=["a", "b"])
    # A class of the model that this file happens not to have.
    assert labelled(tmp_path, ["a", "b"], label_names=["b", "c", "a"]).labels == [2, 0]
    assert labelled(tmp_path, ["1", "0.5"], label_names=["0.5", "1"]).labels == [1, 0]


def test_relabel_moves_the_labels_to_the_other_order(tmp_path):
    examples = labelled(tmp_path, ["a", "b", "c", "a"])
    moved = relabel(examples, ["C", "a", "B"])
    assert [moved.task.label_names[label] for label in moved.labels] == ["a", "B", "C", "a"]
    assert moved.task.label_names == ("C", "a", "B")
    assert examples.labels == [0, 1, 2, 0]
    with pytest.raises(UserError, match=r"disagree: the data have a, b, c, the model a, b, d;"):
        relabel(examples, ["a", "b", "d"])
    unlabelled = load_file(save(tmp_path, "b.csv", "text\nhi\n"), needs_labels=False)
    assert unlabelled.task.num_labels == 0
    assert not unlabelled.task.is_regression
    assert relabel(unlabelled, ["x", "y"]).task.label_names == ("x", "y")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", 'text,label\n"two\nlines",x\n ,y\n', r"a\.csv:4: no text in column 'text'"),
        ("a.csv", 'text,label\n"two\nlines",x\n"a\nb",\n', r"a\.csv:4: missing label"),
        ("a.csv", 'text,label\n"two\nlines",x\nb,y,z\n', r"a\.csv:4: expected 2 columns .*\(text, label\), found 3"),
        ("a.csv", "text,label\nfine,x\nshort\n", r"a\.csv:3: expected 2 columns .* found 1"),
        ("a.csv", 'text,label\nfine,x\n"never closed,y\nb,z\n', r"a\.csv:3: not valid CSV"),
        ("a.tsv", 'text\tlabel\nfine\tx\n"half" quoted\ty\n', r"a\.tsv:3: not valid TSV"),
        ("a.csv", "text,text,label\na,b,c\n", r"a\.csv:1: column 'text' stands twice"),
        ("a.csv", "text,label\n", "no rows"),
        ("a.csv", "", "is empty"),
        ("a.csv", b"text,label\nok,x\ncaf\xe9,y\n", r"a\.csv:3: not UTF-8"),
        ("a.csv", "text,label\na,x\nb,x\n", "only one label, 'x'"),
        ("a.csv", "text,label\na,Yes\nb,yes\n", "'Yes' and 'yes' count as the same"),
        ("a.jsonl", '{"text": "a", "label": "x"}\n{"text": "b", "label": \n', r"a\.jsonl:2: not valid JSON"),
        (
            "a.jsonl",
            '{"text": "a", "label": "x"}\n\n["b", "y"]\n',
            r"a\.jsonl:3: expected one JSON object a line, found list",
        ),
        ("a.json", '[{"text": "a", "label": "x"}]\n', r"a\.json:1: expected one JSON object a line, found list"),
        ("a.jsonl", '{"text": "a", "label": "x"}\n{"label": "y"}\n', r"a\.jsonl:2: no text in column 'text'"),
        ("a.jsonl", '{"text": "a", "label": "x"}\n{"text": 5, "label": "y"}\n', r"a\.jsonl:2: .* holds 5, not a text"),
        ("a.jsonl", '{"text": "a", "label": "x"}\n{"text": "b"}\n', r"a\.jsonl:2: missing label"),
        ("a.jsonl", '{"text": "a", "label": "x"}\n{"text": "b", "label": null}\n', r"a\.jsonl:2: missing label"),
        ("a.jsonl", '{"text": "a", "label": ["x", "y"]}\n', r"a\.jsonl:1: label .* one word or number a row"),
        ("a.jsonl", '{"text": "a", "label": 0.5}\n{"text": "b", "label": NaN}\n', r"a\.jsonl:2: score 'nan'"),
        ("a.txt", "hello\n", r"should end in \.csv, \.tsv, \.jsonl, \.json"),
    ],
)
def test_malformed_files(tmp_path, name, content, message):
    with pytest.raises(UserError, match=message) as caught:
        load_file(save(tmp_path, name, content))
    assert "\n" not in str(caught.value)


def test_missing_file(tmp_path):
    with pytest.raises(UserError, match=r"cannot read .*nowhere\.csv: No such file"):
        load_file(tmp_path / "nowhere.csv")


def test_labels_that_are_not_needed(tmp_path):
    path = save(tmp_path, "a.csv", "text,label\na,x\nb,\n")
    assert load_file(path, needs_labels=False).labels is None
    assert load_file(path, needs_labels=False, label_names=["x", "y"]).task.label_names == ("x", "y")
    assert load_file(path, needs_labels=False, regression=True).task.is_regression
    assert load_file(path, needs_labels=False, label_column="absent").labels is None
    assert labelled(tmp_path, ["x", "y"], needs_labels=False).labels == [0, 1]


def test_a_data_set_in_memory():
    rows = datasets.Dataset.from_dict({"text": ["a", "b"], "label": ["yes", "no"]})
    assert from_dataset(rows).labels == [1, 0]
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["yes", "no"])})
    named = datasets.Dataset.from_dict({"text": ["a", "b"], "label": [0, 1]}, features=features)
    examples = from_dataset(named, source="mine")
    assert (examples.task.label_names, examples.labels, examples.source) == (("yes", "no"), [0, 1], "mine")
    assert examples.task.known_order
    assert from_dataset(named, label_names=["No", "Yes"]).labels == [1, 0]
    hidden = datasets.Dataset.from_dict({"text": ["a"], "label": [-1]}, features=features)
    unlabelled = from_dataset(hidden, needs_labels=False)
    assert (unlabelled.labels, unlabelled.task.label_names) == (None, ("yes", "no"))
    with pytest.raises(UserError, match="the data set, row 0: missing label"):
        from_dataset(hidden)
    scores = datasets.Dataset.from_dict({"text": ["a", "b"], "score": [0.5, 1.0]})
    assert from_dataset(scores).labels == [0.5, 1.0]
    with pytest.raises(UserError, match="row 1: no text"):
        from_dataset(datasets.Dataset.from_dict({"text": ["a", ""], "label": [0, 1]}))
    with pytest.raises(UserError, match="has no rows"):
        from_dataset(datasets.Dataset.from_dict({"text": [], "label": []}))


@pytest.mark.parametrize(
    ("content", "options", "told"),
    [
        ("text,label\na,x\nb,y\n", {"text_columns": ("label",)}, "column 'label' is given as text and as label"),
        ("text,label\na,x\nb,y\n", {"text_columns": ("text", "text")}, "text_columns names 'text' twice"),
        ("text;label\na;x\n", {}, "its columns are separated by ';', but .csv means ','"),
        ("text,label\na,x\nb,y\n", {"label_names": ("x",)}, "label_names names only one class, 'x'"),
        ("text,label\ra,x\r", {}, "a line ends in a carriage return alone"),
    ],
)
def test_mistakes_about_columns_are_told_as_what_they_are(tmp_path, content, options, told):
    with pytest.raises(UserError, match=r"^[^\n]*$") as error:
        load_file(save(tmp_path, "a.csv", content), **options)
    assert told in str(error.value)


def test_usual_names_are_found_in_any_case(tmp_path):
    examples = load_file(save(tmp_path, "a.csv", "Text,LABEL\na,x\nb,y\n"))
    assert (examples.texts, examples.labels) == (["a", "b"], [0, 1])
    with pytest.raises(UserError, match="which column holds the text"):
        load_file(save(tmp_path, "a.csv", "Text,TEXT,label\na,b,x\nb,c,y\n"))


def test_labels_that_are_all_different_are_no_classes(tmp_path):
    rows = "".join(f"a text,{i}\n" for i in range(30))
    with pytest.raises(UserError, match="has 30 different labels in 30 rows: name the label column"):
        load_file(save(tmp_path, "a.csv", "text,label\n" + rows), regression=False)
