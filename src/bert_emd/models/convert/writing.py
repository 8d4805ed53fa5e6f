"""Writing the folder that plain Transformers loads."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoTokenizer, BertConfig

from bert_emd.errors import UserError
from bert_emd.models.convert.accounting import Accounts
from bert_emd.models.convert.source import Source
from bert_emd.models.convert.vocabulary import Vocabulary
from bert_emd.models.convert.weights import Weights
from bert_emd.models.labels import set_labels

__all__ = ["write_model"]


def write_model(
    folder: Path, source: Source, weights: Weights, accounts: Accounts, config: BertConfig, vocabulary: Vocabulary
) -> None:
    """Write config.json, model.safetensors and the tokenizer's files.

    No weight is made up: what the checkpoint lacks is not in the file, and Transformers says so when it loads it.

    Args:
        folder: an empty folder.
        source: the checkpoint, for messages.
        weights: what it holds.
        accounts: what becomes of it.
        config: the model's configuration; it is given the names and numbers that the checkpoint brings.
        vocabulary: its vocabulary.

    Raises:
        UserError: a variable cannot be read or holds no finite number.
        OSError: the folder cannot be written.
    """
    # The encoder alone is saved without the prefix that it has inside the others.
    bare = accounts.architecture == "BertModel"
    tensors: dict[str, Tensor] = {}
    for variable in accounts.converted:
        assert variable.becomes is not None
        tensor = weights.read(variable.name)
        if not torch.isfinite(tensor).all():
            raise UserError(f"{source.path}: {variable.name} holds numbers that are not finite; it is damaged")
        name = variable.becomes.removeprefix("bert.") if bare else variable.becomes
        tensors[name] = (tensor.T if variable.transposed else tensor).contiguous()
    _complete(config, accounts, tensors, vocabulary)
    config.save_pretrained(folder)
    file = folder / "model.safetensors"
    save_file(tensors, file, metadata={"format": "pt"})
    shutil.copymode(folder / "config.json", file)  # safetensors lets nobody else read its files
    vocabulary.tokenizer(config).save_pretrained(folder)
    shutil.copyfile(vocabulary.path, folder / "vocab.txt")  # for programs that read no tokenizer.json
    again = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    if again.get_vocab() != {entry: number for number, entry in enumerate(vocabulary.entries)}:
        raise UserError(f"{vocabulary.path} makes another vocabulary than it holds; it is damaged")


def _complete(config: BertConfig, accounts: Accounts, tensors: dict[str, Tensor], vocabulary: Vocabulary) -> None:
    config.architectures = [accounts.architecture]
    config.dtype = torch.float32
    config.pad_token_id = vocabulary.pad_token_id
    if (head := tensors.get("classifier.weight")) is not None and config.num_labels != head.shape[0]:
        set_labels(config, None if head.shape[0] == 1 else [f"LABEL_{i}" for i in range(head.shape[0])])
