"""The teacher's outputs on disk: made once for a data set, precision and model, read by every later epoch and run.

The outputs of an example do not depend on the epoch, nor (up to rounding) on the batch it is in. They are kept in 16
bits (bfloat16 as it is, all else as float16), one block an example, in a file as large as all of them from the start,
so that a full disk is seen before the run and not in its middle. Beside it lies one byte an example that says whether
its block is there.

A killed process loses nothing: the system keeps what was written to the files, and an example is marked only after its
block. Only where the machine itself went down while a run was writing is everything made anew.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import json
import logging
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from torch import Tensor, nn

from bert_emd.errors import UserError
from bert_emd.method import Features
from bert_emd.models import Tap
from bert_emd.training.cache_layout import Kept, Layout, layout_of

__all__ = ["TeacherCache", "data_key", "default_directory", "model_key", "open_cache"]

_LOG = logging.getLogger("bert_emd")
_FORMAT = 3
_FEATURES, _LOGITS, _DONE, _META = "features.16", "logits.f32", "done.u8", "meta.json"


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
        layout: what is kept of an example.
        classes: width of the logits.

    Raises:
        UserError: there is not enough room, or the folder cannot be written.
    """

    def __init__(
        self, directory: Path, key: dict[str, Any], lengths: Sequence[int], layout: Layout, classes: int
    ) -> None:
        self.layout = layout
        self._width = layout.width
        self._lengths = np.asarray(lengths, dtype=np.int64)
        self._starts = np.concatenate([[0], np.cumsum(layout.elements(self._lengths))])
        rows = len(lengths)
        sizes = {_FEATURES: int(self._starts[-1]) * 2, _LOGITS: rows * classes * 4, _DONE: rows}
        self.sizes = {name: size for name, size in sizes.items() if size}
        self.bytes = sum(self.sizes.values())
        meta = {"format": _FORMAT, **key, "rows": rows, "tokens": int(self._lengths.sum()), "classes": classes}
        meta["layout"] = layout.described()
        self._meta = json.dumps(meta, indent=2, sort_keys=True)
        self.folder = directory / hashlib.sha256(self._meta.encode()).hexdigest()[:24]
        if not self._usable():
            self._create()
        self._marker = self.folder / f"writing-{os.getpid()}"
        self._done = self._mapped(_DONE, np.uint8)
        self._logits = self._mapped(_LOGITS, np.float32).reshape(rows, classes)
        self._features = self._mapped(_FEATURES, np.int16)
        self._buffers: dict[str, Tensor] = {}
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

        The features lie in a buffer that the next call overwrites, scores in the file itself: they are only to be read.
        """
        packed_BLR = self._packed(mask)
        parts = [self._of(row) for row in rows]
        if self._width:
            for place, (tokens, _), keep in zip(packed_BLR, parts, _kept(mask), strict=True):
                place[keep] = tokens
        features = self.layout.unpack(packed_BLR.to(mask.device), [scores for _, scores in parts])
        return torch.from_numpy(self._logits[list(rows)]).to(mask.device), features

    def store(self, rows: Sequence[int], mask: Tensor, logits: Tensor, features: Features) -> None:
        """Keep these examples, except where a value is too large for 16 bits; those are computed every time."""
        if not self._marker.exists():
            self._marker.write_text(_boot(), encoding="utf-8")
        packed_BLR, kept = self._packed(mask), _kept(mask)
        self.layout.pack(features, packed_BLR)
        scores = self._score_rows(kept)
        if self.layout.scores:
            self.layout.pack_scores(features, kept, scores)
        host_logits = logits.detach().float().cpu().numpy()
        for i, (row, keep) in enumerate(zip(rows, kept, strict=True)):
            if self._done[row]:
                continue
            if self._width or self.layout.scores:
                values = packed_BLR[i][keep]
                if not self.layout.finite(values, scores[i]):
                    continue
                self._write(row, values, scores[i])
            self._logits[row] = host_logits[i]
            self._done[row] = 1

    def _packed(self, mask: Tensor) -> Tensor:
        """Room for a batch's tokens, [B, L, R], the same memory every time."""
        batch, length = mask.shape
        return self._room("tokens", batch * length * self._width).view(batch, length, self._width)

    def _score_rows(self, kept: Sequence[Kept]) -> list[Tensor]:
        """Room for each row's scores, [S, l, l], the same memory every time."""
        count = self.layout.matrices
        lengths = [keep.stop if isinstance(keep, slice) else int(keep.sum()) for keep in kept]
        sizes = [count * length**2 for length in lengths]
        flat = self._room("scores", sum(sizes)).split(sizes)  # type: ignore[no-untyped-call]
        return [row.view(count, length, length) for row, length in zip(flat, lengths, strict=True)]

    def _room(self, name: str, size: int) -> Tensor:
        if name not in self._buffers or len(self._buffers[name]) < size:
            self._buffers[name] = torch.empty(size, dtype=torch.int16)
        return self._buffers[name][:size]

    def _write(self, row: int, *parts: Tensor) -> None:
        """Written, not copied into the map: a fault for each page would cost several times as much."""
        if self._file is None:
            self._file = (self.folder / _FEATURES).open("r+b", buffering=0)
        if len(parts[0]) != self._lengths[row]:
            raise ValueError(
                f"example {row} has {len(parts[0])} tokens, and its length was given as {self._lengths[row]}"
            )
        self._file.seek(int(self._starts[row]) * 2)
        for part in parts:
            left = part.contiguous().numpy().data.cast("B") if part.numel() else b""
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

    def _of(self, row: int) -> tuple[Tensor, Tensor]:
        """An example's tokens [l, R] and scores [S, l, l], views of the file."""
        length, whole = int(self._lengths[row]), self._features[self._starts[row] : self._starts[row + 1]]
        tokens, scores = torch.from_numpy(whole).split([length * self._width, length**2 * self.layout.matrices])  # type: ignore[no-untyped-call]
        return tokens.view(length, self._width), scores.view(-1, length, length)

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


def _kept(mask: Tensor) -> list[Kept]:
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
    directory: Path, tap: Tap, rows: datasets.Dataset, batch: dict[str, Any], precision: str, trained_on: torch.device
) -> TeacherCache:
    """The cache of a tapped teacher's outputs for tokenised rows.

    Args:
        directory: where caches lie.
        tap: the teacher with what is wanted of it.
        rows: ``input_ids`` and ``attention_mask``.
        batch: any few of them as the teacher takes them, to see what comes out.
        precision: how the teacher is run: bf16, fp16 or fp32.
        trained_on: where the run will be; the teacher itself may still be elsewhere.

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
    # On another device scores, a matrix of its own for each example, would travel one by one.
    scores = trained_on.type == "cpu" and not tap.needs.factors
    layout = layout_of(features, lengths, scores=scores)
    cache = TeacherCache(directory, key, lengths, layout, outputs.logits.shape[1])
    there = cache.count
    state = (
        "all there" if there == len(lengths) else f"{there} of {len(lengths)} rows there, the others come in this run"
    )
    _LOG.info("teacher's outputs: %.2f GB in %s, %s", cache.bytes / 1e9, cache.folder, state)
    return cache
