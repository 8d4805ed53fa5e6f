"""Encoders, texts and configurations for general distillations of a second or two."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from tiny_encoders import PLAIN, save, tiny
from transformers import PreTrainedTokenizerBase

from bert_emd import GeneralDistillConfig

_QUICK: dict[str, Any] = {
    "max_seq_length": 16,
    "train_batch_size": 8,
    "eval_batch_size": 16,
    "eval_share": 0.1,
    "num_train_epochs": 1.0,
    "learning_rate": 2e-3,
    "logging_steps": 1,
    "no_cuda": True,
    "bf16": False,
    "trainer_args": {"disable_tqdm": True},
}


def encoder_folder(tokenizer: PreTrainedTokenizerBase, folder: Path, kind: str = "bert", **changes: Any) -> str:
    model = tiny(kind, **{"layers": 4, **changes})
    return str(save(model.base_model, tokenizer, folder))


def write_text(path: Path, lines: int = 150, seed: int = 3) -> str:
    chance = np.random.default_rng(seed)
    with path.open("w") as file:
        for _ in range(lines):
            file.write(" ".join(chance.choice(PLAIN, chance.integers(3, 20))) + "\n" * int(chance.integers(1, 3)))
    return str(path)


def quick(output_dir: Path | str, **changes: Any) -> GeneralDistillConfig:
    output = Path(output_dir)
    return GeneralDistillConfig(
        output_dir=str(output), corpus_cache_dir=str(output.parent / "prepared"), **(_QUICK | changes)
    )
