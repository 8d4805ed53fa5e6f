"""Short names of models that are often teachers or students, each with its id on the hub."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

__all__ = ["HUB_NAMES", "hub_id"]

HUB_NAMES: Mapping[str, str] = MappingProxyType({
    "bert-base-uncased": "google-bert/bert-base-uncased",
    "bert-base-cased": "google-bert/bert-base-cased",
    "bert-large-uncased": "google-bert/bert-large-uncased",
    "bert-large-cased": "google-bert/bert-large-cased",
    "bert-base-multilingual-cased": "google-bert/bert-base-multilingual-cased",
    "bert-tiny": "google/bert_uncased_L-2_H-128_A-2",
    "bert-mini": "google/bert_uncased_L-4_H-256_A-4",
    "bert-small": "google/bert_uncased_L-4_H-512_A-8",
    "bert-medium": "google/bert_uncased_L-8_H-512_A-8",
    "tinybert-4": "huawei-noah/TinyBERT_General_4L_312D",
    "tinybert-6": "huawei-noah/TinyBERT_General_6L_768D",
    "minilm-l6": "sentence-transformers/all-MiniLM-L6-v2",
    "minilm-l12": "microsoft/MiniLM-L12-H384-uncased",
    "distilbert-base-uncased": "distilbert/distilbert-base-uncased",
    "roberta-base": "FacebookAI/roberta-base",
    "roberta-large": "FacebookAI/roberta-large",
    "distilroberta-base": "distilbert/distilroberta-base",
    "albert-base-v2": "albert/albert-base-v2",
    "electra-small": "google/electra-small-discriminator",
    "electra-base": "google/electra-base-discriminator",
    "mpnet-base": "microsoft/mpnet-base",
    "deberta-v3-small": "microsoft/deberta-v3-small",
    "deberta-v3-base": "microsoft/deberta-v3-base",
    "modernbert-base": "answerdotai/ModernBERT-base",
})  # fmt: skip


def hub_id(name: str) -> str:
    """Return the hub's id for a short name, whatever its case, and anything else as it is.

    >>> hub_id("TinyBERT-4"), hub_id("me/mine")
    ('huawei-noah/TinyBERT_General_4L_312D', 'me/mine')
    """
    return HUB_NAMES.get(name.lower(), name)
