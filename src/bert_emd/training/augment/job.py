"""`bert-emd augment` from beginning to end."""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from bert_emd.data import find_task
from bert_emd.data.augmentation import (
    SourceRows,
    Variants,
    WordRules,
    may_replace,
    own_rows,
    read_glove,
    read_stop_words,
    task_rows,
)
from bert_emd.data.augmentation.words import STOP_WORDS
from bert_emd.errors import UserError
from bert_emd.models.masked_lm import Encoder, MaskedWords, load_encoder
from bert_emd.training.augment.candidates import Candidates, Neighbours, own_table
from bert_emd.training.augment.config import AugmentConfig
from bert_emd.training.augment.drawing import Block, drawn
from bert_emd.training.augment.resumable import ResumableFile
from bert_emd.training.outputs import write_json
from bert_emd.training.records import config_record, versions

__all__ = ["AugmentResult", "augment", "record_of"]

_LOG = logging.getLogger("bert_emd")

# Source rows whose words go through the model together; also what a kill may cost. What is found depends on this in
# bfloat16, so it is no option.
_ROWS_MASKED, _ROWS_LOOKED_UP = 64, 512
_SECONDS_BETWEEN_LINES = 30.0
_FORM = 1
"""Counted up when the same options mean another file."""


@dataclass(frozen=True, kw_only=True)
class AugmentResult:
    """What an augmentation wrote."""

    path: Path
    rows: int
    """Source rows."""
    variants: int
    candidates: str
    """``mlm`` or ``embeddings``."""
    seconds: float
    """Of this call; an earlier one that was interrupted is not counted."""

    @property
    def summary(self) -> str:
        """One line."""
        a_row = self.variants / self.rows
        return (
            f"wrote {self.path}: {self.rows:,} rows and {self.variants:,} variants ({a_row:.1f} a row), "
            f"{self.seconds:.1f} s"
        )


def augment(config: AugmentConfig, *, sources: Mapping[str, str] | None = None) -> AugmentResult:
    """Write a training file anew with variants of each row behind it: TinyBERT's augmentation.

    Each source row stands as it was, followed by its variants; a variant differs from it in one of its texts, where
    words are replaced by candidates (see `AugmentConfig`). No row stands twice behind a source row, and no variant
    equals any source row. The same configuration gives the same bytes, whatever ``workers`` is and however often the
    run was interrupted; an interrupted run goes on when it is called again.

    Args:
        config: what to do.
        sources: where each value of the configuration came from, for the record (``NAME.run.json`` beside the file).

    Raises:
        UserError: input that is missing or malformed, a model without what is needed, or a file in the way.
    """
    start = time.perf_counter()
    rows = _rows(config)
    target = _target(config, rows)
    stop_words = read_stop_words(config.stop_words_file) if config.stop_words_file else STOP_WORDS
    candidates, prints = _candidates(config, stop_words)
    mode = "embeddings" if candidates.masked is None else "mlm"
    file = ResumableFile(target, _identity(config, rows, stop_words, mode) | prints)
    assert config.N is not None
    variants = Variants(format=rows.format, count=config.N, p=config.p, seed=config.seed)
    with file.open(start_anew=config.overwrite_output_file):
        done, count = int(file.progress.get("rows", 0)), int(file.progress.get("variants", 0))
        if done:
            _LOG.info("going on behind row %d of %d", done, len(rows))
        elif rows.header:
            file.append(rows.header, {"rows": 0, "variants": 0})
        keys = rows.keys()
        size = _ROWS_LOOKED_UP if candidates.masked is None else _ROWS_MASKED
        with _progress(done, len(rows)) as report:
            for block in drawn(variants, _blocks(rows, candidates, done, size), config.workers):
                lines = []
                for row in block:
                    kept = [line for line, key in zip(row.lines, row.keys, strict=True) if key not in keys]
                    lines += [row.source, *kept]
                    count += len(kept)
                done += len(block)
                file.append("".join(lines), {"rows": done, "variants": count})
                report(done)
        found = {"rows": done, "variants": count, "candidates": mode}
        write_json(record_of(target), _record(config, sources, rows, file.identity, found, mlm=mode == "mlm"))
        file.finish()
    return AugmentResult(path=target, rows=done, variants=count, candidates=mode, seconds=time.perf_counter() - start)


def record_of(target: Path) -> Path:
    """Where the record of an augmented file lies."""
    return target.with_name(f"{target.name}.run.json")


def _rows(config: AugmentConfig) -> SourceRows:
    labels = config.labels == "carry"
    if config.task_name is not None:
        return task_rows(find_task(config.task_name), config.data_dir, config.cache_dir, labels=labels)
    if config.train_file is None:
        raise UserError("which data? Name a GLUE task with --task_name, or your own file with --train_file")
    return own_rows(
        config.train_file, text_columns=config.text_columns, label_column=config.label_column, labels=labels
    )


def _target(config: AugmentConfig, rows: SourceRows) -> Path:
    """The file to write, refused where it would cost the user something."""
    if config.output_file is None:
        if rows.beside is None:
            raise UserError(f"{rows.source} is no folder to write into; name the new file with --output_file NAME.tsv")
        target = rows.beside
    else:
        target = Path(config.output_file)
    wanted = rows.beside.suffix if rows.beside is not None else ".tsv"
    if target.suffix.lower() != wanted.lower():
        raise UserError(f"output_file {target} must end in {wanted}, as the file has the form of its source")
    if target.is_dir():
        raise UserError(f"output_file {target} is a folder; name a file in it")
    for path in (*rows.read, config.glove_embs, config.stop_words_file):
        if path is not None and target.exists() and Path(path).exists() and target.samefile(path):
            raise UserError(f"output_file {target} is read by this command; name another")
    record = record_of(target)
    if record.exists() and not _is_record(record):
        raise UserError(
            f"{record}, where the record of this run goes, is there already and is no such record; move it, or name "
            "another --output_file"
        )
    if target.exists():
        if not record.is_file():
            raise UserError(
                f"{target} is there already and `bert-emd augment` has left no {record.name} beside it, so "
                "it is not replaced; name another --output_file"
            )
        if not config.overwrite_output_file:
            raise UserError(
                f"{target} is there already; name another --output_file, or replace it with --overwrite_output_file"
            )
    return target


def _is_record(path: Path) -> bool:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(values, dict) and values.get("command") == "augment"


def _candidates(config: AugmentConfig, stop_words: frozenset[str]) -> tuple[Candidates, dict[str, str]]:
    """What finds candidates, and the fingerprints of what it looks in."""
    allowed = partial(may_replace, stop_words=stop_words)
    prints = {}
    encoder: Encoder | None = None
    if config.model_name_or_path is not None:
        head = {"auto": None, "mlm": True, "embeddings": False}[config.candidates]
        encoder = load_encoder(config.model_name_or_path, "the model", head=head, cache_dir=config.cache_dir)
        prints["model"] = encoder.fingerprint()
    elif config.candidates == "mlm" or config.glove_embs is None:
        raise UserError(
            "where should candidates come from? Name a masked language model or an encoder with --model_name_or_path"
            + ("" if config.candidates == "mlm" else ", or a GloVe file with --glove_embs")
        )
    if config.glove_embs is not None:
        table = read_glove(config.glove_embs, allowed, config.glove_words)
        prints["glove_embs"] = table.fingerprint()
        neighbours = Neighbours(table=table, count=config.M, least=config.min_similarity)
    else:
        assert encoder is not None
        table = own_table(encoder, stop_words)
        neighbours = Neighbours(table=table, count=config.M, least=config.min_similarity, encoder=encoder)
    _say(config, encoder, neighbours)
    masked = None
    if encoder is not None and encoder.has_head:
        gpu = torch.cuda.is_available() and not config.no_cuda
        masked = MaskedWords(
            encoder, count=config.M, limit=config.max_seq_length, allowed=allowed, text_input=config.mlm_input,
            device=torch.device("cuda" if gpu else "cpu"), bf16=bool(config.bf16),
        )  # fmt: skip
    rules = WordRules(stop_words=stop_words, limit=config.max_seq_length)
    return Candidates(rules=rules, neighbours=neighbours, masked=masked), prints


def _say(config: AugmentConfig, encoder: Encoder | None, neighbours: Neighbours) -> None:
    table = f"{config.glove_embs}" if neighbours.encoder is None else "the model's input embeddings"
    where = f"nearest neighbours of {len(neighbours.table.words):,} words in {table}"
    if encoder is not None and encoder.has_head:
        _LOG.info("candidates: the masked language model for words of one piece, %s for the others", where)
        return
    if encoder is not None and config.candidates == "auto":
        _LOG.info("%s has no masked language model's head, so it is not asked", config.model_name_or_path)
    _LOG.info("candidates: %s, for all words", where)


def _identity(config: AugmentConfig, rows: SourceRows, stop_words: frozenset[str], mode: str) -> dict[str, Any]:
    """Everything that the written bytes depend on, beside the models."""
    told = ["N", "M", "p", "seed", "labels", "max_seq_length", "min_similarity"]
    told += ["mlm_input", "bf16"] if mode == "mlm" else []
    return {
        "form": _FORM,
        "data": rows.fingerprint(),
        "text_columns": list(rows.format.columns),
        "candidates": mode,
        "stop_words": sorted(stop_words) if stop_words != STOP_WORDS else "default",
        **{name: getattr(config, name) for name in told},
    }


def _blocks(rows: SourceRows, candidates: Candidates, done: int, size: int) -> Iterator[Block]:
    for first in range(done, len(rows), size):
        texts = rows.texts[first : first + size]
        found = candidates.of([text for pair in texts for text in pair])
        slots = [tuple(found[text] for text in pair) for pair in texts]
        yield Block(first=first, records=rows.records[first : first + size], texts=texts, slots=slots)


class _Report(Protocol):
    def __call__(self, done: int) -> None: ...


@contextmanager
def _progress(done: int, total: int) -> Iterator[_Report]:
    """A bar on a terminal, elsewhere a line every half minute."""
    if sys.stdout.isatty():
        columns = (TextColumn("rows"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, transient=True) as bar:
            task = bar.add_task("rows", total=total, completed=done)
            yield lambda done: bar.update(task, completed=done)
        return
    began = said = time.monotonic()
    first = done

    def report(done: int) -> None:
        nonlocal said
        now = time.monotonic()
        if now - said >= _SECONDS_BETWEEN_LINES and done < total:
            said = now
            left = (now - began) / (done - first) * (total - done)
            _LOG.info("%d of %d rows, about %.0f s to go", done, total, left)

    yield report


def _record(
    config: AugmentConfig, sources: Mapping[str, str] | None, rows: SourceRows, identity: Mapping[str, Any],
    found: Mapping[str, Any], *, mlm: bool,
) -> dict[str, Any]:  # fmt: skip
    return {
        **config_record("augment", config, sources, config.without_effect(mlm=mlm)),
        "versions": versions(),
        "data": {"source": rows.source, "rows": len(rows), "sha256": identity["data"]},
        "identity": dict(identity),
        "result": dict(found),
    }
