"""Shared by the data tests: the real files, where there are any, and a tokenizer small enough to check by eye."""

from __future__ import annotations

import os
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
from transformers import BertTokenizerFast

VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "b", "c", "d", "e"]


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real data sets; these tests are skipped where the environment names none."""
    folder = os.environ.get("BERT_EMD_DATA")
    if not folder:
        pytest.skip("BERT_EMD_DATA names no folder of real GLUE files")
    return Path(folder)


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> BertTokenizerFast:
    """A word-piece tokenizer: [PAD] 0, [UNK] 1, [CLS] 2, [SEP] 3, [MASK] 4, a 5, b 6, c 7, d 8, e 9."""
    path = tmp_path_factory.mktemp("vocabulary") / "vocab.txt"
    path.write_text("\n".join(VOCABULARY) + "\n")
    return BertTokenizerFast(vocab=str(path))
