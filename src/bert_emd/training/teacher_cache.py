"""The teacher's outputs on disk: made once for a data set, precision and model, read by every later epoch and run.

The outputs of an example do not depend on the epoch, nor (up to rounding) on the batch it is in. They are kept in 16
bits (bfloat16 as it is, all else as float16), one block of tokens an example, in a file as large as all of them from
the start, so that a full disk is seen before the run and not in its middle. Beside it lies one byte an example that
says whether its block is there.

A killed process loses nothing: the system keeps what was written to the files, and an example is marked only after its
block. Only where the machine itself went down while a run was writing is everything made anew.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import itertools
import json
import logging
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from torch import Tensor, nn

from bert_emd.errors import UserError
from bert_emd.method import Features
from bert_emd.models import Tap

__all__ = ["Block", "TeacherCache", "blocks_of", "data_key", "default_directory", "model_key", "open_cache"]

_LOG = logging.getLogger("bert_emd")
_FORMAT = 2
_FEATURES, _LOGITS, _DONE, _META = "features.16", "logits.f32", "done.u8", "meta.json"


@dataclass(frozen=True, kw_only=True)
class Block:
    """One tensor of an example: its place among the columns of the file, and its shape after the tokens."""

    kind: str
    """embedding, hidden, query, key or value."""
    start: int
    shape: tuple[int, ...]
    """[D], or [H, d] for queries, keys and values."""
    dtype: torch.dtype = torch.float16
    """How it is kept: bfloat16 where the teacher made bfloat16, so that nothing is rounded."""

    @property
    def stop(self) -> int:
        """The column behind it."""
        return self.start + int(np.prod(self.shape))


def blocks_of(features: Features) -> list[Block]:
    """How the tensors of a batch are laid out side by side."""
    found: list[Block] = []
    for kind, tensor in _tensors(features):
        shape = tuple(tensor.shape[2:]) if tensor.dim() == 3 else (tensor.shape[1], tensor.shape[3])
        dtype = tensor.dtype if tensor.dtype == torch.bfloat16 else torch.float16
        found.append(Block(kind=kind, start=found[-1].stop if found else 0, shape=shape, dtype=dtype))
    return found


def _tensors(features: Features) -> list[tuple[str, Tensor]]:
    found = [("embedding", features.embedding)] if features.embedding is not None else []
    # Layers that nothing needs hold None.
    found += [("hidden", h) for h in features.hidden if h is not None]
    found += [(kind, t) for pair in features.attention if pair for kind, t in zip(("query", "key"), pair, strict=True)]
    return found + [("value", v) for v in features.values if v is not None]


def model_key(model: nn.Module, config: Any) -> str:
    """A fingerprint of a model by content: its weights and its configuration without names and versions."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    settings = {k: v for k, v in config.to_dict().items() if k not in ("_name_or_path", "transformers_version")}
    digest.update(json.dumps(settings, sort_keys=True, default=str).encode())
    return digest.hexdigest()


def data_key(rows: datasets.Dataset) -> str:
    """A fingerprint of token ids by content and order."""
    digest = hashlib.sha256()
    for name in sorted({"input_ids", "attention_mask", "token_type_ids"} & set(rows.column_names)):
        array = rows.with_format("arrow")[:][name].combine_chunks()
        digest.update(name.encode())
        digest.update(np.ascontiguousarray(array.value_lengths().to_numpy()).data)
        digest.update(np.ascontiguousarray(array.flatten().to_numpy()).data)
    return digest.hexdigest()


class TeacherCache:
    """Opens the cache of one teacher and data set, or makes room for it.

    Args:
        directory: where caches lie, a folder each.
        key: what the outputs depend on: model, data, precision, which tensors.
        lengths: tokens of each example.
        blocks: how an example's tensors are laid out.
        classes: width of the logits.

    Raises:
        UserError: there is not enough room, or the folder cannot be written.
    """

    def __init__(
        self, directory: Path, key: dict[str, Any], lengths: Sequence[int], blocks: Sequence[Block], classes: int
    ) -> None:
        self.blocks = list(blocks)
        self._width = self.blocks[-1].stop if self.blocks else 0
        self._spans = _spans(self.blocks)
        self._starts = np.concatenate([[0], np.cumsum(np.asarray(lengths, dtype=np.int64))])
        self._classes = classes
        rows = len(lengths)
        sizes = {_FEATURES: int(self._starts[-1]) * self._width * 2, _LOGITS: rows * classes * 4, _DONE: rows}
        self.sizes = {name: size for name, size in sizes.items() if size}
        self.bytes = sum(self.sizes.values())
        meta = {"format": _FORMAT, **key, "rows": rows, "tokens": int(self._starts[-1]), "classes": classes}
        meta["blocks"] = [[b.kind, str(b.dtype), *b.shape] for b in self.blocks]
        self._meta = json.dumps(meta, indent=2, sort_keys=True)
        self.folder = directory / hashlib.sha256(self._meta.encode()).hexdigest()[:24]
        if not self._usable():
            self._create()
        self._marker = self.folder / f"writing-{os.getpid()}"
        self._done = self._mapped(_DONE, np.uint8)
        self._logits = self._mapped(_LOGITS, np.float32).reshape(rows, classes)
        self._features = self._mapped(_FEATURES, np.int16).reshape(-1, max(self._width, 1))
        self._buffer = torch.empty(0, dtype=torch.int16)
        self._file: io.FileIO | None = None
        if self._machine_went_down():
            self._done[:] = 0

    @property
    def count(self) -> int:
        """How many examples are there."""
        return int(np.count_nonzero(self._done))

    def has(self, rows: Sequence[int]) -> bool:
        """Whether all of these examples are there."""
        return bool(self._done[list(rows)].all())

    def load(self, rows: Sequence[int], mask: Tensor) -> tuple[Tensor, Features]:
        """Logits [B, C] float32 and features of these examples on the mask's device; padded positions hold anything.

        The features lie in a buffer that the next call overwrites.
        """
        packed_BLR = self._room(mask)
        if self._width:
            for place, row, keep in zip(packed_BLR, rows, _kept(mask), strict=True):
                place[keep] = self._of(row)
        packed_BLR = packed_BLR.to(mask.device)
        features = Features()
        parts: dict[str, list[Tensor]] = {}
        for block in self.blocks:
            part = packed_BLR[..., block.start : block.stop].view(block.dtype)
            if len(block.shape) == 2:
                part = part.unflatten(2, block.shape).transpose(1, 2)  # type: ignore[no-untyped-call]
            parts.setdefault(block.kind, []).append(part)
        if "embedding" in parts:
            features.embedding = parts["embedding"][0]
        features.hidden = parts.get("hidden", [])
        features.attention = list(zip(parts.get("query", []), parts.get("key", []), strict=True))
        features.values = parts.get("value", [])
        return torch.from_numpy(self._logits[list(rows)]).to(mask.device), features

    def store(self, rows: Sequence[int], mask: Tensor, logits: Tensor, features: Features) -> None:
        """Keep these examples, except where a value is too large for 16 bits; those are computed every time."""
        if not self._marker.exists():
            self._marker.write_text(_boot(), encoding="utf-8")
        packed_BLR = self._room(mask)
        for block, (_, tensor) in zip(self.blocks, _tensors(features), strict=True):
            part = packed_BLR[..., block.start : block.stop].view(block.dtype)
            by_token = tensor if tensor.dim() == 3 else tensor.transpose(1, 2)
            part.unflatten(2, block.shape).copy_(by_token.detach())  # type: ignore[no-untyped-call]
        host_logits = logits.detach().float().cpu().numpy()
        for i, (row, keep) in enumerate(zip(rows, _kept(mask), strict=True)):
            if self._done[row]:
                continue
            if self._width:
                values = packed_BLR[i][keep]
                if not all(_finite(values[:, start:stop].view(dtype)) for dtype, start, stop in self._spans):
                    continue
                self._write(row, values)
            self._logits[row] = host_logits[i]
            self._done[row] = 1

    def _room(self, mask: Tensor) -> Tensor:
        """Room for a batch, [B, L, width], the same memory every time."""
        batch, length = mask.shape
        size = batch * length * self._width
        if len(self._buffer) < size:
            self._buffer = torch.empty(size, dtype=torch.int16)
        return self._buffer[:size].view(batch, length, self._width)

    def _write(self, row: int, values: Tensor) -> None:
        """Written, not copied into the map: a fault for each page would cost several times as much."""
        if self._file is None:
            self._file = (self.folder / _FEATURES).open("r+b", buffering=0)
        start, stop = int(self._starts[row]), int(self._starts[row + 1])
        if len(values) != stop - start:
            raise ValueError(f"example {row} has {len(values)} tokens, and its length was given as {stop - start}")
        self._file.seek(start * self._width * 2)
        left = values.contiguous().numpy().data.cast("B")
        while len(left):
            left = left[self._file.write(left) :]

    def forget(self, rows: Sequence[int]) -> None:
        """These examples are to be made anew."""
        self._done[list(rows)] = 0

    def close(self) -> None:
        """Bring everything to the disk."""
        if self._file is not None:
            self._file.close()
            self._file = None
        for array in (self._features, self._logits, self._done):
            if isinstance(array, np.memmap):
                array.flush()
        for marker in self.folder.glob("writing-*"):
            if marker == self._marker or not Path(f"/proc/{marker.name.rpartition('-')[2]}").exists():
                marker.unlink(missing_ok=True)

    def _of(self, row: int) -> Tensor:
        return torch.from_numpy(self._features[self._starts[row] : self._starts[row + 1]])

    def _mapped(self, name: str, kind: Any) -> np.ndarray:
        if name not in self.sizes:
            return np.zeros(0, dtype=kind)
        return np.memmap(self.folder / name, dtype=kind, mode="r+")

    def _usable(self) -> bool:
        try:
            same = (self.folder / _META).read_text(encoding="utf-8") == self._meta
            return same and all((self.folder / name).stat().st_size == size for name, size in self.sizes.items())
        except OSError:
            return False

    def _machine_went_down(self) -> bool:
        """Whether a run was writing when the machine went down, which may have lost blocks but not their marks."""
        stale = [m for m in self.folder.glob("writing-*") if m.read_text(encoding="utf-8") != _boot()]
        for marker in stale:
            marker.unlink(missing_ok=True)
        return bool(stale)

    def _create(self) -> None:
        partial = self.folder.with_name(f"{self.folder.name}.partial-{os.getpid()}")
        try:
            shutil.rmtree(self.folder, ignore_errors=True)
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
            free = shutil.disk_usage(partial).free
            if free < self.bytes:
                raise UserError(self._no_room(free))
            for name, size in self.sizes.items():
                _allocate(partial / name, size)
            (partial / _META).write_text(self._meta, encoding="utf-8")
            # Another process may have made it meanwhile: then its folder is as good.
            with contextlib.suppress(FileExistsError, OSError):
                partial.rename(self.folder)
            if not self._usable():
                raise UserError(
                    f"the teacher's outputs cannot be kept in {self.folder}; name another teacher_cache_dir"
                )
        except OSError as error:
            if error.errno == errno.ENOSPC:
                raise UserError(self._no_room(shutil.disk_usage(partial.parent).free)) from error
            raise UserError(
                f"the teacher's outputs cannot be kept in {self.folder.parent}: {error.strerror}; "
                "name another --teacher_cache_dir"
            ) from error
        finally:
            shutil.rmtree(partial, ignore_errors=True)

    def _no_room(self, free: int) -> str:
        return (
            f"the teacher's outputs need {self.bytes / 1e9:.1f} GB in {self.folder.parent} and {free / 1e9:.1f} GB are "
            "free; make room, name another --teacher_cache_dir or leave out --cache_teacher"
        )


def _spans(blocks: Sequence[Block]) -> list[tuple[torch.dtype, int, int]]:
    """Blocks of one kind of number that follow each other: the kind, the first column, the one behind the last."""
    spans = []
    for dtype, run in itertools.groupby(blocks, key=lambda block: block.dtype):
        own = list(run)
        spans.append((dtype, own[0].start, own[-1].stop))
    return spans


def _finite(values: Tensor) -> bool:
    """Whether every value is: both ends are undefined where any value is."""
    return all(bool(end.isfinite()) for end in torch.aminmax(values))


def _kept(mask: Tensor) -> list[Any]:
    """For each row its kept positions: a slice where they are the first ones."""
    host = mask.bool().cpu()
    lengths = host.sum(1).tolist()
    return [slice(n) if bool(row[:n].all()) else row for row, n in zip(host, lengths, strict=True)]


def _allocate(path: Path, size: int) -> None:
    """A file of zeros whose room on the disk is taken."""
    with path.open("wb") as file:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, size)
        else:
            file.truncate(size)


def _boot() -> str:
    """Tells one start of the machine from another, where the system says."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return f"unknown-{os.getpid()}"


def default_directory(cache_dir: str | None, name: str = "teacher-outputs") -> Path:
    """Where caches of a kind lie unless the user says otherwise."""
    if cache_dir is not None:
        return Path(cache_dir) / name
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "bert-emd" / name


def open_cache(
    directory: Path, tap: Tap, rows: datasets.Dataset, batch: dict[str, Any], precision: str
) -> TeacherCache:
    """The cache of a tapped teacher's outputs for tokenised rows.

    Args:
        directory: where caches lie.
        tap: the teacher with what is wanted of it.
        rows: ``input_ids`` and ``attention_mask``.
        batch: any few of them as the teacher takes them, to see what comes out.
        precision: how the teacher is run: bf16, fp16 or fp32.

    Raises:
        UserError: there is not enough room, or the folder cannot be written.
    """
    model = tap.model
    device = next(model.parameters()).device
    # As it will run: what it makes in bfloat16 is kept so.
    autocast = torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16")
    with torch.no_grad(), tap, autocast:
        inputs = {k: v.to(device) for k, v in batch.items() if k in ("input_ids", "attention_mask", "token_type_ids")}
        outputs, features = tap(**inputs)
    key: dict[str, Any] = {"model": model_key(model, model.config), "data": data_key(rows), "precision": precision}
    if tap.needs.layers is not None and (features.hidden or features.attention):
        key["layers"] = list(tap.needs.layers)
    lengths = list(rows["length"]) if "length" in rows.column_names else [sum(row) for row in rows["attention_mask"]]
    cache = TeacherCache(directory, key, lengths, blocks_of(features), outputs.logits.shape[1])
    there = cache.count
    state = (
        "all there" if there == len(lengths) else f"{there} of {len(lengths)} rows there, the others come in this run"
    )
    _LOG.info("teacher's outputs: %.2f GB in %s, %s", cache.bytes / 1e9, cache.folder, state)
    return cache
