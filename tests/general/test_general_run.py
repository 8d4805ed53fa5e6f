"""A general distillation from text to a folder, its record, and the way back into `distill`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import datasets
import general_runs
import pytest
import torch
from general_runs import quick
from tiny_encoders import ARCHITECTURES, VOCABULARY, same_tensors, tiny
from transformers import AutoModel, AutoModelForSequenceClassification, AutoTokenizer, BertConfig, BertTokenizerFast

from bert_emd import DistillConfig, GeneralDistillConfig, UserError, distill, general_distill
from bert_emd.training.general.job import prepare_corpus

THIN: dict[str, Any] = {"student_layers": 2, "student_hidden_size": 12, "student_num_attention_heads": 2}


def read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def test_a_thin_student_is_a_plain_encoder_that_distill_takes(tmp_path: Path, encoder: str, text: str) -> None:
    out = tmp_path / "general"
    result = general_distill(encoder, text, config=quick(out, num_train_epochs=4.0, logging_steps=50, **THIN))
    # Plain Transformers loads it without a word about missing weights.
    model, info = AutoModel.from_pretrained(out, output_loading_info=True)
    assert type(model).__name__ == "BertModel"
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert same_tensors(model.state_dict(), result.student.state_dict())
    assert (model.config.num_hidden_layers, model.config.hidden_size) == (2, 12)
    ids = AutoTokenizer.from_pretrained(out)("the dog")["input_ids"]
    assert ids == [2, VOCABULARY.index("the"), VOCABULARY.index("dog"), 3]
    metrics, record = read(out / "metrics.json"), read(out / "run.json")
    start, end = metrics["held_out"]["start"], metrics["held_out"]["end"]
    assert end["loss"] < 0.8 * start["loss"]
    assert end["loss"] == pytest.approx(end["attention"] + end["hidden"] + end["embedding"])
    assert metrics["corpus"]["sequences"]["held_out"] == metrics["held_out"]["sequences"] > 5
    assert record["command"] == "general-distill"
    assert record["config"]["mapping"] == "uniform"
    history = read(out / "layer_mapping.json")
    assert history[-1]["hidden"]["plan"] == [[0, 1, 0, 0], [0, 0, 0, 1]]
    assert not list(out.glob("checkpoint-*/*.bin"))

    # The same folder is a task's student: every weight but the head's comes from it.
    folder = teacher_for_a_task(encoder, tmp_path)
    rows = datasets.Dataset.from_dict({"text": ["the good dog", "a sad cat"] * 10, "label": ["yes", "no"] * 10})
    small = distill(
        folder, rows,
        config=DistillConfig(
            output_dir=str(tmp_path / "student"), student_model=str(out), max_steps=1, learning_rate=1e-12,
            no_cuda=True, max_seq_length=16, trainer_args={"disable_tqdm": True},
        ),
    )  # fmt: skip
    loaded = small.student.base_model.state_dict()
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(loaded[name], tensor, rtol=0, atol=1e-7)


def teacher_for_a_task(encoder: str, folder: Path) -> str:
    names = {"id2label": {0: "no", 1: "yes"}, "label2id": {"no": 0, "yes": 1}}
    model = AutoModelForSequenceClassification.from_pretrained(encoder, **names)
    model.save_pretrained(folder / "teacher")
    AutoTokenizer.from_pretrained(encoder).save_pretrained(folder / "teacher")
    return str(folder / "teacher")


@pytest.mark.parametrize(
    ("mapping", "more"),
    [
        ("emd", {}),
        ("uniform", {}),
        ("skip", {}),
        ("last", {}),
        ("reverse", {}),
        ("random", {}),
        ("all-to-one", {}),
        ("manual", {"layer_map": "1:2,2:3"}),
        ("minilm", {}),
        ("pkd", {}),
    ],
)
def test_every_mapping_teaches(tmp_path: Path, encoder: str, text: str, mapping: str, more: dict[str, Any]) -> None:
    config = quick(tmp_path / "out", mapping=mapping, num_train_epochs=1.5, logging_steps=50, **more, **THIN)
    metrics = general_distill(encoder, text, config=config).metrics
    held = metrics["held_out"]
    assert held["end"]["loss"] < held["start"]["loss"]
    # The engine measures after the last step too; what is reported comes from the saved folder.
    assert metrics["course"][-1]["step"] == metrics["last_step"]
    assert metrics["course"][-1]["loss"] == pytest.approx(held["end"]["loss"], rel=1e-6)
    terms = {"minilm": {"relation"}, "pkd": {"hidden"}}.get(mapping, {"attention", "hidden", "embedding"})
    assert held["end"].keys() - {"loss"} == terms


@pytest.mark.parametrize("kind", [k for k in ARCHITECTURES if k != "bert"])
def test_other_architectures(tmp_path: Path, words: BertTokenizerFast, text: str, kind: str) -> None:
    folder = general_runs.encoder_folder(words, tmp_path / "encoder", kind, layers=2)
    config = quick(tmp_path / "out", student_layers=1, max_steps=2)
    result = general_distill(folder, text, config=config)
    assert result.metrics["last_step"] == 2
    _, info = AutoModel.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not info["missing_keys"]


def test_layers_are_copied_where_no_other_size_is_asked_for(tmp_path: Path, encoder: str, text: str) -> None:
    config = quick(tmp_path / "out", student_layers=2, max_steps=1, learning_rate=1e-12)
    student = general_distill(encoder, text, config=config).student
    teacher = AutoModel.from_pretrained(encoder)
    for mine, theirs in ((0, 1), (1, 3)):
        for one, other in zip(
            student.encoder.layer[mine].parameters(), teacher.encoder.layer[theirs].parameters(), strict=True
        ):
            torch.testing.assert_close(one, other, rtol=0, atol=1e-7)


@pytest.mark.parametrize("form", ["file", "folder of a shape", "folder of weights", "weights, fresh", "model"])
def test_what_a_student_model_may_be(
    tmp_path: Path, encoder: str, text: str, words: BertTokenizerFast, form: str
) -> None:
    shape = tiny("bert", layers=2, width=8, seed=9).base_model
    folder = tmp_path / "student"
    if form in ("file", "folder of a shape"):
        values = shape.config.to_dict()
        del values["model_type"]  # as the published TinyBERT students have it
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps(values))
    else:
        shape.save_pretrained(folder)
    student: Any = {"file": str(folder / "config.json"), "model": shape}.get(form, str(folder))
    kept = {name: tensor.clone() for name, tensor in shape.state_dict().items()}
    changes = {"continue_train": False} if form == "weights, fresh" else {}
    config = quick(tmp_path / "out", max_steps=1, learning_rate=1e-12, **changes)
    found = general_distill(encoder, text, student=student, config=config).student
    assert found.config.hidden_size == 8
    weight = found.encoder.layer[0].output.dense.weight
    same = torch.allclose(weight, kept["encoder.layer.0.output.dense.weight"], atol=1e-7)
    assert same is (form in ("folder of weights", "model"))


def test_the_steps_of_the_reference(tmp_path: Path, encoder: str, text: str) -> None:
    prepared = tmp_path / "prepared corpus"
    line = prepare_corpus(
        GeneralDistillConfig(
            teacher_model=encoder, train_corpus=(text,), output_dir=str(prepared), prepare_only=True, max_seq_length=16
        )
    )
    assert f"--pregenerated_data {prepared}" in line
    assert sorted(path.name for path in prepared.iterdir()) == ["corpus.json", "lengths.bin", "tokens.bin"]
    cache = tmp_path / "prepared"
    one = general_distill(encoder, None, config=quick(tmp_path / "a", pregenerated_data=str(prepared), max_steps=3))
    assert not cache.exists()
    two = general_distill(encoder, None, config=quick(tmp_path / "b", train_corpus=(text,), max_steps=3))
    assert len(list(cache.iterdir())) == 1
    assert same_tensors(one.student.state_dict(), two.student.state_dict())
    assert one.metrics["held_out"] == two.metrics["held_out"]
    other = quick(tmp_path / "c", pregenerated_data=str(prepared), max_seq_length=32, num_workers=2)
    assert other.without_effect()["num_workers"] == "pregenerated_data is prepared already"
    with pytest.raises(UserError, match="sequences of 16 tokens, not 32"):
        general_distill(encoder, None, config=other)


def test_a_stream_is_read_as_far_as_it_is_needed(tmp_path: Path, encoder: str, text: str) -> None:
    source = tmp_path / "source"
    source.mkdir()
    rows = [json.dumps({"text": part.replace("\n", " ")}) for part in Path(text).read_text().split("\n\n")]
    (source / "train.jsonl").write_text("\n".join(rows) + "\n")
    config = quick(tmp_path / "out", dataset_name=str(source), max_steps=3)
    metrics = general_distill(encoder, None, config=config).metrics
    sequences = metrics["corpus"]["sequences"]
    assert 24 <= sequences["train"] <= 26
    assert sequences["held_out"] == 3
    with pytest.raises(UserError, match="--max_steps"):
        quick(tmp_path / "other", dataset_name=str(source))


def test_short_sequences(tmp_path: Path, encoder: str, text: str) -> None:
    config = quick(tmp_path / "out", short_seq_prob=0.5, max_steps=2)
    corpus = general_distill(encoder, text, config=config).metrics["corpus"]
    whole = sum(corpus["sequences"].values()) * 16
    assert 0.5 * whole < corpus["tokens"]["all"] < 0.9 * whole


def test_no_held_out_sequences(tmp_path: Path, encoder: str, text: str) -> None:
    metrics = general_distill(encoder, text, config=quick(tmp_path / "out", eval_share=0.0, max_steps=2)).metrics
    assert metrics["held_out"] == {"sequences": 0, "start": None, "end": None}


def test_a_fine_tuned_teacher_is_warned_about(
    tmp_path: Path, encoder: str, text: str, caplog: pytest.LogCaptureFixture
) -> None:
    teacher = teacher_for_a_task(encoder, tmp_path)
    general_distill(teacher, text, config=quick(tmp_path / "out", max_steps=1))
    assert "it is fine-tuned" in caplog.text
    with pytest.raises(UserError, match="refused by --strict"):
        general_distill(teacher, text, config=quick(tmp_path / "strict", max_steps=1, strict=True))
    assert not (tmp_path / "strict").exists()
    # The classes of such a teacher do not become the student's.
    assert "no" not in read(tmp_path / "out" / "config.json").get("id2label", {}).values()


def test_a_tokenizer_with_more_tokens_than_the_teacher_is_refused(
    tmp_path: Path, text: str, words: BertTokenizerFast
) -> None:
    folder = general_runs.encoder_folder(words, tmp_path / "encoder", vocab_size=40)
    with pytest.raises(UserError, match="the teacher's vocabulary has 40 tokens but the tokenizer makes"):
        general_distill(folder, text, config=quick(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_a_students_other_vocabulary_is_refused(
    tmp_path: Path, encoder: str, text: str, words: BertTokenizerFast
) -> None:
    (tmp_path / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "dog"]))
    other = BertTokenizerFast(vocab=str(tmp_path / "vocab.txt"))
    student = general_runs.encoder_folder(other, tmp_path / "student", layers=2)
    with pytest.raises(UserError, match="different vocabularies"):
        general_distill(encoder, text, student=student, config=quick(tmp_path / "out"))


def test_a_fresh_config_student_too_small_for_the_tokenizer_is_refused(tmp_path: Path, encoder: str, text: str) -> None:
    (tmp_path / "s.json").write_text(
        json.dumps(BertConfig(vocab_size=10, hidden_size=8, num_hidden_layers=1, num_attention_heads=2).to_dict())
    )
    with pytest.raises(UserError, match="the student's vocabulary has 10 tokens"):
        general_distill(encoder, text, student=str(tmp_path / "s.json"), config=quick(tmp_path / "out"))


def test_no_folder_is_left_where_a_corpus_is_too_small_to_hold_out(tmp_path: Path, encoder: str) -> None:
    (tmp_path / "a.txt").write_text("the dog saw a cat and the man had one very old book near the river road then")
    config = quick(tmp_path / "out", eval_share=0.9)
    with pytest.raises(UserError, match="makes 2 sequences of 16 tokens, too few to hold 2 out"):
        general_distill(encoder, str(tmp_path / "a.txt"), config=config)
    assert not (tmp_path / "out").exists()


def test_options_that_contradict_each_other() -> None:
    for changes, message in (
        ({"train_corpus": ("a",), "dataset_name": "b", "max_steps": 5}, "each name a corpus"),
        ({"mapping": "kd"}, "mapping must be one of emd"),
        ({"mapping": "manual"}, "needs its pairs"),
        ({"use_att": False, "use_rep": False, "use_embedding": False}, "nothing is left to learn"),
        ({"continue_train": True}, "name one"),
        ({"student_model": "x", "student_layers": 2}, "brings its own shape"),
        ({"eval_share": 1.0}, "eval_share"),
        ({"short_seq_prob": 1.5}, "short_seq_prob"),
        ({"prepare_only": True, "pregenerated_data": "x"}, "prepare_only makes what"),
        ({"trainer_args": {"eval_accumulation_steps": 2}}, "eval_accumulation_steps is not available"),
    ):
        with pytest.raises(UserError, match=message):
            GeneralDistillConfig(**changes)


def test_options_without_effect_are_told() -> None:
    found = GeneralDistillConfig(masked_lm_prob=0.15, mapping="minilm").without_effect()
    masking = {"masked_lm_prob", "do_whole_word_mask", "max_predictions_per_seq", "epochs_to_generate", "reduce_memory"}
    assert masking <= found.keys()
    assert {"rule", "T_emd", "use_att", "dataset_split"} <= found.keys()
    assert not {"mapping", "learning_rate", "lr_scheduler", "warmup_proportion", "num_workers"} & found.keys()
