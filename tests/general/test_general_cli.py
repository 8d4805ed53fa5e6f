"""The command: what it prints, bad input, Ctrl-C."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pyarrow
import pytest
import torch
from pyarrow import parquet
from safetensors.torch import load_file

from bert_emd.cli.main import main
from bert_emd.training.outputs import complete_checkpoints


def command(encoder: str, text: Any, out: Path, *more: str) -> list[str]:
    return [
        "general-distill", "--teacher-model", encoder, "--train_corpus", str(text), "--output_dir", str(out),
        "--max_seq_len", "16", "--train_batch_size", "8", "--corpus_cache_dir", str(out.parent / "prepared"),
        "--no_cuda", "--disable_tqdm", "--max_steps", "2", *more,
    ]  # fmt: skip


def test_the_references_flags(tmp_path: Path, encoder: str, text: str, capsys: pytest.CaptureFixture[str]) -> None:
    flags = [
        "--student_layers", "2", "--student_width", "12", "--student_heads", "2", "--student_intermediate", "20",
        "--learning_rate", "5e-5", "--warmup_proportion", "0.1", "--gradient_accumulation_steps", "2", "--eval_step",
        "1000", "--reduce_memory", "--do_whole_word_mask", "--masked_lm_prob", "0.15",
        "--max_predictions_per_seq", "20", "--epochs_to_generate", "3", "--num_workers", "1", "--short_seq_prob", "0.1",
    ]  # fmt: skip
    assert main(command(encoder, text, tmp_path / "out", *flags)) == 0
    said = capsys.readouterr()
    for name in (
        "reduce_memory",
        "do_whole_word_mask",
        "masked_lm_prob",
        "max_predictions_per_seq",
        "epochs_to_generate",
    ):
        assert f"warning: {name} " in said.err
    assert said.err.count("has no effect") == 5
    assert "mapping uniform, student layer from teacher layer: 1 from 2, 2 from 4" in said.out
    assert "projection: 12 to 16" in said.out
    assert f"--student_model {tmp_path / 'out'}" in said.out
    assert "held-out losses" in said.out


def test_preparing_alone(
    tmp_path: Path, encoder: str, text: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = ["general-distill", "--teacher_model", encoder, "--max_seq_length", "16"]
    assert main([*first, "--train_corpus", text, "--output_dir", str(tmp_path / "c"), "--prepare_only"]) == 0
    assert f"distil on them with --pregenerated_data {tmp_path / 'c'}" in capsys.readouterr().out
    assert main([*first, "--train_corpus", text, "--output_dir", str(tmp_path / "c"), "--prepare_only"]) == 2
    assert "holds a prepared corpus already" in capsys.readouterr().err
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    for here in (".", str(tmp_path / "here")):
        assert main([*first, "--train_corpus", text, "--output_dir", here, "--prepare_only"]) == 2
        assert "is the folder that you are in" in capsys.readouterr().err
    then = ["--pregenerated_data", str(tmp_path / "c"), "--output_dir", str(tmp_path / "o"), "--max_steps", "1"]
    assert main([*first, *then, "--no_cuda", "--disable_tqdm"]) == 0


def bad_corpora(folder: Path) -> dict[str, Path]:
    folder.mkdir()
    whole = folder / "whole.parquet"
    parquet.write_table(pyarrow.table({"text": ["the dog saw a cat"] * 500}), whole)
    contents = {
        "empty.txt": b"",
        "blank.txt": b"\n \n\n",
        "short.txt": b"the dog saw a cat",
        "junk.txt": bytes(range(256)) * 50,
        "controls.txt": b"\x01\x02a" * 500,
        "truncated.parquet": whole.read_bytes()[:-20],
        "packed.txt": b"\x1f\x8b\x08\x00rest",
        "broken.jsonl": b'{"text": "the dog"}\n{"text"',
    }
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    (folder / "folder").mkdir()
    return {name: folder / name for name in (*contents, "folder", "missing.txt")}


MESSAGES = {
    "empty.txt": "is empty; name a file with text in it",
    "blank.txt": "holds no text; name another",
    "short.txt": "is shorter than one sequence (7 of 16 tokens); give more text",
    "junk.txt": "not UTF-8 text; convert the file",
    "controls.txt": "67% of it are control characters",
    "truncated.parquet": "write or download it again",
    "packed.txt": "is a gzip file; unpack it first",
    "broken.jsonl": "not valid JSON",
    "folder": "holds no file",
    "missing.txt": "does not exist",
}


@pytest.mark.parametrize("name", MESSAGES)
def test_a_bad_corpus_is_one_line_and_leaves_nothing(
    tmp_path: Path, encoder: str, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    corpus = bad_corpora(tmp_path / "bad")[name]
    assert main(command(encoder, corpus, tmp_path / "out")) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("error: ")
    assert MESSAGES[name] in lines[0]
    assert not (tmp_path / "out").exists()
    assert not list((tmp_path / "prepared").glob("*")) if (tmp_path / "prepared").exists() else True


def test_what_is_missing_is_asked_for(encoder: str, capsys: pytest.CaptureFixture[str]) -> None:
    for flags, message in (
        ([], "--teacher_model is missing"),
        (["--teacher_model", encoder], "--output_dir is missing"),
        (["--teacher_model", encoder, "--output_dir", "x"], "there is no corpus"),
        (["--alpha", "0.5"], "--alpha is an option of `bert-emd distill`"),
        (["--pregenerated"], "did you mean --pregenerated_data?"),
    ):
        assert main(["general-distill", *flags]) == 2
        assert message in capsys.readouterr().err


def test_an_earlier_run_is_not_overwritten(
    tmp_path: Path, encoder: str, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert main(command(encoder, text, out)) == 0
    before = (out / "model.safetensors").read_bytes()
    assert main(command(encoder, text, out)) == 2
    assert "is not empty" in capsys.readouterr().err
    assert (out / "model.safetensors").read_bytes() == before
    assert main(command(encoder, text, out, "--overwrite_output_dir", "--seed", "3", "--student_init", "fresh")) == 0
    assert (out / "model.safetensors").read_bytes() != before
    # The corpus may lie where it likes, but not where the output goes.
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.txt").write_text(Path(text).read_text())
    assert main(command(encoder, tmp_path / "texts", tmp_path / "texts")) == 2
    assert "own folder" in capsys.readouterr().err
    for flags in ([], ["--prepare_only"]):
        assert main(command(encoder, tmp_path / "texts", tmp_path / "texts" / "new", *flags)) == 2
        assert "among the texts; name another folder" in capsys.readouterr().err
    assert len(list((tmp_path / "texts").iterdir())) == 1


def start(flags: list[str]) -> subprocess.Popen[str]:
    """The command in a process of its own that hears Ctrl-C, as one in a terminal does."""
    return subprocess.Popen(
        [sys.executable, "-m", "bert_emd.cli", *flags], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler), env=os.environ,
    )  # fmt: skip


@pytest.fixture(scope="module")
def lasting() -> tuple[str, ...]:
    """Flags of a run that is long enough to be stopped in its middle."""
    return ("--student_layers", "2", "--max_steps", "400", "--save_steps", "20", "--learning_rate", "1e-3")


@pytest.fixture(scope="module")
def unstopped(
    tmp_path_factory: pytest.TempPathFactory, encoder: str, text: str, lasting: tuple[str, ...]
) -> dict[str, torch.Tensor]:
    """The student of that run where nobody stops it."""
    out = tmp_path_factory.mktemp("unstopped") / "out"
    process = start(command(encoder, text, out, *lasting))
    _, said = process.communicate(timeout=300)
    assert process.returncode == 0, said
    return load_file(out / "model.safetensors")


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_stopped_run_ends_as_if_it_had_not_been(
    tmp_path: Path,
    encoder: str,
    text: str,
    lasting: tuple[str, ...],
    unstopped: dict[str, torch.Tensor],
    how: signal.Signals,
) -> None:
    """Ctrl-C, a scheduler's SIGTERM, or no warning at all: the resumed run's student is the same to the bit."""
    out = tmp_path / "out"
    process = start(command(encoder, text, out, *lasting))
    for _ in range(15000):
        if complete_checkpoints(out) or process.poll() is not None:
            break
        time.sleep(0.02)
    process.send_signal(how)
    _, said = process.communicate(timeout=300)
    assert not (out / "model.safetensors").exists()
    if how == signal.SIGINT:
        assert process.returncode == 130, said
        assert "the last checkpoint is" in said
        assert "--resume_from_checkpoint true" in said
    else:
        assert process.returncode == -how, said
    again = start(command(encoder, text, out, *lasting, "--resume_from_checkpoint", "true"))
    _, said = again.communicate(timeout=300)
    assert again.returncode == 0, said
    resumed = load_file(out / "model.safetensors")
    assert resumed.keys() == unstopped.keys()
    assert all(torch.equal(resumed[name], unstopped[name]) for name in unstopped)
