"""The trainers used directly, with plain `TrainingArguments`, as any user of Transformers would."""

from __future__ import annotations

import json
import logging
import re
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from small_runs import LABELS, Snapshots, Stop, StopAfter, sentences
from tiny_encoders import same_tensors, tiny
from torch import Tensor
from transformers import (
    AutoModelForSequenceClassification,
    BertTokenizerFast,
    PreTrainedModel,
    TrainerCallback,
    TrainingArguments,
)

from bert_emd import DistillConfig, DistillTrainer, UserError
from bert_emd.data import normalise_label
from bert_emd.models import student as student_module
from bert_emd.training.trainer import EncoderTrainer, best_checkpoint


def arguments(folder: Path, **changes: Any) -> TrainingArguments:
    return TrainingArguments(**({
        "output_dir": str(folder), "per_device_train_batch_size": 8, "num_train_epochs": 2, "learning_rate": 1e-3,
        "use_cpu": True, "report_to": "none", "disable_tqdm": True, "save_strategy": "no", "logging_steps": 3,
        "dataloader_pin_memory": False,
    } | changes))  # fmt: skip


def encoded(words: BertTokenizerFast, count: int = 24, seed: int = 4, *, labels: bool = True) -> datasets.Dataset:
    rows = sentences(count, seed)
    columns = dict(words([text for text, _ in rows]))
    if labels:
        columns["labels"] = [LABELS.index(label) for _, label in rows]
    return datasets.Dataset.from_dict(columns)


def pair(**changes: Any) -> tuple[PreTrainedModel, PreTrainedModel]:
    return tiny("bert", layers=2, seed=2, **changes), tiny("bert", layers=4, seed=1)


def state_of(model: torch.nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def accuracy(prediction: Any) -> dict[str, float]:
    return {"accuracy": float((prediction.predictions.argmax(1) == prediction.label_ids).mean())}


class Scripted:
    """A metric that takes the values of a list, one an evaluation, whatever the model does."""

    def __init__(self, *values: float, name: str = "accuracy") -> None:
        self.values, self.name = list(values), name

    def __call__(self, prediction: Any) -> dict[str, float]:
        return {self.name: self.values.pop(0)}


def test_a_user_can_train_with_plain_arguments(words: BertTokenizerFast, tmp_path: Path) -> None:
    student, teacher = pair()
    before, teacher_before = state_of(student), state_of(teacher)
    teacher.train()
    teacher.classifier.requires_grad_(False)
    trainer = DistillTrainer(
        student=student, teacher=teacher, args=arguments(tmp_path, eval_strategy="epoch"),
        config=DistillConfig(alpha=1.0), train_dataset=encoded(words, labels=False), eval_dataset=encoded(words, 8, 5),
        processing_class=words, compute_metrics=accuracy,
    )  # fmt: skip
    trainer.train()
    metrics = trainer.evaluate()
    trainer.save_model(str(tmp_path / "saved"))
    logits = trainer.predict(encoded(words, 8, 5)).predictions
    plain = AutoModelForSequenceClassification.from_pretrained(tmp_path / "saved").eval()
    rows = sentences(8, 5)
    batch = words([text for text, _ in rows], padding=True, return_tensors="pt")
    expected = plain(**batch).logits.detach().numpy()
    np.testing.assert_allclose(logits, expected, rtol=1e-5, atol=1e-5)
    truth = np.array([LABELS.index(label) for _, label in rows])
    assert metrics["eval_accuracy"] == (expected.argmax(1) == truth).mean()
    assert not same_tensors(state_of(student), before)
    assert same_tensors(state_of(teacher), teacher_before)
    # It is handed back as it was: to be trained on, but for the part that its owner had frozen.
    assert all(parameter.grad is None for parameter in teacher.parameters())
    trainable = {name for name, parameter in teacher.named_parameters() if parameter.requires_grad}
    assert trainable == {name for name, _ in teacher.named_parameters() if not name.startswith("classifier.")}
    assert teacher.training
    assert student.config._attn_implementation == teacher.config._attn_implementation == "sdpa"
    assert {"loss_attention", "loss_hidden", "loss_embedding", "loss_prediction"} <= trainer.state.log_history[0].keys()


def test_the_logged_terms_add_up_to_the_logged_loss(words: BertTokenizerFast, tmp_path: Path) -> None:
    student, teacher = pair()
    trainer = DistillTrainer(
        student=student, teacher=teacher, config=DistillConfig(beta=0.2, theta=3.0), train_dataset=encoded(words),
        args=arguments(tmp_path, gradient_accumulation_steps=2, per_device_train_batch_size=4), processing_class=words,
    )  # fmt: skip
    trainer.train()
    logs = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert len(logs) == 2
    for entry in logs:
        total = 0.2 * (3.0 * (entry["loss_attention"] + entry["loss_hidden"]) + entry["loss_embedding"])
        assert entry["loss"] == pytest.approx(total + entry["loss_prediction"], rel=1e-4)


@pytest.mark.parametrize("mapping", ["kd", "emd"])
def test_two_micro_batches_have_the_mean_of_their_gradients(
    mapping: str, words: BertTokenizerFast, tmp_path: Path
) -> None:
    """The gradients of one accumulated step against those of plain backward passes over its halves."""
    student, teacher = pair(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    rows = encoded(words, 8)
    seen: list[tuple[Any, dict[str, Tensor]]] = []
    batches: list[dict[str, Tensor]] = []

    class Watch(TrainerCallback):
        def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            seen.append((None, {n: p.grad.clone() for n, p in student.named_parameters() if p.grad is not None}))

    trainer = DistillTrainer(
        student=student, teacher=teacher, config=DistillConfig(mapping=mapping, rule="fixed"), train_dataset=rows,
        args=arguments(tmp_path, gradient_accumulation_steps=2, per_device_train_batch_size=4, max_steps=1,
                       max_grad_norm=0.0, logging_steps=1, learning_rate=1e-12),
        processing_class=words, callbacks=[Watch()],
    )  # fmt: skip
    original = trainer.training_step
    trainer.training_step = lambda model, inputs, *a: (batches.append(dict(inputs)), original(model, inputs, *a))[1]
    trainer.train()
    assert len(batches) == 2
    trainer.distiller.attach()
    trainer.distiller.train()
    student.zero_grad()
    losses = []
    for batch in batches:
        loss = trainer.distiller(**batch)["loss"]
        losses.append(float(loss.detach()))
        (loss / 2).backward()
    trainer.distiller.detach()
    expected = {name: p.grad for name, p in student.named_parameters() if p.grad is not None}
    assert seen[0][1].keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(seen[0][1][name], gradient, rtol=1e-4, atol=1e-6)
    assert trainer.state.log_history[0]["loss"] == pytest.approx(sum(losses) / 2, rel=1e-5)


def test_fine_tuning_too_takes_the_mean_over_its_micro_batches(words: BertTokenizerFast, tmp_path: Path) -> None:
    """Classifiers take any keyword, which the engine by itself mistakes for a loss that is already divided."""
    gradients = []
    for parts in (1, 2):
        model = tiny("bert", layers=2, seed=2, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
        found: dict[str, Tensor] = {}

        class Watch(TrainerCallback):
            def on_pre_optimizer_step(self, *_: Any, model: Any, found: Any = found, **__: Any) -> None:
                found |= {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}

        EncoderTrainer(
            model=model, train_dataset=encoded(words, 8), processing_class=words, callbacks=[Watch()],
            args=arguments(tmp_path / str(parts), gradient_accumulation_steps=parts, max_steps=1, max_grad_norm=0.0,
                           per_device_train_batch_size=8 // parts),
        ).train()  # fmt: skip
        gradients.append(found)
    assert gradients[0].keys() == gradients[1].keys()
    assert len(gradients[0]) > 10
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, rtol=1e-4, atol=1e-6)


def scripted_run(
    words: BertTokenizerFast, folder: Path, metric: Any, monkeypatch: pytest.MonkeyPatch, *,
    early_stopping: int | None = None, kind: str = "distill", crash_at: int | None = None,
    resume_from: Path | None = None, **changes: Any,
) -> tuple[EncoderTrainer, Snapshots]:  # fmt: skip
    snapshots = Snapshots(monkeypatch)
    student, teacher = pair()
    shared: dict[str, Any] = {
        "args": arguments(folder, **({"eval_strategy": "steps", "eval_steps": 1, "metric_for_best_model": "accuracy",
                                      "greater_is_better": True, "max_steps": 5} | changes)),
        "train_dataset": encoded(words), "eval_dataset": encoded(words, 8, 5), "processing_class": words,
        "compute_metrics": metric, "early_stopping": early_stopping,
    }  # fmt: skip
    trainer: EncoderTrainer
    if kind == "distill":
        trainer = DistillTrainer(student=student, teacher=teacher, **shared)
    else:
        trainer = EncoderTrainer(model=student, **shared)
    if crash_at is None:
        trainer.train(resume_from_checkpoint=None if resume_from is None else str(resume_from))
    else:
        trainer.add_callback(StopAfter(crash_at))
        with pytest.raises(Stop):
            trainer.train()
    return trainer, snapshots


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("kind", ["distill", "finetune"])
@pytest.mark.parametrize(
    ("scores", "peak"),
    [((0.1, 0.9, 0.3, 0.2, 0.8), 2), ((0.9, 0.1, 0.9, 0.9, 0.9), 1), ((0.1, 0.2, 0.3, 0.4, 0.5), 5)],
    ids=["early", "ties keep the earlier", "last"],
)
@pytest.mark.parametrize("saving", [{"save_strategy": "no"}, {"save_strategy": "steps", "save_steps": 4}])
def test_the_best_is_kept_wherever_it_appears(
    kind: str, scores: tuple[float, ...], peak: int, saving: dict[str, Any],
    words: BertTokenizerFast, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    _, snapshots = scripted_run(words, tmp_path, Scripted(*scores), monkeypatch, kind=kind, **saving)
    held = best_checkpoint(tmp_path)
    assert held is not None
    assert held[1:] == (max(scores), peak)
    assert same_tensors(load_file(held[0] / "model.safetensors"), snapshots.by_step[peak])
    assert not same_tensors(snapshots.by_step[peak], snapshots.by_step[1 if peak > 1 else 5])
    assert [path.name for path in (tmp_path / "best").iterdir()] == [f"step-{peak}"]


def test_a_best_after_the_last_checkpoint_does_not_take_the_one_before_with_it(
    words: BertTokenizerFast, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saving: dict[str, Any] = {"save_strategy": "steps", "save_steps": 2, "save_total_limit": 1}
    _, first = scripted_run(words, tmp_path, Scripted(0.8, 0.9, 0.95), monkeypatch, crash_at=3, **saving)
    assert names_in(tmp_path / "best") == ["step-2", "step-3"]  # step-1 went when checkpoint-2 was complete
    (tmp_path / "best" / "step-4").mkdir()  # without a score: it was being written
    monkeypatch.undo()
    scripted_run(words, tmp_path, Scripted(0.5, 0.4, 0.3), monkeypatch, resume_from=tmp_path / "checkpoint-2", **saving)
    held = best_checkpoint(tmp_path)
    assert held is not None
    assert held[1:] == (0.9, 2)
    assert same_tensors(load_file(held[0] / "model.safetensors"), first.by_step[2])
    assert names_in(tmp_path / "best") == ["step-2"]


def test_every_checkpoint_that_is_kept_keeps_its_best(
    words: BertTokenizerFast, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saving: dict[str, Any] = {"save_strategy": "steps", "save_steps": 2}
    scripted_run(words, tmp_path, Scripted(0.5, 0.4, 0.6, 0.7), monkeypatch, crash_at=4, **saving)
    assert names_in(tmp_path / "best") == ["step-1", "step-4"]
    monkeypatch.undo()
    scripted_run(words, tmp_path, Scripted(0.1, 0.1, 0.1), monkeypatch, resume_from=tmp_path / "checkpoint-2", **saving)
    assert best_checkpoint(tmp_path) == (tmp_path / "best" / "step-1", 0.5, 1)
    assert names_in(tmp_path / "best") == ["step-1"]


def test_a_metric_that_should_be_small_keeps_the_smallest(
    words: BertTokenizerFast, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    metric = Scripted(0.5, 0.2, 0.4, 0.3, 0.9)
    _, snapshots = scripted_run(
        words, tmp_path, metric, monkeypatch, metric_for_best_model="eval_accuracy", greater_is_better=False
    )
    held = best_checkpoint(tmp_path)
    assert held is not None
    assert held[2] == 2
    assert same_tensors(load_file(held[0] / "model.safetensors"), snapshots.by_step[2])


def test_the_last_step_is_evaluated_and_only_once(
    words: BertTokenizerFast, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, snapshots = scripted_run(words, tmp_path / "a", Scripted(0.1, 0.9), monkeypatch, eval_steps=3)
    assert snapshots.evaluations == [3, 5]
    monkeypatch.undo()
    _, snapshots = scripted_run(words, tmp_path / "b", Scripted(0.1, 0.9), monkeypatch, eval_strategy="epoch")
    assert snapshots.evaluations == [3, 5]
    assert best_checkpoint(tmp_path / "b")[2] == 5  # type: ignore[index]


def test_early_stopping_stops_and_the_peak_is_kept(
    words: BertTokenizerFast, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer, snapshots = scripted_run(
        words, tmp_path, Scripted(0.1, 0.7, 0.5, 0.7, 0.9), monkeypatch, early_stopping=2, max_steps=5
    )
    assert trainer.state.global_step == 4  # steps 3 and 4 were not better than step 2
    assert snapshots.evaluations == [1, 2, 3, 4]
    assert best_checkpoint(tmp_path)[2] == 2  # type: ignore[index]


def test_what_an_earlier_run_kept_does_not_count(
    words: BertTokenizerFast, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scripted_run(words, tmp_path, Scripted(0.1, 0.99, 0.1, 0.1, 0.1), monkeypatch)
    (tmp_path / "best" / "notes.txt").write_text("mine")
    monkeypatch.undo()
    _, snapshots = scripted_run(words, tmp_path, Scripted(0.1, 0.2, 0.3, 0.6, 0.1), monkeypatch)
    held = best_checkpoint(tmp_path)
    assert held is not None
    assert held[1:] == (0.6, 4)
    assert same_tensors(load_file(held[0] / "model.safetensors"), snapshots.by_step[4])
    assert (tmp_path / "best" / "notes.txt").read_text() == "mine"


def test_the_engines_own_best_at_end_works_with_the_wrapper(
    words: BertTokenizerFast, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer, snapshots = scripted_run(
        words, tmp_path, Scripted(0.1, 0.9, 0.3, 0.2, 0.1), monkeypatch,
        load_best_model_at_end=True, save_strategy="steps", save_steps=1,
    )  # fmt: skip
    assert same_tensors(state_of(trainer.product), snapshots.by_step[2])


def test_checkpoints_are_plain_folders_with_the_engines_state_beside(words: BertTokenizerFast, tmp_path: Path) -> None:
    student, teacher = pair(width=12, heads=3)
    trainer = DistillTrainer(
        student=student, teacher=teacher, config=DistillConfig(mapping="emd"), train_dataset=encoded(words),
        processing_class=words, args=arguments(tmp_path, save_strategy="steps", save_steps=2, max_steps=2),
    )  # fmt: skip
    trainer.train()
    folder = tmp_path / "checkpoint-2"
    plain = AutoModelForSequenceClassification.from_pretrained(folder)
    assert same_tensors(state_of(plain), state_of(student))
    assert BertTokenizerFast.from_pretrained(folder).get_vocab() == words.get_vocab()
    names = {path.name for path in folder.iterdir()}
    assert "training_args.bin" not in names
    own = load_file(folder / "distiller.safetensors")
    assert own.keys() == {"projection.0.weight", "projection.0.bias", "mapping._extra_state"}
    assert torch.equal(own["projection.0.weight"], trainer.distiller.projection[0].weight)
    weights = trainer.distiller.mapping.layer_weights()
    assert own["mapping._extra_state"].dtype == torch.float64
    expected = [x for name in ("attention_student", "attention_teacher", "hidden_student", "hidden_teacher")
                for x in weights[name]]  # fmt: skip
    assert own["mapping._extra_state"].tolist() == expected
    assert "bert_emd" not in (folder / "config.json").read_text()


def test_a_checkpoint_of_another_shape_is_refused_in_one_line(words: BertTokenizerFast, tmp_path: Path) -> None:
    def trainer(layers: int) -> DistillTrainer:
        return DistillTrainer(
            student=tiny("bert", layers=layers, seed=2), teacher=tiny("bert", layers=4), train_dataset=encoded(words),
            args=arguments(tmp_path, save_strategy="steps", save_steps=2, max_steps=2), processing_class=words,
        )  # fmt: skip

    trainer(2).train()
    with pytest.raises(UserError, match="is not a checkpoint of this student") as error:
        trainer(3).train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert "\n" not in str(error.value)


def test_equal_seeds_give_equal_numbers_down_to_the_projection(words: BertTokenizerFast, tmp_path: Path) -> None:
    def run(seed: int, noise: int) -> dict[str, Tensor]:
        student, teacher = pair(width=12, heads=3)
        torch.manual_seed(noise)  # whatever the user drew before
        trainer = DistillTrainer(
            student=student, teacher=teacher, train_dataset=encoded(words), processing_class=words,
            args=arguments(tmp_path / f"{seed}-{noise}", seed=seed, max_steps=3),
        )  # fmt: skip
        trainer.train()
        return {name: t for name, t in state_of(trainer.distiller).items() if isinstance(t, Tensor)}

    one, again, other = run(3, 0), run(3, 1), run(4, 0)
    assert same_tensors(one, again)
    assert not torch.equal(one["projection.0.weight"], other["projection.0.weight"])
    assert not torch.equal(one["student.classifier.weight"], other["student.classifier.weight"])


def test_a_large_weight_is_warned_about_once(
    words: BertTokenizerFast, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def run(layers: int) -> list[str]:
        caplog.clear()
        trainer = DistillTrainer(
            student=tiny("bert", layers=layers, seed=2), teacher=tiny("bert", layers=4),
            config=DistillConfig(mapping="emd", rule="softmax", T_emd=0.01, cost_scale="absolute"),
            args=arguments(tmp_path / str(layers), max_steps=3), train_dataset=encoded(words), processing_class=words,
        )  # fmt: skip
        with caplog.at_level(logging.WARNING, logger="bert_emd"):
            trainer.train()
        assert max(max(w) for w in trainer.distiller.mapping.layer_weights().values()) > 0.5
        return [record.getMessage() for record in caplog.records if "weight, so the other" in record.getMessage()]

    found = run(3)
    assert len(found) == 1
    assert re.fullmatch(
        r"step \d: layer [1-4] has (0\.[5-9]\d\d|1\.000) of the .* weight, .*--rule double-softmax .*", found[0]
    )


def test_half_the_weight_of_two_layers_is_no_large_weight(
    words: BertTokenizerFast, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    trainer = DistillTrainer(
        student=tiny("bert", layers=2, seed=2), teacher=tiny("bert", layers=2), config=DistillConfig(mapping="emd"),
        train_dataset=encoded(words), args=arguments(tmp_path, max_steps=3), processing_class=words,
    )  # fmt: skip
    with caplog.at_level(logging.WARNING, logger="bert_emd"):
        trainer.train()
    assert max(trainer.distiller.mapping.layer_weights()["hidden_student"]) > 0.5
    assert caplog.records == []


def test_the_history_ends_with_the_last_step(words: BertTokenizerFast, tmp_path: Path) -> None:
    student, teacher = pair()
    trainer = DistillTrainer(
        student=student, teacher=teacher, config=DistillConfig(mapping="emd"), train_dataset=encoded(words),
        processing_class=words, args=arguments(tmp_path, max_steps=5, logging_steps=2),
    )  # fmt: skip
    trainer.train()
    assert [entry["step"] for entry in trainer.history] == [2, 4, 5]
    for entry in trainer.history:
        assert np.array(entry["attention"]["cost"]).shape == np.array(entry["hidden"]["plan"]).shape == (2, 4)
        assert np.array(entry["hidden"]["plan"]).sum() == pytest.approx(1.0)
        assert {name: len(w) for name, w in entry["weights"].items()} == {
            "attention_student": 2, "attention_teacher": 4, "hidden_student": 2, "hidden_teacher": 4,
        }  # fmt: skip
    assert trainer.history[-1]["weights"] == trainer.distiller.mapping.layer_weights()
    assert json.loads(json.dumps(trainer.history)) == trainer.history


def test_teacher_and_student_must_be_two_models(words: BertTokenizerFast, tmp_path: Path) -> None:
    model = tiny("bert")
    with pytest.raises(UserError, match="one and the same model"):
        DistillTrainer(student=model, teacher=model, args=arguments(tmp_path))


@pytest.mark.parametrize(
    "name",
    ["Not-Entailment", " a  b ", "a--b", "a_-b", "a - b", "a\tb", "\ta\n", "ÄRGER", "", "-", "a\N{NO-BREAK SPACE}b"],
)
def test_a_students_labels_are_compared_as_the_datas_are(name: str) -> None:
    assert student_module._plain(name) == normalise_label(name)


def test_pkd_needs_two_layers(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="student of 2 layers or more"):
        DistillTrainer(
            student=tiny("bert", layers=1), teacher=tiny("bert"), config=DistillConfig(pkd=True),
            args=arguments(tmp_path),
        )  # fmt: skip


def test_no_teacher_is_plain_fine_tuning(words: BertTokenizerFast, tmp_path: Path) -> None:
    """Mapping `none` against the fine-tuning trainer: the same weights to the last bit."""
    results = []
    for name in ("none", "finetune"):
        student, teacher = pair()
        shared: dict[str, Any] = {
            "args": arguments(tmp_path / name, max_steps=4), "train_dataset": encoded(words), "processing_class": words,
        }  # fmt: skip
        if name == "none":
            trainer: EncoderTrainer = DistillTrainer(
                student=student, teacher=teacher, config=DistillConfig(mapping="none"), **shared
            )
        else:
            trainer = EncoderTrainer(model=student, **shared)
        trainer.train()
        results.append(state_of(student))
    assert same_tensors(*results)


def test_checkpointing_through_the_arguments_changes_no_number(words: BertTokenizerFast, tmp_path: Path) -> None:
    losses = []
    for checkpointing in (False, True):
        student, teacher = pair(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
        trainer = DistillTrainer(
            student=student, teacher=teacher, train_dataset=encoded(words), processing_class=words,
            args=arguments(tmp_path / str(checkpointing), max_steps=3, logging_steps=1,
                           activation_checkpointing=checkpointing),
        )  # fmt: skip
        trainer.train()
        assert student.is_activation_checkpointing == checkpointing
        losses.append([entry["loss"] for entry in trainer.state.log_history if "loss" in entry])
    assert len(losses[0]) == 3
    assert losses[1] == pytest.approx(losses[0], rel=1e-6)
