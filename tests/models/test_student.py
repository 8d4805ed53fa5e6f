"""Students: which teacher layers they are made of, what checkpoints give them, and what is refused."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_encoders import ARCHITECTURES, VOCABULARY, padded_batch, same_tensors, save, tiny
from torch import Tensor
from transformers import AutoModelForSequenceClassification, PreTrainedModel

from bert_emd.errors import UserError
from bert_emd.models import BuiltStudent, StudentShape, build_student, label_names, spread_layers

LAYERS = {
    "albert": None,
    "distilbert": "distilbert.transformer.layer",
    "modernbert": "model.layers",
    "bert": "bert.encoder.layer",
    "electra": "electra.encoder.layer",
    "mpnet": "mpnet.encoder.layer",
    "deberta-v2": "deberta.encoder.layer",
    **dict.fromkeys(("roberta", "camembert", "xlm-roberta"), "roberta.encoder.layer"),
}
"""Where each architecture keeps its blocks."""


def expected_weights(teacher: PreTrainedModel, ids: list[int]) -> dict[str, Tensor]:
    """The state of a student with these teacher layers (counted from 1), by plain string surgery."""
    prefix = LAYERS[teacher.config.model_type]
    found = {}
    for name, tensor in teacher.state_dict().items():
        if prefix is not None and name.startswith(prefix + "."):
            layer, rest = name[len(prefix) + 1 :].split(".", 1)
            for place, wanted in enumerate(ids):
                if int(layer) == wanted - 1:
                    found[f"{prefix}.{place}.{rest}"] = tensor
        else:
            found[name] = tensor
    # ModernBERT's first block has no norm before its attention, whichever block it was in the teacher.
    found.pop("model.layers.0.attn_norm.weight", None)
    return found


@pytest.mark.parametrize(
    ("student", "teacher", "expected"),
    [
        (3, 6, [2, 4, 6]), (4, 6, [2, 3, 5, 6]), (1, 6, [6]), (6, 6, [1, 2, 3, 4, 5, 6]), (2, 5, [3, 5]),
        (4, 12, [3, 6, 9, 12]), (5, 12, [3, 5, 8, 10, 12]), (1, 1, [1]),
    ],
)  # fmt: skip
def test_layers_are_spread_by_the_rounded_up_share(student: int, teacher: int, expected: list[int]) -> None:
    assert spread_layers(student, teacher) == expected
    assert expected == [math.ceil(i * teacher / student) for i in range(1, student + 1)]


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ({}, [2, 4, 6]),
        ({"layers": 4}, [2, 3, 5, 6]),
        ({"layers": 2, "init": "first"}, [1, 2]),
        ({"layers": 2, "init": "last"}, [5, 6]),
        ({"layer_ids": (1, 3, 6)}, [1, 3, 6]),
        ({"layer_ids": (4,)}, [4]),
        ({"layers": 6}, [1, 2, 3, 4, 5, 6]),
    ],
)
def test_the_copied_tensors_are_the_teachers(shape: dict[str, Any], expected: list[int]) -> None:
    teacher = tiny("bert", layers=6)
    built = build_student(teacher, StudentShape(**shape))
    assert built.layer_ids == expected
    assert same_tensors(built.model.state_dict(), expected_weights(teacher, expected))
    assert f"{len(expected)} layers copied from teacher layers {', '.join(map(str, expected))}" in built.origin
    assert f"({len(built.model.state_dict())} tensors copied, 0 fresh)" in built.origin
    assert "\n" not in built.origin
    assert built.model.config.num_hidden_layers == len(expected)
    own = {tensor.data_ptr() for tensor in teacher.parameters()}
    assert not [1 for tensor in built.model.parameters() if tensor.data_ptr() in own]  # copies, not views


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_half_of_every_architecture(kind: str, tmp_path: Path) -> None:
    teacher = tiny(kind, layers=4, labels=("b", "a", "c"))
    built = build_student(teacher, StudentShape())
    assert built.layer_ids == [2, 4]
    assert same_tensors(built.model.state_dict(), expected_weights(teacher, [2, 4]))
    assert label_names(built.model.config) == ("b", "a", "c")
    batch = padded_batch()
    logits = built.model.eval()(**batch).logits
    built.model.save_pretrained(tmp_path)
    plain = AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()
    assert torch.equal(plain(**batch).logits, logits)
    assert plain.config.num_hidden_layers == 2


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_a_student_of_equal_depth_starts_as_the_teacher(kind: str) -> None:
    teacher, batch = tiny(kind, layers=3), padded_batch()
    student = build_student(teacher, StudentShape(layers=3)).model.eval()
    assert torch.equal(student(**batch).logits, teacher(**batch).logits)


def test_tensors_without_a_place_in_the_student_are_named() -> None:
    origin = build_student(tiny("modernbert", layers=4), StudentShape()).origin
    assert "0 fresh, ignored: model.layers.1.attn_norm.weight)" in origin


def test_lists_that_describe_each_layer_follow_the_layers() -> None:
    teacher = tiny("modernbert", layers=6, layer_types=[
        "full_attention", "sliding_attention", "sliding_attention",
        "full_attention", "sliding_attention", "full_attention",
    ])  # fmt: skip
    built = build_student(teacher, StudentShape(layer_ids=(2, 4, 5)))
    assert built.model.config.layer_types == ["sliding_attention", "full_attention", "sliding_attention"]
    assert teacher.config.num_hidden_layers == len(teacher.config.layer_types) == 6


def test_a_list_that_only_happens_to_be_as_long_stays() -> None:
    teacher = tiny("deberta-v2", layers=2)
    assert teacher.config.pos_att_type == ["p2c", "c2p"]
    student = build_student(teacher, StudentShape(layers=1)).model
    assert student.config.pos_att_type == ["p2c", "c2p"]


def test_fresh_weights_depend_on_the_seed_alone() -> None:
    teacher = tiny("bert", layers=4)
    one, again, other = (build_student(teacher, StudentShape(init="fresh"), seed=s) for s in (7, 7, 8))
    assert one.layer_ids is None
    assert "2 layers, all weights fresh (seed 7)" in one.origin
    assert same_tensors(one.model.state_dict(), again.model.state_dict())
    weight = "bert.encoder.layer.0.attention.self.query.weight"
    assert not torch.equal(one.model.state_dict()[weight], other.model.state_dict()[weight])
    for ids in ([2, 4], [1, 2], [3, 4]):
        copied = expected_weights(teacher, ids)
        assert not torch.equal(one.model.state_dict()[weight], copied[weight])


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_other_sizes_imply_fresh_weights_and_work(kind: str, tmp_path: Path) -> None:
    teacher = tiny(kind, layers=4)
    shape = StudentShape(layers=2, hidden_size=24, num_attention_heads=3, intermediate_size=40)
    built = build_student(teacher, shape)
    assert built.layer_ids is None
    assert "hidden_size 24, num_attention_heads 3, intermediate_size 40" in built.origin
    assert "all weights fresh" in built.origin
    config = built.model.config
    assert (config.hidden_size, config.num_attention_heads, config.num_hidden_layers) == (24, 3, 2)
    batch = padded_batch()
    outputs = built.model.eval()(**batch, output_hidden_states=True)
    assert {state.shape[-1] for state in outputs.hidden_states} == {24}
    assert 40 in {size for p in built.model.parameters() for size in p.shape}
    built.model.save_pretrained(tmp_path)
    plain = AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()
    assert torch.equal(plain(**batch).logits, outputs.logits)


@pytest.mark.parametrize(
    ("shape", "match"),
    [
        ({"layers": 7}, r"deeper than the teacher \(7 layers against 6\); ask for at most 6"),
        ({"layer_ids": (1, 7)}, "names layer 7, but the teacher's layers are 1 to 6"),
        ({"layer_ids": (0, 2)}, "names layer 0"),
        ({"layer_ids": (3, 1)}, "3,1 must rise"),
        ({"layer_ids": (2, 2)}, "2,2 must rise"),
        ({"hidden_size": 25}, "25 is not a multiple of its 2 attention heads"),
        ({"num_attention_heads": 3}, "16 is not a multiple of its 3 attention heads"),
    ],
)
def test_impossible_shapes_are_refused_in_one_line(shape: dict[str, Any], match: str) -> None:
    with pytest.raises(UserError, match=match) as error:
        build_student(tiny("bert", layers=6), StudentShape(**shape))
    assert "\n" not in str(error.value)


def test_the_teacher_is_not_changed() -> None:
    teacher = tiny("bert", layers=4)
    before, config = {n: t.clone() for n, t in teacher.state_dict().items()}, teacher.config.to_dict()
    student = build_student(teacher, StudentShape()).model
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.zero_()
    student.config.id2label[0] = "changed"
    assert same_tensors(teacher.state_dict(), before)
    assert teacher.config.to_dict() == config


def tinybert_folder(folder: Path, *, gamma: bool = False, layers: int = 2, width: int = 16) -> dict[str, Tensor]:
    """A folder like the published general TinyBERT students; returns the weights of its encoder."""
    source = tiny("bert", layers=layers, width=width, seed=9)
    encoder = {name: tensor for name, tensor in source.state_dict().items() if name.startswith("bert.")}
    stored: dict[str, Tensor] = dict(encoder)
    if gamma:
        stored = {
            name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): tensor
            for name, tensor in stored.items()
        }
    for i in range(layers + 1):
        stored |= {f"fit_denses.{i}.weight": torch.randn(32, width), f"fit_denses.{i}.bias": torch.randn(32)}
    stored |= {"cls.predictions.bias": torch.randn(len(VOCABULARY)), "cls.seq_relationship.bias": torch.randn(2)}
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(stored, folder / "pytorch_model.bin")
    (folder / "config.json").write_text(json.dumps({
        "attention_probs_dropout_prob": 0.1, "cell": {}, "emb_size": width, "hidden_act": "gelu",
        "hidden_dropout_prob": 0.1, "hidden_size": width, "initializer_range": 0.02, "intermediate_size": 2 * width,
        "max_position_embeddings": 80, "num_attention_heads": 2, "num_hidden_layers": layers, "pre_trained": "",
        "structure": [], "training": "", "type_vocab_size": 2, "vocab_size": len(VOCABULARY),
    }))  # fmt: skip
    return encoder


@pytest.mark.parametrize("gamma", [False, True], ids=["weight and bias", "gamma and beta"])
def test_a_general_tinybert_folder_loads(gamma: bool, tmp_path: Path) -> None:
    encoder = tinybert_folder(tmp_path / "student", gamma=gamma)
    teacher = tiny("bert", layers=4, width=32, labels=("b", "a", "c"))
    built = build_student(teacher, StudentShape(), checkpoint=str(tmp_path / "student"))
    state = built.model.state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in encoder.items())
    assert label_names(built.model.config) == ("b", "a", "c")
    assert built.model.config.model_type == "bert"
    assert built.layer_ids is None
    assert f"{len(encoder)} tensors loaded" in built.origin
    assert "fresh: classifier.bias, classifier.weight" in built.origin
    assert "ignored: 8 tensors (cls, fit_denses)" in built.origin
    built.model.save_pretrained(tmp_path / "saved")
    plain = AutoModelForSequenceClassification.from_pretrained(tmp_path / "saved").eval()
    batch = padded_batch()
    assert torch.equal(plain(**batch).logits, built.model.eval()(**batch).logits)


def test_only_the_shape_of_a_checkpoint_is_taken_when_asked(tmp_path: Path) -> None:
    encoder = tinybert_folder(tmp_path)
    teacher = tiny("bert", layers=4, width=32)
    built = build_student(teacher, StudentShape(), checkpoint=str(tmp_path), fresh=True)
    weight = "bert.encoder.layer.1.output.dense.weight"
    assert built.model.state_dict()[weight].shape == encoder[weight].shape
    assert not torch.equal(built.model.state_dict()[weight], encoder[weight])
    assert "all weights fresh" in built.origin


def checkpoint(model: PreTrainedModel, folder: Path) -> BuiltStudent:
    return build_student(tiny("bert", layers=4), StudentShape(), checkpoint=str(save(model, None, folder)))


def test_a_checkpoint_with_the_teachers_labels_keeps_its_head(tmp_path: Path) -> None:
    source = tiny("bert", layers=2, seed=3, labels=("No", "YES"))
    built = checkpoint(source, tmp_path)
    assert same_tensors(built.model.state_dict(), source.state_dict())
    assert label_names(built.model.config) == ("no", "yes")
    assert "fresh" not in built.origin


def test_labels_spelled_with_other_signs_are_the_same(tmp_path: Path) -> None:
    teacher = tiny("bert", layers=4, labels=("entailment", "not_entailment"))
    folder = save(tiny("bert", layers=2, labels=("Entailment", "not-entailment")), None, tmp_path)
    student = build_student(teacher, StudentShape(), checkpoint=str(folder)).model
    assert label_names(student.config) == ("entailment", "not_entailment")


@pytest.mark.parametrize("labels", [("yes", "no"), ("good", "bad"), ("no", "yes", "maybe")])
def test_a_checkpoint_with_other_labels_is_refused(labels: tuple[str, ...], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=rf"has the labels {', '.join(labels)} but the teacher no, yes"):
        checkpoint(tiny("bert", layers=2, labels=labels), tmp_path)


def test_a_classifier_is_refused_as_the_student_of_a_regressor(tmp_path: Path) -> None:
    folder = save(tiny("bert", layers=2, labels=("no", "yes")), None, tmp_path)
    with pytest.raises(UserError, match="labels no, yes but the teacher one number"):
        build_student(tiny("bert", layers=4, labels=None), StudentShape(), checkpoint=str(folder))


def test_a_regressor_gets_a_student_that_predicts_a_number(tmp_path: Path) -> None:
    tinybert_folder(tmp_path)
    teacher = tiny("bert", layers=4, width=32, labels=None)
    student = build_student(teacher, StudentShape(), checkpoint=str(tmp_path)).model
    assert (student.config.num_labels, student.config.problem_type) == (1, "regression")
    assert build_student(teacher, StudentShape()).model.classifier.weight.shape == (1, 32)


def test_a_head_without_names_of_another_size_is_replaced(tmp_path: Path) -> None:
    source = tiny("bert", layers=2, labels=("LABEL_0", "LABEL_1", "LABEL_2"))
    built = checkpoint(source, tmp_path)
    assert built.model.classifier.weight.shape == (2, 16)
    assert "fresh: classifier.bias, classifier.weight" in built.origin


def test_a_deeper_checkpoint_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"is deeper than the teacher \(5 layers against 4\)"):
        checkpoint(tiny("bert", layers=5), tmp_path)


def test_a_checkpoint_from_which_nothing_loads_is_refused(tmp_path: Path) -> None:
    folder = save(tiny("bert", layers=2), None, tmp_path)
    weights = {f"other.{name}": tensor for name, tensor in load_file(folder / "model.safetensors").items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match="none of its weights fit"):
        build_student(tiny("bert", layers=4), StudentShape(), checkpoint=str(folder))


def test_a_checkpoint_with_holes_is_refused(tmp_path: Path) -> None:
    folder = save(tiny("bert", layers=2), None, tmp_path)
    weights = load_file(folder / "model.safetensors")
    del weights["bert.encoder.layer.1.intermediate.dense.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"lacks 1 weights? of its encoder \(bert.encoder.layer.1.intermediate"):
        build_student(tiny("bert", layers=4), StudentShape(), checkpoint=str(folder))


def test_another_architecture_may_be_the_student(tmp_path: Path) -> None:
    source = tiny("distilbert", layers=2)
    built = checkpoint(source, tmp_path)
    assert built.model.config.model_type == "distilbert"
    assert same_tensors(built.model.state_dict(), source.state_dict())


def test_half_of_an_albert_whose_layers_share_nothing() -> None:
    teacher = tiny("albert", layers=4, num_hidden_groups=4)
    built = build_student(teacher, StudentShape())
    assert built.layer_ids == [2, 4]
    own = [block.state_dict() for block in teacher.albert.encoder.albert_layer_groups]
    copied = [block.state_dict() for block in built.model.albert.encoder.albert_layer_groups]
    assert len(copied) == 2
    assert same_tensors(copied[0], own[1])
    assert same_tensors(copied[1], own[3])
    assert not same_tensors(own[1], own[3])
