"""The configuration beside a checkpoint."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from transformers import BertConfig
from transformers.activations import ACT2FN

from bert_emd.errors import UserError
from bert_emd.models.loading import why

__all__ = ["find_config", "read_config"]

_NAMES = ("bert_config.json", "config.json")
_NEEDED = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
_MOST = 1 << 20
_MOST_LAYERS = 1000
# Taken from the checkpoint itself, or about the program that wrote the file.
_NOT_TAKEN = ("model_type", "architectures", "transformers_version", "_name_or_path", "dtype", "torch_dtype")


def find_config(given: str | None, folder: Path) -> Path:
    """The configuration file: the one given, the one in the folder given, or the one beside the checkpoint.

    Raises:
        UserError: there is none.
    """
    place = folder if given is None else Path(given)
    if place.is_file():
        return place
    for name in _NAMES:
        if (place / name).is_file():
            return place / name
    if given is not None and not place.exists():
        raise UserError(f"bert_config_file {given} does not exist; name the checkpoint's {_NAMES[0]} or its folder")
    raise UserError(
        f"there is no {_NAMES[0]} in {place}; name the one that belongs to the checkpoint with --bert_config_file"
    )


def read_config(path: Path) -> tuple[BertConfig, list[str]]:
    """The configuration of a BERT model, whether Google, TinyBERT or Transformers wrote it.

    Returns:
        The configuration, and the keys of the file that a BERT model does not have.

    Raises:
        UserError: it is no JSON, not BERT's, or its values fit no model.
    """
    values = _read(path)
    kind = values.get("model_type", "bert")
    if kind != "bert":
        raise UserError(f"{path} describes a {kind} model; only BERT's checkpoints are converted")
    if lacking := [key for key in _NEEDED if key not in values]:
        raise UserError(f"{path} lacks {', '.join(lacking)}; take the configuration that belongs to the checkpoint")
    for key in _NEEDED:
        limit = _MOST_LAYERS if key == "num_hidden_layers" else _MOST * 16
        if not isinstance(values[key], int) or isinstance(values[key], bool) or not 1 <= values[key] <= limit:
            raise UserError(f"{path}: {key} must be a whole number from 1 to {limit}, not {values[key]!r}")
    known = {*BertConfig().to_dict(), "num_labels"}
    taken = {key: value for key, value in values.items() if key in known and key not in _NOT_TAKEN}
    try:
        config = BertConfig(**taken)
    except Exception as error:  # the checks of Transformers raise errors of their own
        raise UserError(f"{path} cannot be read: {why(error, str(path))}") from error
    if config.hidden_size % config.num_attention_heads:
        raise UserError(
            f"{path}: hidden_size {config.hidden_size} is not a multiple of its {config.num_attention_heads} "
            "attention heads"
        )
    if str(config.hidden_act) not in ACT2FN:
        raise UserError(f"{path}: hidden_act {config.hidden_act!r} is unknown; BERT's is gelu, or gelu_new")
    return config, sorted(set(values) - set(taken) - set(_NOT_TAKEN))


def _read(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > _MOST:
            raise UserError(f"{path} is too large for a configuration; name the checkpoint's {_NAMES[0]}")
        values = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{path} is no JSON file ({error}); take the checkpoint's own {_NAMES[0]}") from error
    if not isinstance(values, dict):
        raise UserError(f"{path} holds no JSON object; take the checkpoint's own {_NAMES[0]}")
    return values
