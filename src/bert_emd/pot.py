"""POT without the array libraries that it would load for nothing.

On its first import POT looks for every library whose arrays it could take, and loads TensorFlow, JAX and CuPy where
they are installed: seconds, hundreds of megabytes, and with JAX the GPU's memory. We give it NumPy's arrays alone.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["ot"]

_SWITCHES = tuple(f"POT_BACKEND_DISABLE_{library}" for library in ("TENSORFLOW", "JAX", "CUPY"))


@contextmanager
def _without_other_libraries() -> Iterator[None]:
    added = [name for name in _SWITCHES if name not in os.environ]
    os.environ.update(dict.fromkeys(added, "1"))
    try:
        yield
    finally:
        for name in added:
            del os.environ[name]


with _without_other_libraries():
    import ot
