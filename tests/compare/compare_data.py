"""Tasks, an encoder and a launcher that need no time, for comparisons."""

from __future__ import annotations

import random
import sys
from pathlib import Path
from typing import Any

from tiny_encoders import BAD, GOOD, PLAIN, save, tiny
from transformers import BertTokenizerFast

from bert_emd import CompareConfig

FAKE = (sys.executable, str(Path(__file__).with_name("fake_launcher.py")))


def sentences(count: int, seed: int) -> list[tuple[str, int]]:
    """Plain words around two of good (1) or of bad temper (0)."""
    chance = random.Random(seed)
    rows = []
    for i in range(count):
        text = [chance.choice(PLAIN) for _ in range(chance.randint(4, 9))]
        for _ in range(2):
            text.insert(chance.randrange(len(text) + 1), chance.choice(GOOD if i % 2 else BAD))
        rows.append((" ".join(text), i % 2))
    return rows


def glue(root: Path) -> str:
    """CoLA and SST-2 as the official archives have them."""
    for task, head in (("CoLA", None), ("SST-2", "sentence\tlabel")):
        (root / task).mkdir(parents=True)
        for name, count, seed in (("train", 60, 1), ("dev", 24, 2)):
            rows = sentences(count, seed)
            lines = [f"s\t{y}\t\t{text}" if head is None else f"{text}\t{y}" for text, y in rows]
            (root / task / f"{name}.tsv").write_text("\n".join([head, *lines] if head else lines) + "\n")
    return str(root)


def encoder(folder: Path, vocabulary: Path) -> str:
    """A random encoder of 4 layers with its tokenizer."""
    tokenizer = BertTokenizerFast(vocab=str(vocabulary), do_lower_case=True)
    return str(save(tiny("bert", layers=4, initializer_range=0.1), tokenizer, folder))


def config(out: Path, data: dict[str, str], **changes: Any) -> CompareConfig:
    """A small comparison; names that are no fields of its own are options of all students."""
    values: dict[str, Any] = {
        "methods": ("none", "kd"),
        "seeds": (1, 2),
        "task_name": ("CoLA",),
        "student_layers": (2,),
        "model_name_or_path": data["encoder"],
        "both_starts": False,
        "output_dir": str(out),
        "options": {"data_dir": data["glue"], "no_cuda": True} | changes.pop("options", {}),
    }
    return CompareConfig(**(values | changes))
