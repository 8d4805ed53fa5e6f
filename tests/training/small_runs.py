"""Data sets, teachers and configurations for runs of a second or two."""

from __future__ import annotations

import csv
import json
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from tiny_encoders import BAD, GOOD, PLAIN, save, tiny
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback

from bert_emd import DistillConfig, FinetuneConfig
from bert_emd.training.trainer import BestKeeper

LABELS = ("bad", "good")


def sentences(count: int, seed: int, words: tuple[int, int] = (4, 11)) -> list[tuple[str, str]]:
    """Rows (text, label): plain words around two of good or of bad temper; the classes take turns."""
    chance = random.Random(seed)
    rows = []
    for i in range(count):
        text = [chance.choice(PLAIN) for _ in range(chance.randint(*words))]
        for _ in range(2):
            text.insert(chance.randrange(len(text) + 1), chance.choice(GOOD if i % 2 else BAD))
        rows.append((" ".join(text), LABELS[i % 2]))
    return rows


def write_csv(path: Path, rows: Sequence[Sequence[Any]], header: Sequence[str] = ("text", "label")) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as stream:
        csv.writer(stream).writerows([header, *rows])
    return str(path)


def write_tsv(path: Path, header: Sequence[str] | None, rows: Sequence[Sequence[Any]]) -> Path:
    """A file as GLUE has them: tabs, no quoting."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [header, *rows] if header is not None else rows
    path.write_text("".join("\t".join(map(str, line)) + "\n" for line in lines), encoding="utf-8")
    return path


def plain_batches(
    rows: Sequence[tuple[str, str]], tokenizer: PreTrainedTokenizerBase, size: int
) -> Iterator[tuple[dict[str, Tensor], Tensor]]:
    for start in range(0, len(rows), size):
        part = rows[start : start + size]
        encoded = tokenizer([text for text, _ in part], padding=True, return_tensors="pt")
        yield dict(encoded), torch.tensor([LABELS.index(label) for _, label in part])


def trained(tokenizer: PreTrainedTokenizerBase, *, layers: int = 4, seed: int = 1, **changes: Any) -> PreTrainedModel:
    """A teacher that has learnt to tell good from bad, by nothing but torch."""
    model = tiny("bert", layers=layers, labels=LABELS, seed=seed, **{"initializer_range": 0.1, **changes})
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    model.train()
    for _ in range(3):
        for batch, labels in plain_batches(sentences(160, seed=100), tokenizer, 16):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(model(**batch).logits, labels).backward()
            optimizer.step()
    return model.eval()


def teacher_folder(tokenizer: PreTrainedTokenizerBase, folder: Path, **changes: Any) -> str:
    return str(save(trained(tokenizer, **changes), tokenizer, folder))


_QUICK: dict[str, Any] = {
    "max_seq_length": 24,
    "train_batch_size": 8,
    "eval_batch_size": 16,
    "num_train_epochs": 1.0,
    "learning_rate": 2e-3,
    "logging_steps": 2,
    "no_cuda": True,
    "trainer_args": {"disable_tqdm": True},
}

# Named, so that what the tests see does not hang on the defaults of the day.
_METHOD: dict[str, Any] = {"mapping": "emd", "alpha": 1.0, "beta": 1.0, "cost_scale": "absolute"}


def quick_distill(output_dir: Path | str, **changes: Any) -> DistillConfig:
    return DistillConfig(output_dir=str(output_dir), **(_QUICK | _METHOD | changes))


def quick_finetune(output_dir: Path | str, **changes: Any) -> FinetuneConfig:
    return FinetuneConfig(output_dir=str(output_dir), **(_QUICK | changes))


class Snapshots:
    """The student's weights at each evaluation of training, by step, seen through the callback that keeps the best."""

    def __init__(self, monkeypatch: Any) -> None:
        self.by_step: dict[int, dict[str, Tensor]] = {}
        self.evaluations: list[int] = []
        original = BestKeeper.on_evaluate

        def on_evaluate(keeper: BestKeeper, args: Any, state: Any, control: Any, **more: Any) -> Any:
            state_dict = keeper.trainer.product.state_dict()
            self.by_step[state.global_step] = {name: t.detach().clone() for name, t in state_dict.items()}
            self.evaluations.append(state.global_step)
            return original(keeper, args, state, control, **more)

        monkeypatch.setattr(BestKeeper, "on_evaluate", on_evaluate)


class Stop(Exception):
    """A crash."""


class StopAfter(TrainerCallback):
    """Crashes after so many steps."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step >= self.step:
            raise Stop


def read(path: Path) -> Any:
    """A JSON file."""
    return json.loads(path.read_text(encoding="utf-8"))


def model_state(folder: Path) -> dict[str, Tensor]:
    """The weights that a folder holds."""
    return load_file(folder / "model.safetensors")
