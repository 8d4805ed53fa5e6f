"""Shared by the comparison's tests: data and an encoder, made once."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import compare_data
import pytest


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory, vocabulary_file: Path) -> dict[str, str]:
    root = tmp_path_factory.mktemp("compare")
    return {
        "glue": compare_data.glue(root / "glue"),
        "encoder": compare_data.encoder(root / "encoder", vocabulary_file),
    }


@pytest.fixture
def calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], list[dict[str, Any]]]:
    """The calls that the stand-in for a run has seen."""
    path = tmp_path / "calls.jsonl"
    path.touch()
    monkeypatch.setenv("FAKE_CALLS", str(path))
    return lambda: [json.loads(line) for line in path.read_text().splitlines()]
