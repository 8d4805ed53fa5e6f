"""The benchmarks are fair: both sides of a comparison compute the same numbers."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_encoders import padded_batch, tiny

ROOT = Path(__file__).resolve().parent.parent
pytestmark = pytest.mark.skipif(not (ROOT / "benchmarks").is_dir(), reason="the benchmarks are not beside the tests")


@pytest.fixture(autouse=True)
def _root_on_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT))


def test_the_reference_and_ours_have_the_same_loss_and_gradient() -> None:
    """Over three steps, so that the layer weights agree too; full rows, where padding plays no part."""
    from benchmarks.reference import ReferenceMethod
    from benchmarks.sides import distiller_of

    still = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    models = [[tiny("bert", layers=4, seed=1, **still), tiny("bert", layers=2, seed=2, **still)] for _ in range(2)]
    reference = ReferenceMethod(models[0][1], models[0][0])
    ours = distiller_of(models[1][0], models[1][1])
    for seed in range(3):
        batch = padded_batch((7, 7, 7), seed=seed)
        for student in (models[0][1], models[1][1]):
            student.zero_grad()
        theirs, found = reference.loss(batch), ours(**batch)["loss"]
        torch.testing.assert_close(found, theirs, rtol=1e-5, atol=1e-6)
        theirs.backward()
        found.backward()
        truth = dict(models[0][1].named_parameters())
        for name, parameter in models[1][1].named_parameters():
            torch.testing.assert_close(parameter.grad, truth[name].grad, rtol=1e-3, atol=1e-5)
    for weights, name in zip(
        reference.weights, ("attention_student", "attention_teacher", "hidden_student", "hidden_teacher"), strict=True
    ):
        torch.testing.assert_close(
            torch.as_tensor(weights), torch.as_tensor(getattr(ours.mapping.cost_attention, name)), rtol=1e-4, atol=1e-6
        )


def test_a_word_at_a_time_and_batches_have_the_same_candidates(tmp_path: Path) -> None:
    from transformers import BertConfig, BertForMaskedLM

    from benchmarks.augmentation import WordAtATime, made_up
    from bert_emd.data.augmentation import WordRules, WordTable, may_replace
    from bert_emd.models.masked_lm import Encoder, MaskedWords
    from bert_emd.models.vocabulary import Vocabulary
    from bert_emd.training.augment.candidates import Candidates, Neighbours

    tokenizer, words, texts = made_up(tmp_path, 3)
    words = words[:4000]
    vectors = np.random.default_rng(1).normal(size=(len(words), 20))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    model = BertForMaskedLM(BertConfig(**sizes, initializer_range=0.3)).eval()
    plain = WordAtATime(model, tokenizer, words, vectors)
    encoder = Encoder(model=model, tokenizer=tokenizer, vocabulary=Vocabulary(tokenizer), has_head=True)
    masked = MaskedWords(encoder, count=15, limit=128, allowed=may_replace)
    neighbours = Neighbours(table=WordTable(words, vectors), count=15, least=-1.0)
    found = Candidates(rules=WordRules(), neighbours=neighbours, masked=masked).of(texts)
    looked_up = in_pieces = 0
    for text in texts:
        theirs = dict(zip(text.split(), plain.candidates(text, text.split()), strict=True))
        for start, end, ours in found[text]:
            word = text[start:end]
            if len(tokenizer.tokenize(word)) > 1 and ours:
                in_pieces += 1
                assert list(ours) == theirs[word]
            elif len(tokenizer.tokenize(word)) == 1:
                looked_up += 1
                # Theirs are the best tokens of all, of which signs and the word itself are no candidates of ours.
                same = [token for token in theirs[word] if may_replace(token) and token != word]
                assert list(ours[: len(same)]) == same
    assert looked_up > 10
    assert in_pieces > 0


def test_the_batches_that_are_timed_are_typical_of_the_epoch() -> None:
    from benchmarks.epoch import _batches, _typical, synthetic_lengths

    lengths = synthetic_lengths()
    batches = _batches(lengths, 32, grouped=True)

    def tokens(chosen: list[list[int]]) -> float:
        return float(np.mean([len(batch) * max(lengths[i] for i in batch) for batch in chosen]))

    for sample in (3, 6, 12):
        chosen = _typical(batches, lengths, sample)
        assert len(chosen) == sample
        assert all(batch in batches for batch in chosen)
        assert tokens(chosen) == pytest.approx(tokens(batches), rel=0.03)


def test_the_tapped_tensors_are_counted_as_the_model_makes_them() -> None:
    from benchmarks.harness import Case
    from benchmarks.step import _tapped

    case = Case((3, 16, 2, 32), (1, 16, 2, 32), 2, 8)
    wide = (3 * 3 + 1) * 2 * 8 * 16
    assert _tapped(case, bf16=False) == 4 * wide
    # Queries and keys have 16 bits; hidden states have what the layer norms make.
    assert 2 * wide <= _tapped(case, bf16=True) < 4 * wide


def test_memory_has_a_row_for_each_precision() -> None:
    from benchmarks.report import markdown

    def entry(ending: str, **more: int) -> dict[str, Any]:
        sizes = {f"lower bound{ending}": 4 << 20, f"bert-emd{ending}": 6 << 20} | more
        over = {side: size / (5 << 20) for side, size in sizes.items() if "bound" not in side}
        return {
            "case": {"name": "a case"},
            "precision": ending[2:] or "float32",
            "bytes": sizes | {"tapped teacher tensors": 1 << 20},
            "over lower bound plus tapped": over,
        }

    where = {"processor": "p", "threads": 1, "cores": 1, "torch": "2", "matrix_product_gflops": 1}
    found = markdown({"memory": {"machine": where, "result": [entry("", reference=10 << 20), entry(", bf16")]}})
    assert "| a case | float32 | 4 | 1 | 6 | 10 | 1.20 | 2.00 |" in found
    assert "| a case | bf16 | 4 | 1 | 6 |  | 1.20 |  |" in found


def test_the_reference_runs_in_a_fresh_process_for_every_pass() -> None:
    from benchmarks.elsewhere import Elsewhere
    from benchmarks.harness import Case

    case = Case((2, 16, 2, 32), (1, 16, 2, 32), 2, 8)
    processes = []
    for _ in range(2):
        with Elsewhere(case, keep=False) as other:
            first = other._process.pid
            assert 0 < other([5, 7]) < 60
            assert 0 < other([5, 7]) < 60
            assert other._process.is_alive()
            assert other._process.pid == first
        assert not other._process.is_alive()
        processes.append(first)
    assert processes[0] != processes[1]


def test_a_pass_goes_over_its_batches_after_an_untimed_step(monkeypatch: pytest.MonkeyPatch) -> None:
    from benchmarks import epoch

    now, seen = [0.0], []

    def step(rows: list[int]) -> None:
        seen.append(rows)
        now[0] += len(rows)

    monkeypatch.setattr(epoch.time, "perf_counter", lambda: now[0])
    assert epoch._here(step, [[1], [2, 3], [4, 5, 6]]) == 6
    assert seen == [[4, 5, 6], [1], [2, 3], [4, 5, 6]]


def test_the_command_saves_what_it_measured(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks", "--parts", "solver", "--threads", "1", "--out", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    (first, *_), machine = (
        json.loads((tmp_path / "results.json").read_text())["solver"][k] for k in ("result", "machine")
    )
    assert first["layers"] == "4x12"
    assert first["microseconds"]["bert-emd"]["min"] <= first["microseconds"]["bert-emd"]["median"]
    assert first["largest relative difference in cost"] < 1e-9
    assert machine["threads"] == 1
    assert "| 4x12 |" in done.stdout
    assert "| 4x12 |" in (tmp_path / "results.md").read_text()


def test_a_switch_is_held_to_the_spread_of_the_seeds() -> None:
    from benchmarks.report import markdown
    from benchmarks.switches import compared

    def runs(accuracies: list[float], losses: list[float]) -> list[dict[str, float]]:
        return [{"accuracy": a, "loss": b} for a, b in zip(accuracies, losses, strict=True)]

    found = compared(
        {
            "none": runs([0.75, 0.5, 0.75], [1.0, 1.5, 2.0]),
            "near": runs([0.75, 0.75, 0.75], [0.5, 1.0, 1.5]),
            "far": runs([0.75, 0.75, 0.75], [2.5, 2.5, 3.0]),
        }
    )
    assert found["none"]["loss"] == {"values": [1.0, 1.5, 2.0], "away": 0.0, "spread": 1.0, "within": True}
    assert [found["near"][m]["within"] for m in ("accuracy", "loss")] == [True, True]
    assert found["near"]["accuracy"]["away"] == pytest.approx(1 / 12)
    assert found["far"]["loss"]["away"] == pytest.approx(7 / 6)
    assert [found["far"][m]["within"] for m in ("accuracy", "loss")] == [True, False]
    where = {"processor": "p", "threads": 1, "cores": 1, "torch": "2", "matrix_product_gflops": 1}
    written = markdown({"switches": {"machine": where, "result": {"task": "MRPC", "seeds": [1, 2, 3], "rows": found}}})
    assert "| near | 75.0, 75.0, 75.0 | +8.3 of 25.0 | 0.500, 1.000, 1.500 | -0.500 of 1.000 | yes |" in written
    assert "| far | 75.0, 75.0, 75.0 | +8.3 of 25.0 | 2.500, 2.500, 3.000 | +1.167 of 1.000 | no |" in written


def test_switches_need_real_data(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks", "--parts", "switches", "--out", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert "--data-dir and --encoder" in done.stderr


@pytest.mark.parametrize(("m", "n"), [(3, 6), (4, 12), (6, 12), (12, 24)])
def test_distances_grow_with_as_many_weights_as_a_plan_has(m: int, n: int) -> None:
    from benchmarks.growth import _loops, _plan, _streamed

    plan = _plan(m, n)
    assert int((plan > 0).sum()) == m + n - 1
    assert plan.sum().item() == pytest.approx(1, abs=1e-6)

    def pairs(count: int, seed: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
        draw = torch.Generator().manual_seed(seed)
        return [
            (torch.randn(2, 3, 5, 4, generator=draw), torch.randn(2, 3, 5, 4, generator=draw)) for _ in range(count)
        ]

    layers = pairs(m, 1), pairs(n, 2), [q for q, _ in pairs(m, 3)], [q for q, _ in pairs(n, 4)]
    states = [[x.flatten(1, 2) for x in side] for side in layers[2:]]
    for ours, loop in zip(_streamed(*layers[:2], *states), _loops(*layers[:2], *states), strict=True):
        torch.testing.assert_close(ours, loop)
