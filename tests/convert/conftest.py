"""Checkpoints for the conversion's tests; TensorFlow writes them once a session."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import google_bert
import numpy as np
import pytest


@pytest.fixture(scope="session")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of TensorFlow checkpoints, each in a folder of its own; tests copy what they spoil."""
    root = tmp_path_factory.mktemp("tensorflow")
    full = google_bert.google_variables(google_bert.pretraining_model().state_dict())
    encoder = {name: value for name, value in full.items() if name.startswith("bert/")}
    half = {name: value for name, value in full.items() if not name.startswith("cls/seq")}
    chance = np.random.default_rng(5)
    head = {
        "output_weights": chance.standard_normal((3, 16)).astype(np.float32),
        "output_bias": chance.standard_normal(3).astype(np.float32),
    }
    checkpoints = {
        "full": google_bert.with_optimizer(full),
        "encoder": encoder,
        "words": half,
        "classifier": google_bert.with_optimizer({**encoder, **head}),
        "sharded": full,
        "short": {f"{name}:bfloat16" if name.endswith("kernel") else name: value for name, value in full.items()},
        "strange": {**full, "bert/encoder/layer_0/adapter/kernel": np.ones((2, 2), np.float32)},
        "lacking": {name: value for name, value in full.items() if name != "bert/encoder/layer_1/output/dense/bias"},
        "headless": {name: value for name, value in full.items() if name != "cls/predictions/output_bias"},
        "infinite": {**full, "bert/pooler/dense/bias": np.full(16, np.inf, np.float32)},
        "whole": {**full, "bert/pooler/dense/bias": np.ones(16, np.int32)},
        "electra": {name.replace("bert/", "electra/"): value for name, value in encoder.items()},
        "objects": {"_CHECKPOINTABLE_OBJECT_GRAPH": np.zeros(2, np.float32), **encoder},
    }
    for name in checkpoints:
        google_bert.dress(root / name)
    jobs = {root / name: variables for name, variables in checkpoints.items()}
    if (package := google_bert.packaged_encoder()) is not None:
        real = root / "real"
        variables = google_bert.google_variables(google_bert.real_pretraining_model(package).state_dict())
        jobs[real] = google_bert.with_optimizer(variables)
        google_bert.dress(real)
        shutil.copyfile(package / "vocab.txt", real / "vocab.txt")
        config = json.loads((package / "config.json").read_text())
        (real / "bert_config.json").write_text(json.dumps({key: config[key] for key in google_bert.SIZES}))
    google_bert.write_checkpoints(jobs)
    return root
