"""Shared by the tests of the search: a teacher, its data, and configurations of a second or two."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from transformers import BertTokenizerFast

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "training"))

import small_runs


@pytest.fixture(scope="session")
def teacher(tmp_path_factory: pytest.TempPathFactory, vocabulary_file: Path) -> str:
    """The folder of a teacher (4 layers, width 16) that tells ``bad`` from ``good``."""
    torch.set_num_threads(1)
    tokenizer = BertTokenizerFast(vocab=str(vocabulary_file), do_lower_case=True)
    return small_runs.teacher_folder(tokenizer, tmp_path_factory.mktemp("teacher"))


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """CSV files with text and label: 24 rows to train on, 16 for validation, 16 to test on."""
    folder = tmp_path_factory.mktemp("files")
    return {
        "train_file": small_runs.write_csv(folder / "train.csv", small_runs.sentences(24, seed=1)),
        "validation_file": small_runs.write_csv(folder / "validation.csv", small_runs.sentences(16, seed=2)),
        "test_file": small_runs.write_csv(folder / "test.csv", small_runs.sentences(16, seed=3)),
    }
