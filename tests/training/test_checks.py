"""Pre-flight checks one by one, retention by hand, and the engine's arguments."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_encoders import VOCABULARY, tiny
from transformers import BertTokenizerFast

from bert_emd import DistillConfig, UserError
from bert_emd.data import Examples, custom_task
from bert_emd.models import LoadReport
from bert_emd.training.arguments import optimizer_choice, training_arguments
from bert_emd.training.optimizer import BertAdam
from bert_emd.training.preflight import Preflight, positions
from bert_emd.training.records import render_table, retention, trivial_of


@pytest.fixture(params=[False, True], ids=["lenient", "strict"])
def checks(request: pytest.FixtureRequest) -> Preflight:
    return Preflight(strict=request.param)


def rows(labels: list[Any], names: tuple[str, ...] | None = ("a", "b")) -> Examples:
    texts = [f"text {i}" for i in range(len(labels))]
    return Examples(texts=texts, pairs=None, labels=labels, indices=list(range(len(labels))),
                    task=custom_task(names), source="rows")  # fmt: skip


def warned(checks: Preflight, caplog: pytest.LogCaptureFixture, call: Any, text: str) -> None:
    """A warning in lenient mode, an error in strict mode; one line either way."""
    if checks.strict:
        with pytest.raises(UserError) as error:
            call()
        assert text in str(error.value)
        assert str(error.value).endswith("(refused by --strict)")
        assert checks.findings == []
        return
    with caplog.at_level(logging.WARNING, logger="bert_emd"):
        call()
    assert text in caplog.text
    assert [finding for finding in checks.findings if finding.startswith("warning: ") and text in finding]
    assert "\n" not in "".join(checks.findings)


def test_weights(checks: Preflight) -> None:
    checks.weights("teacher", "T", LoadReport(loaded=7, ignored=["spare"]))
    assert checks.findings == ["teacher: all 7 tensors loaded, 1 ignored"]
    for fresh, match in (
        ("bert.encoder.layer.0.output.dense.bias", "1 weights did not load"),
        ("classifier.weight", "no trained classifier .classifier.weight is not in it.; fine-tune it first"),
        ("bert.pooler.dense.bias", "no trained classifier .bert.pooler.dense.bias"),
        ("pre_classifier.weight", "no trained classifier"),
    ):
        with pytest.raises(UserError, match=match):
            checks.weights("teacher", "T", LoadReport(loaded=7, fresh=[fresh]))


def test_labels(checks: Preflight, caplog: pytest.LogCaptureFixture) -> None:
    checks.labels(None, assumed=False)
    checks.labels(("a", "b"), assumed=False)
    assert checks.findings == ["labels: a number (regression)", "labels agree by name: a, b"]
    checks.findings.clear()
    warned(
        checks, caplog, lambda: checks.labels(("a", "b"), assumed=True), "they are taken to mean a, b, in this order"
    )


def test_vocabulary(checks: Preflight, words: BertTokenizerFast, tmp_path: Path) -> None:
    model = tiny("bert", layers=1)
    checks.vocabulary(words, {"teacher": model})
    checks.vocabulary(words, {"teacher": model, "student": model}, words)
    assert checks.findings == [f"vocabulary: {len(VOCABULARY)} tokens"] * 2
    (tmp_path / "vocab.txt").write_text("\n".join([*VOCABULARY[:-1], "another"]) + "\n")
    other = BertTokenizerFast(vocab=str(tmp_path / "vocab.txt"))
    with pytest.raises(UserError, match=r"different vocabularies \(90 and 90 tokens, 2 differ\)"):
        checks.vocabulary(words, {"teacher": model}, other)
    with pytest.raises(UserError, match="student's vocabulary has 60 tokens but the tokenizer makes 90"):
        checks.vocabulary(words, {"teacher": model, "student": tiny("bert", layers=1, vocab_size=60)})
    checks.vocabulary(words, {"model": tiny("bert", layers=1, vocab_size=96)})  # padded to a round number: fine


@pytest.mark.parametrize(
    ("kind", "limit"), [("bert", 80), ("distilbert", 80), ("roberta", 79), ("mpnet", 78), ("electra", 80),
                        ("modernbert", None), ("deberta-v2", None), ("albert", 80)],
)  # fmt: skip
def test_the_table_of_positions_limits_the_length(kind: str, limit: int | None) -> None:
    model = tiny(kind, layers=1)
    assert positions(model) == limit
    for length in (limit or 200, (limit or 200) + 1):
        ids = torch.full((1, length), 7)
        if limit is None or length <= limit:
            Preflight(strict=True).length("teacher", model, length)
            model(input_ids=ids)
        else:
            with pytest.raises(UserError, match=f"at most {limit} tokens.*set --max_seq_length {limit}"):
                Preflight(strict=False).length("teacher", model, length)
            with pytest.raises((IndexError, RuntimeError)):
                model(input_ids=ids)


def test_truncation(checks: Preflight, caplog: pytest.LogCaptureFixture) -> None:
    checks.truncation(10, 100, 64)
    assert checks.findings == ["truncation: 10 of 100 training rows exceed 64 tokens"]
    checks.findings.clear()
    warned(checks, caplog, lambda: checks.truncation(11, 100, 64), "11 of 100 training rows (11%) are longer than 64")


def test_the_teachers_score(checks: Preflight, caplog: pytest.LogCaptureFixture) -> None:
    train, dev = rows([0, 0, 1]), rows([0, 1, 1, 0, 1])  # most frequent in training: "a", right in 2 of 5
    checks.teacher_score({"accuracy": 0.41}, train, dev)
    assert checks.findings == ["the teacher's accuracy on 5 validation rows is 0.4100, the trivial predictor's 0.4000"]
    checks.findings.clear()
    warned(checks, caplog, lambda: checks.teacher_score({"accuracy": 0.4}, train, dev), "it has learnt nothing")


def test_the_trivial_predictor() -> None:
    assert trivial_of(rows([0, 1, 1]), rows([1, 1, 0, 1]))["accuracy"] == 0.75
    assert trivial_of(rows([0.1, 2.0], None), rows([1.0, 3.0], None)) == {"spearmanr": 0.0, "pearson": 0.0}


@pytest.mark.parametrize(
    ("student", "teacher", "trivial", "kept", "above"),
    [
        (0.8, 0.9, 0.6, 8 / 9, 2 / 3),
        (0.9, 0.9, 0.6, 1.0, 1.0),
        (0.5, 0.9, 0.6, 5 / 9, -1 / 3),
        (0.95, 0.9, 0.6, 19 / 18, 7 / 6),
        (0.5, 0.6, 0.6, 5 / 6, None),
        (0.5, 0.4, 0.6, 5 / 4, None),
        (0.3, 0.0, 0.0, None, None),
        (0.2, -0.1, 0.0, None, None),
        (0.2, 0.5, 0.0, 0.4, 0.4),
    ],
)
def test_retention(student: float, teacher: float, trivial: float, kept: float | None, above: float | None) -> None:
    found = retention(student, teacher, trivial)
    assert found["retention"] == (None if kept is None else pytest.approx(kept))
    assert found["retention_above_trivial"] == (None if above is None else pytest.approx(above))


def test_a_table_has_every_cell_and_note() -> None:
    text = render_table("title", ["model", "score"], [["one", "0.5"], ["two", "0.25"]], ["a note"])
    lines = text.splitlines()
    assert lines[0].strip() == "title"
    assert [line for line in lines if "two" in line and "0.25" in line]
    assert lines[-1] == "a note"


def test_the_configuration_reaches_the_engine(tmp_path: Path) -> None:
    config = DistillConfig(
        train_batch_size=32, gradient_accumulation_steps=4, eval_batch_size=7, learning_rate=3e-4, num_train_epochs=2.5,
        warmup_proportion=0.25, weight_decay=0.2, adam_epsilon=1e-7, max_grad_norm=0.5, eval_step=11, save_steps=13,
        logging_steps=17, seed=19, lr_scheduler="cosine", no_cuda=True, trainer_args={"adam_beta2": 0.98},
    )  # fmt: skip
    args = training_arguments(config, tmp_path, main_metric="spearmanr")
    assert (args.per_device_train_batch_size, args.gradient_accumulation_steps) == (8, 4)
    assert (args.per_device_eval_batch_size, args.learning_rate, args.num_train_epochs) == (7, 3e-4, 2.5)
    assert args.get_warmup_steps(100) == 25
    assert (args.weight_decay, args.adam_epsilon, args.max_grad_norm, args.adam_beta2) == (0.2, 1e-7, 0.5, 0.98)
    assert (args.eval_strategy, args.eval_steps, args.save_strategy, args.save_steps) == ("steps", 11, "steps", 13)
    assert (args.logging_steps, args.seed, args.lr_scheduler_type) == (17, 19, "cosine")
    assert (args.metric_for_best_model, args.greater_is_better) == ("spearmanr", True)
    assert args.device.type == "cpu"
    once = training_arguments(DistillConfig(no_cuda=True), tmp_path, main_metric="accuracy", constant_lr=True)
    assert (once.eval_strategy, once.save_strategy, once.lr_scheduler_type) == ("epoch", "epoch", "constant")
    steps = training_arguments(DistillConfig(warmup_steps=5, no_cuda=True), tmp_path, main_metric="accuracy")
    assert steps.get_warmup_steps(100) == 5


def test_the_optimiser() -> None:
    assert optimizer_choice(DistillConfig()) is None
    cls, options = optimizer_choice(DistillConfig(optimizer="bert_adam", learning_rate=0.5, adam_epsilon=0.25)) or (
        None,
        {},
    )
    assert cls is BertAdam
    made = BertAdam([torch.nn.Parameter(torch.ones(1))], **options)
    assert (made.defaults["lr"], made.defaults["eps"]) == (0.5, 0.25)
