"""`python -m benchmarks [--quick] [--parts PART,PART,…] [--out FOLDER]`."""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

import torch

from benchmarks import epoch as epoch_part
from benchmarks import growth as growth_part
from benchmarks.augmentation import augmentation
from benchmarks.dropout import dropout
from benchmarks.harness import CASES, machine
from benchmarks.report import markdown
from benchmarks.solver import solver
from benchmarks.step import memory, times
from benchmarks.switches import switches

PARTS = ("step", "memory", "epoch", "solver", "growth", "augment", "dropout", "switches")
# What takes real data, and long.
ASKED_FOR = ("switches",)


def main() -> None:
    """Run the parts, each saved as soon as it is done."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument(
        "--parts",
        default=",".join(part for part in PARTS if part not in ASKED_FOR),
        help=f"of {', '.join(PARTS)}, separated by commas; all but {', '.join(ASKED_FOR)} if none are named",
    )
    parser.add_argument(
        "--cases",
        default="minilm-3,base-4x312,base-6x768,base-4x312-long,deep-12x24,deep-24x48",
        help=f"of {', '.join(CASES)}",
    )
    parser.add_argument("--memory-cases", default="base-4x312,base-6x768,base-4x312-long,deep-12x24,deep-24x48")
    parser.add_argument("--repeats", type=int, default=5, help="timed turns of each side")
    parser.add_argument("--sample", type=int, default=6, help="batches of an epoch that each pass times")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--data-dir", help="a GLUE folder with MRPC; without it lengths are drawn like MRPC's")
    parser.add_argument("--encoder", help="a pretrained encoder: its tokenizer for the epoch, itself for switches")
    parser.add_argument("--quick", action="store_true", help="small cases and few turns: does it run?")
    parser.add_argument("--out", default="runs/bench")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    out = Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    parts = args.parts.split(",")
    if unknown := [part for part in parts if part not in PARTS]:
        parser.error(f"no part {unknown[0]}; choose of {', '.join(PARTS)}")
    if "switches" in parts and not (args.data_dir and args.encoder):
        parser.error("switches trains for real: --data-dir and --encoder")
    cases = ["minilm-3"] if args.quick else args.cases.split(",")
    repeats = 2 if args.quick else args.repeats
    file = out / "results.json"
    found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}

    def save(part: str, result: Any) -> None:
        found[part] = {"machine": machine(args.threads), "result": result}
        file.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        (out / "results.md").write_text(markdown(found), encoding="utf-8")

    for part in parts:
        print(part, file=sys.stderr, flush=True)
        result: Any
        if part == "step":
            result = []
            for case in cases:
                result += times([case], repeats)
                save(part, result)
        elif part == "memory":
            result = memory(cases if args.quick else args.memory_cases.split(","))
        elif part == "epoch":
            real = args.data_dir is not None and args.encoder is not None
            lengths = epoch_part.lengths_of(args.data_dir, args.encoder) if real else epoch_part.synthetic_lengths()
            name = "minilm-3" if args.quick else "base-4x312"
            result = epoch_part.epoch(name, lengths, 2 if args.quick else args.sample, 1 if args.quick else repeats)
            result["lengths"] = "real MRPC training rows" if real else "drawn like MRPC's"
        elif part == "solver":
            result = solver()
        elif part == "dropout":
            result = dropout(cases, repeats)
        elif part == "augment":
            result = augmentation(repeats, quick=args.quick)
        elif part == "switches":
            result = switches(args.data_dir, args.encoder, out / "runs", threads=args.threads, quick=args.quick)
        else:
            result = growth_part.growth(repeats, quick=args.quick)
            growth_part.plot(result, str(out / "growth.png"))
        save(part, result)
    print(markdown(found))
    print(f"saved in {out}")


if __name__ == "__main__":
    main()
