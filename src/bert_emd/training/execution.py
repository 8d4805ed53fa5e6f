"""What every run does around the engine: encode, train, keep the best and the last model, load them as users do."""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import Any

import numpy as np
from transformers import AutoModelForSequenceClassification, PreTrainedModel, PreTrainedTokenizerBase

from bert_emd.data import Examples, encode, score
from bert_emd.models import quiet
from bert_emd.training.config import RunConfig
from bert_emd.training.inputs import RunData
from bert_emd.training.outputs import install_model
from bert_emd.training.preflight import Preflight
from bert_emd.training.trainer import EncoderTrainer, best_checkpoint

__all__ = ["encode_for", "load_pair", "metric_function", "plain_model", "steps_of", "train_and_install"]

_LOG = logging.getLogger("bert_emd")


def encode_for(
    config: RunConfig, data: RunData, tokenizer: PreTrainedTokenizerBase, checks: Preflight
) -> tuple[Any, Any]:
    """Training and validation rows as token ids, with the truncation check."""
    train_rows, truncated = encode(data.train, tokenizer, config.max_seq_length)
    checks.truncation(truncated, len(data.train), config.max_seq_length)
    validation_rows, _ = encode(data.validation, tokenizer, config.max_seq_length)
    if data.train.dropped:
        _LOG.warning("%s: %d rows with too few columns left out", data.train.source, data.train.dropped)
    # Evaluation takes them in this order: batches of like length, with little padding.
    by_length = np.argsort(np.asarray(validation_rows["length"]), kind="stable")
    return train_rows, validation_rows.select(by_length)


def metric_function(validation: Examples) -> Any:
    """What the engine calls on logits and labels."""
    return lambda prediction: score(validation.task, prediction.predictions, prediction.label_ids)


def train_and_install(trainer: EncoderTrainer, folder: Path, resume: Path | None) -> float:
    """Train, keep the last model in ``last/``, and put the best one on top of the folder; the seconds it took."""
    start = time.perf_counter()
    trainer.train(resume_from_checkpoint=str(resume) if resume is not None else None)
    seconds = time.perf_counter() - start
    if trainer.is_world_process_zero():
        trainer.save_product(folder / "last")
        held = best_checkpoint(folder)
        install_model(held[0] if held is not None else folder / "last", folder, skip=("score.json",))
    trainer.accelerator.wait_for_everyone()
    return seconds


def plain_model(folder: Path) -> PreTrainedModel:
    """A saved model as any user loads it."""
    with quiet():
        model: PreTrainedModel = AutoModelForSequenceClassification.from_pretrained(folder)
    return model


def load_pair(folder: Path) -> tuple[PreTrainedModel, PreTrainedModel]:
    """The best and the last model, reloaded from disk with plain Transformers."""
    return plain_model(folder), plain_model(folder / "last")


def steps_of(folder: Path, trainer: EncoderTrainer, seconds: float) -> dict[str, Any]:
    """When the best model appeared and how long training took."""
    held = best_checkpoint(folder)
    return {
        "best_step": held[2] if held is not None else trainer.state.global_step,
        "last_step": trainer.state.global_step,
        "epochs": trainer.state.epoch,
        "train_seconds": round(seconds, 1),
    }
