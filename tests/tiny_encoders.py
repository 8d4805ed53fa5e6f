"""Random encoders, small enough to train within a test, and the words that they read."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    set_seed,
)

GOOD = ("fine", "great", "lovely", "happy", "bright", "warm", "calm", "sweet")
BAD = ("poor", "awful", "nasty", "sad", "dark", "cold", "harsh", "bitter")
PLAIN = (
    "the", "a", "one", "day", "night", "house", "river", "road", "dog", "cat", "man", "tree", "book", "song",
    "was", "is", "saw", "had", "near", "under", "over", "with", "and", "but", "then", "very", "quite", "old", "new",
)  # fmt: skip
VOCABULARY = (
    "[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *GOOD, *BAD, *PLAIN, *(f"x{i}" for i in range(40)),
)  # fmt: skip

# What each architecture's configuration calls its sizes, beside the usual names, and what a tiny one needs.
_EXTRA: dict[str, dict[str, Any]] = {
    "roberta": {"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3},
    "camembert": {"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3},
    "xlm-roberta": {"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3},
    "electra": {"embedding_size": 8},
    "albert": {"embedding_size": 8},
    "modernbert": {
        "pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3, "cls_token_id": 2, "sep_token_id": 3,
        "local_attention": 8, "global_attn_every_n_layers": 2,
    },
    "mpnet": {"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3},
    "deberta-v2": {
        "relative_attention": True, "position_buckets": 8, "share_att_key": True, "pos_att_type": ["p2c", "c2p"],
        "norm_rel_ebd": "layer_norm", "position_biased_input": False, "type_vocab_size": 0,
    },
}  # fmt: skip

ARCHITECTURES = (
    "bert", "roberta", "electra", "albert", "distilbert",
    "camembert", "xlm-roberta", "modernbert", "mpnet", "deberta-v2",
)  # fmt: skip


def tiny(
    kind: str = "bert",
    *,
    layers: int = 3,
    width: int = 16,
    heads: int = 2,
    labels: Sequence[str] | None = ("no", "yes"),
    seed: int = 1,
    **changes: Any,
) -> PreTrainedModel:
    """A random classifier (``labels`` None: a regressor) whose weights are large enough for its layers to matter."""
    sizes: dict[str, Any] = {
        "vocab_size": len(VOCABULARY),
        "max_position_embeddings": 80,
        "initializer_range": 0.3,
        **(
            {"dim": width, "hidden_dim": 2 * width, "n_layers": layers, "n_heads": heads, "seq_classif_dropout": 0.1}
            if kind == "distilbert"
            else {
                "hidden_size": width,
                "intermediate_size": 2 * width,
                "num_hidden_layers": layers,
                "num_attention_heads": heads,
            }
        ),
        **_EXTRA.get(kind, {}),
    }
    config = AutoConfig.for_model(kind, **(sizes | changes))
    if labels is None:
        config.num_labels, config.problem_type = 1, "regression"
    else:
        config.num_labels = len(labels)
        config.id2label = dict(enumerate(labels))
        config.label2id = {name: i for i, name in enumerate(labels)}
    set_seed(seed)
    model: PreTrainedModel = AutoModelForSequenceClassification.from_config(config)
    with torch.no_grad():
        # A head that starts as zero or with tiny weights would hide differences between encoders.
        for name, parameter in model.named_parameters():
            if parameter.dim() == 1:
                parameter.add_(0.1 * torch.randn_like(parameter))
            elif name.startswith("classifier"):
                parameter.normal_(0, 1)
    return model.eval()


def padded_batch(rows: Sequence[int] = (9, 5, 3), seed: int = 5) -> dict[str, Tensor]:
    """Random token ids of these lengths, padded on the right to the longest."""
    generator = torch.Generator().manual_seed(seed)
    longest = max(rows)
    ids = torch.randint(5, len(VOCABULARY), (len(rows), longest), generator=generator)
    mask = torch.zeros(len(rows), longest, dtype=torch.long)
    for row, length in enumerate(rows):
        ids[row, 0], ids[row, length - 1], ids[row, length:] = 2, 3, 0
        mask[row, :length] = 1
    return {"input_ids": ids, "attention_mask": mask}


def save(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None, folder: Path) -> Path:
    """A model folder as a user has it."""
    model.save_pretrained(folder)
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)
    return folder


def same_tensors(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    """Whether two state dicts hold the same names with equal tensors."""
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
