"""Which source row each row of an augmented file stems from, so that held-out rows can be left out of it."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from bert_emd.data.examples import Examples
from bert_emd.errors import UserError

__all__ = ["Augmented", "augmented_path", "row_key", "without_sources"]


def augmented_path(train_file: Path) -> Path:
    """Return where the augmented file of the user's own training file lies.

    >>> augmented_path(Path("data/tickets.csv")).as_posix()
    'data/tickets_aug.csv'
    """
    return train_file.with_name(f"{train_file.stem}_aug{train_file.suffix}")


@dataclass(frozen=True, kw_only=True)
class Augmented:
    """An augmented file without what stems from held-out rows."""

    kept: Examples = field(repr=False)
    held: int
    """Rows left out because they stem from a held-out row."""
    unclear: int
    """Rows left out because they may stem from one."""


def without_sources(augmented: Examples, source: Examples, held: Examples) -> Augmented:
    """Leave out every augmented row that stems, or may stem, from a held-out one.

    TinyBERT's files hold each source row as it was, followed by its variants. With E(s) the earliest and L(s) the
    latest place at which source row s can stand when all of them stand in order, a row at place k stems from one of
    the rows max{s: L(s) <= k} to max{s: E(s) <= k}; almost always that is one row. Source rows that the file lacks
    widen the range to them. A row is kept when no row of its range is held out.

    Args:
        augmented: the rows of ``train_aug.tsv``, in order.
        source: the rows of ``train.tsv``, in order.
        held: some of these (`Examples.indices` tells which).

    Raises:
        UserError: the file does not hold the source rows in order, so nothing can be told.
    """
    keys = _keys(source)
    places = _places(augmented, set(keys))
    anchors = [s for s, key in enumerate(keys) if key in places]
    earliest = _walk(anchors, keys, places)
    if not anchors or earliest is None:
        raise UserError(
            f"{augmented.source} does not hold the rows of {source.source} in order, each followed by its variants, "
            "so those of the held-out rows cannot be left out; make it anew, or set --select_on dev "
            "(of your own files, with a --validation_file)"
        )
    # The same from the end backwards; it exists because the one forwards does.
    count = len(augmented)
    mirrored = {key: [count - 1 - k for k in reversed(where)] for key, where in places.items()}
    backwards = _walk(anchors[::-1], keys, mirrored)
    assert backwards is not None
    latest = [count - 1 - k for k in reversed(backwards)]

    place = np.arange(count)
    first = np.searchsorted(latest, place, side="right") - 1
    last = np.searchsorted(earliest, place, side="right") - 1
    anchor = np.asarray(anchors)
    low = np.where(first >= 0, anchor[first], 0)
    following = np.append(anchor, len(keys))
    high = following[last + 1] - 1
    positions = {index: s for s, index in enumerate(source.indices)}
    is_held = np.zeros(len(keys), dtype=np.int64)
    is_held[[positions[index] for index in held.indices]] = 1
    # A source row may stand twice in the data: its twin's variants would tell as much.
    twins = {keys[positions[index]] for index in held.indices}
    is_held[[s for s, key in enumerate(keys) if key in twins]] = 1
    sums = np.concatenate([[0], np.cumsum(is_held)])
    among = sums[high + 1] - sums[low]
    stems = among == high - low + 1
    return Augmented(
        kept=augmented.subset(np.flatnonzero(among == 0).tolist()),
        held=int(stems.sum()),
        unclear=int(((among > 0) & ~stems).sum()),
    )


def row_key(text: str, pair: str | None = None) -> bytes:
    """Eight bytes that are equal for rows which `without_sources` takes for the same."""
    texts = _plain(text) if pair is None else f"{_plain(text)}\0{_plain(pair)}"
    # Text from JSON may hold half of a surrogate pair, which has no place in UTF-8.
    return hashlib.blake2b(texts.encode("utf-8", "surrogatepass"), digest_size=8).digest()


_Key = tuple[str, str | None]


def _keys(examples: Examples) -> list[_Key]:
    pairs: list[str | None] = [None] * len(examples) if examples.pairs is None else list(examples.pairs)
    return [
        (_plain(text), None if pair is None else _plain(pair)) for text, pair in zip(examples.texts, pairs, strict=True)
    ]


def _plain(text: str) -> str:
    """A text whatever the white space at its ends and the quotes around it.

    TinyBERT writes its file with Python's csv module, which puts a field that holds a quote in quotes and doubles it.
    """
    text = text.strip()
    while len(text) > 1 and text.startswith('"') and text.endswith('"'):
        text = text[1:-1].strip()
    return text.replace('""', '"')


def _places(augmented: Examples, wanted: set[_Key]) -> dict[_Key, list[int]]:
    """Where each source row's text stands in the augmented file, rising."""
    found: dict[_Key, list[int]] = defaultdict(list)
    for k, key in enumerate(_keys(augmented)):
        if key in wanted:
            found[key].append(k)
    return dict(found)


def _walk(order: list[int], keys: list[_Key], places: dict[_Key, list[int]]) -> list[int] | None:
    """The first place of each source row behind the one before it; None where there is no such place."""
    walked: list[int] = []
    used: dict[_Key, int] = defaultdict(int)
    for s in order:
        where, i = places[keys[s]], used[keys[s]]
        while i < len(where) and walked and where[i] <= walked[-1]:
            i += 1
        if i == len(where):
            return None
        walked.append(where[i])
        used[keys[s]] = i + 1
    return walked
