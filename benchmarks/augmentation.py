"""(6) Augmentation: a word at a time, as the published script does it, against batches of masked words."""

from __future__ import annotations

import copy
import dataclasses
import random
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import BertConfig, BertForMaskedLM, BertTokenizerFast, set_seed

from benchmarks.harness import interleaved, summary
from bert_emd.data.augmentation import Variants, WordRules, WordTable, may_replace
from bert_emd.data.augmentation.rows import RowFormat
from bert_emd.models.masked_lm import Encoder, MaskedWords
from bert_emd.models.vocabulary import Vocabulary
from bert_emd.training.augment.candidates import Candidates, Neighbours
from bert_emd.training.augment.drawing import Block, drawn
from bert_emd.training.host import has_bf16

__all__ = ["WordAtATime", "augmentation", "made_up"]

_SIZES = {"2x128": (2, 128, 2, 512), "6x384": (6, 384, 12, 1536), "12x768": (12, 768, 12, 3072)}
_VOCABULARY, _GLOVE, _GLOVE_WIDTH = 30522, 100_000, 300
_N, _M, _P = 30, 15, 0.4
_STOP = ("the", "of", "and", "in", "to", "was", "for", "on", "with", "at", "by", "from")


class WordAtATime:
    """The published procedure: a forward of its own for each word, with all positions' scores and a full sort; for a
    word of several pieces the cosine with the whole table, sorted in full.

    Args:
        model: a masked language model.
        tokenizer: its tokenizer.
        words: the table's words.
        vectors: [V, d] their normalised embeddings, float64.
    """

    def __init__(self, model: Any, tokenizer: Any, words: list[str], vectors: np.ndarray) -> None:
        self.model, self.tokenizer = model, tokenizer
        self.words, self.vectors = words, vectors
        self.place = {word: i for i, word in enumerate(words)}

    def neighbours(self, word: str) -> list[str]:
        """The nearest words of the table."""
        if word not in self.place:
            return []
        i = self.place[word]
        similar = np.dot(self.vectors, self.vectors[i])
        similar[i] = -np.inf
        return [self.words[k] for k in np.argsort(-similar)[:_M]]

    @torch.no_grad()
    def masked(self, text: str, pieces: list[str], position: int) -> list[str]:
        """The model's best tokens at a masked position, the text as it was behind it."""
        first = ["[CLS]", *pieces, "[SEP]"]
        second = [*self.tokenizer.tokenize(text), "[SEP]"]
        ids = torch.tensor([self.tokenizer.convert_tokens_to_ids(first + second)])
        kinds = torch.tensor([[0] * len(first) + [1] * len(second)])
        scores = self.model(input_ids=ids, token_type_ids=kinds).logits[0, position + 1]
        best = torch.argsort(scores, descending=True)[:_M].tolist()
        return [token for token in self.tokenizer.convert_ids_to_tokens(best) if not token.startswith("##")]

    def candidates(self, text: str, words: list[str]) -> list[list[str]]:
        """The candidates of each word; texts here are words parted by spaces."""
        found = []
        for i, word in enumerate(words):
            pieces = [self.tokenizer.tokenize(other) for other in words]
            if word in _STOP:
                found.append([word])
                continue
            if len(pieces[i]) == 1:
                position = sum(len(part) for part in pieces[:i])
                flat = [piece for part in pieces for piece in part]
                flat[position] = "[MASK]"
                best = self.masked(text, flat, position)
            else:
                best = self.neighbours(word)
            found.append(best or [word])
        return found

    def augment(self, texts: list[str], chance: random.Random) -> list[list[str]]:
        """Each text and its variants."""
        written = []
        for text in texts:
            words = text.split()
            candidates = self.candidates(text, words)
            kept = [text]
            for _ in range(_N):
                new = " ".join(
                    chance.choice(candidates[i]) if chance.random() < _P else word for i, word in enumerate(words)
                )
                if new not in kept:
                    kept.append(new)
            written.append(kept)
        return written


def made_up(folder: Path, sentences: int, seed: int = 1) -> tuple[BertTokenizerFast, list[str], list[str]]:
    """A vocabulary of real size, a table's words, and sentences of 22 words: half stop words, a tenth in pieces."""
    chance = random.Random(seed)
    letters = "abcdefghijklmnopqrstuvwxyz"

    def word(size: int) -> str:
        return "".join(chance.choice(letters) for _ in range(size))

    whole = list(dict.fromkeys(word(6) for _ in range(24_000)))[:22_000]
    ends = list(dict.fromkeys(f"##{word(4)}" for _ in range(9_000)))
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    tokens = [*special, *_STOP, *whole, *ends][:_VOCABULARY]
    tokens += [f"[unused{i}]" for i in range(_VOCABULARY - len(tokens))]
    path = folder / "vocab.txt"
    path.write_text("\n".join(tokens) + "\n", encoding="utf-8")
    tokenizer = BertTokenizerFast(vocab=str(path))
    long = [chance.choice(whole) + chance.choice(ends[:4000])[2:] for _ in range(3_000)]
    table = list(dict.fromkeys([*long, *whole]))
    table += [f"{word(9)}" for _ in range(_GLOVE - len(table))]
    texts = []
    for _ in range(sentences):
        kinds = [chance.choice(_STOP) if chance.random() < 0.5 else None for _ in range(22)]
        texts.append(
            " ".join(k or (chance.choice(long) if chance.random() < 0.2 else chance.choice(whole)) for k in kinds)
        )
    return tokenizer, list(dict.fromkeys(table)), texts


def _ours(
    encoder: Encoder | None, table: WordTable, texts: list[str], text_input: Any = "pair", *, bf16: bool = False
) -> Callable[[], int]:
    """Everything `bert-emd augment` does between reading and writing, with nothing kept from one call to the next."""
    masked = None
    if encoder is not None:
        encoder = dataclasses.replace(encoder, model=copy.deepcopy(encoder.model))  # bfloat16 changes it
        masked = MaskedWords(encoder, count=_M, limit=128, allowed=may_replace, text_input=text_input, bf16=bf16)
    row_format = RowFormat(kind="csv", columns=("text",), positions=(0,))
    variants = Variants(format=row_format, count=_N, p=_P, seed=1)

    def run() -> int:
        neighbours = Neighbours(table=table, count=_M, least=-1.0)
        found = Candidates(rules=WordRules(), neighbours=neighbours, masked=masked).of(texts)
        block = Block(
            first=0, records=[(text,) for text in texts], texts=[(text,) for text in texts],
            slots=[(found[text],) for text in texts],
        )  # fmt: skip
        return sum(1 + len(row.lines) for rows in drawn(variants, [block], 1) for row in rows)

    return run


def augmentation(repeats: int, *, quick: bool = False) -> dict[str, Any]:
    """Sentences a second of each side, on the same sentences and candidates' sources, taking turns."""
    found: dict[str, Any] = {"N": _N, "M": _M, "p": _P, "models": []}
    with tempfile.TemporaryDirectory() as folder:
        tokenizer, words, texts = made_up(Path(folder), 32)
        chance = np.random.default_rng(1)
        vectors = chance.normal(size=(len(words), _GLOVE_WIDTH))
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        table = WordTable(words, vectors)
        few = 2 if quick else 4
        for name in ("2x128",) if quick else _SIZES:
            layers, width, heads, inner = _SIZES[name]
            set_seed(1)
            model = BertForMaskedLM(
                BertConfig(
                    num_hidden_layers=layers, hidden_size=width, num_attention_heads=heads, intermediate_size=inner
                )
            ).eval()
            encoder = Encoder(model=model, tokenizer=tokenizer, vocabulary=Vocabulary(tokenizer), has_head=True)
            plain = WordAtATime(model, tokenizer, words, vectors)
            sides: dict[str, tuple[int, Callable[[], Any]]] = {
                "a word at a time": (few, partial(plain.augment, texts[:few], random.Random(1))),
                "bert-emd": (len(texts), _ours(encoder, table, texts)),
                "bert-emd, alone": (len(texts), _ours(encoder, table, texts, "alone")),
            }
            if has_bf16(gpu=False):
                sides["bert-emd, bf16"] = (len(texts), _ours(encoder, table, texts, bf16=True))
                sides["bert-emd, alone, bf16"] = (len(texts), _ours(encoder, table, texts, "alone", bf16=True))
            found["models"].append(_rates(name, sides, repeats))
        lookups = WordAtATime(None, tokenizer, words, vectors)
        found["models"].append(
            _rates(
                "neighbours alone",
                {
                    "a word at a time": (few, partial(_look_up, lookups, texts[:few])),
                    "bert-emd": (len(texts), _ours(None, table, texts)),
                },
                repeats,
            )
        )
    return found


def _look_up(plain: WordAtATime, texts: list[str]) -> None:
    for text in texts:
        for word in text.split():
            if word not in _STOP:
                plain.neighbours(word)


def _rates(name: str, sides: dict[str, tuple[int, Callable[[], Any]]], repeats: int) -> dict[str, Any]:
    seconds = interleaved({side: run for side, (_, run) in sides.items()}, repeats)
    each = {side: summary([s / sides[side][0] for s in values]) for side, values in seconds.items()}
    base = each["a word at a time"]["median"]
    faster = {side: base / value["median"] for side, value in each.items() if side != "a word at a time"}
    return {"model": name, "seconds a sentence": each, "times as fast": faster}
