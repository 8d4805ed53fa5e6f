"""Augmentation without a model: words and what may replace them, drawing variants, rows in and rows out."""

from bert_emd.data.augmentation.choosing import Drawn, Slot, Variants
from bert_emd.data.augmentation.neighbours import WordTable, read_glove
from bert_emd.data.augmentation.rows import SourceRows, own_rows, task_rows
from bert_emd.data.augmentation.words import Word, WordRules, may_replace, read_stop_words

__all__ = [
    "Drawn",
    "Slot",
    "SourceRows",
    "Variants",
    "Word",
    "WordRules",
    "WordTable",
    "may_replace",
    "own_rows",
    "read_glove",
    "read_stop_words",
    "task_rows",
]
