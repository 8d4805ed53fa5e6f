"""Converting a checkpoint: from what the user names to a folder that appears whole or not at all."""

from __future__ import annotations

import hashlib
import logging
import os
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from transformers import BertConfig

from bert_emd.archives import is_archive, unpack
from bert_emd.errors import UserError
from bert_emd.models import quiet
from bert_emd.models.convert import (
    Accounts,
    Source,
    Vocabulary,
    account,
    find_config,
    find_source,
    find_vocabulary,
    open_weights,
    read_config,
    read_vocabulary,
    wanted_member,
    write_model,
)
from bert_emd.training.checked import CheckedConfig, opt
from bert_emd.training.outputs import write_json
from bert_emd.training.records import config_record, versions

__all__ = ["ConvertConfig", "ConvertResult", "convert"]

_LOG = logging.getLogger("bert_emd")
_RECORD = "conversion.json"
DATA, OUTPUT = "data", "output"


@dataclass(frozen=True, kw_only=True)
class ConvertConfig(CheckedConfig):
    """`bert-emd convert`: a TensorFlow 1 checkpoint or an old PyTorch folder to a folder that Transformers loads."""

    # fmt: off
    checkpoint: str | None = opt(
        None, "a TensorFlow 1 checkpoint of BERT (its folder, its prefix as in bert_model.ckpt, or a zip or tar "
        "archive of it), or a folder with an old pytorch_model.bin", group=DATA, aliases=("tf_checkpoint_path",))
    bert_config_file: str | None = opt(
        None, "its configuration, or the folder of that (default: bert_config.json or config.json beside the "
        "checkpoint)", group=DATA)
    vocab_file: str | None = opt(
        None, "its vocabulary, or the folder of that (default: vocab.txt beside the checkpoint or the configuration)",
        group=DATA)
    do_lower_case: bool | None = opt(
        None, "whether its text was lower-cased, as for the checkpoints called uncased (default: seen from the "
        "vocabulary)", group=DATA)
    allow_unknown: bool = opt(
        False, "leave variables out that BERT has no place for, instead of refusing the checkpoint", group=DATA)
    allow_missing: bool = opt(
        False, "convert a checkpoint that lacks tensors of the model; Transformers starts those anew", group=DATA)
    output_dir: str | None = opt(
        None, "the folder to make", group=OUTPUT, aliases=("pytorch_dump_path",))
    # fmt: on


@dataclass(frozen=True, kw_only=True)
class ConvertResult:
    """What was converted, and where it is."""

    folder: Path
    source: Source = field(repr=False)
    accounts: Accounts = field(repr=False)
    model: BertConfig = field(repr=False)
    vocabulary: Vocabulary = field(repr=False)


def convert(config: ConvertConfig, *, sources: Mapping[str, str] | None = None) -> ConvertResult:
    """Convert a checkpoint of BERT.

    The folder has ``config.json``, ``model.safetensors`` (float32), the tokenizer, and ``conversion.json``: what became
    of every variable of the checkpoint.

    Args:
        config: ``checkpoint`` and ``output_dir`` are needed.
        sources: where each configuration value came from, for the record.

    Raises:
        UserError: something is missing, damaged, hostile or does not belong together; there is no output folder then.
    """
    if not config.checkpoint:
        raise UserError("which checkpoint? Name its folder, prefix or archive with --checkpoint")
    out = _checked_output(config.output_dir)
    given = Path(config.checkpoint)
    packed = given.is_file() and is_archive(given) and not _is_torch_file(given)
    source = None if packed else find_source(given)
    try:
        with tempfile.TemporaryDirectory(prefix=f".{out.name}-", dir=_place(out)) as staging:
            made, unpacked = Path(staging) / "model", Path(staging) / "archive"
            made.mkdir()

            def called(text: object) -> str:
                """Say the archive for the folder that it was unpacked to, which is gone when this is read."""
                return str(text).replace(str(unpacked), str(given))

            try:
                if source is None:
                    _LOG.info("unpacking %s", given)
                    unpack(given, unpacked, wanted=wanted_member)
                    source = find_source(unpacked, inside=True)
                result = _convert(config, source, out, made, called)
                write_json(made / _RECORD, _record(config, sources, result, called))
            except UserError as error:
                raise UserError(called(error)) from error
            target = out.resolve()
            target.parent.mkdir(parents=True, exist_ok=True)
            if target.exists():
                target.rmdir()
            os.replace(made, target)
    except (OSError, SafetensorError) as error:
        why = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise UserError(f"output_dir {out} cannot be written: {why}; make room or name another folder") from error
    return result


def _checked_output(path: str | None) -> Path:
    if not path:
        raise UserError("where should the model go? Name a new folder with --output_dir")
    out = Path(path)
    if out.suffix == ".bin":
        raise UserError(f"output_dir {path} is the name of a weights file; name the folder that the model should have")
    if out.is_file():
        raise UserError(f"output_dir {path} is a file; name a folder")
    if out.is_dir() and any(out.iterdir()):
        raise UserError(f"output_dir {path} is not empty, and nothing in it is replaced; name a new folder")
    return out


def _place(out: Path) -> Path:
    """The folder above that is there already; those between are made when everything has gone well."""
    place = next(path for path in out.resolve().parents if path.exists())
    if not place.is_dir():
        raise UserError(f"output_dir {out} cannot be made: {place} is a file; name another folder")
    return place


def _is_torch_file(path: Path) -> bool:
    """Whether a zip archive is one that `torch.save` wrote."""
    return path.suffix in (".bin", ".pt", ".pth")


def _convert(
    config: ConvertConfig, source: Source, out: Path, made: Path, called: Callable[[object], str]
) -> ConvertResult:
    if source.note:
        _LOG.info("%s", called(source.note))
    config_file = find_config(config.bert_config_file, source.folder)
    model, strange = read_config(config_file)
    if strange:
        _LOG.info("not in BERT's configuration and left out: %s", ", ".join(strange))
    vocabulary_file = find_vocabulary(config.vocab_file, source.folder, config_file.parent)
    vocabulary = read_vocabulary(vocabulary_file, model, do_lower_case=config.do_lower_case)
    _LOG.info("do_lower_case is %s, %s", str(vocabulary.do_lower_case).lower(), vocabulary.reason)
    if vocabulary.warning:
        _LOG.warning("%s", vocabulary.warning)
    slowly = " (starting TensorFlow takes some seconds)" if source.kind == "tensorflow" else ""
    _LOG.info("reading %s%s", called(source.path), slowly)
    weights = open_weights(source)
    with quiet():
        accounts = account(
            source, weights, model, allow_unknown=config.allow_unknown, allow_missing=config.allow_missing
        )
        write_model(made, source, weights, accounts, model, vocabulary)
    return ConvertResult(folder=out, source=source, accounts=accounts, model=model, vocabulary=vocabulary)


def _record(
    config: ConvertConfig,
    sources: Mapping[str, str] | None,
    result: ConvertResult,
    called: Callable[[object], str],
) -> dict[str, Any]:
    accounts = result.accounts
    return {
        **config_record("convert", config, sources, {}),
        "versions": versions(),
        "checkpoint": {
            "kind": result.source.kind,
            "files": {
                called(path): {"bytes": path.stat().st_size, "sha256": _sha256(path)} for path in result.source.files
            },
        },
        "architecture": accounts.architecture,
        "do_lower_case": {"value": result.vocabulary.do_lower_case, "from": result.vocabulary.reason},
        "variables": [
            {
                "name": variable.name,
                "shape": list(variable.shape),
                "dtype": variable.dtype,
                "becomes": variable.becomes,
                **({"transposed": True} if variable.transposed else {}),
                **({"left_out": variable.left_out} if variable.left_out else {}),
            }
            for variable in accounts.variables
        ],
        "missing": list(accounts.missing),
    }


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()
