"""Packing against a plain loop over one long list."""

from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import BertTokenizerFast

from bert_emd import UserError
from bert_emd.data.corpus.packing import Packer, SequenceForm
from bert_emd.data.corpus.tokens import form_of

CLS, SEP, PAD = 2, 3, 0


def form(length: int) -> SequenceForm:
    return SequenceForm(length=length, prefix=(CLS,), suffix=(SEP,), separator=SEP, pad=PAD)


def plain(documents: list[list[int]], length: int) -> list[list[int]]:
    """The sequences, without padding, by cutting one list token by token."""
    stream: list[int] = []
    for document in documents:
        if document:
            stream += ([SEP] if stream else []) + document
    sequences: list[list[int]] = []
    current: list[int] = []
    for token in stream:
        if not current and token == SEP:
            continue
        current.append(token)
        if len(current) == length - 2:
            sequences.append([CLS, *current, SEP])
            current = []
    return sequences + ([[CLS, *current, SEP]] if current else [])


def packed(documents: list[list[int]], length: int, cuts: random.Random, **options: float) -> list[list[int]]:
    packer = Packer(form(length), **options)  # type: ignore[arg-type]
    found: list[list[int]] = []

    def take() -> None:
        rows, lengths = packer.take()
        for row, n in zip(rows.tolist(), lengths.tolist(), strict=True):
            assert row[n:] == [PAD] * (length - n)
            found.append(row[:n])

    for document in documents:
        start = 0
        while start < len(document):
            stop = cuts.randint(start + 1, len(document))
            packer.add(document[start:stop], ends_document=False)
            start = stop
            if cuts.random() < 0.3:
                take()
            if cuts.random() < 0.3:
                again = Packer(form(length), **options)  # type: ignore[arg-type]
                take()
                again.restore(packer.state)
                packer = again
        packer.add([], ends_document=True)
    packer.finish()
    take()
    return found


@settings(deadline=None, max_examples=150)
@given(st.lists(st.lists(st.integers(10, 99), max_size=40), max_size=12), st.integers(4, 12), st.integers(0, 999))
def test_sequences_are_those_of_a_plain_loop(documents: list[list[int]], length: int, seed: int) -> None:
    assert packed(documents, length, random.Random(seed)) == plain(documents, length)


@settings(deadline=None, max_examples=50)
@given(st.lists(st.lists(st.integers(10, 99), max_size=40), max_size=12), st.integers(4, 12), st.integers(0, 999))
def test_no_token_is_lost_and_only_the_last_is_short(documents: list[list[int]], length: int, seed: int) -> None:
    found = packed(documents, length, random.Random(seed))
    text = [token for row in found for token in row[1:-1] if token != SEP]
    assert text == [token for document in documents for token in document]
    assert all(len(row) == length for row in found[:-1])


def test_a_boundary_between_two_sequences_takes_no_token() -> None:
    documents = [[10, 11, 12, 13], [14, 15, 16], [17]]
    assert packed(documents, 6, random.Random(0)) == [
        [CLS, 10, 11, 12, 13, SEP],
        [CLS, 14, 15, 16, SEP, SEP],
        [CLS, 17, SEP],
    ]


def test_short_sequences_keep_every_token_and_the_share() -> None:
    document = list(np.random.default_rng(0).integers(10, 99, 60_000))
    found = packed([document], 34, random.Random(1), short=0.25, seed=5)
    assert [t for row in found for t in row[1:-1]] == document
    short = sum(len(row) < 34 for row in found[:-1]) / len(found)
    # A short one has a length of its own in 31 of 32 cases.
    assert short == pytest.approx(0.25 * 30 / 31, abs=0.03)
    assert min(map(len, found[:-1])) >= 4
    assert packed([document], 34, random.Random(2), short=0.25, seed=5) == found
    assert packed([document], 34, random.Random(2), short=0.25, seed=6) != found


def test_a_length_without_room_is_refused() -> None:
    with pytest.raises(UserError, match="no room"):
        Packer(form(3))


def test_the_form_is_the_tokenizers_own(words: BertTokenizerFast) -> None:
    found = form_of(words, 16)
    ids = words("the dog saw a cat")["input_ids"]
    inner = words("the dog saw a cat", add_special_tokens=False)["input_ids"]
    assert [*found.prefix, *inner, *found.suffix] == ids
    assert (found.separator, found.pad) == (words.sep_token_id, words.pad_token_id)
