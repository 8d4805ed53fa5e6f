"""The results as Markdown tables."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

__all__ = ["markdown"]


def markdown(found: dict[str, Any]) -> str:
    """One section a part, each with the machine it ran on."""
    writers: dict[str, Callable[[Any], str]] = {
        "step": _step,
        "memory": _memory,
        "epoch": _epoch,
        "solver": _solver,
        "growth": _growth,
        "augment": _augment,
        "dropout": _dropout,
        "switches": _switches,
    }
    sections = []
    for part, write in writers.items():
        if part in found:
            m = found[part]["machine"]
            where = (f"{m['processor']}, {m['threads']} threads of {m['cores']} cores, torch {m['torch']}, "
                     f"large float32 products {m['matrix_product_gflops']} GFLOP/s")  # fmt: skip
            sections.append(f"{write(found[part]['result'])}\n\n{where}\n")
    return "\n".join(sections)


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return "\n".join("| " + " | ".join(row) + " |" for row in [header, ["---"] * len(header), *rows])


def _spread(value: dict[str, float], scale: float = 1.0, digits: int = 2) -> str:
    median, low, high = (f"{scale * value[name]:.{digits}f}" for name in ("median", "min", "max"))
    return f"{median} ({low} to {high})"


def _step(result: list[dict[str, Any]]) -> str:
    sides, over = list(result[0]["seconds"]), list(result[0]["over the lower bound"])
    rows = [[entry["case"]["name"], *(_spread(entry["seconds"][side]) for side in sides),
             *(f"{entry['over the lower bound'][side]:.3f}" for side in over)] for entry in result]  # fmt: skip
    header = ["teacher to student", *(f"{side} [s]" for side in sides), *(f"{side}: over bound" for side in over)]
    return "## A step: median seconds (smallest to largest)\n\n" + _table(header, rows)


def _memory(result: list[dict[str, Any]]) -> str:
    rows = []
    for entry in result:
        size = {name.removesuffix(", bf16"): f"{value / 2**20:.0f}" for name, value in entry["bytes"].items()}
        over = {s.removesuffix(", bf16"): f"{x:.2f}" for s, x in entry["over lower bound plus tapped"].items()}
        rows.append([entry["case"]["name"], entry.get("precision", "float32"), size["lower bound"],
                     size["tapped teacher tensors"], size["bert-emd"], size.get("reference", ""), over["bert-emd"],
                     over.get("reference", "")])  # fmt: skip
    header = ["teacher to student", "precision", "lower bound", "tapped tensors", "bert-emd", "reference",
              "bert-emd / (bound + tapped)", "reference / (bound + tapped)"]  # fmt: skip
    return "## Peak memory above the loaded models [MiB]\n\n" + _table(header, rows)


def _epoch(result: dict[str, Any]) -> str:
    times = result["times as fast"]
    rows = [
        [
            way,
            str(result["batches an epoch"][way]),
            _spread(value, digits=1),
            *(f"{t[way]:.1f}" for t in times.values()),
        ]
        for way, value in result["seconds an epoch"].items()
    ]
    head = (f"## An epoch: {result['case']}, {result['rows']} rows, {result['mean tokens']:.0f} tokens on average "
            f"({result['lengths']}); {result['batches timed']} batches in each of "
            f"{result.get('passes', 3)} passes, scaled up")  # fmt: skip
    return head + "\n\n" + _table(["", "batches", "seconds", *(f"times the {other}" for other in times)], rows)


def _solver(result: list[dict[str, Any]]) -> str:
    rows = [[entry["layers"], *(_spread(entry["microseconds"][side], digits=0) for side in ("bert-emd", "padded")),
             f"{entry['largest relative difference in cost']:.0e}"] for entry in result]  # fmt: skip
    return "## The plan: median microseconds\n\n" + _table(
        ["layers", "bert-emd", "padded problem", "largest difference in cost"], rows
    )


def _augment(result: dict[str, Any]) -> str:
    rows = [[entry["model"], side, _spread(value, 1e3, 1), f"{entry['times as fast'].get(side, 1):.1f}"]
            for entry in result["models"] for side, value in entry["seconds a sentence"].items()]  # fmt: skip
    head = f"## Augmentation: median milliseconds a sentence of 22 words, {result['N']} variants of each"
    return head + "\n\n" + _table(["model", "", "milliseconds", "times as fast"], rows)


def _dropout(result: list[dict[str, Any]]) -> str:
    rows = [[entry["case"]["name"].split(" to ")[1], way, _spread(value), f"{entry['times as fast'][way]:.2f}"]
            for entry in result for way, value in entry["seconds"].items()]  # fmt: skip
    head = "## A student alone, forward and backward: median seconds with torch's dropout, ours and none"
    return head + "\n\n" + _table(["student", "dropout", "seconds", "times as fast"], rows)


def _switches(result: dict[str, Any]) -> str:
    def measured(of: dict[str, Any], scale: float, digits: int) -> list[str]:
        values = ", ".join(f"{scale * value:.{digits}f}" for value in of["values"])
        return [values, f"{scale * of['away']:+.{digits}f} of {scale * of['spread']:.{digits}f}"]

    rows = [[name, *measured(of["accuracy"], 100, 1), *measured(of["loss"], 1, 3),
             "yes" if all(m["within"] for m in of.values()) else "no"]
            for name, of in result["rows"].items()]  # fmt: skip
    head = f"## Switches: {result['task']}, last model on the validation rows, seeds {result['seeds']}"
    header = ["switched on", "accuracy [%]", "mean away, of the spread", "loss", "mean away, of the spread", "within"]
    return head + "\n\n" + _table(header, rows)


def _growth(result: dict[str, list[dict[str, Any]]]) -> str:
    rows = [[name, f"B {p['B']}, L {p['L']}, {p['M']} x {p['N']}",
             *(_spread(p["seconds"][side], 1e3, 0) for side in ("bert-emd", "plain loops")),
             f"{p['seconds']['plain loops']['median'] / p['seconds']['bert-emd']['median']:.1f}"]
            for name, points in result.items() for p in points]  # fmt: skip
    return "## Distances, forward and backward: median milliseconds (growth.png)\n\n" + _table(
        ["growing", "size", "bert-emd", "plain loops", "times as fast"], rows
    )
