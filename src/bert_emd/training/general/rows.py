"""The sequences of a prepared corpus as training rows: which are left out, in which order, and for which process."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from bert_emd.data.corpus import TokenStore
from bert_emd.errors import UserError

__all__ = ["EpochBatches", "Rows", "batch_of", "split_rows"]


class Rows(Dataset[dict[str, Any]]):
    """Some sequences of a store, numbered from 0.

    Args:
        store: the prepared corpus.
        left_out: numbers of sequences that are not among these rows, rising; with ``only`` they alone are.
        only: whether the rows are ``left_out`` themselves.
    """

    def __init__(self, store: TokenStore, left_out: np.ndarray, *, only: bool = False) -> None:
        self.store, self.left_out, self.only = store, left_out, only
        # The t-th sequence that is left is t + the number of those left out before it.
        self._steps = left_out - np.arange(len(left_out))

    def __len__(self) -> int:
        return len(self.left_out) if self.only else len(self.store) - len(self.left_out)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[dict[str, Any]]:
        """Several rows at once, as the engine's loader asks for them."""
        tokens, lengths = self.store.rows(self.places(np.asarray(indices)))
        return [{"input_ids": row, "length": int(n)} for row, n in zip(tokens, lengths, strict=True)]

    def places(self, indices: np.ndarray) -> np.ndarray:
        """The numbers of these rows in the store."""
        if self.only:
            return np.asarray(self.left_out[indices])
        return np.asarray(indices + np.searchsorted(self._steps, indices, side="right"))

    @property
    def tokens(self) -> int:
        """Tokens of all rows, padding left out; only for few rows."""
        return int(sum(self[i]["length"] for i in range(len(self))))


def split_rows(store: TokenStore, share: float, most: int) -> tuple[Rows, Rows]:
    """Training rows, and those that are held out: evenly spread over the corpus, always the same.

    Args:
        store: the prepared corpus.
        share: the part of the sequences that is held out; at least one sequence, unless it is 0.
        most: never more than so many.

    Raises:
        UserError: nothing is left to train on.
    """
    count = min(most, max(1, round(share * len(store)))) if share else 0
    if len(store) <= count:
        raise UserError(
            f"the corpus makes {len(store)} sequence{'s' * (len(store) != 1)} of {store.length} tokens, too few to "
            f"hold {count} out and train on others; give more text, or set a smaller --max_seq_length"
        )
    held = ((np.arange(count) + 0.5) * len(store) / max(count, 1)).astype(np.int64)
    return Rows(store, held), Rows(store, held, only=True)


def batch_of(rows: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
    """Rows stacked: ids and mask [rows, longest]; only shorter sequences than the longest are padded."""
    longest = max(row["length"] for row in rows)
    ids = np.stack([row["input_ids"][:longest] for row in rows])
    lengths = np.array([row["length"] for row in rows])
    mask = (np.arange(longest)[None] < lengths[:, None]).astype(np.int64)
    return {"input_ids": torch.from_numpy(ids), "attention_mask": torch.from_numpy(mask)}


class EpochBatches(Sampler[list[int]]):
    """The batches of one process: every row once an epoch, in an order that depends on seed and epoch alone.

    Of W processes number r takes the rows r, r + W, r + 2W, … of the epoch's order, so that together they take each row
    once and all of them have as many batches of the same sizes. Where W does not divide the rows, the last fewer than W
    of the epoch's order are left out of that epoch.

    A run that is resumed in the middle of an epoch skips the batches that it has had. The order takes four bytes a row.

    Args:
        rows: how many there are.
        batch_size: rows of a batch.
        seed: of the order.
        process: this process's number r.
        processes: W.
    """

    def __init__(self, rows: int, batch_size: int, *, seed: int, process: int = 0, processes: int = 1) -> None:
        self.rows, self.batch_size, self.seed = rows, batch_size, seed
        self.process, self.processes = process, processes
        self.epoch = 0

    def __len__(self) -> int:
        return -(-(self.rows // self.processes) // self.batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        order = np.arange(self.rows, dtype=np.uint32 if self.rows < 1 << 32 else np.uint64)
        np.random.default_rng([self.seed, self.epoch]).shuffle(order)
        own = order[: self.rows - self.rows % self.processes][self.process :: self.processes]
        for start in range(0, len(own), self.batch_size):
            yield own[start : start + self.batch_size].tolist()

    def set_epoch(self, epoch: int) -> None:
        """Told before each epoch, counted from 0."""
        self.epoch = epoch
