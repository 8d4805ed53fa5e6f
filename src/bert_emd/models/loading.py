"""Loading models and tokenizers: always float32, never remote code, never pickled code."""

from __future__ import annotations

import logging
import pickle
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from bert_emd.errors import UserError
from bert_emd.models.quiet import quiet

__all__ = ["LoadReport", "check_folder", "has_tokenizer", "load_classifier", "load_config", "load_tokenizer", "why"]

_LOG = logging.getLogger("bert_emd")

# Everything that can go wrong inside a loader when the folder or id is not what it should be: safetensors, pickle, the
# tokenizers and the configuration's checks each raise errors of their own, some of them plain `Exception`.
_LOAD_ERRORS = (Exception,)
_TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "vocab.txt", "vocab.json", "spiece.model", "spm.model",
    "sentencepiece.bpe.model",
)  # fmt: skip
_SHORT, _LONG = 12, 300  # characters of their messages


@dataclass(frozen=True, kw_only=True)
class LoadReport:
    """What happened to the weights of a checkpoint."""

    loaded: int
    """Tensors of the model that came from the checkpoint."""
    fresh: list[str] = field(default_factory=list)
    """Tensors of the model that were not in the checkpoint."""
    ignored: list[str] = field(default_factory=list)
    """Tensors of the checkpoint that the model has no place for."""

    @property
    def encoder_fresh(self) -> list[str]:
        """Fresh tensors that belong to the encoder itself, which no fine-tuning may leave out."""
        return [name for name in self.fresh if not _is_head(name)]

    @property
    def head_fresh(self) -> list[str]:
        """Fresh tensors of the classification head."""
        return [name for name in self.fresh if _is_head(name) and "pooler" not in name]


def _is_head(name: str) -> bool:
    return name.split(".")[0] in ("classifier", "score", "pre_classifier", "head", "pooler") or ".pooler." in name


def check_folder(path: str, what: str) -> None:
    """Refuse a path that is meant as a folder but is none, or holds no model.

    Raises:
        UserError: naming the path and what is missing.
    """
    folder = Path(path)
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise UserError(
                f"{what} {path} has no config.json, so it is not a model folder; name the folder of a saved model"
            )
        return
    if folder.exists():
        raise UserError(f"{what} {path} is a file; name the folder of a saved model")
    # A hub id is at most owner/name and never starts with a path's signs.
    if path.startswith((".", "/", "~")) or path.count("/") > 1 or path.endswith("/"):
        raise UserError(f"{what} {path} does not exist; name the folder of a saved model, or a hub id")


def load_config(name_or_path: str, what: str, *, cache_dir: str | None = None, **changes: Any) -> PretrainedConfig:
    """The configuration of a model; one without ``model_type`` that reads like BERT's is taken for BERT.

    The published TinyBERT students are such checkpoints.

    Raises:
        UserError: there is no readable configuration.
    """
    check_folder(name_or_path, what)
    try:
        values, _ = PretrainedConfig.get_config_dict(name_or_path, cache_dir=cache_dir)
        if "model_type" not in values:
            return _bert_config(name_or_path, what, values | changes)
        return AutoConfig.from_pretrained(name_or_path, cache_dir=cache_dir, trust_remote_code=False, **changes)
    except _LOAD_ERRORS as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{what} {name_or_path} cannot be read: {why(error, name_or_path)}") from error


def _bert_config(name_or_path: str, what: str, values: dict[str, Any]) -> PretrainedConfig:
    if not {"hidden_size", "num_hidden_layers", "intermediate_size", "vocab_size"} <= values.keys():
        raise UserError(
            f"{what} {name_or_path}: its config.json has no model_type and is not BERT's; add its model_type"
        )
    _LOG.info("%s %s names no model_type; its fields are BERT's, so it is read as BERT", what, name_or_path)
    values = {k: v for k, v in values.items() if k not in ("pre_trained", "training", "structure")}
    return AutoConfig.for_model("bert", **values)


def has_tokenizer(name_or_path: str) -> bool:
    """Whether a model comes with a tokenizer: a folder with the files of one, or any hub id."""
    folder = Path(name_or_path)
    return not folder.is_dir() or any((folder / name).is_file() for name in _TOKENIZER_FILES)


def load_tokenizer(
    name_or_path: str, what: str, *, do_lower_case: bool | None = None, cache_dir: str | None = None
) -> PreTrainedTokenizerBase:
    """The tokenizer of a model.

    Raises:
        UserError: there is none.
    """
    options = {} if do_lower_case is None else {"do_lower_case": do_lower_case}
    config = load_config(name_or_path, what, cache_dir=cache_dir)
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            name_or_path, config=config, cache_dir=cache_dir, trust_remote_code=False, **options
        )
    except _LOAD_ERRORS as error:
        raise UserError(f"{what} {name_or_path} has no usable tokenizer: {why(error, name_or_path)}") from error
    # Without its files Transformers makes a tokenizer that knows the special tokens alone and reads nothing else.
    if len(tokenizer) <= len(set(tokenizer.all_special_ids)):
        raise UserError(f"{what} {name_or_path} has no vocabulary; save its tokenizer into the same folder")
    return tokenizer


def load_classifier(
    name_or_path: str,
    what: str,
    *,
    config: PretrainedConfig | None = None,
    cache_dir: str | None = None,
    may_resize_head: bool = False,
) -> tuple[PreTrainedModel, LoadReport]:
    """A sequence classifier in float32, whatever the precision it was stored in.

    Args:
        name_or_path: a folder or a hub id.
        what: how to call it in messages ("the teacher").
        config: another configuration than the checkpoint's own (labels, depth).
        cache_dir: where downloads go.
        may_resize_head: whether a head of another size in the checkpoint may be dropped.

    Raises:
        UserError: it cannot be read, or nothing of it loads.
    """
    config = config if config is not None else load_config(name_or_path, what, cache_dir=cache_dir)
    try:
        # Which weights loaded is reported by us; the bar of a download stays.
        with quiet(bars=Path(name_or_path).is_dir()):
            model, info = AutoModelForSequenceClassification.from_pretrained(
                name_or_path,
                config=config,
                cache_dir=cache_dir,
                dtype=torch.float32,
                trust_remote_code=False,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # judged below, with a message that names them
            )
    except _LOAD_ERRORS as error:
        raise UserError(f"{what} {name_or_path} cannot be loaded: {why(error, name_or_path)}") from error
    mismatched = sorted(entry[0] for entry in info.get("mismatched_keys", ()))
    if bad := [name for name in mismatched if not (may_resize_head and _is_head(name))]:
        raise UserError(
            f"{what} {name_or_path}: {bad[0]} has another shape than config.json says; the folder is mixed up"
        )
    fresh = sorted({*info["missing_keys"], *mismatched})
    report = LoadReport(
        loaded=len(model.state_dict()) - len(fresh), fresh=fresh, ignored=sorted(info["unexpected_keys"])
    )
    encoder = [name for name in model.state_dict() if not _is_head(name)]
    if encoder and all(name in fresh for name in encoder):
        raise UserError(f"{what} {name_or_path}: none of its weights fit the model that its config.json describes")
    return model, report


def why(error: BaseException, name_or_path: str) -> str:
    """One line on what a loader raised, whatever it raised."""
    if isinstance(error, pickle.UnpicklingError):
        return "its weights file holds more than tensors and is not opened; take a model.safetensors"
    text = " ".join(str(error).split()).rstrip(".")
    # Many errors are bare values: KeyError(101) alone says nothing.
    if len(text) < _SHORT:
        text = f"{type(error).__name__} {text}".rstrip()
    advice = "save or download it again" if Path(name_or_path).exists() else "there is no folder of this name either"
    return f"{text if len(text) <= _LONG else text[:_LONG] + '…'}; {advice}"
