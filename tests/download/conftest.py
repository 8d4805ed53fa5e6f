"""Shared by the tests of downloads: a server, waits that take no time, and a watcher that remembers."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from file_server import FileServer

from bert_emd.transfer import Retry


class Remembering:
    """A watcher that keeps all that it is told."""

    def __init__(self) -> None:
        self.begun: list[tuple[str, int | None, int]] = []
        self.at: list[int] = []
        self.notes: list[str] = []

    def begin(self, name: str, total: int | None, done: int) -> None:
        self.begun.append((name, total, done))

    def moved(self, done: int, total: int | None) -> None:
        self.at.append(done)

    def end(self) -> None:
        pass

    def note(self, text: str) -> None:
        self.notes.append(text)


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")


@pytest.fixture
def server() -> Iterator[FileServer]:
    made = FileServer()
    yield made
    made.close()


@pytest.fixture
def waits() -> list[float]:
    """The seconds that were not waited."""
    return []


@pytest.fixture
def retry(waits: list[float]) -> Retry:
    return Retry(attempts=4, sleep=waits.append, jitter=lambda: 0.0, timeout=5)


@pytest.fixture
def watcher() -> Remembering:
    return Remembering()


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real data sets; these tests are skipped where the environment names none."""
    folder = os.environ.get("BERT_EMD_DATA")
    if not folder:
        pytest.skip("BERT_EMD_DATA names no folder of real GLUE files")
    return Path(folder)
