"""float32 products of values that bfloat16 holds exactly, on a CPU that multiplies bfloat16."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

__all__ = ["exact_products"]


@contextmanager
def exact_products() -> Iterator[None]:
    """Let float32 products inside take their factors as bfloat16.

    The product of two bfloat16 numbers is a float32 number, and sums are float32 all the same: where the factors are
    bfloat16 numbers in float32 tensors nothing is rounded that would not be rounded otherwise, and the processor's
    bfloat16 units are several times as fast. The setting is the whole process's, so no other thread should multiply
    float32 meanwhile. A CPU without such units ignores it, torch before 2.9 does not have it.
    """
    settings: Any = getattr(torch.backends.mkldnn, "matmul", None)
    if settings is None or not hasattr(settings, "fp32_precision"):
        yield
        return
    before = settings.fp32_precision
    settings.fp32_precision = "bf16"
    try:
        yield
    finally:
        settings.fp32_precision = before
