"""A pre-trained encoder without a head, and text for it."""

from __future__ import annotations

from pathlib import Path

import general_runs
import pytest
from transformers import BertTokenizerFast


@pytest.fixture(scope="session")
def encoder(tmp_path_factory: pytest.TempPathFactory, vocabulary_file: Path) -> str:
    """The folder of an encoder: 4 layers, width 16, 2 heads, no head for a task."""
    tokenizer = BertTokenizerFast(vocab=str(vocabulary_file), do_lower_case=True)
    return general_runs.encoder_folder(tokenizer, tmp_path_factory.mktemp("encoder"))


@pytest.fixture(scope="session")
def text(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Some 120 sequences of 16 tokens, in documents of a few sentences."""
    return general_runs.write_text(tmp_path_factory.mktemp("text") / "corpus.txt")
