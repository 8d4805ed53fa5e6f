"""The names of a model's classes."""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PretrainedConfig

__all__ = ["label_names", "set_labels"]


def label_names(config: PretrainedConfig) -> tuple[str, ...] | None:
    """The classes in the order of the logits, or None for a model that predicts a number."""
    if config.num_labels == 1:
        return None
    return tuple(str(config.id2label[i]) for i in range(config.num_labels))


def set_labels(config: PretrainedConfig, names: Sequence[str] | None) -> None:
    """Give a configuration these classes (None: one number)."""
    names = ["LABEL_0"] if names is None else list(names)
    config.num_labels = len(names)
    config.id2label = dict(enumerate(names))
    config.label2id = {name: i for i, name in enumerate(names)}
    config.problem_type = "regression" if len(names) == 1 else "single_label_classification"
