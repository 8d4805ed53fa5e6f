"""From texts to token ids, once, and from rows to padded batches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bert_emd.data.examples import Examples
from bert_emd.errors import UserError

if TYPE_CHECKING:
    import datasets
    from transformers import PreTrainedTokenizerBase

__all__ = ["PaddingCollator", "collator", "encode"]

# Rows turned into Arrow at a time: as Python lists, the ids of a large task would need gigabytes.
_CHUNK = 10_000
_SMALL = {"attention_mask": "int8", "token_type_ids": "int8", "input_ids": "int32"}


def encode(examples: Examples, tokenizer: PreTrainedTokenizerBase, max_seq_length: int) -> tuple[datasets.Dataset, int]:
    """Tokenise all rows, in their order.

    Returns the rows (``input_ids``, ``attention_mask``, ``token_type_ids`` where the tokenizer gives them, ``labels``
    where there are labels, and ``length``, the number of tokens without padding) and how many of them were longer
    than ``max_seq_length`` and had to be truncated (of a pair, the longer text first). The collator pads them.

    Raises `UserError` where ``max_seq_length`` leaves no room for any text.
    """
    import datasets

    special = tokenizer.num_special_tokens_to_add(pair=examples.pairs is not None)
    if max_seq_length <= special:
        raise UserError(f"max_seq_length {max_seq_length} leaves no room for text: {special} special tokens are added")
    parts = []
    truncated = 0
    for start in range(0, max(len(examples), 1), _CHUNK):
        columns, cut = _encode_chunk(examples, slice(start, start + _CHUNK), tokenizer, max_seq_length)
        truncated += cut
        features = {
            name: datasets.List(datasets.Value(_SMALL.get(name, "int32")))
            for name in columns
            if name not in ("labels", "length")
        }
        features["length"] = datasets.Value("int32")
        if "labels" in columns:
            features["labels"] = datasets.Value("float64" if examples.task.is_regression else "int64")
        parts.append(datasets.Dataset.from_dict(columns, features=datasets.Features(features)))
    return datasets.concatenate_datasets(parts), truncated


def _encode_chunk(
    examples: Examples, rows: slice, tokenizer: PreTrainedTokenizerBase, max_seq_length: int
) -> tuple[dict[str, list[Any]], int]:
    texts = examples.texts[rows]
    pairs = None if examples.pairs is None else examples.pairs[rows]
    # verbose=False: rows beyond the model's length are expected here, they are cut below.
    columns = dict(tokenizer(texts, pairs, truncation=False, verbose=False)) if texts else {"input_ids": []}
    long = [i for i, ids in enumerate(columns["input_ids"]) if len(ids) > max_seq_length]
    if long:
        cut = tokenizer(
            [texts[i] for i in long],
            None if pairs is None else [pairs[i] for i in long],
            truncation="longest_first",
            max_length=max_seq_length,
        )
        for name, values in cut.items():
            for i, value in zip(long, values, strict=True):
                columns[name][i] = value
    length = [len(ids) for ids in columns["input_ids"]]
    if examples.labels is not None:
        columns["labels"] = examples.labels[rows]
    columns["length"] = length
    return columns, len(long)


@dataclass(frozen=True)
class PaddingCollator:
    """Pads rows of `encode` to one length and stacks them into tensors.

    The ``length`` column is left out; ``rows``, where there is one, stays a list: it never goes to a device.
    """

    tokenizer: PreTrainedTokenizerBase
    pad_to: int | None = None

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Return a batch: token columns [rows, length] and labels [rows], as tensors."""
        from transformers import DataCollatorWithPadding

        pad = DataCollatorWithPadding(
            self.tokenizer, padding="longest" if self.pad_to is None else "max_length", max_length=self.pad_to
        )
        aside = ("length", "rows")
        batch = dict(pad([{name: value for name, value in row.items() if name not in aside} for row in rows]))
        if rows and "rows" in rows[0]:
            batch["rows"] = [int(row["rows"]) for row in rows]
        return batch


def collator(tokenizer: PreTrainedTokenizerBase, pad_to: int | None = None) -> PaddingCollator:
    """Return the function that makes batches: padded to the batch's longest row, or to ``pad_to`` tokens."""
    return PaddingCollator(tokenizer, pad_to)
