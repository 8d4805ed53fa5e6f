"""From finished studies to the data beside the pages: every seed's numbers, with words in place of paths."""

from __future__ import annotations

import csv
import io
import itertools
import json
import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bert_emd.studies.compare.methods import parse_method

__all__ = ["collect", "order_of", "specification", "stored"]

_PATH = re.compile(r"(?:^|[=,\s\"'])(/[^\s=,\"']+)")
_PLACES = {"--output_dir": "OUT", "--model_name_or_path": "ENCODER", "--data_dir": "GLUE", "--teacher_model": "TEACHER"}
_WITH_PATHS = ("command", "folder", "start", "best_settings", "commands")
_KEPT = ("task", "layers", "method", "start", "seed", "metric", "last", "best", "teacher", "trivial", "scores",
         "reported_on", "optimistic", "selection", "best_step", "last_step", "train_seconds", "wall_seconds",
         "attempts", "versions", "command")  # fmt: skip
_VERSIONS = ("bert-emd", "torch", "transformers")
# What may differ between runs of one table: the axes, where things lie, and what has no say in the numbers.
_MAY_DIFFER = frozenset({
    "--seed", "--output_dir", "--teacher_model", "--student_layers", "--mapping", "--student_from",
    "--pretrained_model", "--data_dir", "--cache_teacher", "--teacher_cache_dir", "--cache_dir", "--no_cuda",
    "--eval_batch_size",
})  # fmt: skip


def specification(root: Path, name: str) -> dict[str, Any]:
    """What a study is meant to hold.

    Raises:
        SystemExit: there is no such study.
    """
    studies = json.loads((root / "studies.json").read_text(encoding="utf-8"))
    if name not in studies:
        raise SystemExit(f"error: studies.json has no study {name}; it has {', '.join(studies)}")
    found: dict[str, Any] = studies[name]
    return found


def stored(root: Path, name: str) -> dict[str, Any]:
    """What was collected so far."""
    path = root / "data" / f"{name}.json"
    empty: dict[str, Any] = {"commands": [], "tasks": [], "teachers": [], "cells": [], "searches": []}
    return empty | (json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {})


def collect(root: Path, name: str, folders: Sequence[Path], replace: Mapping[str, str]) -> None:
    """Add what is done in the folders to a study's data; a newer run of a cell takes the older one's place.

    Raises:
        SystemExit: a folder without results, or one that holds other cells than the study has.
    """
    wanted, data = specification(root, name), stored(root, name)
    for folder in folders:
        if (folder / "comparison.json").is_file():
            study = json.loads((folder / "comparison.json").read_text(encoding="utf-8"))
            _add_comparison(data, study, wanted, replace, folder)
        elif (folder / "trials.json").is_file():
            _add_search(data, folder, replace)
        else:
            raise SystemExit(f"error: {folder} has no comparison.json and no trials.json")
    order = order_of(wanted)
    data["cells"].sort(key=lambda cell: [order[part].index(cell[part]) for part in order])
    _refuse_mixtures(data["cells"])
    _refuse_paths(data)
    (root / "data").mkdir(exist_ok=True)
    (root / "data" / f"{name}.json").write_text(json.dumps(data, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    if data["cells"]:
        (root / "data" / f"{name}.csv").write_text(_as_csv(data["cells"]), encoding="utf-8")


def order_of(wanted: Mapping[str, Any]) -> dict[str, list[Any]]:
    """The values of a study's axes, in the order of its tables."""
    return {"task": list(wanted.get("tasks", {})), "layers": wanted.get("layers", []),
            "method": wanted.get("methods", []), "seed": wanted.get("seeds", [])}  # fmt: skip


def _add_comparison(
    data: dict[str, Any], study: dict[str, Any], wanted: Mapping[str, Any], replace: Mapping[str, str], folder: Path
) -> None:
    study = _replaced(study, _known(shlex.split(study["command"]), folder) | dict(replace))
    names = {title: own.get("title", title) for title, own in wanted.get("tasks", {}).items()}
    shown = {}
    for title, task in names.items():
        options = wanted["tasks"][title].get("options", {})
        if options.items() <= {"--data_dir": _flag(study["command"], "--data_dir")}.items():
            shown[task] = title
    order = order_of(wanted)
    for cell in study["cells"]:
        cell["task"] = shown.get(cell["task"], cell["task"])
        if cell["state"] != "done":
            continue
        if odd := [part for part, values in order.items() if cell[part] not in values]:
            raise SystemExit(f"error: {folder} has a run of {odd[0]} {cell[odd[0]]}, which the study does not have")
        data["cells"] = [old for old in data["cells"] if any(old[part] != cell[part] for part in order)]
        kept = {key: cell[key] for key in _KEPT if key in cell}
        kept["versions"] = {name: kept["versions"][name] for name in _VERSIONS if name in kept["versions"]}
        data["cells"].append({"state": "done", **kept})
    for part in ("tasks", "teachers"):
        for entry in study[part]:
            entry["task"] = shown.get(entry["task"], entry["task"])
            entry.pop("folder", None)
            # One that was fine-tuned in the study is known better than the same one taken ready later.
            known = next((old for old in data[part] if old["task"] == entry["task"]), {})
            if part == "tasks" or ("best" in entry and (not entry["ready"] or known.get("ready", True))):
                data[part] = [old for old in data[part] if old["task"] != entry["task"]] + [entry]
    if study["command"] not in data["commands"]:
        data["commands"].append(study["command"])


def _add_search(data: dict[str, Any], folder: Path, replace: Mapping[str, str]) -> None:
    search = json.loads((folder / "trials.json").read_text(encoding="utf-8"))
    record = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    line = record.get("command_line") or []
    words = ["bert-emd", *line[1:]] if line else []
    search["command"] = shlex.join(words)
    search["versions"] = {name: record["versions"][name] for name in _VERSIONS if name in record["versions"]}
    best = folder / "best.yaml"
    if best.is_file():
        kept = [line for line in best.read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
        search["best_settings"] = [line for line in kept if not line.endswith(": null")]
    search = _replaced(search, _known(words, folder) | dict(replace))
    data["searches"] = [old for old in data["searches"] if old["command"] != search["command"]] + [search]


def _flag(command: str, name: str) -> str | None:
    words = shlex.split(command)
    return words[words.index(name) + 1] if name in words else None


def _known(words: Sequence[str], folder: Path) -> dict[str, str]:
    """The paths that a command's own flags name, each with the word for it; others are told with ``--replace``."""
    found = {str(folder): "OUT"}
    for flag, value in itertools.pairwise(words):
        if flag not in _PLACES:
            continue
        for part in value.split(",") if flag == "--teacher_model" else [value]:
            path = part.rpartition("=")[2]
            found |= {path: _PLACES[flag], str(Path(path).resolve()): _PLACES[flag]}
    return found


def _replaced(value: Any, words: Mapping[str, str], key: str = "") -> Any:
    """The same with each path, as a whole or the beginning of a longer one, as its word; the longest first."""
    if isinstance(value, dict):
        return {name: _replaced(part, words, name) for name, part in value.items()}
    if isinstance(value, list):
        return [_replaced(part, words, key) for part in value]
    if isinstance(value, str) and key in _WITH_PATHS:
        for path, word in sorted(words.items(), key=lambda pair: -len(pair[0])):
            value = re.sub(rf"(?<![\w./-]){re.escape(path.rstrip('/'))}(?![\w.-])", word, value)
    return value


def _refuse_mixtures(cells: Sequence[Mapping[str, Any]]) -> None:
    """Refuse runs in one table that cannot be compared: of another teacher, other rows or other common options."""
    for task in dict.fromkeys(cell["task"] for cell in cells):
        own = [cell for cell in cells if cell["task"] == task]
        for what, key in (
            ("teacher", lambda cell: round(cell["teacher"], 4)),
            ("rows that choose", lambda cell: (cell["selection"]["sha256"], cell["optimistic"])),
            ("common options", _common),
        ):
            first = next((key(cell) for cell in own if key(cell) is not None), None)
            for cell in own:
                if key(cell) not in (None, first):
                    name = f"{cell['method']}, {cell['layers']} layers, seed {cell['seed']}"
                    raise SystemExit(f"error: {task}: the run of {name} has other {what}: {key(cell)}, not {first}")


def _common(cell: Mapping[str, Any]) -> tuple[tuple[str, str], ...] | None:
    """The options that a run shares with all others of its table; None where it has settings of its own."""
    method = parse_method(cell["method"])
    if method.preset is not None:
        return None
    words = shlex.split(cell["command"])[2:]
    pairs = zip(words[::2], words[1::2], strict=True)
    return tuple(sorted(p for p in pairs if p[0] not in _MAY_DIFFER and p[0].lstrip("-") not in method.options))


def _refuse_paths(value: Any) -> None:
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        for part in value:
            _refuse_paths(part)
    elif isinstance(value, str) and (found := _PATH.search(value)):
        raise SystemExit(f"error: the path {found[1]} would be published; give it a word: --replace {found[1]}=WORD")


def _as_csv(cells: Sequence[Mapping[str, Any]]) -> str:
    """One line a run: every seed's scores as fractions."""
    stream = io.StringIO(newline="")
    names = (
        "task",
        "layers",
        "method",
        "start",
        "seed",
        "metric",
        "last",
        "best",
        "teacher",
        "trivial",
        "wall_seconds",
    )
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(names)
    writer.writerows([cell.get(name) for name in names] for cell in cells)
    return stream.getvalue()
