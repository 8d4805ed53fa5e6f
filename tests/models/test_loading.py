"""Loading: float32 whatever was stored, nothing executed, one line on what is wrong."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_encoders import VOCABULARY, padded_batch, save, tiny
from transformers import AutoModelForSequenceClassification, BertTokenizerFast

from bert_emd.errors import UserError
from bert_emd.models import label_names, load_classifier, load_config, load_tokenizer, set_labels


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tiny("bert"), None, tmp_path_factory.mktemp("saved"))


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    """A copy that a test may spoil."""
    shutil.copytree(saved, tmp_path / "model")
    return tmp_path / "model"


def change_config(folder: Path, **changes: Any) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def change_weights(folder: Path, change: Any) -> None:
    weights = load_file(folder / "model.safetensors")
    save_file(change(weights), folder / "model.safetensors", metadata={"format": "pt"})


def refused(folder: Path | str, match: str) -> None:
    with pytest.raises(UserError, match=match) as error:
        load_classifier(str(folder), "the teacher")
    assert "\n" not in str(error.value)
    assert str(folder) in str(error.value)


def test_a_saved_classifier_gives_the_logits_of_plain_transformers(saved: Path) -> None:
    model, report = load_classifier(str(saved), "the teacher")
    plain = AutoModelForSequenceClassification.from_pretrained(saved)
    batch = padded_batch()
    assert torch.equal(model.eval()(**batch).logits, plain.eval()(**batch).logits)
    assert (report.fresh, report.ignored) == ([], [])
    assert report.loaded == len(load_file(saved / "model.safetensors"))
    assert label_names(model.config) == ("no", "yes")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_folder_stored_in_16_bits_is_loaded_in_32(dtype: torch.dtype, tmp_path: Path) -> None:
    half = tiny("bert").to(dtype)
    half.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["dtype"] == str(dtype).removeprefix("torch.")
    model, _ = load_classifier(str(tmp_path), "the teacher")
    assert {tensor.dtype for tensor in model.state_dict().values() if tensor.is_floating_point()} == {torch.float32}
    assert torch.equal(model.classifier.weight, half.classifier.weight.float())


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_a_weights_only_pytorch_file_loads(legacy: bool, folder: Path) -> None:
    expected = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(expected, folder / "pytorch_model.bin", _use_new_zipfile_serialization=not legacy)
    model, report = load_classifier(str(folder), "the teacher")
    assert report.fresh == report.ignored == []
    assert all(torch.equal(tensor, expected[name]) for name, tensor in model.state_dict().items())


class _Runs:
    """Pickled, it creates a file where it is opened carelessly."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (Path.touch, (self.path,))


def test_the_trap_of_the_next_test_works(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(pickle.dumps({"x": _Runs(tmp_path / "ran")}))
    pickle.loads((tmp_path / "file").read_bytes())
    assert (tmp_path / "ran").exists()


@pytest.mark.parametrize("by_torch", [True, False])
def test_code_in_a_weights_file_is_refused_and_not_run(by_torch: bool, folder: Path, tmp_path: Path) -> None:
    weights: dict[str, Any] = dict(load_file(folder / "model.safetensors"))
    weights["bert.embeddings.trap"] = _Runs(tmp_path / "ran")
    (folder / "model.safetensors").unlink()
    if by_torch:
        torch.save(weights, folder / "pytorch_model.bin")
    else:
        (folder / "pytorch_model.bin").write_bytes(pickle.dumps(weights, protocol=2))
    refused(folder, "holds more than tensors.*safetensors")
    assert not (tmp_path / "ran").exists()


def test_remote_code_is_never_run(folder: Path, tmp_path: Path) -> None:
    (folder / "modeling_own.py").write_text(f"from pathlib import Path\nPath({str(tmp_path / 'ran')!r}).touch()\n")
    change_config(folder, model_type="own", auto_map={"AutoConfig": "modeling_own.C", "AutoModel": "modeling_own.M"})
    refused(folder, "cannot be read")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (b"", "cannot be loaded"),
        (None, "cannot be loaded"),
        (b"\0" * 100, "cannot be loaded"),
        ("cut", "cannot be loaded"),
    ],
    ids=["empty", "missing", "zeros", "cut short"],
)
def test_broken_weights_are_told_in_one_line(content: Any, match: str, folder: Path) -> None:
    file = folder / "model.safetensors"
    if content is None:
        file.unlink()
    else:
        file.write_bytes(file.read_bytes()[:-200] if content == "cut" else content)
    refused(folder, "cannot be loaded")


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '"x"', "{}", '{"model_type": null}', '{"model_type": "nonsense"}', '{"hidden_size": 16}']
)
def test_a_configuration_that_is_none_is_told_in_one_line(text: str, folder: Path) -> None:
    (folder / "config.json").write_text(text)
    refused(folder, "config|model type|cannot be read")


@pytest.mark.parametrize(
    "changes", [{"hidden_size": "wide"}, {"num_attention_heads": 3}, {"hidden_act": "nothing"}, {"id2label": [1, 2]}]
)
def test_a_configuration_with_impossible_values_is_told_in_one_line(changes: dict[str, Any], folder: Path) -> None:
    change_config(folder, **changes)
    refused(folder, "cannot be (read|loaded)")


def test_a_configuration_that_is_not_utf8_is_told_in_one_line(folder: Path) -> None:
    (folder / "config.json").write_bytes(b"\xff\xfe{")
    refused(folder, "cannot be read")


@pytest.mark.parametrize("changes", [{"hidden_size": 32}, {"vocab_size": 10}, {"num_labels": 3, "id2label": None}])
def test_weights_of_another_shape_are_named(changes: dict[str, Any], folder: Path) -> None:
    change_config(folder, **{k: v for k, v in changes.items() if v is not None})
    if "id2label" in changes:
        change_config(folder, id2label={"0": "a", "1": "b", "2": "c"}, label2id={"a": 0, "b": 1, "c": 2})
    refused(folder, r"(embeddings|classifier)\S* has another shape than config.json says")


def test_only_the_head_may_be_resized(folder: Path) -> None:
    config = load_config(str(folder), "the model")
    set_labels(config, ["a", "b", "c"])
    model, report = load_classifier(str(folder), "the model", config=config, may_resize_head=True)
    assert report.fresh == ["classifier.bias", "classifier.weight"]
    assert model.classifier.weight.shape == (3, 16)
    stored = load_file(folder / "model.safetensors")
    assert torch.equal(model.bert.pooler.dense.weight, stored["bert.pooler.dense.weight"])
    config.vocab_size = 11
    with pytest.raises(UserError, match=r"word_embeddings.* another shape"):
        load_classifier(str(folder), "the model", config=config, may_resize_head=True)


def test_a_checkpoint_of_which_nothing_fits_is_refused(folder: Path) -> None:
    change_weights(folder, lambda weights: {f"elsewhere.{name}": tensor for name, tensor in weights.items()})
    refused(folder, "none of its weights fit")


def test_missing_and_spare_weights_are_reported_by_part(folder: Path) -> None:
    def change(weights: dict[str, Any]) -> dict[str, Any]:
        kept = {
            n: t for n, t in weights.items() if n not in ("classifier.bias", "bert.encoder.layer.1.output.dense.bias")
        }
        return kept | {"spare.weight": torch.zeros(2)}

    change_weights(folder, change)
    _, report = load_classifier(str(folder), "the teacher")
    assert report.encoder_fresh == ["bert.encoder.layer.1.output.dense.bias"]
    assert report.head_fresh == ["classifier.bias"]
    assert report.ignored == ["spare.weight"]


@pytest.mark.parametrize(
    ("name", "match"),
    [
        ("no-such-model", "no folder of this name either"),
        ("./nothing/here", "does not exist"),
        ("one/two/three", "does not exist"),
        ("bad name!", "Repo id"),
    ],
)
def test_a_model_that_is_not_there_is_told_in_one_line(name: str, match: str) -> None:
    refused(name, match)


def test_a_file_and_a_folder_without_a_configuration_are_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    refused(tmp_path / "file", "is a file; name the folder")
    refused(tmp_path, "has no config.json")


def test_a_folder_without_a_vocabulary_is_refused(folder: Path) -> None:
    """Transformers would make a tokenizer that reads every word as [UNK]."""
    with pytest.raises(UserError, match="no vocabulary; save its tokenizer"):
        load_tokenizer(str(folder), "the teacher")


def test_a_bare_vocab_txt_is_a_tokenizer_and_lower_casing_can_be_chosen(folder: Path) -> None:
    (folder / "vocab.txt").write_text("\n".join([*VOCABULARY, "House"]))
    spelled = {
        choice: load_tokenizer(str(folder), "the teacher", do_lower_case=choice).tokenize("House river")
        for choice in (True, False)
    }
    assert spelled == {True: ["house", "river"], False: ["House", "river"]}


@pytest.mark.parametrize(("name", "content"), [("tokenizer.json", b"{"), ("vocab.txt", b"\xff\xfe\xfa")])
def test_a_broken_tokenizer_is_told_in_one_line(name: str, content: bytes, folder: Path) -> None:
    (folder / name).write_bytes(content)
    with pytest.raises(UserError, match="has no usable tokenizer") as error:
        load_tokenizer(str(folder), "the teacher")
    assert "\n" not in str(error.value)


def test_a_saved_tokenizer_is_the_same_again(words: BertTokenizerFast, folder: Path) -> None:
    words.save_pretrained(folder)
    again = load_tokenizer(str(folder), "the teacher")
    assert again.get_vocab() == {word: i for i, word in enumerate(VOCABULARY)}


def test_label_names_and_a_number() -> None:
    config = tiny("bert").config
    set_labels(config, ["a", "b", "c"])
    assert (config.num_labels, label_names(config)) == (3, ("a", "b", "c"))
    assert config.label2id == {"a": 0, "b": 1, "c": 2}
    set_labels(config, None)
    assert (config.num_labels, label_names(config), config.problem_type) == (1, None, "regression")
