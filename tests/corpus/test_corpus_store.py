"""Stores: built once, by content, gone on with after a kill, read from any place."""

from __future__ import annotations

import json
import multiprocessing
import pickle
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_encoders import PLAIN
from transformers import BertTokenizerFast

from bert_emd import UserError
from bert_emd.data.corpus import FileCorpus, Packing, build_store, check_tokenizer, corpus_files, is_store
from bert_emd.data.corpus import build as building
from bert_emd.data.corpus import tokens as tokenising
from bert_emd.data.corpus.store import TokenStore


def corpus_file(folder: Path, lines: int = 400) -> Path:
    chance = np.random.default_rng(3)
    path = folder / "corpus.txt"
    with path.open("w") as file:
        for _ in range(lines):
            file.write(" ".join(chance.choice(PLAIN, chance.integers(3, 20))) + "\n" * int(chance.integers(1, 3)))
    return path


def plain_ids(path: Path, words: BertTokenizerFast) -> list[list[int]]:
    text = path.read_text()
    return [words(" ".join(d.split()), add_special_tokens=False)["input_ids"] for d in text.split("\n\n") if d.strip()]


def content(store: TokenStore) -> tuple[Any, Any]:
    rows, lengths = store.rows(range(len(store)))
    return rows.tolist(), lengths.tolist()


def test_all_of_the_text_is_there_in_its_order(tmp_path: Path, packing: Packing, words: BertTokenizerFast) -> None:
    path = corpus_file(tmp_path)
    store = build_store(FileCorpus([path]), packing, tmp_path / "store")
    rows, lengths = content(store)
    text = [t for row, n in zip(rows, lengths, strict=True) for t in row[1 : n - 1] if t != words.sep_token_id]
    assert text == [t for ids in plain_ids(path, words) for t in ids]
    assert (store.meta["tokens"], store.meta["documents"]) == (sum(lengths), len(plain_ids(path, words)))
    assert (tmp_path / "store" / "tokens.bin").stat().st_size == 2 * 16 * len(store)
    assert not (tmp_path / "store.partial").exists()
    assert not (tmp_path / ".store.lock").exists()


def test_names_of_special_tokens_in_the_text_are_text(
    tmp_path: Path, packing: Packing, words: BertTokenizerFast
) -> None:
    path = tmp_path / "a.txt"
    path.write_text("the dog [SEP] saw [CLS] the cat near the old house and the new road over the river [PAD] then")
    rows, lengths = content(build_store(FileCorpus([path]), packing, tmp_path / "store"))
    inner = [t for row, n in zip(rows, lengths, strict=True) for t in row[1 : n - 1]]
    assert not set(inner) & {words.sep_token_id, words.cls_token_id, words.pad_token_id}


class Killed(BaseException):
    pass


@pytest.mark.parametrize("after", [1, 4, 9])
def test_a_killed_preparation_goes_on_to_the_same_bytes(
    tmp_path: Path, packing: Packing, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    path = corpus_file(tmp_path)
    whole = build_store(FileCorpus([path]), packing, tmp_path / "whole")
    monkeypatch.setattr(building, "_SECONDS_KEPT", -1.0)
    monkeypatch.setattr(tokenising, "_PIECES", 20)
    original, calls = tokenising._ids, []

    def dying(*args: Any) -> Any:
        calls.append(1)
        if len(calls) > after:
            raise Killed
        return original(*args)

    monkeypatch.setattr(tokenising, "_ids", dying)
    with pytest.raises(Killed):
        build_store(FileCorpus([path]), packing, tmp_path / "store")
    # What came behind the last mark is not trusted.
    with (tmp_path / "store.partial" / "tokens.bin").open("ab") as file:
        file.write(b"half a sequ")
    assert not (tmp_path / "store").exists()
    calls.clear()
    monkeypatch.setattr(tokenising, "_ids", lambda *args: (calls.append(1), original(*args))[1])
    again = build_store(FileCorpus([path]), packing, tmp_path / "store")
    pieces = sum(1 for _ in FileCorpus([path]).pieces())
    assert len(calls) == -(-pieces // 20) - after
    assert content(again) == content(whole)
    assert again.meta["documents"] == whole.meta["documents"]


def test_another_corpus_does_not_go_on_behind_an_interrupted_one(
    tmp_path: Path, packing: Packing, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = corpus_file(tmp_path)
    monkeypatch.setattr(building, "_SECONDS_KEPT", -1.0)
    monkeypatch.setattr(tokenising, "_PIECES", 20)
    original = FileCorpus.pieces

    def dying(self: FileCorpus) -> Any:
        for i, piece in enumerate(original(self)):
            if i == 100:
                raise Killed
            yield piece

    monkeypatch.setattr(FileCorpus, "pieces", dying)
    with pytest.raises(Killed):
        build_store(FileCorpus([path]), packing, tmp_path / "store")
    monkeypatch.setattr(FileCorpus, "pieces", original)
    path.write_text("the dog saw a cat " * 30)
    store = build_store(FileCorpus([path]), packing, tmp_path / "store")
    fresh = build_store(FileCorpus([path]), packing, tmp_path / "fresh")
    assert content(store) == content(fresh)


def test_what_is_there_is_not_made_again(tmp_path: Path, packing: Packing, monkeypatch: pytest.MonkeyPatch) -> None:
    path = corpus_file(tmp_path)
    first = build_store(FileCorpus([path]), packing, tmp_path / "store")
    monkeypatch.setattr(FileCorpus, "pieces", lambda _: pytest.fail("read again"))
    assert content(build_store(FileCorpus([path]), packing, tmp_path / "store")) == content(first)


def test_several_processes_make_the_same_store(
    tmp_path: Path, packing: Packing, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = corpus_file(tmp_path, lines=200)
    monkeypatch.setattr(tokenising, "_PIECES", 10)
    one = build_store(FileCorpus([path]), packing, tmp_path / "one")
    two = build_store(FileCorpus([path]), packing, tmp_path / "two", workers=2)
    assert content(one) == content(two)
    assert not multiprocessing.active_children()


def test_a_limit_stops_early(tmp_path: Path, words: BertTokenizerFast, packing: Packing) -> None:
    path = corpus_file(tmp_path)
    whole = build_store(FileCorpus([path]), packing, tmp_path / "whole")
    some = build_store(FileCorpus([path]), Packing(words, 16, limit=37), tmp_path / "some")
    assert len(some) == 37
    assert content(some)[0] == content(whole)[0][:37]


@pytest.mark.parametrize(
    ("text", "message"), [(" \n\n \n", "holds no text"), ("the dog saw a cat", "shorter than one")]
)
def test_too_little_text_leaves_nothing_behind(tmp_path: Path, packing: Packing, text: str, message: str) -> None:
    path = tmp_path / "a.txt"
    path.write_text(text)
    with pytest.raises(UserError, match=message):
        build_store(FileCorpus([path]), packing, tmp_path / "cache" / "store")
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_full_disk_is_seen_before_it_is_full(
    tmp_path: Path, packing: Packing, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(building.shutil, "disk_usage", lambda _: usage._replace(free=1000))
    monkeypatch.setattr(tokenising, "_PIECES", 20)
    with pytest.raises(UserError, match=r"needs about .* MB .* are free; make room"):
        build_store(FileCorpus([corpus_file(tmp_path)]), packing, tmp_path / "cache" / "store")
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_damaged_store_is_refused(tmp_path: Path, packing: Packing) -> None:
    store = build_store(FileCorpus([corpus_file(tmp_path)]), packing, tmp_path / "store")
    tokens = store.folder / "tokens.bin"
    tokens.write_bytes(tokens.read_bytes()[:-32])
    with pytest.raises(UserError, match="damaged"):
        TokenStore(store.folder)
    (store.folder / "corpus.json").write_text("{")
    with pytest.raises(UserError, match="no prepared corpus"):
        TokenStore(store.folder)


def test_another_tokenizer_or_length_is_refused(tmp_path: Path, packing: Packing, words: BertTokenizerFast) -> None:
    store = build_store(FileCorpus([corpus_file(tmp_path)]), packing, tmp_path / "store")
    # What a tokenizer was last told to do with lengths is no other tokenizer.
    words(["the dog", "a"], padding=True, truncation=True, max_length=5)
    check_tokenizer(store, words, 16)
    with pytest.raises(UserError, match="sequences of 16 tokens, not 32; set --max_seq_length 16"):
        check_tokenizer(store, words, 32)
    (tmp_path / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the"]))
    with pytest.raises(UserError, match="another tokenizer"):
        check_tokenizer(store, BertTokenizerFast(vocab=str(tmp_path / "vocab.txt")), 16)


def test_a_store_is_opened_anew_in_another_process(tmp_path: Path, packing: Packing) -> None:
    store = build_store(FileCorpus([corpus_file(tmp_path)]), packing, tmp_path / "store")
    pickled = pickle.dumps(store)
    assert len(pickled) < 2000
    assert content(pickle.loads(pickled)) == content(store)
    assert json.loads((store.folder / "corpus.json").read_text())["dtype"] == "uint16"


def test_a_folder_of_the_users_beside_the_store_stays(tmp_path: Path, packing: Packing) -> None:
    notes = tmp_path / "store.partial" / "notes.txt"
    notes.parent.mkdir()
    notes.write_text("mine")
    with pytest.raises(UserError, match=r"store\.partial is in the way and holds files that are not ours"):
        build_store(FileCorpus([corpus_file(tmp_path)]), packing, tmp_path / "store")
    assert notes.read_text() == "mine"
    assert not (tmp_path / "store").exists()
    notes.unlink()
    assert len(build_store(FileCorpus([corpus_file(tmp_path)]), packing, tmp_path / "store"))


def test_a_text_that_is_called_corpus_json_makes_no_store(tmp_path: Path, packing: Packing) -> None:
    (tmp_path / "corpus.json").write_text('{"text": "the dog saw a cat"}\n' * 20)
    assert not is_store(tmp_path)
    store = build_store(FileCorpus(corpus_files([tmp_path])), packing, tmp_path / "store")
    assert store.meta["documents"] == 20
    (store.folder / "tokens.bin").unlink()
    assert is_store(store.folder)  # a damaged one
    with pytest.raises(UserError, match="prepare it again"):
        TokenStore(store.folder)


def test_a_worker_that_ends_is_told(packing: Packing, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenising, "_work", print)  # which takes the pipe and ends
    with pytest.raises(UserError, match=r"ended by itself.*take --num_workers 1"):
        list(tokenising.tokenised([("the dog", True)] * 3, packing.tokenizer, 2))


@pytest.mark.slow
def test_a_worker_that_ends_before_it_begins_is_told(tmp_path: Path) -> None:
    # A script without `if __name__ == "__main__"` runs itself once more in each process that it starts.
    script = tmp_path / "script.py"
    script.write_text(
        "from bert_emd.data.corpus.tokens import tokenised\n"
        "tokenizer = bytes(1_000_000)  # more than a pipe holds, as a real vocabulary is\n"
        "list(tokenised([('a text', True)] * 3, tokenizer, 2))\n"
    )
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode == 1
    assert "StreamError: a process that tokenises the corpus ended by itself" in done.stderr
