"""What lies around the weights: configuration, vocabulary, archives, the output folder, and what needs the result."""

from __future__ import annotations

import csv
import json
import os
import random
import stat
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from converting import convert, record, refused
from google_bert import SIZES, dress, pretraining_model
from tiny_encoders import BAD, GOOD, PLAIN, VOCABULARY, save, tiny
from transformers import AutoTokenizer, BertTokenizerFast

from bert_emd.cli.main import main


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """An old PyTorch folder that a test may spoil."""
    dress(tmp_path / "old")
    torch.save(pretraining_model().state_dict(), tmp_path / "old" / "pytorch_model.bin")
    return tmp_path / "old"


def change(file: Path, **values: Any) -> None:
    kept = json.loads(file.read_text()) | values
    file.write_text(json.dumps({key: value for key, value in kept.items() if value is not None}))


def test_a_genuine_index_without_its_data_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if not (data := os.environ.get("BERT_EMD_DATA")):
        pytest.skip("BERT_EMD_DATA names no folder with tf1/index-only-bert-medium")
    folder = Path(data) / "tf1" / "index-only-bert-medium"
    refused(capsys, folder, tmp_path / "out", match="bert_model.ckpt.data-00000-of-00001 is missing")


def test_without_tensorflow_the_message_names_the_extra(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tensorflow", None)
    dress(tmp_path / "google")
    for suffix in ("index", "data-00000-of-00001"):
        (tmp_path / "google" / f"bert_model.ckpt.{suffix}").write_bytes(b"something")
    refused(capsys, tmp_path / "google", tmp_path / "out", match='pip install "bert-emd[tf]"')


def test_a_tensorflow_that_does_not_start_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "path" / "tensorflow").mkdir(parents=True)
    (tmp_path / "path" / "tensorflow" / "__init__.py").write_text("raise ImportError('libwhat.so not found')\n")
    monkeypatch.syspath_prepend(str(tmp_path / "path"))
    monkeypatch.delitem(sys.modules, "tensorflow", raising=False)
    dress(tmp_path / "google")
    for suffix in ("index", "data-00000-of-00001"):
        (tmp_path / "google" / f"bert_model.ckpt.{suffix}").write_bytes(b"something")
    refused(capsys, tmp_path / "google", tmp_path / "out", match="does not start (libwhat.so not found)")


def test_nothing_else_loads_tensorflow(tmp_path: Path) -> None:
    """POT would, and Transformers once did: a stand-in that tells when it is imported."""
    (tmp_path / "tensorflow").mkdir()
    (tmp_path / "tensorflow" / "__init__.py").write_text("print('loaded')\n")
    code = "import bert_emd.method, bert_emd.models.convert, sys; print('tensorflow' in sys.modules)"
    environment = {name: value for name, value in os.environ.items() if not name.startswith("POT_")}
    environment["PYTHONPATH"] = os.pathsep.join([str(tmp_path), *sys.path])
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


@pytest.mark.parametrize("entries", [VOCABULARY[:-1], (*VOCABULARY, "more"), ()], ids=["fewer", "more", "none"])
def test_a_vocabulary_of_another_size_is_refused(
    entries: tuple[str, ...], old: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (old / "vocab.txt").write_text("".join(f"{entry}\n" for entry in entries))
    size = max(1, len(entries))
    refused(capsys, old, tmp_path / "out", match=f"vocab.txt has {size} entries and the model {len(VOCABULARY)}")


@pytest.mark.parametrize(
    ("content", "match"),
    [
        ("\n".join(("x", *VOCABULARY[1:])).encode(), "has no [PAD]"),
        (b"[PAD]\n\xff\xfe\n", "vocab.txt:2: not UTF-8"),
        ("\n".join((*VOCABULARY[:-1], "[PAD]")).encode(), f"vocab.txt:{len(VOCABULARY)}: [PAD] stands there again"),
    ],
)
def test_a_file_that_is_no_vocabulary_is_refused(
    content: bytes, match: str, old: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (old / "vocab.txt").write_bytes(content)
    refused(capsys, old, tmp_path / "out", match=match)


def test_missing_files_beside_the_checkpoint_are_asked_for(
    old: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (old / "vocab.txt").rename(tmp_path / "words.txt")
    refused(capsys, old, tmp_path / "out", match="there is no vocab.txt in")
    refused(capsys, old, tmp_path / "out", "--vocab_file", "nowhere", match="vocab_file nowhere does not exist")
    (old / "bert_config.json").rename(tmp_path / "sizes.json")
    refused(capsys, old, tmp_path / "out", match="there is no bert_config.json in")
    refused(capsys, old, tmp_path / "out", "--bert_config_file", "nowhere", match="nowhere does not exist")
    flags = ("--bert_config_file", str(tmp_path / "sizes.json"), "--vocab_file", str(tmp_path / "words.txt"))
    assert convert(old, tmp_path / "out", *flags) == 0


@pytest.mark.parametrize(
    ("values", "match"),
    [
        ({"hidden_size": None}, "lacks hidden_size"),
        ({"hidden_size": "wide"}, "hidden_size must be a whole number"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers must be a whole number"),
        ({"num_hidden_layers": True}, "num_hidden_layers must be a whole number"),
        ({"num_attention_heads": 3}, "is not a multiple of its 3 attention heads"),
        ({"hidden_act": "nothing"}, "config.json: hidden_act 'nothing' is unknown; BERT's is gelu"),
        ({"hidden_act": ["gelu"]}, "hidden_act"),
        ({"max_position_embeddings": -1}, "no model can be made by its configuration"),
        ({"max_position_embeddings": 30}, "should be [30, 16]"),
        ({"hidden_dropout_prob": "some"}, "cannot be read"),
        ({"id2label": [1]}, "cannot be read"),
        ({"model_type": "albert"}, "describes a albert model"),
    ],
)
def test_a_configuration_that_fits_no_model_is_refused(
    values: dict[str, Any], match: str, old: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    change(old / "bert_config.json", **values)
    refused(capsys, old, tmp_path / "out", match=match)


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"\xff\xfe{}", b"[" * 100_000])
def test_a_configuration_that_is_none_is_refused(
    content: bytes, old: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (old / "bert_config.json").write_bytes(content)
    refused(capsys, old, tmp_path / "out", match="bert_config.json")


@pytest.mark.parametrize(
    ("words", "told", "flag", "lower", "reason"),
    [
        (("house", "river"), None, None, True, "0 of its"),
        (("House", "River"), None, None, False, "2 of its"),
        (("house", "river"), None, "false", False, "as you said"),
        (("House", "River"), {"do_lower_case": True}, None, True, "as tokenizer_config.json says"),
        (("House", "River"), {"do_lower_case": True}, "--no", False, "as you said"),
    ],
)
def test_lower_casing_is_seen_told_or_said(
    words: tuple[str, str],
    told: dict[str, bool] | None,
    flag: str | None,
    lower: bool,
    reason: str,
    old: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (old / "vocab.txt").write_text("\n".join((*VOCABULARY[:-2], *words)) + "\n", encoding="utf-8")
    if told is not None:
        (old / "tokenizer_config.json").write_text(json.dumps(told))
    flags = [] if flag is None else ["--no_do_lower_case"] if flag == "--no" else ["--do_lower_case", flag]
    assert convert(old, tmp_path / "out", *flags) == 0
    assert f"do_lower_case is {str(lower).lower()}" in (printed := capsys.readouterr()).out
    assert reason in printed.out
    assert ("warning:" in printed.err) == (lower != (words[0] == "house"))
    tokens = AutoTokenizer.from_pretrained(tmp_path / "out").tokenize("House dog")
    assert tokens == [
        word if word in (*VOCABULARY, *words) else "[UNK]" for word in ("house" if lower else "House", "dog")
    ]
    assert record(tmp_path / "out")["do_lower_case"]["value"] is lower


def test_padding_is_where_the_vocabulary_has_it(old: Path, tmp_path: Path) -> None:
    moved = (*VOCABULARY[1:6], "[PAD]", *VOCABULARY[6:])
    (old / "vocab.txt").write_text("\n".join(moved))
    assert convert(old, tmp_path / "out") == 0
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert tokenizer(["dog", "the dog"], padding=True)["input_ids"][0][-1] == 5
    assert json.loads((tmp_path / "out" / "config.json").read_text())["pad_token_id"] == 5


@pytest.mark.parametrize("kind", ["bomb", "escape", "link", "cut"])
def test_hostile_and_broken_archives_are_refused(
    kind: str, old: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    archive = tmp_path / "bert.zip"
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as packed:
        for file in sorted(old.iterdir()):
            packed.write(file, f"bert/{file.name}")
        if kind == "bomb":
            packed.writestr("bert/bert_model.ckpt.data-00000-of-00001", bytes(200 << 20))
        elif kind == "escape":
            packed.writestr("../vocab.txt", b"gotcha")
        elif kind == "link":
            link = zipfile.ZipInfo("bert/config.json")
            link.external_attr = (stat.S_IFLNK | 0o777) << 16
            packed.writestr(link, "/etc/passwd")
    if kind == "cut":
        archive.write_bytes(archive.read_bytes()[:-2000])
    error = refused(capsys, archive, tmp_path / "out")
    assert {"bomb": "zip bomb", "escape": "leads out of its folder", "link": "is a link", "cut": "damaged"}[
        kind
    ] in error


def test_errors_inside_an_archive_name_the_archive(
    old: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (old / "vocab.txt").write_text("short\n")
    with zipfile.ZipFile(tmp_path / "bert.zip", "w") as packed:
        for file in old.iterdir():
            packed.write(file, file.name)
    error = refused(capsys, tmp_path / "bert.zip", tmp_path / "out")
    assert f"{tmp_path / 'bert.zip'}/vocab.txt has 1 entries" in error


def test_an_archive_of_several_checkpoints_has_to_be_unpacked_first(
    old: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    archive = tmp_path / "bert.zip"
    with zipfile.ZipFile(archive, "w") as packed:
        for prefix in ("a/one.ckpt", "b/two.ckpt"):
            packed.writestr(f"{prefix}.index", b"x")
    # A path into an archive is none that could be named.
    refused(capsys, archive, tmp_path / "out", match=f"{archive} holds 2 checkpoints (a/one.ckpt, b/two.ckpt); unpack")
    with zipfile.ZipFile(archive, "w") as packed:
        for folder in ("a", "b"):
            packed.write(old / "pytorch_model.bin", f"{folder}/pytorch_model.bin")
    refused(capsys, archive, tmp_path / "out", match="several pytorch_model.bin; unpack it and name")


def test_an_output_folder_in_use_is_left_alone(old: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    out.mkdir()
    assert convert(old, out) == 0
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    refused(capsys, old, out, match="is not empty")
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    refused(capsys, old, out / "config.json", match="is a file")
    refused(capsys, old, tmp_path / "model.bin", match="name the folder")
    refused(capsys, old, out / "config.json" / "below", match="config.json is a file")
    assert main(["convert", "--checkpoint", str(old)]) == 2
    assert main(["convert", "--output_dir", str(tmp_path / "x")]) == 2
    assert "--checkpoint is missing" in capsys.readouterr().err


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(28, "No space left on device")])
def test_an_interruption_and_a_full_disk_leave_nothing(
    error: BaseException,
    old: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr("bert_emd.models.convert.writing.save_file", fail)
    before = sorted(tmp_path.iterdir())
    assert convert(old, tmp_path / "out") == (130 if isinstance(error, KeyboardInterrupt) else 2)
    assert sorted(tmp_path.iterdir()) == before
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_folders_above_the_output_are_made_when_all_went_well(
    old: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "empty")
    (tmp_path / "empty").mkdir()
    for out in (tmp_path / "runs" / "deep" / "out", tmp_path / "link"):
        assert convert(old, out) == 0
        assert record(out)["architecture"] == "BertForPreTraining"
    (old / "vocab.txt").write_text("short")
    assert convert(old, tmp_path / "other" / "deep" / "out") == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "link", "old", "runs"]


def test_everything_can_stand_in_a_file_of_options(old: Path, tmp_path: Path) -> None:
    values = {"tf_checkpoint_path": str(old), "output_dir": str(tmp_path / "out"), "do_lower_case": False}
    (tmp_path / "run.yaml").write_text(json.dumps(values))
    assert main(["convert", "--config", str(tmp_path / "run.yaml")]) == 0
    assert record(tmp_path / "out")["sources"]["do_lower_case"] == "config"


def test_the_folder_is_a_model_to_fine_tune_and_a_student_to_distil(
    old: Path, tmp_path: Path, words: BertTokenizerFast
) -> None:
    assert convert(old, tmp_path / "converted") == 0
    chance = random.Random(0)
    with (tmp_path / "rows.csv").open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["text", "label"])
        for i in range(24):
            text = [*chance.choices(PLAIN, k=3), chance.choice(GOOD if i % 2 else BAD)]
            writer.writerow([" ".join(text), "yes" if i % 2 else "no"])
    common = ["--train_file", str(tmp_path / "rows.csv"), "--max_steps", "2", "--train_batch_size", "4", "--no_cuda"]
    common += ["--max_seq_length", "16", "--disable_tqdm", "true", "--output_dir"]
    model = ["--model_name_or_path", str(tmp_path / "converted")]
    assert main(["finetune", *model, *common, str(tmp_path / "tuned")]) == 0
    assert AutoTokenizer.from_pretrained(tmp_path / "tuned").vocab_size == SIZES["vocab_size"]
    teacher = save(tiny("bert", layers=3), words, tmp_path / "teacher")
    models = ["--teacher_model", str(teacher), "--student_model", str(tmp_path / "converted")]
    assert main(["distill", *models, *common, str(tmp_path / "student")]) == 0
    origin = json.loads((tmp_path / "student" / "run.json").read_text())
    assert "tensors loaded" in json.dumps(origin)
