"""A masked language model small enough to be trained within a test, on sentences that tell what stands where."""

from __future__ import annotations

import random
from pathlib import Path

import torch
from transformers import BertConfig, BertForMaskedLM, BertTokenizerFast, set_seed

ANIMALS = ("dog", "cat", "horse", "sheep", "goat", "bear")
FOODS = ("bread", "cheese", "apples", "soup", "rice", "honey")
PLACES = ("garden", "kitchen", "forest", "market", "village", "valley")
OTHERS = ("the", "in", "ate", ".", ",", "'", "s", "and", "7", "moon", "##light", "##lit", "sun", "##s", "!", "-")
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
VOCABULARY = (*SPECIAL, *ANIMALS, *FOODS, *PLACES, *OTHERS)


def sentence(chance: random.Random) -> str:
    """``the ANIMAL ate the FOOD in the PLACE``"""
    return f"the {chance.choice(ANIMALS)} ate the {chance.choice(FOODS)} in the {chance.choice(PLACES)}"


def tokenizer_in(folder: Path) -> BertTokenizerFast:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "vocab.txt"
    path.write_text("\n".join(VOCABULARY) + "\n", encoding="utf-8")
    return BertTokenizerFast(vocab=str(path), do_lower_case=True)


def random_model(seed: int = 1, **changes: int) -> BertForMaskedLM:
    set_seed(seed)
    sizes = {
        "vocab_size": len(VOCABULARY), "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
        "intermediate_size": 64, "max_position_embeddings": 80, "initializer_range": 0.3,
    }  # fmt: skip
    return BertForMaskedLM(BertConfig(**(sizes | changes))).eval()


def trained_model(tokenizer: BertTokenizerFast) -> BertForMaskedLM:
    """Trained for a few seconds by nothing but torch: it knows what stands where."""
    model = random_model(initializer_range=0.05).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    chance = random.Random(5)
    for _ in range(150):
        batch = tokenizer([sentence(chance) for _ in range(32)], return_tensors="pt")
        labels = torch.full_like(batch["input_ids"], -100)
        for row in range(len(labels)):
            place = chance.choice((2, 5, 8))
            labels[row, place] = batch["input_ids"][row, place]
            batch["input_ids"][row, place] = tokenizer.mask_token_id
        optimizer.zero_grad()
        model(**batch, labels=labels).loss.backward()
        optimizer.step()
    return model.eval()
