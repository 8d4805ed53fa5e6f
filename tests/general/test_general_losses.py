"""The loss against plain Transformers; every sequence once, whatever the number of processes; exact resume."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from general_runs import quick
from tiny_encoders import same_tensors, tiny
from torch import Tensor
from transformers import AutoModel, BertTokenizerFast, PreTrainedModel, TrainerCallback

from bert_emd import UserError, general_distill
from bert_emd.data.corpus import FileCorpus, Packing, TokenStore, build_store
from bert_emd.training.arguments import training_arguments
from bert_emd.training.general.rows import EpochBatches, Rows, batch_of, split_rows
from bert_emd.training.general.trainer import GeneralTrainer, held_out_losses


@pytest.fixture
def store(tmp_path: Path, text: str, words: BertTokenizerFast) -> TokenStore:
    return build_store(FileCorpus([Path(text)]), Packing(words, 16), tmp_path / "store")


def scores_and_states(model: PreTrainedModel, ids: Tensor, mask: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """Hidden states by plain Transformers, and each layer's Q K^T / sqrt(d) from the states below it."""
    states = model(input_ids=ids, attention_mask=mask, output_hidden_states=True).hidden_states
    scores = []
    for layer, below in zip(model.encoder.layer, states, strict=False):
        heads = []
        own = layer.attention.self
        width = model.config.hidden_size // model.config.num_attention_heads
        query, key = own.query(below), own.key(below)
        for h in range(model.config.num_attention_heads):
            part = slice(h * width, (h + 1) * width)
            heads.append(query[..., part] @ key[..., part].transpose(1, 2) / math.sqrt(width))
        scores.append(torch.stack(heads, 1))
    return scores, list(states)


def plain_losses(
    student: PreTrainedModel, teacher: PreTrainedModel, projection: Any, pairs: list[tuple[int, int]], batch: Any
) -> dict[str, float]:
    """Mean squared errors over kept positions, by loops over rows and positions."""
    ids, mask = batch["input_ids"], batch["attention_mask"]
    with torch.no_grad():
        s_scores, s_states = scores_and_states(student, ids, mask)
        t_scores, t_states = scores_and_states(teacher, ids, mask)

        def states(i: int, j: int) -> float:
            total, count = 0.0, 0
            for row in range(len(ids)):
                for position in range(int(mask[row].sum())):
                    difference = projection(s_states[i][row, position]) - t_states[j][row, position]
                    total += float((difference**2).mean())
                    count += 1
            return total / count

        def scores(i: int, j: int) -> float:
            total, count = 0.0, 0
            for row in range(len(ids)):
                n = int(mask[row].sum())
                difference = s_scores[i][row, :, :n, :n] - t_scores[j][row, :, :n, :n]
                total += float((difference**2).mean(0).sum())
                count += n * n
            return total / count

        return {
            "attention": sum(scores(i, j) for i, j in pairs),
            "hidden": sum(states(i + 1, j + 1) for i, j in pairs),
            "embedding": states(0, 0),
        }


@pytest.fixture
def trainer(tmp_path: Path, encoder: str, store: TokenStore, words: BertTokenizerFast) -> GeneralTrainer:
    # Without dropout, so that a training step can be computed again.
    student = tiny("bert", layers=2, width=12, heads=2, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    config = quick(tmp_path / "run", num_train_epochs=2.0)
    train, held = split_rows(store, 0.1, 100)
    return GeneralTrainer(
        student=student.base_model,
        teacher=AutoModel.from_pretrained(encoder),
        config=config.as_distillation(),
        args=training_arguments(config, tmp_path / "run", main_metric=None, evaluates=True),
        train_dataset=train,
        eval_dataset=held,
        processing_class=words,
    )


def test_held_out_losses_are_those_of_plain_transformers(trainer: GeneralTrainer) -> None:
    distiller, rows = trainer.distiller, trainer.eval_dataset
    # The last sequence of a corpus is padded, so put it in as well.
    last = Rows(rows.store, np.array([*rows.left_out, len(rows.store) - 1]), only=True)
    assert last[len(last) - 1]["length"] < 16
    distiller.attach()
    found = held_out_losses(distiller, last, batch_size=100)
    distiller.detach()
    batch = batch_of(last.__getitems__(range(len(last))))
    teacher = distiller.teacher
    assert teacher is not None
    expected = plain_losses(distiller.student.eval(), teacher, distiller.projection[0], [(0, 1), (1, 3)], batch)
    assert found == pytest.approx({"loss": sum(expected.values()), **expected}, rel=1e-4)


def test_held_out_losses_leave_everything_as_it_was(trainer: GeneralTrainer) -> None:
    before = {name: tensor.clone() for name, tensor in trainer.distiller.state_dict().items()}
    trainer.distiller.train()
    trainer.distiller.attach()
    first, again = trainer.measure(), trainer.measure()
    trainer.distiller.detach()
    assert first == again
    assert trainer.distiller.training
    assert same_tensors(before, trainer.distiller.state_dict())
    assert trainer.distiller.pop_means() == {}


def test_the_first_steps_loss_is_that_of_its_rows(trainer: GeneralTrainer) -> None:
    distiller = trainer.distiller
    teacher = distiller.teacher
    assert teacher is not None
    indices = next(iter(EpochBatches(len(trainer.train_dataset), 8, seed=42)))
    batch = batch_of(trainer.train_dataset.__getitems__(indices))
    distiller.eval()
    expected = plain_losses(distiller.student, teacher, distiller.projection[0], [(0, 1), (1, 3)], batch)
    trainer.args.max_steps = 1
    trainer.train()
    logged = trainer.state.log_history[0]
    assert logged["loss"] == pytest.approx(sum(expected.values()), rel=1e-4)
    for name, value in expected.items():
        assert logged[f"loss_{name}"] == pytest.approx(value, rel=1e-4)


# ---- every sequence once ----


@pytest.mark.parametrize("processes", [1, 2, 3, 5])
@pytest.mark.parametrize("rows", [5, 24, 101])
def test_processes_share_every_row_once_and_take_equal_steps(rows: int, processes: int) -> None:
    for epoch in range(3):
        parts = [EpochBatches(rows, 4, seed=1, process=p, processes=processes) for p in range(processes)]
        for part in parts:
            part.set_epoch(epoch)
        batches = [list(part) for part in parts]
        assert {tuple(map(len, own)) for own in batches} == {tuple(map(len, batches[0]))}
        assert {len(part) for part in parts} == {len(batches[0])}
        seen = [i for own in batches for batch in own for i in batch]
        assert len(set(seen)) == len(seen) == rows - rows % processes
        # One step of all processes together is one step of a single one with the whole batch.
        single = EpochBatches(rows, 4 * processes, seed=1)
        single.set_epoch(epoch)
        for step, whole in zip(zip(*batches, strict=True), single, strict=False):
            assert {i for batch in step for i in batch} == set(whole[: sum(map(len, step))])


def test_epochs_have_orders_of_their_own_and_the_same_again() -> None:
    def order(seed: int, epoch: int) -> list[list[int]]:
        batches = EpochBatches(50, 4, seed=seed)
        batches.set_epoch(epoch)
        return list(batches)

    assert order(1, 0) == order(1, 0)
    assert len({str(order(seed, epoch)) for seed in (1, 2) for epoch in range(3)}) == 6


def test_training_and_held_out_rows_are_the_whole_store(store: TokenStore) -> None:
    for share in (0.0, 0.03, 0.1, 0.5):
        train, held = split_rows(store, share, 1000)
        places = [*train.places(np.arange(len(train))), *held.places(np.arange(len(held)))]
        assert sorted(map(int, places)) == list(range(len(store)))
        assert len(held) == (max(1, round(share * len(store))) if share else 0)
    assert len(split_rows(store, 0.5, 7)[1]) == 7
    tokens, lengths = store.rows([int(train.places(np.array([3]))[0])])
    assert train[3]["input_ids"].tolist() == tokens[0].tolist()
    assert train[3]["length"] == lengths[0]


# ---- resume ----


class Crash(Exception):
    pass


class CrashAt(TrainerCallback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step >= self.step:
            raise Crash


class Seen(TrainerCallback):
    """The losses, step by step."""

    def __init__(self) -> None:
        self.losses: dict[int, dict[str, float]] = {}

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        if "loss" in logs:
            self.losses[state.global_step] = {k: v for k, v in logs.items() if "loss" in k or k == "grad_norm"}


@pytest.mark.parametrize(
    ("mapping", "save", "crash", "more"),
    [
        ("emd", 5, 8, {}),  # in the middle of the first epoch
        ("uniform", 20, 22, {}),  # of the second
        ("random", 14, 17, {}),  # at the end of the first epoch
        ("minilm", 9, 9, {"gradient_accumulation_steps": 2, "trainer_args": {"dataloader_num_workers": 1}}),
    ],
)
def test_a_resumed_run_sees_the_same_examples(
    tmp_path: Path, encoder: str, text: str, mapping: str, save: int, crash: int, more: dict[str, Any]
) -> None:
    changes: dict[str, Any] = {
        "mapping": mapping, "num_train_epochs": 2.0, "save_steps": save, "eval_step": 6, "student_layers": 2,
        "student_hidden_size": 12, "student_num_attention_heads": 2, **more,
    }  # fmt: skip
    whole, part = Seen(), Seen()
    straight = general_distill(encoder, text, config=quick(tmp_path / "a", **changes), callbacks=[whole])
    with pytest.raises(Crash):
        general_distill(encoder, text, config=quick(tmp_path / "b", **changes), callbacks=[CrashAt(crash)])
    config = quick(tmp_path / "b", **changes, resume_from_checkpoint="true")
    resumed = general_distill(encoder, text, config=config, callbacks=[part])
    assert list(part.losses) == list(range(save + 1, straight.metrics["last_step"] + 1))
    # Bit for bit: the same example with the same dropout.
    assert part.losses == {step: losses for step, losses in whole.losses.items() if step > save}
    assert same_tensors(straight.student.state_dict(), resumed.student.state_dict())
    for name in ("held_out", "course", "last_step", "epochs"):
        assert resumed.metrics[name] == straight.metrics[name]
    assert [entry["step"] for entry in resumed.mapping] == [entry["step"] for entry in straight.mapping]


def test_a_run_does_not_go_on_with_other_examples_or_settings(
    tmp_path: Path, encoder: str, text: str, words: BertTokenizerFast
) -> None:
    out = tmp_path / "out"
    general_distill(encoder, text, config=quick(out, max_steps=4, save_steps=2))
    for changes, message in (
        ({"seed": 7}, r"another seed \(42, now 7\)"),
        ({"train_batch_size": 4}, r"another train_batch_size \(8, now 4\)"),
        ({"eval_share": 0.2}, "another eval_share"),
        ({"short_seq_prob": 0.2}, "another corpus, so it would not go on as the same run"),
        ({"mapping": "minilm"}, r"another mapping \(uniform, now minilm\)"),
        ({"use_att": False}, r"another use_att \(True, now False\)"),
        ({"learning_rate": 1e-4}, r"another learning_rate \(0.002, now 0.0001\)"),
        ({"optimizer": "bert_adam"}, "another optimizer"),
    ):
        config = quick(out, **({"max_steps": 8, "save_steps": 2, "resume_from_checkpoint": "true"} | changes))
        with pytest.raises(UserError, match=message):
            general_distill(encoder, text, config=config)
    other = Path(text).read_text().replace("dog", "cat")
    (tmp_path / "other.txt").write_text(other)
    config = quick(out, max_steps=8, resume_from_checkpoint="true")
    with pytest.raises(UserError, match="another corpus"):
        general_distill(encoder, str(tmp_path / "other.txt"), config=config)
    teacher = AutoModel.from_pretrained(encoder)
    with torch.no_grad():
        teacher.embeddings.word_embeddings.weight[5] += 1
    with pytest.raises(UserError, match="another teacher,"):
        general_distill(teacher, text, tokenizer=words, config=config)
    assert general_distill(encoder, text, config=config).metrics["last_step"] == 8


# ---- several processes ----


@pytest.mark.slow
def test_two_processes_are_one_with_twice_the_batch(tmp_path: Path, encoder: str, text: str) -> None:
    student = tmp_path / "student"
    tiny(
        "bert", layers=2, width=12, heads=2, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0
    ).base_model.save_pretrained(student)

    def run(name: str, launcher: list[str], batch: int) -> dict[str, Any]:
        command = [
            *launcher, "bert_emd.cli", "general-distill", "--teacher_model", encoder, "--train_corpus", text,
            "--student_model", str(student), "--output_dir", str(tmp_path / name), "--mapping", "emd",
            "--max_steps", "6", "--train_batch_size", str(batch), "--max_seq_length", "16", "--eval_share", "0.1",
            "--no_cuda", "--no-bf16", "--corpus_cache_dir", str(tmp_path / "prepared"), "--learning_rate", "1e-3",
            "--logging_steps", "1", "--save_steps", "3",
        ]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, timeout=1200, check=False)
        assert done.returncode == 0, done.stderr[-2000:]
        found: dict[str, Any] = json.loads((tmp_path / name / "metrics.json").read_text())
        return found

    two = run("two", [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m"], 4)
    one = run("one", [sys.executable, "-m"], 8)
    assert (two["processes"], one["processes"]) == (2, 1)
    assert two["held_out"]["end"] == pytest.approx(one["held_out"]["end"], rel=1e-4)
    weights = [AutoModel.from_pretrained(tmp_path / name).state_dict() for name in ("one", "two")]
    for name, tensor in weights[0].items():
        torch.testing.assert_close(tensor, weights[1][name], rtol=1e-3, atol=1e-5)
    assert len(list((tmp_path / "prepared").iterdir())) == 1


@pytest.fixture(autouse=True)
def _no_leftovers(tmp_path: Path) -> Iterator[None]:
    yield
    for folder in tmp_path.glob("*/checkpoint-*"):
        shutil.rmtree(folder)
