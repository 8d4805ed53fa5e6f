"""Augmented files: what stems from held-out rows is left out, and nothing that may stem from one is kept."""

from __future__ import annotations

import csv
import random

import pytest
from data_helpers import write

from bert_emd.data import Examples, custom_task, find_task, holdout, load_glue, without_sources
from bert_emd.errors import UserError

TASK = custom_task(("no", "yes"))


def examples(texts, pairs=None) -> Examples:
    return Examples(
        texts=list(texts), pairs=pairs, labels=None, indices=list(range(len(texts))), task=TASK, source="train.tsv"
    )


def test_each_row_goes_with_the_source_row_before_it():
    source = examples(["a b", "c d", "e f"])
    file = examples(["a b", "a x", "y b", "c d", "c z", "e f"])
    left = without_sources(file, source, source.subset([1]))
    assert left.kept.texts == ["a b", "a x", "y b", "e f"]
    assert left.kept.indices == [0, 1, 2, 5]
    assert (left.held, left.unclear) == (2, 0)


def test_a_variant_that_equals_the_next_source_row_leaves_the_rows_between_unclear():
    source = examples(["a b", "a c", "e f"])
    file = examples(["a b", "a c", "a q", "a c", "a r", "e f"])  # does the second block begin at row 1 or at row 3?
    left = without_sources(file, source, source.subset([0]))
    assert left.kept.texts == ["a c", "a r", "e f"]
    assert (left.held, left.unclear) == (1, 2)
    assert without_sources(file, source, source.subset([2])).kept.texts == ["a b", "a c", "a q", "a c", "a r"]


def test_a_source_row_that_the_file_lacks_may_be_the_origin_of_what_stands_there():
    source = examples(["a b", "c d", "e f"])
    file = examples(["a b", "a x", "c z", "e f", "e g"])
    left = without_sources(file, source, source.subset([1]))
    assert left.kept.texts == ["e f", "e g"]
    assert (left.held, left.unclear) == (0, 3)
    before = without_sources(examples(["a z", "c d", "e f"]), source, source.subset([0]))
    assert (before.kept.texts, before.held) == (["c d", "e f"], 1)


def test_the_twin_of_a_held_out_row_goes_with_it():
    source = examples(["a b", "c d", "a b"])
    file = examples(["a b", "a x", "c d", "a b", "a y"])
    left = without_sources(file, source, source.subset([0]))
    assert left.kept.texts == ["c d"]


@pytest.mark.parametrize("file", [["e f", "c d", "a b"], ["x", "y"]])
def test_a_file_without_the_source_rows_in_order_is_refused(file):
    source = examples(["a b", "c d", "e f"])
    with pytest.raises(UserError, match=r"in order, each followed by its variants.*--select_on dev"):
        without_sources(examples(file), source, source.subset([1]))


@pytest.mark.parametrize("task", ["SST-2", "MRPC"])
def test_a_file_written_as_tinybert_does(tmp_path, task):
    """Its csv writer doubles quotes; of a pair, the second text's variants stand beside the first text's last one."""
    chance = random.Random(3)
    words = ["one", "two", '"three"', "four", "it's", "six", "seven"]

    def sentence():
        return " ".join(chance.choice(words) for _ in range(6))

    # The number in each text tells where it came from.
    if task == "SST-2":
        header, columns = ["sentence", "label"], [0]
        rows = [[f"{sentence()} n{i}", str(i % 2)] for i in range(60)]
    else:
        header, columns = ["Quality", "#1 ID", "#2 ID", "#1 String", "#2 String"], [3, 4]
        rows = [[str(i % 2), "1", "2", f"{sentence()} n{i}", f"{sentence()} n{i}"] for i in range(60)]
    rows[5][columns[0]] = '"quoted as a whole n5"'
    write(tmp_path / task / "train.tsv", "".join("\t".join(row) + "\n" for row in [header, *rows]))
    with (tmp_path / task / "train_aug.tsv").open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream, delimiter="\t")
        writer.writerow(header)
        for row in map(list, rows):
            for column in columns:
                original = row[column]
                head = original.split(" ")
                variants = (" ".join([*head[:k], "zero", *head[k + 1 :]]) for k in range(len(head) - 1))
                for variant in (original, *variants):
                    row[column] = variant
                    writer.writerow(row)
    train, file = load_glue(task, "train", tmp_path), load_glue(task, "train_aug", tmp_path)
    assert find_task(task) == train.task
    kept, held = holdout(train)
    left = without_sources(file, train, held)

    def number(text):
        return int(text.replace('"', "").rpartition(" n")[2])

    gone = {number(text) for text in held.texts}
    assert {number(text) for text in left.kept.texts} == {number(text) for text in kept.texts}
    assert (left.held, left.unclear) == (sum(number(text) in gone for text in file.texts), 0)
    assert len(left.kept) + left.held + left.unclear == len(file)
