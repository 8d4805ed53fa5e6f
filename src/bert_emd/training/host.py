"""What the machine can do, and how its memory is used."""

from __future__ import annotations

import ctypes
from typing import Any

import torch

__all__ = ["has_bf16", "keep_freed_memory"]

# mallopt's parameters (malloc.h) and what they are set to: large blocks come from the heap, and the heap is not given
# back between steps.
_MALLOPT = {-3: 2**31 - 1, -1: 2**31 - 1, -2: 512 << 20}


def has_bf16(*, gpu: bool) -> bool:
    """Whether bfloat16 products are faster than float32 here: done by the GPU, or by the CPU's own instructions."""
    if gpu and torch.cuda.is_available():
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    ask: Any = getattr(torch.cpu, "get_capabilities", dict)
    found = ask()
    return any(found.get(name, False) for name in ("avx512_bf16", "amx_bf16", "arm_bf16"))


def keep_freed_memory() -> bool:
    """Let the C library keep freed memory for the next step; whether it could be told so.

    A step frees and asks for gigabytes in large blocks. By default each goes back to the system and comes again page
    by page, which costs a tenth of a run on a CPU. Only glibc has the setting.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    answers = [mallopt(name, value) for name, value in _MALLOPT.items()]
    return all(answer == 1 for answer in answers)
