"""What the conversion's tests share: running the command, and what a refusal must be like."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bert_emd.cli.main import main


def convert(checkpoint: Path, out: Path, *flags: str) -> int:
    return main(["convert", "--checkpoint", str(checkpoint), "--output_dir", str(out), *flags])


def refused(capsys: pytest.CaptureFixture[str], checkpoint: Path, out: Path, *flags: str, match: str = "") -> str:
    """Exit status 2, one line that says why, and nothing new beside the output folder."""
    place = next(path for path in out.parents if path.is_dir())
    before = sorted(place.rglob("*"))
    capsys.readouterr()
    assert convert(checkpoint, out, *flags) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("warning:")]
    assert len(errors) == 1
    assert errors[0].startswith("error: ")
    assert match in errors[0]
    assert sorted(place.rglob("*")) == before
    return errors[0]


def record(folder: Path) -> dict[str, Any]:
    values: dict[str, Any] = json.loads((folder / "conversion.json").read_text(encoding="utf-8"))
    return values
