"""Candidates for masked words, from a masked language model and from the encoder's own input embeddings."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from transformers import (
    AutoModel,
    AutoModelForMaskedLM,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from bert_emd.errors import UserError
from bert_emd.models.loading import load_config, load_tokenizer, why
from bert_emd.models.quiet import quiet
from bert_emd.models.vocabulary import Vocabulary

__all__ = ["Encoder", "MaskedWords", "MlmInput", "load_encoder"]

MlmInput = Literal["pair", "alone"]

# A batch's padded tokens and rows. Constants, not options: what a word's candidates are must not depend on them, and in
# bfloat16 it would.
_TOKENS, _ROWS = 4096, 128
# More characters a token than any text of words has; what lies behind is not tokenised.
_CHARACTERS = 50


@dataclass(frozen=True, kw_only=True)
class Encoder:
    """A model with its tokenizer and the words of its vocabulary."""

    model: PreTrainedModel = field(repr=False)
    tokenizer: PreTrainedTokenizerBase = field(repr=False)
    vocabulary: Vocabulary = field(repr=False)
    has_head: bool
    """Whether the model is a masked language model, all of whose head came from the checkpoint."""

    def fingerprint(self) -> str:
        """Return a sha256 over all that candidates depend on: tokenizer, and embeddings or the whole model."""
        values = self.model.config.to_dict() if self.has_head else {}
        for name in ("_name_or_path", "transformers_version"):
            values.pop(name, None)
        digest = hashlib.sha256(json.dumps([values, self.vocabulary.tokens], default=str, sort_keys=True).encode())
        digest.update(self.tokenizer.backend_tokenizer.to_str().encode())
        # Without a head only the embeddings are looked at; a pooler that the checkpoint lacks is random each time.
        tensors = self.model.state_dict() if self.has_head else {"": self.model.get_input_embeddings().weight.detach()}
        for name, tensor in sorted(tensors.items()):
            digest.update(name.encode())
            digest.update(tensor.contiguous().view(-1).view(torch.uint8).numpy())
        return digest.hexdigest()

    def word_vectors(self) -> np.ndarray:
        """The input embeddings, [vocabulary, width] float32."""
        weight: Tensor = self.model.get_input_embeddings().weight
        return weight.detach().float().cpu().numpy()


def load_encoder(name_or_path: str, what: str, *, head: bool | None, cache_dir: str | None = None) -> Encoder:
    """A model for augmentation, in float32.

    Args:
        name_or_path: a folder or a hub id.
        what: how to call it in messages ("the model").
        head: True needs a masked language model's head, False loads the encoder alone, None takes a head that is there.
        cache_dir: where downloads go.

    Raises:
        UserError: no model, no tokenizer, one that cannot tell where its pieces stand, no mask token, or no head.
            A head is never made up: Transformers would fill a missing one with random weights.
    """
    config = load_config(name_or_path, what, cache_dir=cache_dir)
    tokenizer = load_tokenizer(name_or_path, what, cache_dir=cache_dir)
    if not tokenizer.is_fast:
        raise UserError(
            f"{what} {name_or_path}: its tokenizer does not tell where pieces stand in the text; take a model with a "
            "tokenizer.json"
        )
    lacking = None
    model = None
    if head is not False:
        model, lacking = _load(AutoModelForMaskedLM, name_or_path, what, config, cache_dir)
        if lacking is None and tokenizer.mask_token_id is None:
            lacking = "its tokenizer has no mask token"
        if lacking is not None and head:
            raise UserError(
                f"{what} {name_or_path} is no masked language model ({lacking}); name one, or use --candidates "
                "embeddings"
            )
    if model is None or lacking is not None:
        model, missing = _load(AutoModel, name_or_path, what, config, cache_dir)
        assert model is not None
        if missing is not None and "embeddings" in missing:
            raise UserError(f"{what} {name_or_path}: {missing}, so it has no embeddings to look in; take another model")
    vocabulary = Vocabulary(tokenizer)
    embedded = model.get_input_embeddings().weight.shape[0]
    if len(vocabulary.tokens) > embedded:
        raise UserError(
            f"{what} {name_or_path}: its tokenizer has {len(vocabulary.tokens)} tokens, its embeddings {embedded} "
            "rows; take the tokenizer that belongs to it"
        )
    return Encoder(
        model=model.eval().requires_grad_(False),
        tokenizer=tokenizer,
        vocabulary=vocabulary,
        has_head=head is not False and lacking is None,
    )


def _load(
    cls: Any, name_or_path: str, what: str, config: PretrainedConfig, cache_dir: str | None
) -> tuple[PreTrainedModel | None, str | None]:
    """A model, and what its checkpoint lacks of it; no model where this kind has none of this class."""
    if type(config) not in cls._model_mapping:
        if cls is AutoModel:
            raise UserError(f"{what} {name_or_path} is a {config.model_type}, which is no text encoder; name another")
        return None, f"{config.model_type} has no such head"
    try:
        with quiet(bars=Path(name_or_path).is_dir()):
            model, info = cls.from_pretrained(
                name_or_path, config=config, cache_dir=cache_dir, dtype=torch.float32, trust_remote_code=False,
                output_loading_info=True,
            )  # fmt: skip
    except Exception as error:  # as in `loading`: loaders raise whatever they like
        raise UserError(f"{what} {name_or_path} cannot be loaded: {why(error, name_or_path)}") from error
    missing = sorted(info["missing_keys"])
    return model, f"{missing[0]} is not in its weights" if missing else None


@dataclass(frozen=True, kw_only=True)
class _Masked:
    """One row of the model: a text with one piece masked."""

    text: int
    word: int
    length: int
    position: int


class MaskedWords:
    """The masked language model's best words for words of one piece: one row of a batch each.

    As published, the text with the mask is followed by the text as it was, so that the model knows what is meant
    (``pair``); ``alone`` leaves that out and halves the cost. A word whose pieces are several gets none here.

    Args:
        encoder: with a head.
        count: how many words for each.
        limit: texts are cut to this many tokens; words behind get none.
        allowed: whether a word of the vocabulary may be a candidate.
        text_input: whether the text as it was is given too.
        device: where the model runs.
        bf16: whether the model is turned into bfloat16, which the encoder's own then is too.
    """

    def __init__(
        self, encoder: Encoder, *, count: int, limit: int, allowed: Callable[[str], bool],
        text_input: MlmInput = "pair", device: torch.device | None = None, bf16: bool = False,
    ) -> None:  # fmt: skip
        self.device = device or torch.device("cpu")
        # All of it, not autocast: that would cast every weight anew for each batch.
        self.model = encoder.model.to(self.device, torch.bfloat16 if bf16 else torch.float32)
        self.tokenizer, self.words = encoder.tokenizer, encoder.vocabulary.words
        self.count, self.paired = count, text_input == "pair"
        self.limit = min(limit, _room(encoder, self.paired))
        permitted = [word is not None and allowed(word) for word in self.words]
        # Some models have more outputs than their tokenizer has tokens, to make a round number.
        outputs = encoder.model.get_input_embeddings().weight.shape[0]
        barred = torch.ones(outputs, dtype=torch.bool)
        barred[: len(permitted)] = ~torch.tensor(permitted)
        self._barred = barred.to(self.device)

    def of(
        self, texts: Sequence[str], spans: Sequence[Sequence[tuple[int, int]]]
    ) -> list[list[tuple[str, ...] | None]]:
        """Return the candidates of each word of each text, the most likely first.

        None stands for a word of several pieces, an empty tuple for one behind the limit.

        Args:
            texts: any number; all their masked words go through the model together, grouped by length.
            spans: start and end of each text's words.
        """
        found: list[list[tuple[str, ...] | None]] = [[()] * len(part) for part in spans]
        cut = self._cut(texts)
        second = {"text_pair": cut} if self.paired else {}
        rows: list[_Masked] = []
        coded: Any = self.tokenizer(cut, **second, return_offsets_mapping=True, verbose=False) if cut else {}
        for t, text in enumerate(cut):
            pieces = _pieces(text, coded["offset_mapping"][t], coded.sequence_ids(t))
            for w, (start, end) in enumerate(spans[t]):
                if end > len(text):
                    continue
                own = pieces.covering(start, end)
                if len(own) == 1 and pieces.span(own[0]) == (start, end):
                    rows.append(_Masked(text=t, word=w, length=len(coded["input_ids"][t]), position=own[0]))
                else:
                    found[t][w] = None
        for batch in _batches(rows):
            for row, best in zip(batch, self._best(batch, coded), strict=True):
                start, end = spans[row.text][row.word]
                found[row.text][row.word] = self._choose(best, texts[row.text][start:end])
        return found

    def _cut(self, texts: Sequence[str]) -> list[str]:
        """The texts' first tokens, as text."""
        if not texts:
            return []
        most = self.limit * _CHARACTERS
        coded = self.tokenizer(
            [text[:most] for text in texts],
            add_special_tokens=False,
            truncation=True,
            max_length=self.limit,
            return_offsets_mapping=True,
        )
        return [
            text[:most] if len(offsets) < self.limit else text[: offsets[-1][1]]
            for text, offsets in zip(texts, coded["offset_mapping"], strict=True)
        ]

    @torch.no_grad()
    def _best(self, batch: Sequence[_Masked], coded: Any) -> list[list[int]]:
        """The tokens that the model expects at the masks, the most likely first."""
        names = [name for name in ("input_ids", "token_type_ids", "attention_mask") if name in coded]
        longest = max(row.length for row in batch)
        fill = {"input_ids": self.tokenizer.pad_token_id or 0, "token_type_ids": 0, "attention_mask": 0}
        inputs = {name: torch.full((len(batch), longest), fill[name], dtype=torch.long) for name in names}
        for i, row in enumerate(batch):
            for name in names:
                inputs[name][i, : row.length] = torch.tensor(coded[name][row.text])
        masks = torch.tensor([row.position for row in batch])
        inputs["input_ids"][torch.arange(len(batch)), masks] = self.tokenizer.mask_token_id
        inputs = {name: tensor.to(self.device) for name, tensor in inputs.items()}
        with _only_at(self.model, masks.to(self.device)):
            scores: Tensor = self.model(**inputs).logits[:, 0].float()
        scores[:, self._barred[: scores.shape[1]]] = -torch.inf
        # The word itself and words that differ in case alone are left out afterwards.
        best = scores.topk(min(2 * self.count + 4, scores.shape[1]))
        kept = torch.isfinite(best.values).cpu()
        return [row[mask].tolist() for row, mask in zip(best.indices.cpu(), kept, strict=True)]

    def _choose(self, best: Sequence[int], word: str) -> tuple[str, ...]:
        taken = {word.lower()}
        chosen: list[str] = []
        for token in best:
            candidate = self.words[token]
            assert candidate is not None
            if candidate.lower() not in taken:
                taken.add(candidate.lower())
                chosen.append(candidate)
                if len(chosen) == self.count:
                    break
        return tuple(chosen)


def _room(encoder: Encoder, paired: bool) -> int:
    """How many tokens of a text the model has positions for."""
    positions = getattr(encoder.model.config, "max_position_embeddings", None)
    model_max = encoder.tokenizer.model_max_length
    # RoBERTa's positions begin behind the padding's own.
    offset = 2 if encoder.model.config.model_type in ("roberta", "camembert", "xlm-roberta", "mpnet") else 0
    most: int = min(positions - offset if positions and positions > 0 else model_max, model_max)
    free = most - encoder.tokenizer.num_special_tokens_to_add(pair=paired)
    return max(1, int(free // 2 if paired else free))


@contextmanager
def _only_at(model: PreTrainedModel, positions: Tensor) -> Iterator[None]:
    """While it lasts, the model's head sees one position of each row: its logits are [B, 1, vocabulary]."""

    def keep(_: Any, __: Any, output: Any) -> Any:
        states = output[0]
        output["last_hidden_state"] = states[torch.arange(len(states), device=states.device), positions][:, None]
        return output

    handle = getattr(model, model.base_model_prefix).register_forward_hook(keep)
    try:
        yield
    finally:
        handle.remove()


def _batches(rows: list[_Masked]) -> Iterator[list[_Masked]]:
    """Rows of like length together; the longest first, so that memory that is too small is told at once."""
    batch: list[_Masked] = []
    for row in sorted(rows, key=lambda row: (-row.length, row.text, row.word)):
        if batch and (len(batch) == _ROWS or batch[0].length * (len(batch) + 1) > _TOKENS):
            yield batch
            batch = []
        batch.append(row)
    if batch:
        yield batch


@dataclass(frozen=True)
class _Pieces:
    """Where the pieces of a text stand in it, white space at their ends left out."""

    spans: dict[int, tuple[int, int]]
    """By position in the model's input."""

    def covering(self, start: int, end: int) -> list[int]:
        return [i for i, (first, last) in self.spans.items() if first < end and last > start]

    def span(self, position: int) -> tuple[int, int]:
        return self.spans[position]


def _pieces(text: str, offsets: Sequence[tuple[int, int]], sequences: Sequence[int | None]) -> _Pieces:
    spans = {}
    for i, ((start, end), sequence) in enumerate(zip(offsets, sequences, strict=True)):
        if sequence != 0:
            continue
        piece = text[start:end]
        spans[i] = (start + len(piece) - len(piece.lstrip()), end - len(piece) + len(piece.rstrip()))
    return _Pieces(spans)
