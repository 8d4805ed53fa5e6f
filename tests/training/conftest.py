"""Shared by the training tests: a teacher that knows something, and the files it was made for."""

from __future__ import annotations

from pathlib import Path

import pytest
import small_runs
import torch
from transformers import BertTokenizerFast


@pytest.fixture(scope="session")
def teacher(tmp_path_factory: pytest.TempPathFactory, vocabulary_file: Path) -> str:
    """The folder of a teacher (4 layers, width 16) that tells ``bad`` from ``good``."""
    torch.set_num_threads(1)
    tokenizer = BertTokenizerFast(vocab=str(vocabulary_file), do_lower_case=True)
    return small_runs.teacher_folder(tokenizer, tmp_path_factory.mktemp("teacher"))


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """CSV files with text and label: 40 rows to train on, 16 for validation, 16 to test on."""
    folder = tmp_path_factory.mktemp("files")
    return {
        "train_file": small_runs.write_csv(folder / "train.csv", small_runs.sentences(40, seed=1)),
        "validation_file": small_runs.write_csv(folder / "validation.csv", small_runs.sentences(16, seed=2)),
        "test_file": small_runs.write_csv(folder / "test.csv", small_runs.sentences(16, seed=3)),
    }
