"""Whose layers a student starts from, and what is refused before anything is loaded."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from small_runs import LABELS, model_state, quick_distill, quick_finetune, read, trained
from tiny_encoders import save, tiny
from transformers import AutoModel, BertTokenizerFast

from bert_emd import DistillConfig, UserError, distill, finetune
from bert_emd.training import distill as distill_module
from bert_emd.training.mapping import Shape, make_mapping
from bert_emd.training.resolve import resolve


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory, vocabulary_file: Path) -> str:
    """A pretrained encoder as users have it: no head."""
    tokenizer = BertTokenizerFast(vocab=str(vocabulary_file), do_lower_case=True)
    folder = tmp_path_factory.mktemp("encoder") / "encoder"
    model = tiny("bert", layers=4, labels=LABELS, seed=7, initializer_range=0.1)
    save(model.bert, tokenizer, folder)
    assert not any("classifier" in name for name in model_state(folder))
    return str(folder)


@pytest.fixture(scope="module")
def tuned(encoder: str, files: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> str:
    """A teacher fine-tuned from it, with the record of that."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("tuned") / "teacher"
    finetune(encoder, None, config=quick_finetune(folder, **files))
    return str(folder)


@pytest.mark.parametrize("mapping", ["none", "kd", "emd"])
def test_a_pretrained_start_has_the_encoders_layers_and_a_fresh_head(
    mapping: str, encoder: str, tuned: str, files: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Found by the teacher's record; the layers are compared before the first step."""
    started: list[dict[str, torch.Tensor]] = []
    original = distill_module.train_stages

    def seen(stages: Any, first: Any, *more: Any) -> Any:
        started.append({name: t.clone() for name, t in first.product.state_dict().items()})
        return original(stages, first, *more)

    monkeypatch.setattr(distill_module, "train_stages", seen)
    config = quick_distill(
        tmp_path / "s", **files, mapping=mapping, student_from="pretrained", student_layer_ids=(1, 4)
    )
    metrics = distill(tuned, None, config=config).metrics
    (state,) = started
    source = AutoModel.from_pretrained(encoder).state_dict()
    teacher = model_state(Path(tuned))
    for ours, theirs in ((0, 0), (1, 3)):
        for name, tensor in source.items():
            if name.startswith(f"encoder.layer.{theirs}."):
                own = state["bert." + name.replace(f"layer.{theirs}.", f"layer.{ours}.")]
                assert torch.equal(own, tensor)
                assert not torch.equal(own, teacher["bert." + name])
    for name in ("embeddings.word_embeddings.weight", "pooler.dense.weight"):
        assert torch.equal(state[f"bert.{name}"], source[name])
    assert not torch.equal(state["classifier.weight"], teacher["classifier.weight"])
    assert metrics["student_from"] == "pretrained"
    assert metrics["start"] == read(tmp_path / "s" / "run.json")["student"]
    for words in (
        "layers 1, 4 of the pretrained encoder",
        encoder,
        "fresh with seed 42: classifier.bias, classifier.weight",
    ):
        assert words in metrics["start"]


def test_the_same_fresh_head_whatever_the_mapping_and_another_with_another_seed(
    encoder: str, teacher: str, files: dict[str, str], tmp_path: Path
) -> None:
    heads = []
    for i, (mapping, seed) in enumerate((("none", 1), ("emd", 1), ("none", 2))):
        config = quick_distill(
            tmp_path / str(i), **files, mapping=mapping, seed=seed, student_from="pretrained", pretrained_model=encoder,
            learning_rate=1e-30, max_steps=1,
        )  # fmt: skip
        distill(teacher, None, config=config)
        heads.append(model_state(tmp_path / str(i))["classifier.weight"])
    assert torch.equal(heads[0], heads[1])
    assert not torch.equal(heads[0], heads[2])


def test_a_teacher_start_is_named_too(teacher: str, files: dict[str, str], tmp_path: Path) -> None:
    assert (
        distill(teacher, None, config=quick_distill(tmp_path, **files, max_steps=1)).metrics["student_from"]
        == "teacher"
    )
    fresh = quick_distill(tmp_path / "f", **files, max_steps=1, student_init="fresh")
    assert distill(teacher, None, config=fresh).metrics["student_from"] == "fresh"


def test_an_encoder_that_is_not_known_or_gone_says_what_to_give(
    encoder: str, tuned: str, teacher: str, files: dict[str, str], tmp_path: Path, words: BertTokenizerFast
) -> None:
    def refused(big: Any, message: str, **more: Any) -> None:
        with pytest.raises(UserError, match=message):
            distill(big, None, config=quick_distill(tmp_path / "s", **files, student_from="pretrained", **more))
        assert not (tmp_path / "s").exists()

    refused(teacher, "has no record of where it came from; name the encoder .* with --pretrained_model")
    moved = tmp_path / "moved"
    shutil.copytree(tuned, moved)
    record = read(moved / "run.json")
    record["model"] = record["config"]["model_name_or_path"] = str(tmp_path / "gone")
    (moved / "run.json").write_text(json.dumps(record))
    refused(str(moved), "gone, which the teacher .* was fine-tuned from, is not there any more; name the encoder")
    refused(teacher, "does not exist", pretrained_model=str(tmp_path / "nowhere"))
    shallow = save(tiny("bert", layers=3).bert, words, tmp_path / "shallow")
    refused(teacher, "has num_hidden_layers 3 but the teacher 4", pretrained_model=str(shallow))
    small = trained(words, layers=2)
    config = quick_distill(tmp_path / "s", **files, student_from="pretrained", pretrained_model=encoder)
    with pytest.raises(UserError, match="the student that was passed has its own"):
        distill(teacher, None, student=small, config=config)


@pytest.mark.parametrize("more", [{"student_model": "x"}, {"student_init": "fresh"}, {"student_hidden_size": 8}])
def test_nothing_is_copied_so_there_is_no_whose(more: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="student_from says whose layers are copied, and none are here"):
        DistillConfig(student_from="pretrained", **more)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mapping": "last", "student_layers": 1}, "needs a student of 2 layers or more"),
        ({"mapping": "skip", "student_layer_ids": (2,)}, "needs a student of 2 layers or more"),
        ({"pkd": True, "mapping": "uniform", "student_layers": 1}, "needs a student of 2 layers or more"),
        ({"mapping": "manual", "layer_map": "1:2,3:4"}, "names student layer 3, but the student's layers are 1 to 2"),
        ({"mapping": "manual", "layer_map": "1:5"}, "names teacher layer 5, but the teacher's layers are 1 to 4"),
        ({"mapping": "minilm", "relation_layer": 9}, "is no teacher layer"),
        ({"mapping": "minilm", "relation_heads": 3}, "relation_heads 3 must divide both widths"),
        (
            {"schedule": "two-stage", "mapping": "last", "student_layers": 1},
            "needs a student of 2 layers or more",
        ),
    ],
)  # fmt: skip
def test_what_cannot_be_defined_is_refused_before_weights_and_data_are_read(
    options: dict[str, Any], message: str, teacher: str, files: dict[str, str], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    for name in ("load_classifier", "load_run_data"):
        monkeypatch.setattr(distill_module, name, lambda *_, **__: pytest.fail("something was loaded"))
    with pytest.raises(UserError, match=message):
        distill(teacher, None, config=quick_distill(tmp_path / "s", **files, **options))
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("1:2,2:4,3:6", "1:2,2:4,3:6"), (" 1:2, 2:4 ", "1:2,2:4"), (["1:2", "2:4"], "1:2,2:4"),
        ([[1, 2], [2, 4]], "1:2,2:4"), ({1: 2, 2: 4}, "1:2,2:4"), ({1: [2, 3]}, "1:2,1:3"), ({"1": "2"}, "1:2"),
    ],
)  # fmt: skip
def test_the_forms_of_a_layer_map(given: Any, kept: str) -> None:
    assert DistillConfig(mapping="manual", layer_map=given).layer_map == kept
    assert resolve(DistillConfig, flags={}, file={"mapping": "manual", "layer_map": given}).config.layer_map == kept


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("", "layer_map is empty"), ([], "layer_map is empty"), ({}, "layer_map is empty"),
        ("1:2,1:2", "names the pair 1:2 twice"), ("1-2", "'1-2' is no such pair"), ("1:2,", "'' is no such pair"),
        ("1:2:3", "'1:2:3' is no such pair"), ("1:x", "is no such pair"), ([1, 2], "1 is no such pair"),
        (62, "is the number 62, as YAML reads 1:2"), (1.5, "layer_map must be pairs like"), ([[1, -2]], "no such pair"),
    ],
)  # fmt: skip
def test_a_bad_layer_map_is_one_line(given: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        resolve(DistillConfig, flags={}, file={"mapping": "manual", "layer_map": given})


def test_manual_needs_its_map() -> None:
    with pytest.raises(UserError, match="give them with --layer_map"):
        DistillConfig(mapping="manual")


def test_every_option_of_a_mapping_reaches_it() -> None:
    config = DistillConfig(
        mapping="manual", layer_map="1:2", state_loss="cls", cost_scale="relative", relation_heads=2, relation_layer=3,
        use_att=False, rule="softmax", T_emd=2.0, seperate=True, seed=5,
    )  # fmt: skip
    options = make_mapping(config, Shape(layers=2, heads=2, width=8), Shape(layers=4, heads=4, width=16)).options
    assert (options.layer_map, options.state_loss, options.cost_scale) == ("1:2", "cls", "relative")
    assert (options.relation_heads, options.relation_layer, options.seed) == (2, 3, 5)
    assert (options.attention, options.hidden, options.embedding) == (False, True, True)
    assert (options.rule, options.T_emd, options.joint) == ("softmax", 2.0, False)
    assert (options.student_heads, options.teacher_heads, options.student_width, options.teacher_width) == (2, 4, 8, 16)


@pytest.mark.parametrize(
    ("options", "idle", "busy"),
    [
        ({"mapping": "uniform"}, {"rule", "T_emd", "seperate"}, {"use_att", "cost_scale", "state_loss"}),
        ({"mapping": "uniform", "state_loss": "cls"}, {"use_att", "use_rep", "use_embedding", "cost_scale"}, {"beta"}),
        ({"mapping": "pkd"}, {"use_att", "cost_scale", "state_loss", "count_padding"}, {"beta", "projection"}),
        ({"mapping": "minilm"}, {"use_att", "use_rep", "cost_scale", "count_padding", "projection"}, {"beta", "theta"}),
        ({"mapping": "minilm", "relation_heads": 2}, {"state_loss"}, {"relation_heads"}),
        ({"mapping": "emd", "relation_heads": 2}, {"relation_heads"}, {"cost_scale", "rule"}),
        ({"mapping": "kd"}, {"beta", "theta", "cost_scale", "use_att"}, {"alpha"}),
        ({"mapping": "none"}, {"beta", "theta", "cost_scale", "alpha"}, {"student_from"}),
        ({"mapping": "manual", "layer_map": "1:1"}, {"rule"}, {"layer_map"}),
        ({"layer_map": "1:1"}, {"layer_map"}, {"mapping"}),
        ({"pretrained_model": "x"}, {"pretrained_model"}, {"student_from"}),
        ({"schedule": "two-stage"}, {"beta", "theta"}, {"intermediate_epochs", "alpha", "lr_scheduler"}),
        ({"schedule": "two-stage", "max_steps": 5}, {"intermediate_epochs", "num_train_epochs"}, {"max_steps"}),
        ({}, {"intermediate_epochs", "intermediate_learning_rate"}, {"beta", "theta"}),
    ],
)  # fmt: skip
def test_what_has_no_effect_is_said(options: dict[str, Any], idle: set[str], busy: set[str]) -> None:
    unused = resolve(DistillConfig, flags={k: v if isinstance(v, str) else str(v) for k, v in options.items()}).unused
    assert idle <= unused.keys()
    assert not busy & unused.keys()
