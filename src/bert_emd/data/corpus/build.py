"""From a corpus to packed sequences on disk: read, cleaned, tokenised, packed and written in one stream."""

from __future__ import annotations

import logging
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from bert_emd.data.corpus.packing import Packer
from bert_emd.data.corpus.sources import Corpus, StreamError
from bert_emd.data.corpus.store import StoreWriter, TokenStore, is_store, sequence_bytes
from bert_emd.data.corpus.tokens import form_of, tokenised, tokenizer_print
from bert_emd.errors import UserError
from bert_emd.processes import first_process

if TYPE_CHECKING:
    from collections.abc import Callable

    from transformers import PreTrainedTokenizerBase

__all__ = ["Packing", "build_store", "check_tokenizer"]

_LOG = logging.getLogger("bert_emd")
_SECONDS_KEPT = 5.0
_SECONDS_BETWEEN_LINES = 30.0
_SPARE = 1.1


class Packing:
    """How a corpus becomes sequences, and so what a store depends on beside the text.

    Args:
        tokenizer: its ids are stored.
        length: tokens of a sequence, special ones among them.
        short: the probability that a sequence ends early.
        seed: for those.
        limit: stop after so many sequences; None takes all of the corpus.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        length: int,
        *,
        short: float = 0.0,
        seed: int = 0,
        limit: int | None = None,
    ) -> None:
        self.tokenizer, self.short, self.seed, self.limit = tokenizer, short, seed, limit
        self.form = form_of(tokenizer, length)
        self.vocabulary = len(tokenizer)
        Packer(self.form)  # says whether there is room for text at all

    @property
    def identity(self) -> dict[str, Any]:
        """What the sequences depend on."""
        found: dict[str, Any] = {"tokenizer": tokenizer_print(self.tokenizer), "length": self.form.length}
        if self.short:
            found |= {"short_seq_prob": self.short, "seed": self.seed}
        return found if self.limit is None else found | {"limit": self.limit}


def check_tokenizer(store: TokenStore, tokenizer: PreTrainedTokenizerBase, length: int) -> None:
    """Refuse a store that was made for another tokenizer or length.

    Raises:
        UserError: naming both.
    """
    if store.identity.get("tokenizer") != tokenizer_print(tokenizer):
        raise UserError(
            f"the prepared corpus {store.folder} was made with another tokenizer ({store.meta['vocabulary']} tokens) "
            f"than the teacher's ({len(tokenizer)} tokens); prepare it again with this teacher"
        )
    if store.length != length:
        raise UserError(
            f"the prepared corpus {store.folder} has sequences of {store.length} tokens, not {length}; "
            f"set --max_seq_length {store.length}, or prepare it again"
        )


def build_store(corpus: Corpus, packing: Packing, target: Path, *, workers: int = 1) -> TokenStore:
    """The store of a corpus, made unless it is there; an interrupted one is gone on with.

    Args:
        corpus: what is read.
        packing: what becomes of it.
        target: the store's folder.
        workers: processes that tokenise.

    Raises:
        UserError: text that cannot be read, a corpus without text, or no room on the disk.
    """
    identity = {"corpus": corpus.identity, **packing.identity}
    if is_store(target):
        return _said(TokenStore(target))
    writer = StoreWriter(target, identity, length=packing.form.length, vocabulary=packing.vocabulary)
    with writer.open() as kept:
        # Another process may have made it while this one waited.
        if is_store(target):
            writer.discard()
            return _said(TokenStore(target))
        try:
            documents = _write(corpus, packing, writer, kept, workers)
        except StreamError:
            raise
        except UserError:
            writer.discard()
            raise
        if not writer.sequences:
            writer.discard()
            raise UserError(f"the corpus {corpus.name} holds no text; name another")
        if writer.sequences == 1 and writer.tokens < writer.length:
            writer.discard()
            raise UserError(
                f"the corpus {corpus.name} is shorter than one sequence ({writer.tokens} of {writer.length} tokens); "
                "give more text, or set a smaller --max_seq_length"
            )
        if corpus.cleaner.removed:
            _LOG.warning("%s: %d control characters removed", corpus.name, corpus.cleaner.removed)
        return _said(writer.finish(source=corpus.name, documents=documents, removed=corpus.cleaner.removed))


def _said(store: TokenStore) -> TokenStore:
    size = sequence_bytes(store.length, store.meta["vocabulary"]) * len(store)
    _LOG.info(
        "corpus: %s sequences of %d tokens, %s tokens in all, %s in %s",
        f"{len(store):,}", store.length, f"{store.meta['tokens']:,}", _megabytes(size), store.folder,
    )  # fmt: skip
    return store


def _write(corpus: Corpus, packing: Packing, writer: StoreWriter, kept: dict[str, Any] | None, workers: int) -> int:
    """Fill the store; how many documents it is made of."""
    packer = Packer(packing.form, short=packing.short, seed=packing.seed)
    pieces = corpus.pieces()
    done = documents = characters = 0
    if kept is not None:
        packer.restore(kept["packer"])
        done, documents = int(kept["pieces"]), int(kept["documents"])
        _LOG.info("preparing the corpus goes on behind %s sequences", f"{writer.sequences:,}")
        characters = sum(len(text) for text, _ in islice(pieces, done))
    limit = packing.limit if packing.limit is not None else sys.maxsize
    last = time.monotonic()
    announced = False
    with _progress(corpus, packing) as report:
        for block in tokenised(pieces, packing.tokenizer, workers):
            for ids, ends, size in block:
                packer.add(ids, ends_document=ends)
                documents += ends
                characters += size
            done += len(block)
            rows, lengths = (array[: limit - writer.sequences] for array in packer.take())
            writer.append(rows, lengths)
            if not announced:
                _announce(_expected(corpus, packing, packer.count / max(1, characters)), packing, writer)
                announced = True
            if writer.sequences >= limit:
                return documents
            if time.monotonic() - last > _SECONDS_KEPT:
                writer.keep({"pieces": done, "documents": documents, "packer": packer.state})
                last = time.monotonic()
            report(writer.sequences if packing.limit is not None else characters)
    packer.finish()
    writer.append(*packer.take())
    return documents


def _expected(corpus: Corpus, packing: Packing, a_character: float) -> int | None:
    """How many sequences there will be, about; bytes of the text are taken for characters."""
    from_size = None if corpus.size is None else int(corpus.size * a_character) + 1
    return packing.limit if from_size is None else min(from_size, packing.limit or from_size)


def _announce(expected: int | None, packing: Packing, writer: StoreWriter) -> None:
    """Say how much room the store will take, and refuse a disk that has not so much."""
    if expected is None:
        return
    size = sequence_bytes(packing.form.length, packing.vocabulary)
    missing = int(max(0, expected - writer.sequences) * size * _SPARE)
    free = shutil.disk_usage(writer.target.parent).free
    if missing > free:
        raise UserError(
            f"the prepared corpus needs about {_megabytes(expected * size)} in {writer.target.parent} and "
            f"{_megabytes(free)} are free; make room, or name another folder with --corpus_cache_dir"
        )
    _LOG.info(
        "preparing the corpus: about %s sequences, %s, in %s",
        f"{expected:,}", _megabytes(expected * size), writer.target,
    )  # fmt: skip


def _megabytes(size: int) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"


@contextmanager
def _progress(corpus: Corpus, packing: Packing) -> Iterator[Callable[[int], None]]:
    """A bar on a terminal, a line now and then elsewhere, of the first process alone."""
    total = packing.limit if packing.limit is not None else corpus.size
    if sys.stdout.isatty() and first_process():
        columns = (TextColumn("preparing the corpus"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
        with Progress(*columns, transient=True) as bar:
            task = bar.add_task("", total=total)
            yield lambda done: bar.update(task, completed=min(done, total or done))
        return
    last = time.monotonic()

    def report(done: int) -> None:
        nonlocal last
        if time.monotonic() - last > _SECONDS_BETWEEN_LINES:
            _LOG.info("preparing the corpus: %s", f"{min(1.0, done / total):.0%}" if total else f"{done:,}")
            last = time.monotonic()

    yield report
