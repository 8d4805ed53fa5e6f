"""Peak memory of one side: `python -m benchmarks.memory CASE SIDE THREADS` prints bytes above the loaded models."""

from __future__ import annotations

import sys

import torch

from benchmarks.harness import CASES, batch_of, build, peak_rss, reset_peak
from benchmarks.sides import SIDES

if __name__ == "__main__":
    name, side, threads = sys.argv[1:]
    torch.set_num_threads(int(threads))
    case = CASES[name]
    step = SIDES[side](*build(case))
    batch = batch_of(case)
    before = reset_peak()
    for _ in range(2):
        step(batch)
    print(peak_rss() - before)
