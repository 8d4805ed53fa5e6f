"""The vocabulary beside a checkpoint, and whether its text was lower-cased."""

from __future__ import annotations

import json
import unicodedata
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformers import BertConfig, BertTokenizer

from bert_emd.errors import UserError

__all__ = ["Vocabulary", "find_vocabulary", "read_vocabulary"]

_NAME = "vocab.txt"
_SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
_OPTIONS = ("strip_accents", "tokenize_chinese_chars")
_MOST = 64 << 20
# Vocabularies of lower-cased text hold a few capitals all the same, such as ℝ.
_CASED = 1 / 1000


@dataclass(frozen=True, kw_only=True)
class Vocabulary:
    """The entries in the order of their numbers, and how text is made to fit them."""

    path: Path
    entries: tuple[str, ...] = field(repr=False)
    do_lower_case: bool
    reason: str
    """Where ``do_lower_case`` comes from."""
    warning: str | None = None
    options: dict[str, Any] = field(default_factory=dict)
    """What else the tokenizer was told."""

    @property
    def pad_token_id(self) -> int:
        """The number of ``[PAD]``."""
        return self.entries.index("[PAD]")

    def tokenizer(self, config: BertConfig) -> BertTokenizer:
        """The tokenizer that reads this vocabulary."""
        return BertTokenizer(
            vocab={entry: number for number, entry in enumerate(self.entries)},
            do_lower_case=self.do_lower_case,
            model_max_length=config.max_position_embeddings,
            **self.options,
        )


def find_vocabulary(given: str | None, *folders: Path) -> Path:
    """The vocabulary file: the one given, or the first beside the checkpoint or its configuration.

    Raises:
        UserError: there is none.
    """
    if given is not None:
        place = Path(given)
        found = place / _NAME if place.is_dir() else place
        if not found.is_file():
            raise UserError(f"vocab_file {given} does not exist; name the checkpoint's {_NAME}")
        return found
    for folder in folders:
        if (folder / _NAME).is_file():
            return folder / _NAME
    raise UserError(
        f"there is no {_NAME} in {folders[0]}; name the one that belongs to the checkpoint with --vocab_file"
    )


def read_vocabulary(path: Path, config: BertConfig, *, do_lower_case: bool | None = None) -> Vocabulary:
    """Read a vocabulary, an entry a line.

    Args:
        path: the file.
        config: the model that it belongs to.
        do_lower_case: whether text is lower-cased; None takes it from a tokenizer_config.json beside the file, else
            from whether the vocabulary has capital letters.

    Raises:
        UserError: it is no text, of another size than the model, or lacks one of BERT's special tokens or has it twice.
    """
    entries = _read(path)
    if len(entries) != config.vocab_size:
        raise UserError(
            f"{path} has {len(entries)} entries and the model {config.vocab_size} (vocab_size of its configuration); "
            "take the vocabulary that belongs to the checkpoint"
        )
    if lacking := [token for token in _SPECIAL if token not in set(entries)]:
        raise UserError(f"{path} has no {', '.join(lacking)}; take the vocabulary that belongs to the checkpoint")
    # Of another entry that stands twice the last place counts, as for the tokenizer that the model was trained with.
    for token in _SPECIAL:
        places = [number for number, entry in enumerate(entries, start=1) if entry == token]
        if len(places) > 1:
            raise UserError(
                f"{path}:{places[1]}: {token} stands there again (first in line {places[0]}); take the vocabulary that "
                "belongs to the checkpoint"
            )
    told = _told(path.with_name("tokenizer_config.json"))
    capitals = sum(any(unicodedata.category(c) == "Lu" for c in entry) for entry in entries if entry not in _SPECIAL)
    cased = capitals > _CASED * len(entries)
    seen = f"{capitals:,} of its {len(entries):,} entries have capital letters"
    if do_lower_case is not None:
        lower, reason = do_lower_case, "as you said"
    elif isinstance(told.get("do_lower_case"), bool):
        lower, reason = told["do_lower_case"], "as tokenizer_config.json says"
    else:
        lower, reason = not cased, f"seen from {path.name}: {seen}"
    warning = None
    if lower and cased:
        warning = f"text is lower-cased, but {path.name} is a cased vocabulary: {seen}"
    elif not lower and not cased:
        warning = f"text is not lower-cased, and {path.name} has hardly any capital letters: such words become [UNK]"
    options = {key: told[key] for key in _OPTIONS if isinstance(told.get(key), bool)}
    return Vocabulary(path=path, entries=entries, do_lower_case=lower, reason=reason, warning=warning, options=options)


def _read(path: Path) -> tuple[str, ...]:
    try:
        if path.stat().st_size > _MOST:
            raise UserError(f"{path} is too large for a vocabulary; name the checkpoint's {_NAME}")
        text = path.read_bytes().decode("utf-8")
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        line = bytes(error.object).count(b"\n", 0, error.start) + 1
        raise UserError(f"{path}:{line}: not UTF-8 text; take the vocabulary that belongs to the checkpoint") from error
    # Python's own idea of a line's end is wider than a vocabulary's, which holds such characters as entries.
    lines = text.removesuffix("\n").split("\n")
    return tuple(line.removesuffix("\r") for line in lines)


def _told(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return values if isinstance(values, dict) else {}
