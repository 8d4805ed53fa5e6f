"""Token ids that can be checked by eye: [PAD] 0, [UNK] 1, [CLS] 2, [SEP] 3, a 5, b 6, c 7, d 8, e 9."""

from __future__ import annotations

import logging
import pickle
import sys

import pytest
import torch

from bert_emd.data import Examples, collator, custom_task, encode, find_task
from bert_emd.errors import UserError


def make(texts, pairs=None, labels=None, task=None):
    return Examples(texts, pairs, labels, list(range(len(texts))), task or custom_task(("x", "y")), "here")


def test_single_texts(tokenizer):
    rows, truncated = encode(make(["a b", "c", "a b c d e"], labels=[1, 0, 1]), tokenizer, 5)
    assert rows["input_ids"][:] == [[2, 5, 6, 3], [2, 7, 3], [2, 5, 6, 7, 3]]
    assert rows["attention_mask"][:] == [[1] * 4, [1] * 3, [1] * 5]
    assert rows["token_type_ids"][:] == [[0] * 4, [0] * 3, [0] * 5]
    assert rows["labels"][:] == [1, 0, 1]
    assert rows["length"][:] == [4, 3, 5]
    assert truncated == 1


def test_a_row_of_exactly_the_length_is_not_truncated(tokenizer):
    assert encode(make(["a b c"]), tokenizer, 5)[1] == 0
    assert encode(make(["a b c"]), tokenizer, 4)[1] == 1


def test_of_a_pair_the_longer_text_is_cut(tokenizer):
    rows, truncated = encode(make(["a b c d e", "a"], ["a b", "b"]), tokenizer, 7)
    assert rows["input_ids"][:] == [[2, 5, 6, 3, 5, 6, 3], [2, 5, 3, 6, 3]]
    assert rows["token_type_ids"][:] == [[0, 0, 0, 0, 1, 1, 1], [0, 0, 0, 1, 1]]
    assert truncated == 1
    rows_of_long_seconds, _ = encode(make(["a b"], ["a b c d e"]), tokenizer, 7)
    assert rows_of_long_seconds["input_ids"][:] == [[2, 5, 6, 3, 5, 6, 3]]
    rows_of_one_word, _ = encode(make(["a"], ["a b c d e"]), tokenizer, 5)
    assert rows_of_one_word["input_ids"][:] == [[2, 5, 3, 5, 3]]
    assert "labels" not in rows.column_names


def test_chunks_change_nothing(tokenizer, monkeypatch):
    examples = make(["a b c d e"[: 1 + 2 * (i % 5)] for i in range(25)], labels=[i % 2 for i in range(25)])
    whole, cut = encode(examples, tokenizer, 6)
    # By name: in the package's face, `encode` is the function.
    monkeypatch.setattr(sys.modules["bert_emd.data.encode"], "_CHUNK", 7)
    parts, cut_in_parts = encode(examples, tokenizer, 6)
    assert whole.to_dict() == parts.to_dict()
    assert whole.features == parts.features
    assert cut == cut_in_parts == 5


def test_tokenizers_without_token_types(tokenizer, monkeypatch):
    monkeypatch.setattr(tokenizer, "model_input_names", ["input_ids", "attention_mask"])
    rows, _ = encode(make(["a b", "c"]), tokenizer, 5)
    assert set(rows.column_names) == {"input_ids", "attention_mask", "length"}


def test_no_noise(tokenizer, monkeypatch, capfd, caplog):
    monkeypatch.setattr(tokenizer, "model_max_length", 4)
    with caplog.at_level(logging.WARNING):
        encode(make(["a b c d e"]), tokenizer, 4)
    assert capfd.readouterr() == ("", "")
    assert not caplog.records


def test_no_room_for_text(tokenizer):
    with pytest.raises(UserError, match="max_seq_length 3 leaves no room for text: 3 special tokens"):
        encode(make(["a"], ["b"]), tokenizer, 3)


def test_batches_are_padded_to_their_longest_row(tokenizer):
    rows, _ = encode(make(["a b", "c", "a b c d"], labels=[1, 0, 1]), tokenizer, 8)
    batch = collator(tokenizer)([rows[0], rows[1]])
    assert set(batch) == {"input_ids", "attention_mask", "token_type_ids", "labels"}
    assert batch["input_ids"].tolist() == [[2, 5, 6, 3], [2, 7, 3, 0]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 1], [1, 1, 1, 0]]
    assert batch["labels"].tolist() == [1, 0]
    assert batch["labels"].dtype == batch["input_ids"].dtype == torch.int64
    assert collator(tokenizer, pad_to=8)([rows[1]])["input_ids"].tolist() == [[2, 7, 3, 0, 0, 0, 0, 0]]


def test_scores_are_floats_and_collators_travel(tokenizer):
    rows, _ = encode(make(["a", "b"], ["c", "d"], [2.0, 3.0], find_task("STS-B")), tokenizer, 8)
    batch = pickle.loads(pickle.dumps(collator(tokenizer)))([rows[0], rows[1]])
    assert batch["labels"].dtype == torch.float32
    assert batch["labels"].tolist() == [2.0, 3.0]
