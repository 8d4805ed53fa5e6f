"""One thread, as these tensors are tiny and the suite shares its cores; and the way of other devices than a CPU."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(params=["cpu", "device"])
def route(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The way through the code of a CPU, and that of other devices, which never looks at a value."""
    if request.param == "device":
        # Wherever it has been imported: a module that is left out would go on as on a CPU.
        asking = [m for name, m in sys.modules.items() if name.startswith("bert_emd.") and hasattr(m, "on_cpu")]
        assert len(asking) >= 4
        for module in asking:
            monkeypatch.setattr(module, "on_cpu", lambda _: False)
    return str(request.param)
