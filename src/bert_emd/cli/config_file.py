"""Reading ``--config run.yaml``."""

from __future__ import annotations

from typing import Any

from bert_emd.training.yaml_file import read_yaml

__all__ = ["read_config_file"]


def read_config_file(path: str) -> dict[str, Any]:
    """Return the keys and values of a YAML file; `read_yaml` says what is refused."""
    return read_yaml(path, "--config")
