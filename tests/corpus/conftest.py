"""A tokenizer of whole words and a packing for it."""

from __future__ import annotations

import pytest
from transformers import BertTokenizerFast

from bert_emd.data.corpus import Packing


@pytest.fixture
def packing(words: BertTokenizerFast) -> Packing:
    return Packing(words, 16)
