"""Documents from files of every kind, in bounded memory; files that are no text."""

from __future__ import annotations

import gzip
import json
import shutil
import tracemalloc
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import datasets
import pyarrow
import pytest
from pyarrow import parquet

from bert_emd import UserError
from bert_emd.data.corpus import Corpus, FileCorpus, HubCorpus, RowsCorpus, corpus_files
from bert_emd.data.corpus.cleaning import Cleaner, cut
from bert_emd.data.corpus.reading import Piece, text_pieces


def documents(corpus: Corpus) -> list[str]:
    return joined(corpus.pieces())


def joined(pieces: Iterable[Piece]) -> list[str]:
    found, current = [], ""
    for text, ends in pieces:
        current += text
        if ends:
            found.append(current)
            current = ""
    assert not current
    return found


def write(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def write_parquet(path: Path, columns: dict[str, list[Any]], **options: Any) -> Path:
    parquet.write_table(pyarrow.table(columns), path, **options)
    return path


def test_blank_lines_part_documents(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", "\ufeffOne.\r\nTwo.\r\n\r\n \nThree.\n\n\n\nFour.\nFive.")
    assert documents(FileCorpus([path])) == ["One. Two.", "Three.", "Four. Five."]


def test_every_line_can_be_a_document(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", "One.\n\nTwo.\nThree.\n")
    assert documents(FileCorpus([path], document_break="line")) == ["One.", "Two.", "Three."]


@pytest.mark.parametrize("line_break", ["blank", "line"])
def test_long_lines_are_cut_between_words_and_lose_nothing(tmp_path: Path, line_break: Any) -> None:
    line = " ".join(f"word{i}" for i in range(300_000))
    path = write(tmp_path / "a.txt", f"{line}\nnext one\n\nlast")
    corpus = FileCorpus([path], document_break=line_break, clean=True)
    pieces = list(corpus.pieces())
    expected = [f"{line} next one", "last"] if line_break == "blank" else [line, "next one", "last"]
    assert joined(pieces) == expected
    assert max(len(text) for text, _ in pieces) <= 60_000
    # No word is in two pieces.
    assert [word for text, _ in pieces for word in text.split()] == " ".join(expected).split()


def test_a_line_without_white_space_is_cut_all_the_same(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", "x" * 3_000_000)
    pieces = list(FileCorpus([path], clean=True).pieces())
    assert "".join(text for text, _ in pieces) == "x" * 3_000_000
    assert max(len(text) for text, _ in pieces) <= 60_000


@pytest.mark.parametrize("content", [b"word " * 1_200_000, (b"words " * 16 + b"\n") * 60_000], ids=["line", "lines"])
def test_memory_does_not_grow_with_the_file(tmp_path: Path, content: bytes) -> None:
    path = write(tmp_path / "a.txt", content)
    tracemalloc.start()
    try:
        for _ in text_pieces(path, Cleaner(), "blank"):
            pass
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 2.5e6 < len(content)


def test_control_characters_are_removed_and_counted(tmp_path: Path) -> None:
    path = write(
        tmp_path / "a.txt", "one\x00\x07 two\x85three\tfour\n\x1bfive ❤\u200d six\ufffd and enough words around\n"
    )
    corpus = FileCorpus([path], clean=True)
    assert documents(corpus) == ["one two three four five ❤\u200d six and enough words around"]
    assert corpus.cleaner.removed == 4


LONG = b"x" * 1_000_000


@pytest.mark.parametrize(
    ("content", "line", "what"),
    [
        (b"one\ntwo\x07 three\n", 2, r"a control character \(U\+0007\)"),
        (b"one\n" * 1_500_000 + b"a\x00b\n" + LONG + b"y", 1_500_001, r"a control character \(U\+0000\)"),
        (LONG + b"y", 1, "a line of more than a megabyte"),
        (b"one\n\n" + LONG + b"y\nlast\n", 3, "a line of more than a megabyte"),
        # Over the end of what is read at a time, and one that is as long as two of them.
        (b"word\n" * 800_000 + LONG + b"y\n", 800_001, "a line of more than a megabyte"),
        (b"one\n" + LONG * 9 + b"\n" + LONG * 2, 2, "a line of more than a megabyte"),
    ],
    ids=["control", "control far on", "one line", "third line", "across", "longer than a chunk"],
)
def test_text_that_needs_cleaning_is_refused_unless_that_is_asked_for(
    content: bytes, line: int, what: str, tmp_path: Path
) -> None:
    path = write(tmp_path / "a.txt", content)
    with pytest.raises(UserError, match=rf"a\.txt:{line}: {what}; mend the file, or .* --clean_corpus"):
        FileCorpus([path])
    assert FileCorpus([path], clean=True).size == len(content)


@pytest.mark.parametrize("content", [LONG, LONG + b"\n" + LONG, (LONG + b"\n") * 9, b"\n" + LONG + b"\n\n"])
def test_lines_of_a_megabyte_are_taken(content: bytes, tmp_path: Path) -> None:
    assert FileCorpus([write(tmp_path / "a.txt", content)]).size == len(content)


def test_cutting_is_undone_by_joining() -> None:
    text = "a bc  def " * 50
    for limit in range(1, 30):
        parts = list(cut(text, limit))
        assert "".join(parts) == text
        assert max(map(len, parts)) <= limit
    assert Cleaner()("plain") == "plain"


def test_parquet_rows_are_documents(tmp_path: Path) -> None:
    columns = {"id": [1, 2, 3, 4], "text": ["One\ntwo.", None, "  ", "Three."], "title": ["A", "B", "C", "D"]}
    path = write_parquet(tmp_path / "a.parquet", columns)
    assert documents(FileCorpus([path])) == ["One two.", "Three."]
    both = FileCorpus([path], text_columns=("title", "text"))
    assert documents(both) == ["A One two.", "B", "C   ", "D Three."]


def test_parquet_without_text_or_with_two_is_asked_about(tmp_path: Path) -> None:
    two = write_parquet(tmp_path / "two.parquet", {"a": ["x"], "b": ["y"]})
    with pytest.raises(UserError, match=r"which column holds the text.*a, b.*--text_columns"):
        FileCorpus([two])
    with pytest.raises(UserError, match="no column 'c'"):
        FileCorpus([two], text_columns=("c",))
    numbers = write_parquet(tmp_path / "numbers.parquet", {"a": [1, 2]})
    with pytest.raises(UserError, match="holds no text"):
        FileCorpus([numbers], text_columns=("a",))


def test_a_truncated_parquet_file_is_refused(tmp_path: Path) -> None:
    whole = write_parquet(tmp_path / "a.parquet", {"text": [f"row {i} " * 50 for i in range(2000)]})
    cut_short = write(tmp_path / "b.parquet", whole.read_bytes()[:-1000])
    with pytest.raises(UserError, match=r"b\.parquet.*again"):
        FileCorpus([cut_short])


def test_a_parquet_file_with_damaged_pages_is_refused_when_they_are_read(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "a.parquet", {"text": [f"row {i * 7919 % 1000} " * 9 for i in range(2000)]})
    content = bytearray(path.read_bytes())
    content[1000:3000] = bytes(i % 251 for i in range(2000))
    corpus = FileCorpus([write(path, bytes(content))])
    with pytest.raises(UserError, match=r"cannot read.*a\.parquet"):
        list(corpus.pieces())


def test_json_lines(tmp_path: Path) -> None:
    rows = [{"text": "One.", "n": 1}, {"text": "Two.", "n": 2}]
    path = write(tmp_path / "a.jsonl", "\n".join(map(json.dumps, rows)) + "\n\n")
    assert documents(FileCorpus([path])) == ["One.", "Two."]
    broken = write(tmp_path / "b.jsonl", '{"text": "One."}\n{"text": ')
    with pytest.raises(UserError, match=r"b\.jsonl:2: not valid JSON"):
        documents(FileCorpus([broken]))
    number = write(tmp_path / "c.jsonl", '{"text": "One."}\n{"text": 5}\n')
    with pytest.raises(UserError, match="row 2: column 'text' holds 5"):
        documents(FileCorpus([number]))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"", "is empty"),
        ("a.txt", b"good line\nbad \xff\xfe line\n", r"a\.txt:2: not UTF-8"),
        ("a.txt", b"good line\ncut short \xe2\x82", r"a\.txt:2: not UTF-8"),
        ("a.txt", bytes(range(256)) * 40, "not UTF-8"),
        ("a.txt", b"\x00\x01\x02words" * 400, "is no text: 38% of it are control characters"),
        ("a.txt", gzip.compress(b"text", mtime=0), "is a gzip file; unpack it"),
        ("a.txt", b"PAR1rest", r"is a Parquet file; let its name end in \.parquet"),
        ("a.parquet", b"no such thing", "cannot read"),
        ("a.parquet", b"", "cannot read"),
    ],
)
def test_what_is_no_text_is_refused_before_anything_is_done(
    tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        FileCorpus([write(tmp_path / name, content)])


def test_folders_give_their_files_in_order(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    for name in ("b/two.txt", "a.txt", "notes.md", ".hidden.txt"):
        write(tmp_path / name, "x")
    assert corpus_files([tmp_path]) == [tmp_path / "a.txt", tmp_path / "b" / "two.txt"]
    with pytest.raises(UserError, match="does not exist"):
        corpus_files([tmp_path / "none"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="holds no file"):
        corpus_files([tmp_path / "empty"])


def test_the_identity_is_the_content(tmp_path: Path) -> None:
    one, same = write(tmp_path / "a.txt", "words"), write(tmp_path / "b.txt", "words")
    other = write(tmp_path / "c.txt", "words.")
    assert FileCorpus([one]).identity == FileCorpus([same]).identity
    assert FileCorpus([one]).identity != FileCorpus([other]).identity
    assert FileCorpus([one]).identity != FileCorpus([one], document_break="line").identity


def test_a_data_set_in_memory() -> None:
    rows = datasets.Dataset.from_dict({"text": ["One.", "Two."], "label": [0, 1]})
    assert documents(RowsCorpus(rows)) == ["One.", "Two."]


def test_a_stream_of_rows(tmp_path: Path) -> None:
    write(tmp_path / "train.jsonl", '{"text": "One."}\n{"text": "Two."}\n')
    assert documents(HubCorpus(str(tmp_path))) == ["One.", "Two."]
    with pytest.raises(UserError, match="--dataset_name"):
        documents(HubCorpus(str(tmp_path / "none")))
    with pytest.raises(UserError, match="cannot read"):
        documents(HubCorpus(str(tmp_path), split="other"))


def test_the_identity_of_a_local_stream_is_its_content(tmp_path: Path) -> None:
    for name, text in (("a", "One."), ("same", "One."), ("b", "Two.")):
        (tmp_path / name).mkdir()
        write(tmp_path / name / "train.jsonl", json.dumps({"text": text}) + "\n")
    first = HubCorpus(str(tmp_path / "a")).identity
    assert first["files"] == HubCorpus(str(tmp_path / "same")).identity["files"]
    assert first == HubCorpus(str(tmp_path / "a")).identity
    # The same name, other text.
    shutil.copyfile(tmp_path / "b" / "train.jsonl", tmp_path / "a" / "train.jsonl")
    assert first != HubCorpus(str(tmp_path / "a")).identity
    assert "files" not in HubCorpus("someone/corpus").identity
