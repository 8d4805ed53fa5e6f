"""Which files are the checkpoint: from what a user names to a prefix or a weights file."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from bert_emd.errors import UserError

__all__ = ["Source", "find_source", "wanted_member"]

_INDEX = ".index"
_DATA = re.compile(r"(?P<prefix>.+)\.data-(?P<number>\d{5})-of-(?P<count>\d{5})")
_USUAL_PREFIX = "bert_model.ckpt"
_STATE = "checkpoint"  # the file in which TensorFlow keeps the name of the latest of a folder's checkpoints
_STATE_LINE = re.compile(r'^model_checkpoint_path:\s*"(?P<prefix>[^"]+)"', re.MULTILINE)
_TORCH_FILE = "pytorch_model.bin"
_SMALL_FILES = ("bert_config.json", "config.json", "vocab.txt", "tokenizer_config.json", _STATE)
_LFS = b"version https://git-lfs"


@dataclass(frozen=True, kw_only=True)
class Source:
    """The files of one checkpoint."""

    kind: Literal["tensorflow", "pytorch"]
    path: Path
    """TensorFlow: the prefix of its index and data files. PyTorch: the weights file."""
    files: tuple[Path, ...]
    """Everything that holds its weights."""
    note: str | None = None
    """Why this one, where there were several."""

    @property
    def folder(self) -> Path:
        """Where it lies."""
        return self.path.parent


def wanted_member(name: str) -> bool:
    """Whether a file of an archive belongs to a checkpoint."""
    last = name.rpartition("/")[2]
    if name.startswith("__MACOSX/") or last.startswith("._"):
        return False
    return last in (*_SMALL_FILES, _TORCH_FILE) or last.endswith(_INDEX) or _DATA.fullmatch(last) is not None


def find_source(path: Path, *, inside: bool = False) -> Source:
    """The checkpoint that a user means.

    Args:
        path: a folder, the prefix of a TensorFlow checkpoint, or one of a checkpoint's files.
        inside: whether to look in the folders below as well, as for an unpacked archive.

    Raises:
        UserError: there is none, there are several and nothing says which, or files of it are missing.
    """
    if path.is_dir():
        return _in_folder(path, inside)
    name = path.name
    if match := _DATA.fullmatch(name):
        path = path.with_name(match["prefix"])
    elif name.endswith((_INDEX, ".meta")) and path.is_file():
        path = path.with_name(name.rpartition(".")[0])
    elif name == _STATE and path.is_file():
        return _in_folder(path.parent, False)
    elif path.is_file() and path.suffix in (".bin", ".pt", ".pth"):
        return _torch(path)
    if Path(f"{path}{_INDEX}").is_file() or _data_files(path):
        return _tensorflow(path)
    if path.is_file():
        raise UserError(
            f"{path} is no checkpoint; name a TensorFlow checkpoint's folder, prefix or archive, or the folder of a "
            f"{_TORCH_FILE}"
        )
    raise UserError(f"checkpoint {path} does not exist: there is no folder, archive or {name}{_INDEX} of this name")


def _in_folder(folder: Path, inside: bool) -> Source:
    files = sorted(path for path in (folder.rglob("*") if inside else folder.iterdir()) if path.is_file())
    prefixes = {path.with_name(path.name.removesuffix(_INDEX)) for path in files if path.name.endswith(_INDEX)}
    prefixes |= {path.with_name(m["prefix"]) for path in files if (m := _DATA.fullmatch(path.name))}
    weights = [path for path in files if path.name == _TORCH_FILE]
    if len(prefixes) > 1:
        return _one_of(folder, sorted(prefixes), inside)
    if prefixes:
        note = f"{folder} holds a {_TORCH_FILE} too; the TensorFlow checkpoint is converted" if weights else None
        return _tensorflow(prefixes.pop(), note)
    if len(weights) == 1:
        return _torch(weights[0])
    if weights:
        advice = "unpack it and name" if inside else "name"
        raise UserError(f"{folder} holds several {_TORCH_FILE}; {advice} the folder of one of them")
    if any(path.name == "model.safetensors" for path in files):
        raise UserError(f"{folder} holds a model.safetensors, which loads as it is; nothing needs to be converted")
    raise UserError(f"{folder} holds neither a TensorFlow checkpoint ({_USUAL_PREFIX}{_INDEX}, …) nor a {_TORCH_FILE}")


def _one_of(folder: Path, prefixes: list[Path], inside: bool) -> Source:
    """The latest one by TensorFlow's own note, else the one with Google's name."""
    for state in sorted({prefix.parent / _STATE for prefix in prefixes}):
        try:
            text = state.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError):
            continue
        # An absolute path in it is where the checkpoint was written, not where it is now.
        if (match := _STATE_LINE.search(text)) and (named := state.parent / Path(match["prefix"]).name) in prefixes:
            return _tensorflow(named, f"of {len(prefixes)} checkpoints, {named.name} is the latest by {state}")
    usual = [prefix for prefix in prefixes if prefix.name == _USUAL_PREFIX]
    if len(usual) == 1:
        return _tensorflow(usual[0], f"of {len(prefixes)} checkpoints, {_USUAL_PREFIX} is taken")
    names = ", ".join(str(prefix.relative_to(folder)) for prefix in prefixes[:5]) + ", …" * (len(prefixes) > 5)
    advice = "unpack it and name one of them" if inside else f"name one of them: {prefixes[0]}"
    raise UserError(f"{folder} holds {len(prefixes)} checkpoints ({names}); {advice}")


def _data_files(prefix: Path) -> list[Path]:
    if not prefix.parent.is_dir():
        return []
    return sorted(
        path for path in prefix.parent.iterdir() if (m := _DATA.fullmatch(path.name)) and m["prefix"] == prefix.name
    )


def _tensorflow(prefix: Path, note: str | None = None) -> Source:
    index, data = Path(f"{prefix}{_INDEX}"), _data_files(prefix)
    if not index.is_file():
        raise UserError(f"{index} is missing beside {data[0].name}; download the whole checkpoint again")
    if not data:
        raise UserError(
            f"{prefix}.data-00000-of-00001 is missing: {index.name} only says what the data file holds; "
            "download the whole checkpoint again"
        )
    counts = {path.name.rpartition("-")[2] for path in data}
    if len(counts) > 1 or len(data) < int(counts.pop()):
        raise UserError(
            f"{prefix}: of its data files there are only {', '.join(path.name for path in data)}; "
            "download the whole checkpoint again"
        )
    for path in (index, *data):
        _refuse_pointer(path)
    return Source(kind="tensorflow", path=prefix, files=(index, *data), note=note)


def _torch(file: Path) -> Source:
    _refuse_pointer(file)
    return Source(kind="pytorch", path=file, files=(file,))


def _refuse_pointer(path: Path) -> None:
    try:
        with path.open("rb") as file:
            head = file.read(len(_LFS))
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    if head == _LFS:
        raise UserError(f"{path} is only Git LFS's pointer to the file; fetch it with `git lfs pull`")
    if not head:
        raise UserError(f"{path} is empty; download it again")
