"""MRPC from the files of the paraphrase corpus, by the rule by which GLUE made its own.

The training part is split by a list of pairs of ids: rows on the list are the development set, the others the training
set, both under the header that stands there (with its byte-order mark). The test set takes the columns of both ids and
both sentences, numbered from 0, under a header of its own; the label is left out. White space around a row is dropped.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from bert_emd.errors import UserError

__all__ = ["DEV_IDS_NAMES", "TEST_NAME", "TRAIN_NAME", "build_mrpc"]

TRAIN_NAME = "msr_paraphrase_train.txt"
TEST_NAME = "msr_paraphrase_test.txt"
DEV_IDS_NAMES = ("dev_ids.tsv", "mrpc_dev_ids.tsv")
_TEST_HEADER = "index\t#1 ID\t#2 ID\t#1 String\t#2 String\n"
_COLUMNS = 5


def build_mrpc(train: Path, test: Path, dev_ids: Path, target: Path) -> None:
    """Write train.tsv, dev.tsv and test.tsv.

    Args:
        train: msr_paraphrase_train.txt of the corpus.
        test: msr_paraphrase_test.txt.
        dev_ids: a pair of ids a line, parted by a tab.
        target: the folder that gets the three files; it is there.

    Raises:
        UserError: a file cannot be read, a row has other columns, or the list names a pair that the corpus has not.
    """
    held = {tuple(row) for _, row in _rows(dev_ids, 2, header=False)}
    seen: set[tuple[str, ...]] = set()
    header = _header(train)
    with _open(target / "train.tsv") as kept, _open(target / "dev.tsv") as dev:
        kept.write(header)
        dev.write(header)
        for _, row in _rows(train, _COLUMNS):
            pair = (row[1], row[2])
            (dev if pair in held else kept).write("\t".join(row) + "\n")
            seen.add(pair)
    if missing := sorted(held - seen):
        raise UserError(
            f"{dev_ids} names {len(missing)} pairs that {train} has not, the first of them {' '.join(missing[0])}; "
            "the two do not belong together: download both again"
        )
    with _open(target / "test.tsv") as file:
        file.write(_TEST_HEADER)
        for index, row in _rows(test, _COLUMNS):
            file.write("\t".join([str(index), *row[1:]]) + "\n")


def _open(path: Path) -> TextIO:
    return path.open("w", encoding="utf-8", newline="\n")


def _header(path: Path) -> str:
    for line in _lines(path):
        return line.rstrip("\r\n") + "\n"
    raise UserError(f"{path} is empty; download it again")


def _lines(path: Path) -> Iterator[str]:
    try:
        # Line ends of any system, as the corpus came with both; characters that only look like one stay in the text.
        with path.open(encoding="utf-8") as file:
            yield from file
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text; download it again") from error


def _rows(path: Path, columns: int, *, header: bool = True) -> Iterator[tuple[int, list[str]]]:
    """Each row's number, from 0 after the header, and its fields."""
    for number, line in enumerate(_lines(path)):
        if header and number == 0:
            continue
        fields = line.strip().split("\t")
        if len(fields) != columns:
            raise UserError(
                f"{path}:{number + 1}: expected {columns} tab-separated columns, found {len(fields)}; download it again"
            )
        yield number - header, fields
