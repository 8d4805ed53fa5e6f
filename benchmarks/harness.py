"""Timing that is fair to both sides, models to time, and the machine they ran on."""

from __future__ import annotations

import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForSequenceClassification, PreTrainedModel, set_seed

__all__ = [
    "CASES",
    "Case",
    "as_dict",
    "batch_of",
    "build",
    "interleaved",
    "machine",
    "optimised",
    "peak_of",
    "peak_rss",
    "reset_peak",
    "summary",
]


T = TypeVar("T")


@dataclass(frozen=True)
class Case:
    """A teacher, a student and a batch; sizes are (layers, width, heads, feed-forward width)."""

    teacher: tuple[int, int, int, int]
    student: tuple[int, int, int, int]
    batch: int
    length: int

    @property
    def name(self) -> str:
        """As it stands in tables."""
        t, s = self.teacher, self.student
        return f"{t[0]}x{t[1]} to {s[0]}x{s[1]}, B {self.batch}, L {self.length}"


BASE, MINILM = (12, 768, 12, 3072), (6, 384, 12, 1536)
TINY, HALF, THREE = (4, 312, 12, 1200), (6, 768, 12, 3072), (3, 384, 12, 1536)
CASES = {
    "base-4x312": Case(BASE, TINY, 32, 128),
    "base-6x768": Case(BASE, HALF, 32, 128),
    "minilm-3": Case(MINILM, THREE, 32, 64),
    "base-4x312-long": Case(BASE, TINY, 8, 512),
    "deep-12x24": Case((24, 256, 4, 1024), (12, 128, 4, 512), 16, 128),
    "deep-24x48": Case((48, 256, 4, 1024), (24, 128, 4, 512), 16, 128),
}


def build(case: Case, *, seed: int = 1) -> tuple[PreTrainedModel, PreTrainedModel]:
    """Teacher and student with random weights: speed does not depend on what they know."""
    made: list[PreTrainedModel] = []
    for layers, width, heads, inner in (case.teacher, case.student):
        config = AutoConfig.for_model(
            "bert", num_hidden_layers=layers, hidden_size=width, num_attention_heads=heads, intermediate_size=inner,
            num_labels=2, vocab_size=30522,
        )  # fmt: skip
        set_seed(seed + len(made))
        made.append(AutoModelForSequenceClassification.from_config(config))
    teacher, student = made
    return teacher.eval().requires_grad_(False), student.train()


def batch_of(case: Case, lengths: list[int] | None = None) -> dict[str, Tensor]:
    """Random tokens; all rows full unless lengths are given."""
    generator = torch.Generator().manual_seed(3)
    lengths = lengths or [case.length] * case.batch
    ids = torch.randint(1000, 30000, (len(lengths), max(lengths)), generator=generator)
    mask = (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]).long()
    return {"input_ids": ids * mask, "attention_mask": mask}


def optimised(module: nn.Module, step: Callable[[T], object], *, fused: bool) -> Callable[[T], None]:
    """A step, and AdamW after it."""
    optimizer = torch.optim.AdamW([p for p in module.parameters() if p.requires_grad], lr=1e-5, fused=fused)

    def run(batch: T) -> None:
        optimizer.zero_grad(set_to_none=True)
        step(batch)
        optimizer.step()

    return run


def interleaved(steps: dict[str, Callable[[], Any]], repeats: int, warm_up: int = 1) -> dict[str, list[float]]:
    """Seconds of each call, the sides taking turns so that all of them see the same machine.

    A step that measures itself returns its seconds.
    """
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(warm_up + repeats):
        for name, step in steps.items():
            _wait()
            start = time.perf_counter()
            own = step()
            _wait()
            if turn >= warm_up:
                seconds[name].append(own if isinstance(own, float) else time.perf_counter() - start)
        print(f"  {turn + 1}/{warm_up + repeats}", file=sys.stderr, flush=True)
    return seconds


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def summary(seconds: list[float]) -> dict[str, float]:
    """Median, smallest and largest."""
    return {"median": statistics.median(seconds), "min": min(seconds), "max": max(seconds)}


def reset_peak() -> int:
    """Forget the peak so far, where the system can (Linux); the memory held now, in bytes."""
    clear, status = Path("/proc/self/clear_refs"), Path("/proc/self/status")
    if not status.is_file():
        return peak_rss()
    clear.write_text("5", encoding="ascii")
    return _status("VmRSS")


def peak_rss() -> int:
    """The most memory this process has had, in bytes."""
    if Path("/proc/self/status").is_file():
        return _status("VmHWM")
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _status(field: str) -> int:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return int(next(line for line in lines if line.startswith(field)).split()[1]) * 1024


def peak_of(case: str, side: str, threads: int) -> int:
    """Peak bytes above the two loaded models of a few steps of one side, in a process of its own.

    glibc is told to give every freed block back at once: otherwise holes in the heap, which differ from run to run by
    a tenth of all memory, are counted with what is needed.
    """
    command = [sys.executable, "-m", "benchmarks.memory", case, side, str(threads)]
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    return int(done.stdout.strip().splitlines()[-1])


def machine(threads: int) -> dict[str, Any]:
    """What ran the benchmark."""
    found = {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": threads,
        "python": platform.python_version(),
    }
    found |= {"torch": torch.__version__, "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None}
    return found | {"matrix_product_gflops": round(_gflops())}


def _processor() -> str:
    ask: Any = getattr(torch.cpu, "get_capabilities", dict)
    capabilities = ask()
    extra = [name for name in ("avx2", "avx512_f", "avx512_bf16", "amx_bf16") if capabilities.get(name)]
    return " ".join([str(capabilities.get("cpu_name") or platform.processor() or platform.machine()), *extra])


def _gflops(size: int = 1536) -> float:
    """The roof: float32 products of large matrices."""
    a, b = torch.randn(size, size), torch.randn(size, size)
    times = []
    for _ in range(7):
        start = time.perf_counter()
        a @ b
        times.append(time.perf_counter() - start)
    return 2 * size**3 / statistics.median(times) / 1e9


def as_dict(case: Case) -> dict[str, Any]:
    """For JSON."""
    return asdict(case) | {"name": case.name}
