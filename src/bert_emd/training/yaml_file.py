"""Reading YAML files of names and values."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from bert_emd.errors import UserError

__all__ = ["read_yaml"]


def read_yaml(path: str, option: str, example: str = "learning_rate: 5e-5") -> dict[str, Any]:
    """Return the keys and values of a YAML file that ``option`` names.

    Raises `UserError` for a file that is missing, not UTF-8, not YAML, not a mapping, or that has a key twice.
    """
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise UserError(f"{option} {path}: there is no such file") from None
    except UnicodeDecodeError:
        raise UserError(f"{option} {path} is not UTF-8 text; save it as UTF-8") from None
    except OSError as error:
        raise UserError(f"{option} {path} cannot be read: {error.strerror}") from None
    try:
        content = yaml.load(text, Loader=_UniqueKeyLoader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        raise UserError(f"{option} {path}{line} is not valid YAML: {getattr(error, 'problem', error)}") from None
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise UserError(f"{option} {path} must hold lines like `{example}`")
    return {str(key): value for key, value in content.items()}


class _UniqueKeyLoader(yaml.SafeLoader):
    """Refuses a key that stands twice, of which YAML would silently keep the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            key = key_node.value
            if isinstance(key, str) and key in seen:
                raise yaml.constructor.ConstructorError(problem=f"{key} stands twice", problem_mark=key_node.start_mark)
            seen.add(str(key))
        return super().construct_mapping(node, deep)
