"""Make the tables of these pages from finished studies, and keep every seed's numbers beside them.

    python docs/results/pages.py collect NAME FOLDER [FOLDER ...] [--replace TEXT=WORD ...]
    python docs/results/pages.py write
    python docs/results/pages.py check

`collect` reads what `bert-emd compare` (comparison.json) or `bert-emd sweep` (trials.json) left in the folders, so far
as it is done, and adds it to ``data/NAME.json`` and ``data/NAME.csv``; NAME is one of studies.json. Paths become words:
``--replace /home/me/glue=GLUE``. `write` fills what stands between ``<!-- study NAME -->`` and ``<!-- end -->`` in each
page, and draws ``data/NAME.png``. A cell that was not run stays blank, and the commands that fill it stand below the
table. `check` writes nothing, and fails where a page is not what `write` would make of the data.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from collecting import collect, order_of, specification, stored

from bert_emd.studies.compare.methods import parse_method
from bert_emd.studies.compare.plot import draw
from bert_emd.studies.compare.render import table_markdown, table_title
from bert_emd.studies.compare.tables import build_tables

HERE = Path(__file__).resolve().parent
BLOCK = re.compile(r"(<!-- study ([\w-]+) -->\n).*?(<!-- end -->)", re.DOTALL)
AXES = ("--methods", "--seeds", "--task_name", "--student_layers")


def block(root: Path, name: str) -> str:
    """What stands between a study's marks."""
    wanted, data = specification(root, name), stored(root, name)
    lines: list[str] = []
    if wanted.get("methods"):
        lines += _tables(wanted, data, name)
    if wanted.get("search"):
        lines += _searches(wanted, data)
    return "\n" + "\n".join(lines).rstrip() + "\n\n"


def whole(wanted: Mapping[str, Any], data: Mapping[str, Any]) -> dict[str, Any]:
    """The study with all of its cells, those that were not run too, in the form of comparison.json."""
    done = {tuple(cell[part] for part in order_of(wanted)): cell for cell in data["cells"]}
    cells = []
    for task in wanted["tasks"]:
        for layers in wanted["layers"]:
            for method in wanted["methods"]:
                if layers not in wanted.get("depths", {}).get(method, wanted["layers"]):
                    continue  # it cannot be defined for this depth
                for seed in wanted["seeds"]:
                    own = parse_method(method)
                    blank = {"task": task, "layers": layers, "method": method, "seed": seed, "state": "new",
                             "start": own.start or wanted.get("student_from", "teacher")}  # fmt: skip
                    cells.append(done.get((task, layers, method, seed), blank))
    teachers = {entry["task"]: entry for entry in data["teachers"]}
    metrics = {entry["task"]: entry["metric"] for entry in data["tasks"]}
    tables = [table for table in build_tables(cells) if table["task"] is not None]
    # The mean over tasks is taken over those that are named for it, so that one that was not run does not blank it.
    over = [cell for cell in cells if cell["task"] in wanted.get("over", ())]
    if len(wanted.get("over", ())) > 1:
        tables += [table for table in build_tables(over) if table["task"] is None]
    return {
        "seeds": wanted["seeds"],
        "cells": cells,
        "tables": tables,
        "tasks": [{"task": task, "metric": metrics.get(task, own["metric"])} for task, own in wanted["tasks"].items()],
        "teachers": [teachers.get(task, {"task": task, "ready": False, "seed": 42}) for task in wanted["tasks"]],
    }


def _tables(wanted: Mapping[str, Any], data: Mapping[str, Any], name: str) -> list[str]:
    study = whole(wanted, data)
    metrics = {task["task"]: task["metric"] for task in study["tasks"]}
    lines = []
    for table in study["tables"]:
        own = [cell for cell in study["cells"] if (cell["task"], cell["layers"]) == (table["task"], table["layers"])]
        lines += [f"### {table_title(table, metrics)}", ""]
        part = [*table_markdown(table, study), ""]
        if commands := missing(wanted, own, data["commands"]):
            part += ["Not run; the cells stay blank until these commands are:", "", "```bash", *commands, "```", ""]
        if not any(row["by_seed"]["last"] for row in table["rows"]):
            why = "Not run yet" if table["task"] is not None else "Not run on every task yet"
            part = [f"<details><summary>{why}: the blank table</summary>", "", *part, "</details>", ""]
        lines += part
    if any(cell["state"] == "done" for cell in study["cells"]):
        lines += [f"![every seed of each method](data/{name}.png)", ""]
        lines += [
            f"Every seed's numbers: [data/{name}.csv](data/{name}.csv), with all else that is known of each run in "
            f"[data/{name}.json](data/{name}.json). Made by:",
        ]
        lines += ["", "```bash", *data["commands"], "```"]
    return lines


def missing(wanted: Mapping[str, Any], cells: Sequence[Mapping[str, Any]], made_by: Sequence[str]) -> list[str]:
    """Commands that run the cells of one table that are not there: one for each set of seeds.

    Their other options are those of the command that made the task's other cells, else the study's.
    """
    by_method: dict[str, tuple[int, ...]] = {}
    for cell in cells:
        if cell["state"] != "done":
            by_method[cell["method"]] = (*by_method.get(cell["method"], ()), cell["seed"])
    lines = []
    for seeds in dict.fromkeys(by_method.values()):
        methods = [method for method, own in by_method.items() if own == seeds]
        task = wanted["tasks"][cells[0]["task"]]
        words = dict(zip(AXES, (_listed(methods), _listed(seeds), task.get("title", cells[0]["task"]),
                                str(cells[0]["layers"])), strict=True))  # fmt: skip
        words |= task.get("options", {})
        base = shlex.split(next((made for made in made_by if words["--task_name"] in _tasks(made)), wanted["command"]))
        for flag, value in words.items():
            if flag in base:
                base[base.index(flag) + 1] = value
            else:
                base += [flag, value]
        lines.append(shlex.join(base))
    return lines


def _tasks(command: str) -> list[str]:
    words = shlex.split(command)
    return words[words.index("--task_name") + 1].split(",") if "--task_name" in words else []


def _listed(values: Sequence[Any]) -> str:
    stream = io.StringIO()
    csv.writer(stream, lineterminator="").writerow(values)
    return stream.getvalue()


def _searches(wanted: Mapping[str, Any], data: Mapping[str, Any]) -> list[str]:
    if not data["searches"]:
        return ["Not run yet:", "", "```bash", wanted["search"], "```"]
    lines = []
    for search in data["searches"]:
        options, rows = list(search["space"]), search["trials"]
        counts = {state: sum(row["state"] == state for row in rows) for state in ("complete", "pruned", "failed")}
        lines += [
            f"{sum(counts.values())} of {search['planned']} trials on {search['task']}: {counts['complete']} finished, "
            f"{counts['pruned']} pruned, {counts['failed']} failed. Score: {search['metric']} of the "
            f"{search['objective']} student on {search['selected_on']}; as the highest of several it flatters.",
            "", _row(["trial", "state", f"{search['metric']}, per cent", *options, "minutes"]),
            _row(["---"] * (len(options) + 4)),
        ]  # fmt: skip
        shown = sorted(
            (row for row in rows if row["state"] in counts), key=lambda row: (-(row["score"] or -9), row["trial"])
        )
        for row in shown:
            score = "" if row["score"] is None else f"{100 * row['score']:.1f}"
            values = [_value(row["values"].get(option)) for option in options]
            minutes = "" if row["seconds"] is None else f"{row['seconds'] / 60:.1f}"
            best = "**" if row["trial"] == search["best_trial"] else ""
            lines.append(_row([str(row["trial"]), row["state"], f"{best}{score}{best}", *values, minutes]))
        if search["importances"]:
            parts = ", ".join(f"{option} {value:.2f}" for option, value in search["importances"].items())
            lines += ["", f"Part of the scores' variance that each option explains (fANOVA): {parts}."]
        lines += ["", "Made by:", "", "```bash", search["command"], "```", ""]
        if search.get("best_settings"):
            lines += ["The best trial's settings:", "", "```yaml", *search["best_settings"], "```", ""]
    return lines


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _value(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else "none" if value is None else str(value)


def pages(root: Path) -> dict[Path, str]:
    """Every page as it should be."""
    made = {}
    for page in sorted(root.glob("*.md")):
        text = page.read_text(encoding="utf-8")
        made[page] = BLOCK.sub(lambda found: f"{found[1]}{block(root, found[2])}{found[3]}", text)
    return made


def write(root: Path) -> None:
    """Fill every page and draw the figures."""
    for page, text in pages(root).items():
        page.write_text(text, encoding="utf-8")
    for name, wanted in json.loads((root / "studies.json").read_text(encoding="utf-8")).items():
        data = stored(root, name)
        if wanted.get("methods") and data["cells"]:
            study = whole(wanted, data)
            keep = [t for t in study["tables"] if any(row["by_seed"]["last"] for row in t["rows"])]
            figure = draw(study | {"tables": [_run_rows(table) for table in keep]}, "png")
            (root / "data" / f"{name}.png").write_bytes(figure["png"])


def _run_rows(table: dict[str, Any]) -> dict[str, Any]:
    return table | {"rows": [row for row in table["rows"] if row["by_seed"]["last"]] or table["rows"][:1]}


def check(root: Path) -> None:
    """Compare the pages with what the data make of them.

    Raises:
        SystemExit: one differs.
    """
    for page, text in pages(root).items():
        if page.read_text(encoding="utf-8") != text:
            raise SystemExit(f"error: {page.name} is not what the data make of it; run pages.py write")


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, default=HERE, help=argparse.SUPPRESS)
    commands = parser.add_subparsers(dest="command", required=True)
    adding = commands.add_parser("collect", help="add finished studies to the data")
    adding.add_argument("name", help="of the study, in studies.json")
    adding.add_argument("folders", nargs="+", type=Path, help="output folders of compare or sweep")
    adding.add_argument("--replace", action="append", default=[], metavar="PATH=WORD", help="what stands for a path")
    commands.add_parser("write", help="fill the pages")
    commands.add_parser("check", help="whether the pages are what the data make of them")
    given = parser.parse_args(arguments)
    if given.command == "collect":
        if bad := [pair for pair in given.replace if "=" not in pair]:
            parser.error(f"--replace {bad[0]} is not of the form PATH=WORD")
        collect(given.root, given.name, given.folders, dict(pair.split("=", 1) for pair in given.replace))
    elif given.command == "write":
        write(given.root)
    else:
        check(given.root)


if __name__ == "__main__":
    sys.exit(main())
