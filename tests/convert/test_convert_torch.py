"""Old PyTorch folders: read without running anything in them, whatever their tensors were called."""

from __future__ import annotations

import json
import pickle
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from converting import convert, record, refused
from google_bert import SIZES, dress, pretraining_model
from tiny_encoders import VOCABULARY, padded_batch, tiny
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForPreTraining,
    AutoModelForSequenceClassification,
    AutoTokenizer,
)


@pytest.fixture(autouse=True)
def _without_tensorflow(monkeypatch: pytest.MonkeyPatch) -> None:
    """None of this needs it: importing it fails here."""
    monkeypatch.setitem(sys.modules, "tensorflow", None)


def old(name: str) -> str:
    """A tensor's name before 2019."""
    return name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")


def write(folder: Path, state: dict[str, Any], config: str = "config.json", **changes: Any) -> Path:
    dress(folder, **changes)
    if config != "bert_config.json":
        (folder / "bert_config.json").rename(folder / config)
    torch.save(state, folder / "pytorch_model.bin")
    return folder


def saved_state() -> dict[str, Tensor]:
    """As old PyTorch saved a pre-trained model: the decoder beside the word embeddings, in one storage."""
    return dict(pretraining_model().state_dict())


def assert_same_outputs(folder: Path) -> None:
    batch = padded_batch()
    source = pretraining_model()
    model, info = AutoModelForPreTraining.from_pretrained(folder, output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    with torch.no_grad():
        wanted, found = source(**batch), model.eval()(**batch)
        assert torch.equal(found.prediction_logits, wanted.prediction_logits)
        assert torch.equal(found.seq_relationship_logits, wanted.seq_relationship_logits)
        encoder = AutoModel.from_pretrained(folder).eval()
        assert torch.equal(encoder(**batch).pooler_output, source.bert(**batch).pooler_output)
        words = AutoModelForMaskedLM.from_pretrained(folder).eval()
        assert torch.equal(words(**batch).logits, wanted.prediction_logits)


@pytest.mark.parametrize("config", ["config.json", "bert_config.json"])
@pytest.mark.parametrize("naming", ["new", "gamma and beta", "data parallel"])
def test_an_old_folder_gives_its_models_outputs(naming: str, config: str, tmp_path: Path) -> None:
    state = saved_state()
    if naming == "gamma and beta":
        state = {old(name): tensor for name, tensor in state.items()}
    if naming == "data parallel":
        state = {f"module.{name}": tensor for name, tensor in state.items()}
    folder = write(tmp_path / "old", state, config)
    assert "model_type" not in json.loads((folder / config).read_text())
    assert convert(folder, tmp_path / "out") == 0
    assert_same_outputs(tmp_path / "out")
    assert AutoConfig.from_pretrained(tmp_path / "out").model_type == "bert"
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert tokenizer("the Dog")["input_ids"] == [2, VOCABULARY.index("the"), VOCABULARY.index("dog"), 3]


def test_the_weights_file_and_a_zip_of_the_folder_are_taken_too(tmp_path: Path) -> None:
    folder = write(tmp_path / "old", saved_state())
    assert convert(folder / "pytorch_model.bin", tmp_path / "one") == 0
    with zipfile.ZipFile(tmp_path / "old.zip", "w") as packed:
        for file in folder.iterdir():
            packed.write(file, f"deep/er/{file.name}")
    assert convert(tmp_path / "old.zip", tmp_path / "two") == 0
    assert_same_outputs(tmp_path / "one")
    assert_same_outputs(tmp_path / "two")


def test_tinyberts_student_is_an_encoder_without_its_projections(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state = {old(name): tensor for name, tensor in saved_state().items()}
    for i in range(3):
        state |= {f"fit_denses.{i}.weight": torch.randn(32, 16), f"fit_denses.{i}.bias": torch.randn(32)}
    state["bert.embeddings.position_ids"] = torch.arange(40)[None]
    folder = write(tmp_path / "old", state, cell={}, emb_size=16, structure=[], training="", pre_trained="")
    assert convert(folder, tmp_path / "out") == 0
    assert_same_outputs(tmp_path / "out")
    left = {v["name"]: v["left_out"] for v in record(tmp_path / "out")["variables"] if "left_out" in v}
    assert {name for name in left if name.startswith("fit")} == {name for name in state if name.startswith("fit")}
    assert left["cls.predictions.decoder.weight"] == "the word embeddings a second time"
    printed = capsys.readouterr().out
    assert "cell, directionality, emb_size, pre_trained, structure, training" in printed
    assert f"{len(state)} variables: {len(state) - 9} converted, 9 left out" in printed
    assert not {"cell", "emb_size"} & json.loads((tmp_path / "out" / "config.json").read_text()).keys()


def test_an_encoder_saved_alone_and_one_without_a_pooler(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = pretraining_model().bert
    folder = write(tmp_path / "old", {old(name): tensor for name, tensor in source.state_dict().items()})
    assert convert(folder, tmp_path / "out") == 0
    model, info = AutoModel.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert type(model).__name__ == "BertModel"
    batch = padded_batch()
    assert torch.equal(model.eval()(**batch).pooler_output, source(**batch).pooler_output)
    state = {name: tensor for name, tensor in source.state_dict().items() if "pooler" not in name}
    bare = write(tmp_path / "bare", state)
    refused(capsys, bare, tmp_path / "no", match="lacks 2 tensors (bert.pooler.dense.weight, bert.pooler.dense.bias)")
    assert convert(bare, tmp_path / "headless", "--allow_missing") == 0
    hidden = AutoModel.from_pretrained(tmp_path / "headless").eval()(**batch).last_hidden_state
    assert torch.equal(hidden, source(**batch).last_hidden_state)


@pytest.mark.parametrize("labels", [("no", "yes"), ("a", "b", "c"), None])
def test_a_classifier_keeps_its_head(labels: tuple[str, ...] | None, tmp_path: Path) -> None:
    source = tiny("bert", layers=2, width=16, labels=labels, max_position_embeddings=40)
    folder = write(tmp_path / "old", dict(source.state_dict()), num_labels=source.config.num_labels)
    assert convert(folder, tmp_path / "out") == 0
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out").eval()
    assert model.config.num_labels == source.config.num_labels
    assert torch.equal(model.classifier.weight, source.classifier.weight)
    assert torch.equal(model.classifier.bias, source.classifier.bias)
    # Not to the bit on every processor: a product with one column depends on where the weight lies in memory.
    torch.testing.assert_close(model(**padded_batch()).logits, source(**padded_batch()).logits, rtol=1e-6, atol=1e-6)


def test_a_classifiers_labels_keep_their_names(tmp_path: Path) -> None:
    source = tiny("bert", layers=2, width=16, labels=("no", "yes"), max_position_embeddings=40)
    names = {"id2label": {"0": "no", "1": "yes"}, "label2id": {"no": 0, "yes": 1}}
    assert convert(write(tmp_path / "old", dict(source.state_dict()), **names), tmp_path / "out") == 0
    assert AutoConfig.from_pretrained(tmp_path / "out").id2label == {0: "no", 1: "yes"}


def test_half_precision_is_widened_and_tensors_of_one_storage_are_parted(tmp_path: Path) -> None:
    state = {name: tensor.half() for name, tensor in saved_state().items()}
    flat = torch.cat([state["bert.pooler.dense.bias"], state["cls.predictions.transform.dense.bias"]])
    state["bert.pooler.dense.bias"], state["cls.predictions.transform.dense.bias"] = flat[:16], flat[16:]
    assert convert(write(tmp_path / "old", state), tmp_path / "out") == 0
    found = AutoModelForPreTraining.from_pretrained(tmp_path / "out").state_dict()
    assert all(torch.equal(found[name], tensor.float()) for name, tensor in state.items())


class _Runs:
    """Pickled, it creates a file where it is opened carelessly."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (Path.touch, (self.path,))


@pytest.mark.parametrize("by_torch", [True, False])
def test_code_in_a_weights_file_is_refused_and_not_run(
    by_torch: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state: dict[str, Any] = {**saved_state(), "bert.trap": _Runs(tmp_path / "ran")}
    pickle.loads(pickle.dumps(_Runs(tmp_path / "works")))
    assert (tmp_path / "works").exists()
    folder = write(tmp_path / "old", state)
    if not by_torch:
        (folder / "pytorch_model.bin").write_bytes(pickle.dumps(state, protocol=2))
    refused(capsys, folder, tmp_path / "out", match="holds more than tensors")
    assert not (tmp_path / "ran").exists()


def sparse() -> dict[str, Any]:
    return {**saved_state(), "bert.pooler.dense.bias": torch.zeros(16).to_sparse()}


@pytest.mark.parametrize(
    ("state", "match"),
    [
        ([torch.zeros(2)], "something else than named tensors"),
        ({"model": {"x": torch.zeros(2)}}, "something else than named tensors"),
        (sparse(), "something else than named tensors"),
        ({}, "is not BERT"),
        ({"roberta.embeddings.word_embeddings.weight": torch.zeros(2, 2)}, "is not BERT"),
    ],
    ids=["list", "nested", "sparse", "nothing", "another model"],
)
def test_what_is_no_state_dict_of_bert_is_refused(
    state: Any, match: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    refused(capsys, write(tmp_path / "old", state), tmp_path / "out", match=match)


@pytest.mark.parametrize("content", [b"", b"nothing", b"PK\x03\x04" + bytes(90), "cut", b"version https://git-lfs"])
def test_a_damaged_weights_file_is_told_in_one_line(
    content: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write(tmp_path / "old", saved_state())
    file = folder / "pytorch_model.bin"
    file.write_bytes(file.read_bytes()[:-300] if content == "cut" else content)
    refused(capsys, folder, tmp_path / "out", match="pytorch_model.bin")


def test_a_decoder_of_its_own_and_a_tensor_under_two_names_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state = saved_state()
    state["cls.predictions.decoder.weight"] = state["cls.predictions.decoder.weight"] + 1
    folder = write(tmp_path / "untied", state)
    refused(capsys, folder, tmp_path / "out", match="1 variable (cls.predictions.decoder.weight)")
    assert convert(folder, tmp_path / "out", "--allow_unknown") == 0
    assert_same_outputs(tmp_path / "out")
    state = saved_state()
    state["bert.embeddings.LayerNorm.gamma"] = state["bert.embeddings.LayerNorm.weight"] + 1
    refused(capsys, write(tmp_path / "twice", state), tmp_path / "no", match="the same tensor of the model")


def test_folders_with_nothing_to_convert_say_what_they_are(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write(tmp_path / "old", saved_state())
    (folder / "pytorch_model.bin").rename(folder / "model.safetensors")
    refused(capsys, folder, tmp_path / "out", match="loads as it is")
    (folder / "model.safetensors").unlink()
    refused(capsys, folder, tmp_path / "out", match="holds neither a TensorFlow checkpoint")
    refused(capsys, folder / "vocab.txt", tmp_path / "out", match="is no checkpoint")
    refused(capsys, tmp_path / "nowhere", tmp_path / "out", match="does not exist")


def test_another_architecture_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write(tmp_path / "old", saved_state(), model_type="roberta")
    refused(capsys, folder, tmp_path / "out", match="describes a roberta model")
    assert SIZES["hidden_size"] == 16
