"""Reading the variables of a checkpoint, one after another; nothing in it is ever run."""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bert_emd.errors import UserError
from bert_emd.models.convert.source import Source
from bert_emd.models.loading import why

__all__ = ["Weights", "open_weights"]

# TensorFlow's reader raises `OpError`, `IndexError` and `RuntimeError` for damaged files, torch still others.
_READ_ERRORS = (Exception,)
_OBJECT_GRAPH = "_CHECKPOINTABLE_OBJECT_GRAPH"


@dataclass(frozen=True, kw_only=True)
class Weights:
    """What a checkpoint holds."""

    shapes: Mapping[str, tuple[int, ...]]
    """The shape of every variable, by its name there."""
    dtypes: Mapping[str, str]
    """The same for its type."""
    read: Callable[[str], Tensor]
    """One variable's values in float32. Raises `UserError` where they are damaged."""


def open_weights(source: Source) -> Weights:
    """Open a checkpoint.

    Raises:
        UserError: it is damaged, holds more than tensors, or TensorFlow is needed and not installed.
    """
    return _tensorflow(source) if source.kind == "tensorflow" else _torch(source)


def _tensorflow(source: Source) -> Weights:
    prefix = str(source.path)
    try:
        reader = _load_checkpoint(prefix)
        shapes = {name: tuple(map(int, shape)) for name, shape in reader.get_variable_to_shape_map().items()}
        kinds = reader.get_variable_to_dtype_map()
    except _READ_ERRORS as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{source.files[0]} cannot be read: {why(error, str(source.files[0]))}") from error
    dtypes = {name: str(kind.name) for name, kind in kinds.items()}
    # A text has no fixed size; what is counted is the least that the data files can hold.
    sizes = {name: 0 if kinds[name].name == "string" else int(kinds[name].size) for name in shapes}
    _refuse_truncated(source, sum(math.prod(shape) * sizes[name] for name, shape in shapes.items()))
    if _OBJECT_GRAPH in shapes:
        raise UserError(
            f"{prefix} is a TensorFlow 2 checkpoint of Keras objects; what is converted are TensorFlow 1 checkpoints, "
            "such as those of github.com/google-research/bert"
        )

    def read(name: str) -> Tensor:
        try:
            # TensorFlow's bfloat16 is a type that torch does not take.
            return torch.from_numpy(reader.get_tensor(name).astype("float32"))
        except _READ_ERRORS as error:
            raise UserError(
                f"{prefix}: {name} cannot be read, its data file is truncated or damaged "
                f"({' '.join(str(error).split())}); download it again"
            ) from error

    return Weights(shapes=dict(sorted(shapes.items())), dtypes=dtypes, read=read)


def _refuse_truncated(source: Source, least: int) -> None:
    """Also where only what an optimiser kept is lost, which is never read: the rest may be another version's."""
    held = sum(path.stat().st_size for path in source.files[1:])
    if held < least:
        raise UserError(
            f"{source.files[1]} is truncated: the data files hold {held:,} bytes, and by {source.files[0].name} they "
            f"should hold {least:,}; download it again"
        )


def _load_checkpoint(prefix: str) -> Any:
    # Its start-up notices come from C++ and know nothing of Python's streams.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            import tensorflow
        except ImportError as error:
            if isinstance(error, ModuleNotFoundError) and error.name == "tensorflow":
                raise UserError(
                    "reading a TensorFlow checkpoint needs TensorFlow, which is not installed; "
                    'run `pip install "bert-emd[tf]"`'
                ) from error
            raise UserError(
                f"TensorFlow is installed but does not start ({' '.join(str(error).split())}); "
                'run `pip install --upgrade "bert-emd[tf]"`'
            ) from error
    return tensorflow.train.load_checkpoint(prefix)


def _torch(source: Source) -> Weights:
    path = source.path
    try:
        stored = torch.load(path, map_location="cpu", weights_only=True)
    except _READ_ERRORS as error:
        raise UserError(f"{path} cannot be loaded: {why(error, str(path))}") from error
    if not isinstance(stored, dict) or not all(
        isinstance(name, str) and isinstance(tensor, Tensor) and _plain(tensor) for name, tensor in stored.items()
    ):
        raise UserError(f"{path} holds something else than named tensors; save the model's state_dict() there")
    tensors: dict[str, Tensor] = dict(stored)
    return Weights(
        shapes={name: tuple(tensor.shape) for name, tensor in tensors.items()},
        dtypes={name: str(tensor.dtype).removeprefix("torch.") for name, tensor in tensors.items()},
        # A copy: tensors of one storage cannot be saved side by side.
        read=lambda name: tensors[name].to(torch.float32, copy=True),
    )


def _plain(tensor: Tensor) -> bool:
    """Whether it has values of its own, one beside the other: neither sparse nor quantised nor on no device."""
    return tensor.layout == torch.strided and not tensor.is_quantized and tensor.device.type == "cpu"
