"""Stands in for a run's process: leaves what a run leaves, at once and without any model.

FAKE_CALLS names a file that gets a line a call; FAKE_FAIL is a word of the arguments that makes a run fail;
FAKE_HANG likewise makes it write a checkpoint and wait until it is interrupted.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

SCORES = {"none": 0.50, "kd": 0.55, "uniform": 0.61, "emd": 0.62}


def main() -> int:
    command, words = sys.argv[1], sys.argv[2:]
    flags = dict(zip(words[::2], words[1::2], strict=True))
    out = Path(flags["--output_dir"])
    with Path(os.environ["FAKE_CALLS"]).open("a") as stream:
        stream.write(json.dumps({"out": str(out), "resumed": "--resume_from_checkpoint" in flags,
                                 "threads": os.environ["OMP_NUM_THREADS"]}) + "\n")  # fmt: skip
    if (word := os.environ.get("FAKE_FAIL")) and word in str(out):
        sys.stdout.write("warning: something\nerror: there is no room on the disk\n")
        return 2
    if command == "distill" and not (Path(flags["--teacher_model"]) / "model.safetensors").is_file():
        sys.stdout.write("error: no teacher\n")
        return 2
    out.mkdir(parents=True, exist_ok=True)
    (out / "run.json").write_text(json.dumps({"command": command, "config": {}, "versions": {"torch": "0"}}))
    checkpoint = out / "checkpoint-3"
    checkpoint.mkdir(exist_ok=True)
    for name in ("trainer_state.json", "optimizer.pt"):
        (checkpoint / name).write_text("{}")
    if (word := os.environ.get("FAKE_HANG")) and word in str(out):
        sys.stdout.write(" 30%|###   | 3/10 [00:01<00:02]\n")
        sys.stdout.flush()
        try:
            sys.stdin.read()  # until the comparison ends, in whatever way
            return 130
        except KeyboardInterrupt:
            sys.stdout.write("interrupted\n")
            return 130
    seed = int(flags.get("--seed", 42))
    last = SCORES.get(flags.get("--mapping", ""), 0.9) + 0.01 * seed * seed
    chosen = {"matthews_correlation": last + 0.02}
    seen = not (Path(flags.get("--teacher_model", "")) / "run.json").is_file()
    metrics = {
        "metric": "matthews_correlation", "last": {"matthews_correlation": last}, "student": chosen, "model": chosen,
        "teacher": {"matthews_correlation": 0.9}, "trivial": {"matthews_correlation": 0.0},
        "selection": {"rows": 6, "teacher_may_have_seen": seen}, "reported_on": "validation", "optimistic": False,
        "best_step": 3, "last_step": 6, "train_seconds": 1.0,
    }  # fmt: skip
    metrics.pop("student" if command == "finetune" else "model")
    (out / "model.safetensors").write_bytes(b"weights")
    (out / "metrics.json").write_text(json.dumps(metrics))
    return 0


if __name__ == "__main__":
    sys.exit(main())
