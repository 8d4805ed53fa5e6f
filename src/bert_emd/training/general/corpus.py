"""From the configuration to the prepared corpus that is trained on."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TypeAlias

import datasets
from transformers import PreTrainedTokenizerBase

from bert_emd.data.corpus import (
    Corpus,
    FileCorpus,
    HubCorpus,
    Packing,
    RowsCorpus,
    TokenStore,
    build_store,
    check_tokenizer,
    corpus_files,
    is_store,
)
from bert_emd.errors import UserError
from bert_emd.training.general.config import CORPORA, GeneralDistillConfig
from bert_emd.training.teacher_cache import default_directory

__all__ = ["CorpusSource", "check_apart", "corpus_inputs", "corpus_of", "prepare"]

CorpusSource: TypeAlias = "str | Path | Sequence[str | Path] | datasets.Dataset | None"

_LOG = logging.getLogger("bert_emd")


def corpus_of(config: GeneralDistillConfig, given: CorpusSource) -> Corpus | TokenStore:
    """The corpus that is meant: text to be prepared, or what was prepared earlier.

    Args:
        config: names it, unless it is given.
        given: files, folders or a data set.

    Raises:
        UserError: none is named, or it cannot be read.
    """
    if isinstance(given, datasets.Dataset):
        return RowsCorpus(given, config.text_columns)
    if config.dataset_name is not None and given is None:
        return HubCorpus(
            config.dataset_name, config.dataset_config_name, config.dataset_split, config.dataset_revision,
            config.text_columns, config.cache_dir,
        )  # fmt: skip
    paths = _paths(config, given)
    if not paths:
        names = ", ".join(f"--{name}" for name in CORPORA)
        raise UserError(f"there is no corpus; name one with {names}")
    if len(paths) == 1 and is_store(Path(paths[0])):
        return TokenStore(Path(paths[0]))
    for path in map(Path, paths):
        if path.is_dir() and any(path.glob("epoch_*.json")):
            raise UserError(
                f"{path} holds masked examples of another program; name the text itself with --train_corpus"
            )
    return FileCorpus(corpus_files(paths), config.document_break, config.text_columns, config.clean_corpus)


def _paths(config: GeneralDistillConfig, given: CorpusSource) -> list[str | Path]:
    if given is None:
        return [*(config.train_corpus or ()), *([config.pregenerated_data] if config.pregenerated_data else [])]
    if isinstance(given, (str, Path)):
        return [given]
    assert not isinstance(given, datasets.Dataset)
    return list(given)


def corpus_inputs(config: GeneralDistillConfig, given: CorpusSource) -> dict[str, str | Path]:
    """What of the corpus lies on the disk, by name, so that no output overwrites it."""
    if isinstance(given, datasets.Dataset):
        return {}
    paths = _paths(config, given)
    if given is None and config.dataset_name is not None:
        paths.append(config.dataset_name)
    return {"corpus" if i == 0 else f"corpus, file {i + 1}": path for i, path in enumerate(paths)}


def check_apart(config: GeneralDistillConfig, given: CorpusSource, folder: Path) -> None:
    """Refuse an output folder among the texts: what is written there would be taken for text the next time.

    Raises:
        UserError: it lies in a folder of the corpus.
    """
    for name, path in corpus_inputs(config, given).items():
        texts = Path(path).is_dir() and not is_store(Path(path))
        if texts and Path(path).resolve() in folder.resolve().parents:
            raise UserError(f"output_dir {folder} lies in the {name} ({path}), among the texts; name another folder")


def prepare(
    config: GeneralDistillConfig,
    corpus: Corpus | TokenStore,
    tokenizer: PreTrainedTokenizerBase,
    target: Path | None = None,
) -> TokenStore:
    """The corpus as packed sequences on the disk, made unless it is there.

    Args:
        config: length, short sequences, workers.
        corpus: of `corpus_of`.
        tokenizer: the teacher's.
        target: the folder to make; None finds it in the cache by its content.

    Raises:
        UserError: text that cannot be read, too little of it, no room, or what was prepared for another tokenizer.
    """
    if isinstance(corpus, TokenStore):
        check_tokenizer(corpus, tokenizer, config.max_seq_length)
        _LOG.info("corpus: %s sequences of %d tokens in %s", f"{len(corpus):,}", corpus.length, corpus.folder)
        return corpus
    limit = _needed(config) if isinstance(corpus, HubCorpus) else None
    packing = Packing(tokenizer, config.max_seq_length, short=config.short_seq_prob, seed=config.seed, limit=limit)
    if target is None:
        key = hashlib.sha256(json.dumps([corpus.identity, packing.identity], sort_keys=True).encode()).hexdigest()[:24]
        target = (
            Path(config.corpus_cache_dir)
            if config.corpus_cache_dir
            else default_directory(config.cache_dir, "prepared-corpora")
        ) / key
    return build_store(corpus, packing, target, workers=config.num_workers)


def _needed(config: GeneralDistillConfig) -> int:
    """So many sequences of a stream are trained on and held out, over all processes."""
    rows = config.max_steps * config.train_batch_size * int(os.environ.get("WORLD_SIZE") or 1)
    held = min(config.max_eval_sequences, math.ceil(rows / (1 - config.eval_share)) - rows + 1)
    return rows + (held if config.eval_share else 0)
