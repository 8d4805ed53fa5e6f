"""``bert-emd download`` as it is typed: what it prints, its exit status, and what is left."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
import threading
import time

import huggingface_hub
import pytest
from file_server import Answer, broken_after
from glue_files import archive_of, files_of, task_files
from hub_server import Hub

from bert_emd.cli import download_config
from bert_emd.cli.main import main
from bert_emd.data.download import GLUE
from bert_emd.transfer import Retry

PATH = {bundle.name: bundle.remotes[0].path for bundle in GLUE}


@pytest.fixture
def command(tmp_path, monkeypatch, capsys, server, waits):
    """Runs the command in an empty folder and returns its exit status and what it printed."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(download_config, "Retry", functools.partial(Retry, sleep=waits.append))

    def run(*words, mirror=True):
        place = ["--mirror", server.url] if mirror else []
        status = main(["download", *words, *place])
        return (status, *capsys.readouterr())

    return run


def test_tasks_are_announced_fetched_and_then_kept(command, server, tmp_path):
    for task in ("WNLI", "RTE"):
        server.put(PATH[task], archive_of(task))
    status, out, err = command("--tasks", "wnli,rte", "--no_checksums")
    assert (status, err) == (0, "")
    lines = [line.split() for line in out.splitlines()]
    assert ["WNLI", "glue_data/WNLI", "29.0", "kB", "fetch"] in lines
    assert ["RTE", "glue_data/RTE", "697.1", "kB", "fetch"] in lines
    assert "to fetch in all: 726.1 kB" in out
    assert "WNLI: 3 files in glue_data/WNLI" in out
    assert "--task_name RTE --data_dir glue_data" in out
    assert files_of(tmp_path / "glue_data" / "WNLI") == dict(sorted(task_files("WNLI").items()))
    assert sorted(path.name for path in (tmp_path / "glue_data").iterdir()) == ["RTE", "WNLI"]
    server.requests.clear()
    status, out, _ = command("--tasks", "WNLI,RTE", "--no_checksums")
    assert (status, server.requests) == (0, [])
    assert out.count("there already and whole: kept") == 2


def test_the_genuine_diagnostic_set_with_its_genuine_checksum(command, server, real_data, tmp_path):
    content = (real_data / "glue" / "diagnostic" / "diagnostic.tsv").read_bytes()
    server.put(PATH["AX"], content)
    status, out, _ = command("--tasks", "diagnostic", "--data_dir", "g")
    assert status == 0
    assert "AX: 1 file with the published checksums in g/diagnostic" in out
    assert files_of(tmp_path / "g" / "diagnostic") == {"diagnostic.tsv": content}


def test_a_file_with_other_bytes_ends_in_one_line(command, server, tmp_path):
    server.put(PATH["AX"], bytes(222_257))
    status, _, err = command("--tasks", "AX")
    assert status == 2
    assert err.count("\n") == 1
    assert err.startswith("error: AX.tsv from http://127.0.0.1")
    assert not (tmp_path / "glue_data").exists()


def test_a_damaged_task_is_refused_and_replaced_by_a_flag(command, server, real_data, tmp_path):
    content = (real_data / "glue" / "diagnostic" / "diagnostic.tsv").read_bytes()
    server.put(PATH["AX"], content)
    path = tmp_path / "glue_data" / "diagnostic" / "diagnostic.tsv"
    path.parent.mkdir(parents=True)
    path.write_bytes(content[:-1])
    status, _, err = command("--tasks", "AX")
    assert (status, path.read_bytes()) == (2, content[:-1])
    assert "--overwrite replaces them" in err
    status, out, _ = command("--tasks", "AX", "--overwrite")
    assert (status, path.read_bytes()) == (0, content)
    assert "replace diagnostic.tsv" in out


def test_an_interrupted_command_goes_on_where_it_stopped(command, server, tmp_path):
    archive = archive_of("STS-B", **{"original/big.txt": os.urandom(1_000_000)})
    hold = threading.Event()
    server.put(PATH["STS-B"], archive, broken_after(400_000, archive, hold=hold))
    words = ("--tasks", "STS-B", "--no_checksums")
    # `child` takes a Ctrl-C also where the suite runs in the background: its standard input is closed.
    run = subprocess.Popen(
        [sys.executable, "-m", "bert_emd.cli.child", "download", *words, "--mirror", server.url], cwd=tmp_path,
        text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    part = tmp_path / "glue_data" / ".downloads" / "STS-B.zip.part"
    until = time.monotonic() + 240
    while not (part.exists() and part.stat().st_size == 400_000) and time.monotonic() < until:
        time.sleep(0.02)
    # Meanwhile no other one works there.
    status, _, err = command(*words)
    assert (status, err.count("\n")) == (2, 1)
    assert "another download is at work in glue_data" in err
    _, err = run.communicate(timeout=240)
    hold.set()
    assert run.returncode == 130
    assert err == "interrupted; what came so far is kept, and the same command goes on from there\n"
    assert not (tmp_path / "glue_data" / "STS-B").exists()
    server.requests.clear()
    status, _, err = command(*words)
    assert (status, err) == (0, "")
    assert server.sent() == len(archive) - 400_000
    assert sorted(files_of(tmp_path / "glue_data" / "STS-B")) == ["dev.tsv", "test.tsv", "train.tsv"]


def test_models_by_hf_endpoint(command, server, tmp_path, monkeypatch):
    # What HF_ENDPOINT sets when Python starts.
    constants = huggingface_hub.constants
    monkeypatch.setattr(constants, "ENDPOINT", server.url)
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", server.url + "/{repo_id}/resolve/{revision}/{filename}"
    )
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    Hub(server).put("google-bert/bert-base-uncased", {"config.json": b"{}", "model.safetensors": b"12345"})
    status, out, err = command("--models", "bert-base-uncased", mirror=False)
    assert (status, err) == (0, "")
    assert "fetch 2 files of aaaa" in out
    assert files_of(tmp_path / "models" / "bert-base-uncased")["model.safetensors"] == b"12345"
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    status, _, err = command("--models", "tinybert-4", mirror=False)
    assert (status, err.count("\n")) == (2, 1)
    assert "HF_HUB_OFFLINE" in err


def test_models_and_a_checkpoint_from_a_folder(command, tmp_path, monkeypatch):
    source = tmp_path / "mirror" / "small"
    source.mkdir(parents=True)
    (source / "config.json").write_text("{}")
    (source / "pytorch_model.bin").write_bytes(b"x" * 2000)
    status, out, err = command("--models", "owner/small", "--mirror", str(tmp_path / "mirror"), mirror=False)
    assert (status, err) == (0, "")
    assert "bert-emd convert` makes them of its pytorch_model.bin" in out
    assert (tmp_path / "models" / "small" / "pytorch_model.bin").exists()
    status, _, err = command("--models", "cased_L-12_H-768_A-12", "--mirror", str(tmp_path / "mirror"), mirror=False)
    assert status == 2
    assert "cased_L-12_H-768_A-12.zip is not at" in err


def test_one_model_that_fails_leaves_the_others_and_the_tasks(command, server, tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    hub = Hub(server)
    files = {"config.json": b"{}", "model.safetensors": b"12345"}
    for name in ("owner/broken", "owner/good", "owner/last"):
        hub.put(name, files)
    server.put(hub.path("owner/broken", "model.safetensors"), b"other")
    (tmp_path / "models" / "taken").mkdir(parents=True)
    (tmp_path / "models" / "taken" / "mine.txt").write_text("mine")
    server.put(PATH["WNLI"], archive_of("WNLI"))
    names = ("owner/gone", "owner/broken", "owner/good", "owner/taken", "cased_L-12_H-768_A-12", "owner/last")
    status, out, err = command("--tasks", "RTE,WNLI", "--no_checksums", "--models", ",".join(names))
    assert (status, err.count("\n")) == (2, 1)
    for said in ("has no model owner/gone", "RTE.zip is not at", "models/taken is there already", "model.safetensors"):
        assert said in err
    failed = ("owner/gone", "owner/broken", "owner/taken", "cased_L-12_H-768_A-12", "RTE")
    assert [f"note: {name} failed, the others are fetched all the same: " in out for name in failed] == [True] * 5
    assert files_of(tmp_path / "models" / "good")["model.safetensors"] == b"12345"
    assert sorted(path.name for path in (tmp_path / "models").glob("[a-z]*")) == ["good", "last", "taken"]
    assert files_of(tmp_path / "models" / "taken") == {"mine.txt": b"mine"}
    assert (tmp_path / "glue_data" / "WNLI" / "train.tsv").is_file()


def test_two_models_never_share_a_folder(command, server, tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    for owner in ("one", "other"):
        Hub(server).put(f"{owner}/small", {"config.json": b"{}", "model.safetensors": owner.encode()})
    status, _, err = command("--models", "one/small,other/small")
    assert (status, err.count("\n")) == (2, 1)
    assert "other/small has the same folder as another model, models/small" in err
    assert files_of(tmp_path / "models" / "small")["model.safetensors"] == b"one"
    assert '"id": "one/small"' in (tmp_path / "models" / "small" / "download.json").read_text()


def test_a_hub_out_of_reach_is_waited_for_once(command, server, waits, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    server.close()
    status, _, err = command("--models", "a/b,c/d,e/f", "--retries", "3")
    assert (status, err.count("\n")) == (2, 1)
    assert err.startswith("error: a/b, c/d, e/f could not be had: ")
    assert len(waits) == 2


def test_it_starts_and_runs_without_the_libraries_of_training(tmp_path):
    model = tmp_path / "mirror" / "small"
    model.mkdir(parents=True)
    (model / "config.json").write_text("{}")
    (model / "model.safetensors").write_bytes(b"12345")
    (tmp_path / "mirror" / "WNLI.zip").write_bytes(archive_of("WNLI"))
    words = ["download", "--tasks", "WNLI", "--no_checksums", "--models", "owner/small", "--mirror", "mirror"]
    code = f"import sys; from bert_emd.cli.main import main; print('status', main({words})); print(*sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    *_, status, modules = run.stdout.splitlines()
    assert status == "status 0"
    heavy = {"torch", "transformers", "datasets", "ot", "scipy", "sklearn", "pandas", "pyarrow", "tensorflow"}
    assert heavy & set(modules.split()) == set()


def test_the_size_of_a_checkpoint_is_what_the_server_says(command, server):
    server.put("cased_L-12_H-768_A-12.zip", bytes(50_000))
    status, out, err = command("--models", "cased_L-12_H-768_A-12")
    assert "50.0 kB" in out
    assert (status, err.count("\n")) == (2, 1)
    assert "neither a zip nor a tar" in err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "nothing to fetch; name tasks of GLUE with --tasks"),
        (["--tasks", "MRCP"], "did you mean MRPC"),
        (["--tasks", "WNLI,,RTE"], "--tasks must be names separated by commas"),
        (["--tasks", "SNLI"], "unknown task 'SNLI'"),
        (["--tasks", "WNLI", "--retries", "0"], "retries must be at least 1"),
        (["--tasks", "WNLI", "--model_dir", "m"], "model_dir is for models"),
        (["--models", "x/y", "--path_to_mrpc", "m"], "path_to_mrpc is for the task MRPC"),
        (["--tasks", "MRPC", "--path_to_mrpc", "nowhere"], "has no msr_paraphrase_train.txt"),
        (["--tasks", "WNLI", "--mirror", "nowhere"], "is no folder; give an address"),
        (["--tasks", "WNLI", "--taks", "x"], "did you mean --tasks?"),
        (["--tasks", "WNLI", "--output_dir", "x"], "--output_dir"),
    ],
)
def test_mistakes_are_told_in_one_line(command, tmp_path, words, said):
    status, _, err = command(*words, mirror=False)
    assert (status, err.count("\n")) == (2, 1)
    assert said in err
    assert list(tmp_path.iterdir()) == []


def test_a_config_file_and_passwords(command, server, tmp_path):
    server.put(PATH["WNLI"], archive_of("WNLI"))
    mirror = server.url.replace("//", "//me:s3cret@")
    (tmp_path / "run.yaml").write_text(f"tasks: [WNLI]\nmirror: {mirror}\nchecksums: false\n")
    status, out, err = command("--config", "run.yaml", mirror=False)
    assert (status, err) == (0, "")
    assert "s3cret" not in out
    (tmp_path / "run.yaml").write_text("tasks: [WNLI]\nmirrors: x\n")
    status, _, err = command("--config", "run.yaml", mirror=False)
    assert "did you mean mirror?" in err


def test_a_broken_transfer_is_noted(command, server, waits):
    archive = archive_of("WNLI")
    server.put(PATH["WNLI"], archive, broken_after(300, archive), Answer(status=503, tag=None))
    status, out, _ = command("--tasks", "WNLI", "--no_checksums")
    assert status == 0
    assert "note: WNLI.zip: the connection broke after 300 bytes; trying again" in out
    assert "note: WNLI.zip: the server answers 503 Service Unavailable; trying again" in out
    assert len(waits) == 2


def test_bars_on_a_terminal(monkeypatch, capsys):
    from bert_emd.cli.bars import Bars

    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setenv("FORCE_COLOR", "1")
    bars = Bars()
    bars.begin("x [bold].zip", None, 250_000)
    bars.moved(500_000, 1_000_000)
    bars.note("a [note]")
    bars.end()
    shown = capsys.readouterr().err
    assert "x [bold].zip" in shown
    assert "0.5/1.0 MB" in shown
    assert "note: a [note]" in shown
