"""Shared by all tests: no hub, one thread, and the same random numbers in every run."""

from __future__ import annotations

import logging
import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ.setdefault("OMP_NUM_THREADS", "1")
# A test that imports POT by itself would load TensorFlow with it.
os.environ["POT_BACKEND_DISABLE_TENSORFLOW"] = "1"

from collections.abc import Iterator
from pathlib import Path

import pytest
import tiny_encoders
import torch
from transformers import BertTokenizerFast, set_seed


@pytest.fixture(autouse=True)
def _one_thread_and_one_seed() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    set_seed(0)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def _quiet_engine() -> Iterator[None]:
    """Transformers' log would drown what a failing test prints."""
    logger = logging.getLogger("transformers")
    before = logger.level
    logger.setLevel(logging.ERROR)
    yield
    logger.setLevel(before)


@pytest.fixture(scope="session")
def vocabulary_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The word list of `tiny_encoders` as BERT's vocab.txt."""
    path = tmp_path_factory.mktemp("words") / "vocab.txt"
    path.write_text("\n".join(tiny_encoders.VOCABULARY) + "\n", encoding="utf-8")
    return path


@pytest.fixture
def words(vocabulary_file: Path) -> BertTokenizerFast:
    """A tokenizer of whole words: [PAD] 0, [UNK] 1, [CLS] 2, [SEP] 3, [MASK] 4, then the words."""
    return BertTokenizerFast(vocab=str(vocabulary_file), do_lower_case=True)
