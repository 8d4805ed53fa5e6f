"""Pieces of documents through the tokenizer, many at a time, in one process or several."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import queue
import signal
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from itertools import islice
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from bert_emd.data.corpus.packing import SequenceForm
from bert_emd.data.corpus.reading import Piece
from bert_emd.data.corpus.sources import StreamError
from bert_emd.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["Tokens", "form_of", "tokenised", "tokenizer_print"]

Tokens: TypeAlias = tuple[np.ndarray, bool, int]
"""A piece's ids, whether its document ends behind it, and how many characters it had."""

_PIECES, _CHARACTERS = 2_000, 1_000_000
"""At most so much goes through the tokenizer at a time."""
_AHEAD = 3
_ENDED = (
    "a process that tokenises the corpus ended by itself, for want of memory or because a script calls this outside of "
    "`if __name__ == '__main__':`; take --num_workers 1"
)


def form_of(tokenizer: PreTrainedTokenizerBase, length: int) -> SequenceForm:
    """How this tokenizer's sequences begin and end, as it does it itself.

    Raises:
        UserError: it has no token that parts documents.
    """
    # Any word will do: what stands around its ids is the same for all of them.
    bare = list(tokenizer("a", add_special_tokens=False)["input_ids"])
    full = list(tokenizer("a")["input_ids"])
    starts = [i for i in range(len(full) - len(bare) + 1) if full[i : i + len(bare)] == bare]
    start = starts[0] if starts and bare else 0
    prefix, suffix = (full[:start], full[start + len(bare) :]) if bare else ([], [])
    separator = tokenizer.sep_token_id if tokenizer.sep_token_id is not None else tokenizer.eos_token_id
    if separator is None:
        raise UserError("the tokenizer has neither a separator nor an end token to part documents; set its sep_token")
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else separator
    return SequenceForm(length=length, prefix=tuple(prefix), suffix=tuple(suffix), separator=separator, pad=pad)


def tokenizer_print(tokenizer: PreTrainedTokenizerBase) -> str:
    """A fingerprint of what a tokenizer makes of a text, whatever lengths it was last told."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        content = json.loads(backend.to_str())
        content.pop("truncation", None)
        content.pop("padding", None)
    else:
        content = {"vocab": tokenizer.get_vocab(), "class": type(tokenizer).__name__, "init": tokenizer.init_kwargs}
    content["specials"] = [tokenizer.cls_token_id, tokenizer.sep_token_id, tokenizer.pad_token_id]
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()


def tokenised(pieces: Iterable[Piece], tokenizer: PreTrainedTokenizerBase, workers: int) -> Iterator[list[Tokens]]:
    """Blocks of pieces as token ids without special tokens, in their order.

    Names of special tokens in the text are text. With several ``workers``, processes that are ahead wait, so that
    memory stays bounded.
    """
    blocks = _blocks(pieces)
    if workers <= 1:
        for block in blocks:
            yield _ids(tokenizer, block)
        return
    with _workers(tokenizer, workers) as pipes:
        # Worker i mod n has block i, so that results come back in their order; each is a few blocks ahead.
        sent = received = 0
        for block in blocks:
            _send(pipes[sent % workers], block)
            sent += 1
            if sent - received > _AHEAD * workers:
                yield _received(pipes[received % workers])
                received += 1
        for i in range(received, sent):
            yield _received(pipes[i % workers])


@contextmanager
def _workers(tokenizer: PreTrainedTokenizerBase, count: int) -> Iterator[list[Connection]]:
    # Not forked: the tokenizer may have threads of its own.
    context = multiprocessing.get_context("spawn")
    pipes, processes = [], []
    try:
        for _ in range(count):
            ours, theirs = context.Pipe()
            process = context.Process(target=_work, args=(theirs,), daemon=True)
            process.start()
            theirs.close()
            pipes.append(ours)
            processes.append(process)
        for pipe in pipes:
            # Not as an argument: that is written before anybody sees a process which ended at its very start.
            _send(pipe, tokenizer)
        yield pipes
    finally:
        for pipe in pipes:
            pipe.close()
        for process in processes:
            process.terminate()
            process.join()


def _work(pipe: Connection) -> None:
    """A worker: the tokenizer and then blocks in, ids out, until the other end closes."""
    # A Ctrl-C goes to all processes; the first one ends the others.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    answers: queue.SimpleQueue[list[Tokens]] = queue.SimpleQueue()

    def answer() -> None:
        while True:
            pipe.send(answers.get())

    # Sent by a thread: were both ends to wait until the other reads, neither would go on.
    threading.Thread(target=answer, daemon=True).start()
    with suppress(EOFError, OSError):
        tokenizer = pipe.recv()
        while True:
            answers.put(_ids(tokenizer, pipe.recv()))


def _send(pipe: Connection, what: object) -> None:
    try:
        pipe.send(what)
    except OSError as error:
        raise StreamError(_ENDED) from error


def _received(pipe: Connection) -> list[Tokens]:
    try:
        found: list[Tokens] = pipe.recv()
    except (EOFError, OSError) as error:
        raise StreamError(_ENDED) from error
    return found


def _blocks(pieces: Iterable[Piece]) -> Iterator[list[Piece]]:
    source = iter(pieces)
    while True:
        block: list[Piece] = []
        size = 0
        for piece in islice(source, _PIECES):
            block.append(piece)
            size += len(piece[0])
            if size >= _CHARACTERS:
                break
        if not block:
            return
        yield block


def _ids(tokenizer: PreTrainedTokenizerBase, block: list[Piece]) -> list[Tokens]:
    encoded = tokenizer(
        [text for text, _ in block], add_special_tokens=False, return_attention_mask=False,
        return_token_type_ids=False, split_special_tokens=True, verbose=False,
    )["input_ids"]  # fmt: skip
    return [
        (np.asarray(ids, dtype=np.int32), ends, len(text)) for ids, (text, ends) in zip(encoded, block, strict=True)
    ]
