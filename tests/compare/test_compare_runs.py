"""Keeping, skipping, resuming, failing and stopping, with a stand-in for the runs themselves."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import compare_data
import pytest
from compare_data import FAKE, config
from matplotlib import image
from scipy import stats

from bert_emd import UserError, compare
from bert_emd.cli.main import main
from bert_emd.studies.compare import study as study_module

SCORES = {"none": 0.50, "kd": 0.55, "emd": 0.62}


def score(method: str, seed: int) -> float:
    """What the stand-in scores at its last step."""
    return SCORES[method] + 0.01 * seed * seed


def study(out: Path):
    return json.loads((out / "comparison.json").read_text(encoding="utf-8"))


def test_all_cells_are_run_once_and_the_tables_are_those_of_the_raw_numbers(data, tmp_path, calls):
    made = config(tmp_path / "out", data, methods=("none", "kd", "emd"), seeds=(1, 2, 4), task_name=("CoLA", "SST-2"),
                  jobs=3)  # fmt: skip
    result = compare(made, launcher=FAKE, command=["bert-emd", "compare", "--methods", "a b"])
    assert result.failures == []
    assert len(calls()) == len({c["out"] for c in calls()}) == 2 + 3 * 3 * 2
    found = study(tmp_path / "out")
    assert found["command"] == "bert-emd compare --methods 'a b'"
    assert [(t["task"], t["layers"]) for t in found["tables"]] == [("CoLA", 2), ("SST-2", 2), (None, 2)]
    for table in found["tables"]:
        for row in table["rows"]:
            # From the raw cells alone, by loops and SciPy.
            def raw(seed, method, table=table):
                own = (method, table["layers"], seed)
                cells = [c for c in found["cells"] if (c["method"], c["layers"], c["seed"]) == own]
                scores = [c["last"] for c in cells if table["task"] in (None, c["task"])]
                return sum(scores) / len(scores)

            mine = [raw(seed, row["method"]) for seed in (1, 2, 4)]
            assert mine == pytest.approx([score(row["method"], seed) for seed in (1, 2, 4)])
            assert row["last"]["mean"] == pytest.approx(sum(mine) / 3)
            for baseline in ("none", "kd"):
                if row["method"] == baseline:
                    assert row[f"minus_{baseline}"] is None
                    continue
                other = [raw(seed, baseline) for seed in (1, 2, 4)]
                half = stats.sem([a - b for a, b in zip(mine, other, strict=True)]) * stats.t.ppf(0.975, 2)
                difference = row[f"minus_{baseline}"]["last"]
                assert difference["mean"] == pytest.approx(sum(mine) / 3 - sum(other) / 3)
                assert difference["high"] - difference["low"] == pytest.approx(2 * half, abs=1e-12)
    text = (tmp_path / "out" / "comparison.md").read_text(encoding="utf-8")
    # The deviation of 1, 4 and 16 points is 7.94.
    assert "| `emd` | teacher | 69.0 ± 7.9 | +12.0 [+12.0, +12.0] | +7.0 [+7.0, +7.0] | 71.0" in text
    assert "| the trivial predictor |  | 0.0 |" in text
    assert "teacher's own variance is in neither" in text
    assert "6 rows (a tenth of the training data, held out) choose, scores are on validation" in text
    assert "Not there yet" not in text
    rows = list(csv.DictReader((tmp_path / "out" / "comparison.csv").open(encoding="utf-8")))
    assert len(rows) == 3 * 3
    assert float(rows[2]["last_minus_none"]) == pytest.approx(0.12)
    picture = image.imread(tmp_path / "out" / "comparison.png")
    assert picture.shape[0] > 300
    assert picture[..., :3].std() > 0.05
    assert not list((tmp_path / "out").glob("runs/**/checkpoint-*"))


def test_selection_and_optimism_are_labelled(data, tmp_path, calls):
    out = tmp_path / "dev"
    compare(config(out, data, select_on="dev"), launcher=FAKE)
    text = (out / "comparison.md").read_text(encoding="utf-8")
    assert "**Optimistic** (select_on dev): CoLA: 24 rows (validation) choose, scores are on validation" in text
    out = tmp_path / "ready"
    ready = {"teacher_model": (data["encoder"],), "model_name_or_path": None}
    compare(config(out, data, **ready), launcher=FAKE)
    text = (out / "comparison.md").read_text(encoding="utf-8")
    assert "Optimistic" not in text
    assert "CoLA: the ready teacher may have seen the rows that choose." in text
    assert "| the teacher (ready, may have seen the rows that chose) |  |  |  |  | 90.0 |" in text
    assert len(calls()) == 5 + 4


def test_a_rerun_skips_what_is_done_and_takes_more_seeds_and_methods(data, tmp_path, calls):
    out = tmp_path / "out"
    compare(config(out, data), launcher=FAKE)
    before = len(calls())
    assert before == 5
    compare(config(out, data), launcher=FAKE)
    assert len(calls()) == before
    compare(config(out, data, seeds=(1, 2, 3), methods=("none", "kd", "emd")), launcher=FAKE)
    assert len(calls()) == before + 5
    assert len(study(out)["cells"]) == 9


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"options": {"learning_rate": 1e-3}}, "learning_rate 0.00015465 there, 0.001 now"),
        ({"select_on": "dev"}, "select_on holdout there, dev now; other training rows"),
        ({"teacher_options": {"seed": 7}}, "seed 42 there, 7 now"),
    ],
)
def test_runs_with_other_settings_are_not_mixed(data, tmp_path, calls, changes, message):
    out = tmp_path / "out"
    compare(config(out, data), launcher=FAKE)
    table = (out / "comparison.md").read_text()
    with pytest.raises(UserError, match=message):
        compare(config(out, data, **changes), launcher=FAKE)
    assert len(calls()) == 5
    assert (out / "comparison.md").read_text() == table


def test_runs_of_a_version_that_lacked_an_option_are_kept(data, tmp_path, calls):
    out = tmp_path / "out"
    compare(config(out, data), launcher=FAKE)
    for path in out.glob("runs/**/kd-seed*.json"):
        record = json.loads(path.read_text())
        assert record["settings"].pop("reduce_T") == 1.0
        record["settings"]["use_emd"] = True  # recorded until the mapping said it
        record["settings"]["an_option_that_is_gone"] = 3
        path.write_text(json.dumps(record))
    compare(config(out, data), launcher=FAKE)
    assert len(calls()) == 5
    with pytest.raises(UserError, match="reduce_T 1 there, 2 now"):
        compare(config(out, data, options={"reduce_T": 2}), launcher=FAKE)


def test_other_data_or_another_teacher_are_not_mixed_either(data, tmp_path, calls):
    out, own = tmp_path / "out", tmp_path / "glue"
    compare_data.glue(own)
    data = data | {"glue": str(own)}
    compare(config(out, data), launcher=FAKE)
    weights = out / "runs" / "CoLA" / "teacher" / "model.safetensors"
    weights.write_bytes(b"others")
    with pytest.raises(UserError, match="another teacher"):
        compare(config(out, data), launcher=FAKE)
    weights.write_bytes(b"weights")
    path = own / "CoLA" / "dev.tsv"
    path.write_text(path.read_text().replace("\t0\t", "\t1\t", 1))
    with pytest.raises(UserError, match=r"other reported rows \(validation\)"):
        compare(config(out, data), launcher=FAKE)
    assert len(calls()) == 5


def test_the_starts_are_named_and_differences_are_to_the_same_one(data, tmp_path, calls):
    out = tmp_path / "out"
    compare(config(out, data, methods=("none", "kd", "emd"), seeds=(1, 2, 3), both_starts=True), launcher=FAKE)
    text = (out / "comparison.md").read_text(encoding="utf-8")
    assert "- The methods' common start (student_from teacher): layers of the fine-tuned teacher." in text
    assert "- `none` and `kd` are shown from both starts" in text
    lines = [line.split(" | ")[:2] for line in text.splitlines() if line.startswith("| `")]
    assert lines == [
        ["| `none`", "teacher"], ["| `none@pretrained`", "pretrained"], ["| `kd`", "teacher"],
        ["| `kd@pretrained`", "pretrained"], ["| `emd`", "teacher"],
    ]  # fmt: skip
    against = {
        row["method"]: row["minus_none"] and row["minus_none"]["against"] for row in study(out)["tables"][0]["rows"]
    }
    assert against == {
        "none": None, "none@pretrained": None, "kd": "none", "kd@pretrained": "none@pretrained", "emd": "none",
    }  # fmt: skip


def test_a_failed_run_loses_nothing_else_and_is_tried_again(data, tmp_path, calls, monkeypatch):
    out = tmp_path / "out"
    monkeypatch.setenv("FAKE_FAIL", "kd-seed2")
    made = config(out, data, methods=("none", "kd", "emd"))
    result = compare(made, launcher=FAKE)
    assert [(f.run.method.spec, f.run.seed, f.status) for f in result.failures] == [("kd", 2, 2)]
    assert sum(cell["state"] == "done" for cell in study(out)["cells"]) == 5
    text = (out / "comparison.md").read_text(encoding="utf-8")
    assert "kd, CoLA, seed 2: there is no room on the disk" in text
    row = next(line for line in text.splitlines() if line.startswith("| `kd`"))
    assert "56.0 (1 of 2 seeds)" in row
    assert "56.0, failed" in row
    command = next(line for line in text.splitlines() if line.startswith("bert-emd distill"))
    assert "--mapping kd" in command
    assert "--seed 2" in command
    monkeypatch.delenv("FAKE_FAIL")
    assert compare(made, launcher=FAKE).failures == []
    assert "Failed" not in (out / "comparison.md").read_text(encoding="utf-8")
    assert len(calls()) == 7 + 1


def test_without_their_teacher_students_are_left_out(data, tmp_path, calls, monkeypatch):
    monkeypatch.setenv("FAKE_FAIL", "CoLA/teacher")
    out = tmp_path / "out"
    result = compare(config(out, data, task_name=("CoLA", "SST-2")), launcher=FAKE)
    assert [f.run.title for f in result.failures] == ["CoLA: the teacher, seed 42"]
    assert {c["task"] for c in study(out)["cells"] if c["state"] == "done"} == {"SST-2"}
    text = (out / "comparison.md").read_text(encoding="utf-8")
    assert "- teacher, CoLA, seed 42: there is no room on the disk" in text
    assert "bert-emd finetune" in text
    row = next(line for line in text.splitlines() if line.startswith("| `none`"))
    assert row.split("|")[3].strip() == ""  # nothing of CoLA is there, and its cell is blank


_SCRIPT = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a suite in the background ignores Ctrl-C
sys.path.insert(0, {folder!r})
from compare_data import FAKE
from bert_emd.studies.compare import study
from bert_emd.cli.main import main
original = study.compare
study.compare = lambda config, **more: original(config, launcher=FAKE, **more)
sys.exit(main(sys.argv[1:]))
"""


def arguments(data, out: Path) -> list[str]:
    return ["compare", "--methods", "none,kd", "--seeds", "1,2", "--task_name", "CoLA", "--student_layers", "2",
            "--model_name_or_path", data["encoder"], "--data_dir", data["glue"], "--no_cuda", "--jobs", "2",
            "--no-both_starts", "--output_dir", str(out)]  # fmt: skip


def start(data, out: Path, **environment: str) -> subprocess.Popen[str]:
    code = _SCRIPT.format(folder=str(Path(__file__).parent))
    paths = os.pathsep.join([str(Path(__file__).parents[1]), *sys.path])
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments(data, out)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env=os.environ | {"PYTHONPATH": paths} | environment,
    )  # fmt: skip


def states(out: Path) -> dict[tuple[str, int], str]:
    return {(cell["method"], cell["seed"]): cell["state"] for cell in study(out)["cells"]}


def wait_for(condition) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline, "it did not come to that"
        time.sleep(0.1)


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_stopped_in_the_middle_and_started_again(data, tmp_path, calls, caplog, how):
    out = tmp_path / "out"
    process = start(data, out, FAKE_HANG="kd-seed1")
    hung = out / "runs" / "CoLA" / "2-layers" / "kd-seed1"
    log = hung.with_name("kd-seed1.log")
    wait_for(lambda: log.is_file() and "3/10" in log.read_text() and states(out)["none", 1] == "done")
    process.send_signal(how)
    _, err = process.communicate(timeout=120)
    if how == signal.SIGINT:
        assert process.returncode == 130
        assert err.splitlines()[-1].startswith("interrupted; what is done is kept in")
        assert "the same command again goes on from there" in err
        assert "interrupted" in log.read_text()
    # The tables are there as far as the runs came.
    assert states(out)["none", 1] == "done"
    before = [c["out"] for c in calls()]
    with caplog.at_level("INFO", "bert_emd"):
        assert compare(config(out, data, jobs=2), launcher=FAKE).failures == []
    later = calls()[len(before) :]
    assert [c["resumed"] for c in later if c["out"] == str(hung)] == [True]
    assert str(out / "runs" / "CoLA" / "2-layers" / "none-seed1") not in [c["out"] for c in later]
    assert "CoLA, 2 layers, kd, seed 1: goes on from its checkpoint" in caplog.text
    assert "1 of the runs were interrupted and went on" in (out / "comparison.md").read_text(encoding="utf-8")
    assert all(c["state"] == "done" for c in study(out)["cells"])


@pytest.mark.parametrize(
    ("word", "status", "line"),
    [
        ("kd-seed2", 1, "error: 1 runs failed, the first of them CoLA, 2 layers, kd, seed 2: there is no room"),
        ("teacher", 2, "error: no run could be made; CoLA: the teacher, seed 42: there is no room on the disk"),
        ("nothing", 0, ""),
    ],
)  # fmt: skip
def test_the_exit_status_tells_some_from_all(data, tmp_path, calls, monkeypatch, capsys, word, status, line):
    monkeypatch.setattr(study_module, "compare", partial(compare, launcher=FAKE))
    monkeypatch.setenv("FAKE_FAIL", word)
    assert main(arguments(data, tmp_path / "out")) == status
    captured = capsys.readouterr()
    assert captured.err[: len(line)] == line
    assert bool(captured.err) is bool(status)
    if status != 2:
        assert "CoLA, 2 layers: matthews_correlation" in captured.out
        assert "[5/5] CoLA, 2 layers, kd, seed 2" in captured.out


@pytest.mark.parametrize("before", ["", "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN); "])
def test_a_run_ends_with_the_comparison_that_started_it(before):
    """Also where Ctrl-C is ignored, as in what a shell starts in the background."""
    code = "import time; from bert_emd.cli.child import follow_parent; follow_parent(); time.sleep(600)"
    process = subprocess.Popen(
        [sys.executable, "-c", before + code], stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    _, err = process.communicate(timeout=120)  # closes its standard input
    assert "KeyboardInterrupt" in err
    assert process.returncode in (130, -signal.SIGINT)


def test_two_comparisons_in_one_folder_exclude_each_other(tmp_path, monkeypatch):
    from bert_emd.studies.compare import work

    monkeypatch.setattr(work, "_LOCK_PATIENCE", 0.0)
    with work.locked(tmp_path), pytest.raises(UserError, match="another comparison is at work"), work.locked(tmp_path):
        pass
    with work.locked(tmp_path):
        pass
