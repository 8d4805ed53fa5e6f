"""Augmentation without a model: words, neighbours, variants, and rows written back as their file has them."""

from __future__ import annotations

import csv
import json
import random
import re

import numpy as np
import pytest
from data_helpers import STSB_HEAD, write

from bert_emd.data import Examples, custom_task, find_task, holdout, load_file, load_glue, without_sources
from bert_emd.data.augmentation import (
    Variants,
    WordRules,
    WordTable,
    may_replace,
    own_rows,
    read_glove,
    read_stop_words,
    task_rows,
)
from bert_emd.errors import UserError


def found(text, **options):
    return [word.text for word in WordRules(**options).find(text)]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("The quick fox was not there", ["quick", "fox"]),
        ("don't won't O'Brien firm's ‘quoted’ 'single'", ["firm", "quoted", "single"]),
        ("3rd 2.5billion 12-year-old x86 COVID-19 mp3s", []),
        ("three million dollars", ["dollars"]),
        (
            "mail me@firm.com or see http://firm.com/page www.firm.com C:\\docs #1 <br /> &amp; U.S. and/or",
            ["mail", "see"],
        ),
        ("long-term, (plan); end.", ["long", "term", "plan", "end"]),
        ("Straße kočka слово e\u0301tude", ["Straße", "kočka", "слово"]),
        ("it 's Dominick 's a b c", ["Dominick"]),
        ("", []),
        ("\x00\x85 odd\x1ftext", ["odd", "text"]),
    ],
)
def test_words_that_may_change(text, words):
    # In "O'Brien" and in what an accent of its own parts, no half stands alone.
    assert found(text) == words


def test_places_are_those_of_the_text():
    text = "  Two old-time planes,\tfirm's "
    for word in WordRules().find(text):
        assert text[word.start : word.end] == word.text


def test_only_the_first_words_of_a_text_are_looked_at():
    assert found("red green blue black", limit=2) == ["red", "green"]
    # A line of megabytes costs no more than its beginning.
    assert found("word " * 1_000_000, limit=3) == ["word"] * 3
    assert found("x" * 5_000_000) == []
    assert found("!" * 5_000_000 + " word") == []


def test_stop_words_of_the_users_own(tmp_path):
    path = write(tmp_path / "stop.txt", "Rot\n\nblau\n")
    assert read_stop_words(path) == {"rot", "blau"}
    assert found("rot Blau the", stop_words=read_stop_words(path)) == ["the"]
    with pytest.raises(UserError, match=r"stop\.txt:2: write one stop word a line"):
        read_stop_words(write(tmp_path / "stop.txt", "a\nb c\n"))


def plain_neighbours(words, vectors, query, leave_out, count, least):
    """The loop that a reader would write."""
    scored = []
    for i, (word, vector) in enumerate(zip(words, vectors, strict=True)):
        cosine = float(np.dot(vector, query) / (np.linalg.norm(vector) * np.linalg.norm(query)))
        if word not in leave_out and cosine >= least:
            scored.append((-cosine, i, word))
    return tuple(word for _, _, word in sorted(scored)[:count])


@pytest.mark.parametrize("least", [-1.0, 0.2])
def test_neighbours_are_those_of_a_plain_loop(least):
    chance = np.random.default_rng(3)
    words = [f"w{'abcdefghij'[i // 100]}{'abcdefghij'[i // 10 % 10]}{'abcdefghij'[i % 10]}" for i in range(300)]
    vectors = chance.normal(size=(300, 16))
    queries = np.concatenate([vectors[:40], chance.normal(size=(20, 16))])
    leave_out = [{words[i]} if i < 40 else {words[0], "nowhere"} for i in range(60)]
    table = WordTable(words, vectors)
    together = table.nearest(queries, leave_out, 7, least)
    for i in range(60):
        assert together[i] == plain_neighbours(words, vectors, queries[i], leave_out[i], 7, least)
        assert table.nearest(queries[i : i + 1], leave_out[i : i + 1], 7, least) == [together[i]]


def test_neighbours_do_not_depend_on_the_company_even_where_many_are_equally_near():
    chance = np.random.default_rng(4)
    vectors = np.repeat(chance.normal(size=(40, 24)), 10, axis=0) * chance.uniform(0.5, 2, size=(400, 1))
    words = [f"{'abcdefghij'[i // 100]}{'abcdefghij'[i // 10 % 10]}{'abcdefghij'[i % 10]}z" for i in range(400)]
    table = WordTable(words, vectors)
    queries = chance.normal(size=(100, 24))
    together = table.nearest(queries, [set()] * 100, 15, -1.0)
    for start, step in ((0, 1), (0, 7), (3, 31)):
        for i in range(start, 100 - step, step):
            assert table.nearest(queries[i : i + step], [set()] * step, 15, -1.0) == together[i : i + step]


def test_words_that_differ_in_case_alone_are_one():
    table = WordTable(["The", "the", "Cat", "dog"], np.eye(4)[[0, 0, 1, 1]] + 0.1)
    assert table.words == ["The", "Cat", "dog"]
    assert table.nearest(np.array([[0.1, 1.1, 0.1, 0.1]]), [{"cat"}], 5, -1.0)[0][0] == "dog"
    np.testing.assert_array_equal(table.vector("CAT"), table.vector("cat"))


def glove(tmp_path, content):
    return read_glove(write(tmp_path / "glove.txt", content), may_replace, 0)


def test_a_glove_file(tmp_path):
    table = glove(tmp_path, "the 1 2 3\ncat 1 0 0\n. . . 3 4 5\n<unk> 1 1 1\ndog 0.5 -1e-2 3 \nnull 0 0 0\nCAT 9 9 9\n")
    assert table.words == ["cat", "dog"]
    np.testing.assert_allclose(
        table.vector("dog"), np.array([0.5, -0.01, 3]) / np.linalg.norm([0.5, 0.01, 3]), rtol=1e-6
    )
    assert glove(tmp_path, "3 4\ncat 1 2 3 4\n").words == ["cat"]  # word2vec's first line
    limited = read_glove(write(tmp_path / "g.txt", "the 1 2\ncat 1 2\ndog 1 2\n"), may_replace, 2)
    assert limited.words == ["cat"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("cat 1 2 3\ndog 1 2\n", r"glove\.txt:2: expected 3 numbers as in the first row, found 2"),
        ("cat 1 2 3\ndog 1 2 3 4\n", r"glove\.txt:2: expected 3 numbers as in the first row, found 4"),
        ("cat 1 2 3\n\ndog 1 x 3\n", r"glove\.txt:3: 'x' is not a number"),
        ("cat 1 2 3\ndog 1 nan 3\n", r"glove\.txt:2: a number is not finite"),
        ("just text\n", r"glove\.txt:1: a row is a word and its numbers"),
        (b"cat 1 2\n\xff\xfe 1 2\n", r"glove\.txt:2: not UTF-8"),
        (b"cat 1 2\n" + b"9" * (2 << 20), r"glove\.txt:2: a line of megabytes"),
        ("", r"holds no words"),
        ("the 1 2\n", r"holds no words"),
    ],
)
def test_a_broken_glove_file_is_refused_with_its_line(tmp_path, content, message):
    with pytest.raises(UserError, match=message):
        glove(tmp_path, content)


def test_a_glove_file_that_is_not_there(tmp_path):
    with pytest.raises(UserError, match=r"glove_embs .*nothing\.txt cannot be read: No such file"):
        read_glove(tmp_path / "nothing.txt", may_replace, 0)


def variants_of(rows, slots_of, **options):
    drawer = Variants(format=rows.format, **({"count": 5, "p": 0.5, "seed": 7} | options))
    return [
        drawer.of_row(i, record, texts, [slots_of(text) for text in texts])
        for i, (record, texts) in enumerate(zip(rows.records, rows.texts, strict=True))
    ]


def slots_of(text):
    return [(w.start, w.end, ("apple", "pear", "plum")) for w in WordRules().find(text)]


def written(rows, path, **options):
    path.write_text(
        rows.header + "".join("".join([d.source, *d.lines]) for d in variants_of(rows, slots_of, **options)),
        encoding="utf-8", newline="",
    )  # fmt: skip
    return path


def test_a_word_is_replaced_as_often_as_asked_for(tmp_path):
    rows = own_rows(write(tmp_path / "a.csv", "text\n" + "green house\n" * 400), text_columns=None, label_column=None)
    # 900 draws of two words; three candidates, each as likely.
    lines = [line for drawn in variants_of(rows, slots_of, count=2, p=0.25) for line in drawn.lines]
    changed = [[a != b for a, b in zip(line.split(), ("green", "house"), strict=True)] for line in lines]
    # Rows without any change are drawn again: 2/7 of those with one change in both words or more.
    both = sum(all(c) for c in changed) / len(changed)
    assert both == pytest.approx(0.25**2 / (1 - 0.75**2), abs=0.04)
    words = [word for line in lines for word in line.split() if word not in ("green", "house")]
    for candidate in ("apple", "pear", "plum"):
        assert words.count(candidate) / len(words) == pytest.approx(1 / 3, abs=0.04)


def test_case_and_everything_between_the_words_stay(tmp_path):
    rows = own_rows(
        write(tmp_path / "a.jsonl", json.dumps({"text": "  Green\tHOUSES, 12 greens!  ", "id": 3}) + "\n"),
        text_columns=None, label_column=None,
    )  # fmt: skip
    (drawn,) = variants_of(rows, slots_of, count=20, p=0.7)
    assert drawn.source == json.dumps({"text": "  Green\tHOUSES, 12 greens!  ", "id": 3}) + "\n"
    fruit = "apple|pear|plum"
    for line in drawn.lines:
        record = json.loads(line)
        assert record["id"] == 3
        assert re.fullmatch(
            rf"  (Green|{fruit.title()})\t(HOUSES|{fruit.upper()}), 12 (greens|{fruit})!  ", record["text"]
        )
    assert len(set(drawn.lines)) == len(drawn.lines) == 20


def test_there_are_as_many_variants_as_there_can_be_and_none_twice(tmp_path):
    rows = own_rows(write(tmp_path / "a.csv", "text\ngreen the 7\nthe 7\n"), text_columns=None, label_column=None)
    one, none = variants_of(rows, slots_of, count=30)
    assert sorted(one.lines) == ["apple the 7\n", "pear the 7\n", "plum the 7\n"]
    assert none.lines == []


def test_of_a_pair_one_text_changes_at_a_time(tmp_path):
    path = write(tmp_path / "a.csv", "sentence1,sentence2,label\ngreen house,red car,1\n")
    rows = own_rows(path, text_columns=None, label_column=None)
    (drawn,) = variants_of(rows, slots_of, count=4)
    records = [line.strip().split(",") for line in drawn.lines]
    assert len(records) == 8
    assert all(second == "red car" and first != "green house" for first, second, _ in records[:4])
    assert all(first == "green house" and second != "red car" for first, second, _ in records[4:])
    assert {label for *_, label in records} == {"1"}


def test_draws_depend_on_the_seed_and_the_row_alone(tmp_path):
    content = "text\n" + "".join(f"green house number {i} red\n" for i in range(20))
    rows = own_rows(write(tmp_path / "a.csv", content), text_columns=None, label_column=None)
    whole = variants_of(rows, slots_of)
    drawer = Variants(format=rows.format, count=5, p=0.5, seed=7)
    alone = drawer.of_row(13, rows.records[13], rows.texts[13], [slots_of(rows.texts[13][0])])
    assert alone == whole[13]
    assert [d.lines for d in variants_of(rows, slots_of, seed=8)] != [d.lines for d in whole]


ODD = [
    'He said "go" , twice',
    '"quoted"',
    "a,b\tc d",
    "two\nlines here",
    "bell\x07 nul\x85 red",
    "cr\rhere",
    " spaces ",
    "Ω weiß 家",
]


@pytest.mark.parametrize("suffix", ["csv", "tsv", "jsonl"])
def test_odd_characters_survive_in_the_users_own_files(tmp_path, suffix):
    path = tmp_path / f"odd.{suffix}"
    records = [{"id": str(i), "text": text, "label": f"l{i % 2}"} for i, text in enumerate([*ODD, *ODD[:3]])]
    with path.open("w", newline="", encoding="utf-8") as stream:
        if suffix == "jsonl":
            stream.writelines(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
        else:
            writer = csv.DictWriter(
                stream, list(records[0]), delimiter="," if suffix == "csv" else "\t", quoting=csv.QUOTE_ALL
            )
            writer.writeheader()
            writer.writerows(records)
    rows = own_rows(path, text_columns=None, label_column=None)
    drawn = variants_of(rows, slots_of)
    file = load_file(written(rows, tmp_path / f"odd_aug.{suffix}"))
    source = load_file(path)
    at = 0
    starts = []
    for i, row in enumerate(drawn):
        starts.append(at)
        assert file.texts[at] == source.texts[i]
        assert file.labels[at : at + 1 + len(row.lines)] == [source.labels[i]] * (1 + len(row.lines))
        at += 1 + len(row.lines)
    assert at == len(file)
    # Leaving out a row takes its variants and those of its twin, and nothing else.
    left = without_sources(file, source, source.subset([0, 3]))
    gone = {k for s in (0, 3, len(ODD)) for k in range(starts[s], ([*starts, at])[s + 1])}
    assert left.unclear == 0
    assert left.kept.indices == [k for k in range(at) if k not in gone]


TASK_FILES = {
    "CoLA": 'src\t1\t\tGreen "houses" sleep\nsrc\t0\t*\tHouses green the\n',
    "SST-2": 'sentence\tlabel\nhide new secretions \t0\n"quoted whole"\t1\n',
    "MRPC": "\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String\n"
    '1\t7\t8\tGreen house\tRed "car\n0\t7\t9\tBlue sky\tRed car\n',
    "STS-B": STSB_HEAD
    + "0\tg\tf\ty\t1\ts\ts\tA red plane\tA plane\t4.250\n1\tg\tf\ty\t1\ts\ts\tOne cat\tA dog\t0.000\n",
    "QNLI": "index\tquestion\tsentence\tlabel\n"
    "0\tWhat flies?\tBirds fly.\tentailment\n1\tWho?\tA man.\tnot_entailment\n",
    "RTE": "index\tsentence1\tsentence2\tlabel\n0\tBirds fly.\tA bird flies.\tentailment\n",
    "WNLI": "index\tsentence1\tsentence2\tlabel\n0\tBirds fly.\tA bird flies.\t1\n",
    "QQP": "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate\n"
    "1\t2\t3\tWhat flies?\tWhich birds?\t0\nshort\trow\n4\t5\t6\tWho?\tWhom?\t1\n",
}


@pytest.mark.parametrize("name", TASK_FILES)
def test_a_tasks_file_keeps_its_form(tmp_path, name):
    write(tmp_path / name / "train.tsv", TASK_FILES[name])
    task = find_task(name)
    rows = task_rows(task, str(tmp_path), None)
    assert rows.beside == tmp_path / name / "train_aug.tsv"
    written(rows, rows.beside)
    train, file = load_glue(task, "train", tmp_path), load_glue(task, "train_aug", tmp_path)
    lines = (tmp_path / name / "train_aug.tsv").read_bytes().split(b"\n")
    for line in TASK_FILES[name].removeprefix("\ufeff").encode().splitlines():
        assert (line in lines) == (line != b"short\trow")  # every source line stands there as it was
    at = 0
    for i, row in enumerate(variants_of(rows, slots_of)):
        assert (file.texts[at], file.pairs and file.pairs[at]) == (train.texts[i], train.pairs and train.pairs[i])
        size = 1 + len(row.lines)
        assert set(file.labels[at : at + size]) == {train.labels[i]}
        at += size
    assert at == len(file)
    # The columns that are neither text nor label are those of the source row.
    widths = {line.count(b"\t") for line in lines if line}
    assert len(widths) == 1


def test_labels_may_be_left_to_the_teacher(tmp_path):
    write(tmp_path / "RTE" / "train.tsv", TASK_FILES["RTE"])
    rows = task_rows(find_task("RTE"), str(tmp_path), None, labels=False)
    written(rows, rows.beside)
    file = load_glue("RTE", "train_aug", tmp_path, needs_labels=False)
    assert file.labels is None
    assert rows.header == "index\tsentence1\tsentence2\n"
    write(tmp_path / "CoLA" / "train.tsv", TASK_FILES["CoLA"])
    with pytest.raises(UserError, match="CoLA's file has no header"):
        task_rows(find_task("CoLA"), str(tmp_path), None, labels=False)
    for suffix, content in (
        ("csv", "kind,text,id\nqq,red car,3\n"),
        ("jsonl", '{"kind": "qq", "text": "red car", "id": 3}\n'),
    ):
        path = write(tmp_path / f"a.{suffix}", content)
        own = own_rows(path, text_columns=None, label_column="kind", labels=False)
        assert "kind" not in own.header
        assert all(
            "kind" not in line and "qq" not in line for d in variants_of(own, slots_of) for line in [d.source, *d.lines]
        )
        with pytest.raises(UserError, match="no label column 'nothing'"):
            own_rows(path, text_columns=None, label_column="nothing", labels=False)


def test_rows_of_the_hubs_form_become_the_official_file(tmp_path):
    import datasets

    values = {"sentence1": ["Red car", "Blue sky"], "sentence2": ["A car", "Sky"], "label": [0, 1], "idx": [0, 1]}
    names = datasets.ClassLabel(names=["entailment", "not_entailment"])
    table = datasets.Dataset.from_dict(values).cast_column("label", names)
    (tmp_path / "rte").mkdir()
    table.to_parquet(tmp_path / "rte" / "train.parquet")
    rows = task_rows(find_task("RTE"), str(tmp_path), None)
    assert rows.beside is None
    written(rows, tmp_path / "RTE-train_aug.tsv")
    (tmp_path / "new" / "RTE").mkdir(parents=True)
    (tmp_path / "RTE-train_aug.tsv").rename(tmp_path / "new" / "RTE" / "train_aug.tsv")
    file = load_glue("RTE", "train_aug", tmp_path / "new")
    assert file.texts[0] == "Red car"
    assert set(file.labels) == {0, 1}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", "text,label\n", "has no rows of data"),
        ("a.csv", "", "is empty"),
        ("a.csv", "text,label\nred,1\n,1\n", r"a\.csv:3: no text in column 'text'"),
        ("a.jsonl", '{"text": "red"}\n{"text": 3}\n', r"a\.jsonl:2: column 'text' holds 3"),
        ("a.jsonl", '{"text": "half \\ud800"}\n', r"a\.jsonl:1: a text holds half of a surrogate pair"),
        ("a.csv", b"text\n\xff\xfe\n", r"a\.csv:2: not UTF-8"),
        ("a.csv", "text\n" + "red " * 50_000 + "\n", r"a\.csv:2: a field of more than 131,072 characters: .*\.jsonl"),
        ("a.txt", "red\n", r"its name should end in"),
        ("a.csv", "words,label\nred,1\n", "which column holds the text"),
    ],
)
def test_bad_data_is_refused_with_its_line(tmp_path, name, content, message):
    with pytest.raises(UserError, match=message):
        own_rows(write(tmp_path / name, content), text_columns=None, label_column=None)


def test_escapes_of_json_stay_escapes(tmp_path):
    content = '{"text": "red car", "note": "\\ud83d half \\ud83d\\ude00 ü"}\n'
    rows = own_rows(write(tmp_path / "a.jsonl", content), text_columns=None, label_column=None)
    for line in variants_of(rows, slots_of)[0].lines:
        line.encode("utf-8")
        assert json.loads(line)["note"] == json.loads(content)["note"]


def test_real_rows_come_apart_again(real_data, tmp_path):
    """Real MRPC with its quotes and twins: holding out a tenth leaves out its variants, and nothing else."""
    rows = task_rows(find_task("MRPC"), str(real_data / "glue"), None)
    keys = rows.keys()
    drawn = variants_of(rows, slots_of, count=1)
    path = tmp_path / "MRPC" / "train_aug.tsv"
    path.parent.mkdir()
    origin: list[int] = []
    with path.open("w", encoding="utf-8", newline="") as stream:
        stream.write(rows.header)
        for i, row in enumerate(drawn):
            lines = [line for line, key in zip(row.lines, row.keys, strict=True) if key not in keys]
            stream.writelines([row.source, *lines])
            origin += [i] * (1 + len(lines))
    train, file = load_glue("MRPC", "train", real_data / "glue"), load_glue("MRPC", "train_aug", tmp_path)
    _, held = holdout(train)
    gone = set(held.indices)
    left = without_sources(file, train, held)
    kept = [k for k, i in enumerate(origin) if train.indices[i] not in gone]
    twins = len(kept) - len(left.kept)
    assert left.unclear == 0
    assert set(left.kept.indices) <= set(kept)
    texts = list(zip(train.texts, train.pairs, strict=True))
    assert twins == 0 or len(set(texts)) < len(texts)


def test_random_rows_come_apart_again(tmp_path):
    """Few words, so that variants would often equal other rows if they were not kept out."""
    chance = random.Random(11)
    words = ["apple", "pear", "plum", "green", '"red"']
    texts = [" ".join(chance.choice(words) for _ in range(chance.randint(2, 3))) for _ in range(80)]
    path = write(tmp_path / "a.jsonl", "".join(json.dumps({"text": text}) + "\n" for text in texts))
    rows = own_rows(path, text_columns=None, label_column=None)
    keys = rows.keys()
    lines, origin = [], []
    for i, row in enumerate(variants_of(rows, slots_of)):
        kept = [line for line, key in zip(row.lines, row.keys, strict=True) if key not in keys]
        lines += [row.source, *kept]
        origin += [i] * (1 + len(kept))
    assert len(lines) > 160

    def examples(of):
        return Examples(
            texts=of, pairs=None, labels=None, indices=list(range(len(of))), task=custom_task(("no", "yes")), source="f"
        )

    source, file = examples(texts), examples([json.loads(line)["text"] for line in lines])
    for s in range(0, 80, 7):
        twins = {i for i, text in enumerate(texts) if text.replace('"', "") == texts[s].replace('"', "")} | {s}
        left = without_sources(file, source, source.subset([s]))
        assert left.unclear == 0
        gone = {origin[k] for k in range(len(lines)) if k not in set(left.kept.indices)}
        assert s in gone
        assert gone <= twins
