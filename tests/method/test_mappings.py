"""Mappings: the earth mover's against the reference script over several steps, the controls' losses against loops."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import reference
import torch
from layer_features import (
    BATCH,
    HEADS,
    MASK,
    TERMS,
    VECTORS,
    advance,
    features,
    options,
    tensors,
    total,
    with_gradient,
    worst_relative,
)
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from bert_emd.method import Features, build_mapping


def weights_of(mapping: Any) -> dict[str, np.ndarray]:
    return {name: getattr(mapping.cost_attention, name).copy() for name in VECTORS}


class TestEmdAgainstTheScript:
    SWITCHES = [
        {},
        {"attention": False},
        {"hidden": False},
        {"embedding": False},
        {"attention": False, "embedding": False},
        {"hidden": False, "embedding": False},
        {"attention": False, "hidden": False},
    ]

    @staticmethod
    def run(
        settings: dict[str, Any],
        mask: Tensor | None,
        depths: tuple[int, int] = (3, 5),
        dtype: torch.dtype = torch.float64,
        heads: tuple[int, int] = (HEADS, HEADS),
        tolerance: float = 1e-9,
    ) -> None:
        """Five consecutive batches; costs, plans and weights of one step enter the next."""
        m, n = depths
        mapping = build_mapping("emd", options(m, n, **settings)).train()
        switched = {term: settings.get(term, True) for term in TERMS}
        script = reference.Script(
            reference.LayerWeights(
                m, n, settings.get("rule", "ratio"), settings.get("T_emd", 1.0), settings.get("joint", True)
            ),
            **switched,
        )
        for step in range(5):
            student = with_gradient(features(m, 10 * step, dtype, heads[0]))
            teacher = features(n, 10 * step + 1, dtype, heads[1])
            exact = with_gradient(student_in_float64(student))
            loss = mapping(student, teacher, mask)
            expected = script.step(
                exact.attention,
                teacher.attention,
                exact.hidden,
                teacher.hidden,
                exact.embedding,
                teacher.embedding,
                mask,
            )
            for term in TERMS:
                found = getattr(loss, term)
                assert (found is not None) is switched[term]
                if found is not None:
                    assert found.shape == ()
                    assert worst_relative(found, expected[term]) < tolerance
            total(loss).backward()
            torch.stack(list(expected.values())).sum().backward()
            for group, truths in zip(tensors(student).items(), tensors(exact).values(), strict=True):
                for tensor, truth in zip(group[1], truths, strict=True):
                    if truth.grad is None:
                        assert tensor.grad is None
                    else:
                        assert truth.grad.abs().max() > 0
                        slack = 10 * tolerance * truth.grad.abs().max()
                        assert (tensor.grad.double() - truth.grad).abs().max() < slack
            for name, weights in weights_of(mapping).items():
                np.testing.assert_allclose(weights, script.weights.values[tuple(name.split("_"))], rtol=tolerance)

    @pytest.mark.parametrize("masked", [False, True])
    @pytest.mark.parametrize("switches", SWITCHES, ids=lambda s: "+".join(s) or "all")
    def test_each_term_and_what_is_switched_off(self, switches: dict[str, bool], masked: bool) -> None:
        self.run(switches, MASK if masked else None)

    @pytest.mark.parametrize("joint", [True, False])
    @pytest.mark.parametrize("rule", ["softmax", "double-softmax", "ratio", "fixed"])
    def test_rules(self, rule: str, joint: bool) -> None:
        self.run({"rule": rule, "joint": joint, "T_emd": 2.0}, MASK)

    @pytest.mark.parametrize("masked", [False, True])
    @pytest.mark.parametrize("rule", ["double-softmax", "ratio"])
    def test_float32(self, rule: str, masked: bool) -> None:
        self.run({"rule": rule}, MASK if masked else None, dtype=torch.float32, tolerance=1e-5)

    @pytest.mark.parametrize("depths", [(1, 1), (1, 4), (2, 2), (4, 12)])
    def test_depths(self, depths: tuple[int, int]) -> None:
        self.run({}, MASK, depths)

    def test_head_counts_may_differ(self) -> None:
        self.run({}, MASK, heads=(2, 3))


def student_in_float64(given: Features) -> Features:
    return Features(
        embedding=given.embedding.detach().double(),
        hidden=[h.detach().double() for h in given.hidden],
        attention=[(q.detach().double(), k.detach().double()) for q, k in given.attention],
        values=[v.detach().double() for v in given.values],
    )


class TestEmd:
    def test_record(self) -> None:
        """What the run logs is what the loss was made of."""
        mapping = build_mapping("emd", options())
        student, teacher = features(2, 0), features(4, 1)
        loss = mapping(student, teacher, MASK)
        costs = {
            "attention": reference.attention_costs(student.attention, teacher.attention, MASK),
            "hidden": reference.hidden_costs(student.hidden, teacher.hidden, MASK),
        }
        assert set(loss.record) == set(costs)
        for term, expected in costs.items():
            np.testing.assert_allclose(loss.record[term]["cost"], expected.numpy(), rtol=1e-12)
            plan = loss.record[term]["plan"]
            np.testing.assert_allclose(plan.sum(axis=1), [1 / 2] * 2, rtol=1e-12)
            np.testing.assert_allclose(plan.sum(axis=0), [1 / 4] * 4, rtol=1e-12)
            assert (plan * expected.numpy()).sum() == pytest.approx(getattr(loss, term).item(), rel=1e-12)

    def test_weights_do_not_move_in_evaluation(self) -> None:
        mapping = build_mapping("emd", options())
        advance(mapping, 2)
        before = weights_of(mapping)
        mapping.eval()
        first = total(mapping(features(2, 0), features(4, 1), MASK))
        again = total(mapping(features(2, 0), features(4, 1), MASK))
        assert torch.equal(first, again)
        for name, weights in weights_of(mapping).items():
            np.testing.assert_array_equal(weights, before[name])
        mapping.train()
        moving = total(mapping(features(2, 0), features(4, 1), MASK))
        assert torch.equal(moving, first)
        assert all((weights != before[name]).any() for name, weights in weights_of(mapping).items())

    @pytest.mark.parametrize("switches", [{"attention": False}, {"hidden": False}])
    def test_layer_weights_name_what_is_in_use(self, switches: dict[str, bool]) -> None:
        mapping = build_mapping("emd", options(**switches))
        advance(mapping, 2)
        used = "hidden" if "attention" in switches else "attention"
        assert set(mapping.layer_weights()) == {f"{used}_student", f"{used}_teacher"}
        for name, weights in mapping.layer_weights().items():
            assert weights == getattr(mapping.cost_attention, name).tolist()

    def test_costs_that_are_not_finite_are_refused_and_move_nothing(self) -> None:
        mapping = build_mapping("emd", options())
        advance(mapping, 1)
        before = weights_of(mapping)
        student = features(2, 0)
        student.hidden[1][0, 0, 0] = math.nan
        with pytest.raises(ValueError, match="cost has entries that are not finite: nan"):
            mapping(student, features(4, 1), None)
        for name, weights in weights_of(mapping).items():
            np.testing.assert_array_equal(weights, before[name])

    def test_a_student_that_equals_its_teacher(self) -> None:
        """Every cost on the diagonal is zero: the loss is zero, the gradient too up to rounding, nothing is NaN."""
        mapping = build_mapping("emd", options(4, 4))
        for _ in range(3):
            student = with_gradient(features(4, 5))
            loss = total(mapping(student, features(4, 5), MASK))
            loss.backward()
            assert loss.item() == 0
            assert all(t.grad.abs().max() < 1e-12 for group in ("hidden", "attention") for t in tensors(student)[group])
            for weights in weights_of(mapping).values():
                np.testing.assert_allclose(weights, 1 / 4, rtol=1e-12)

    @pytest.mark.parametrize("dtype", [torch.bool, torch.int64, torch.uint8, torch.float32, torch.float16])
    def test_masks_of_any_type(self, dtype: torch.dtype) -> None:
        expected = total(build_mapping("emd", options())(features(2, 0), features(4, 1), MASK))
        found = total(build_mapping("emd", options())(features(2, 0), features(4, 1), MASK.to(dtype)))
        assert torch.equal(found, expected)

    def test_long_batches_with_a_half_precision_mask(self) -> None:
        """300² query-key pairs are more than a 16-bit number holds."""
        hidden, pair = torch.randn(1, 300, 2), torch.randn(2, 1, 1, 300, 2)
        one = Features(hidden=[hidden], attention=[(pair[0], pair[1])])
        other = Features(hidden=[2 * hidden], attention=[(pair[1], pair[0])])
        mapping = build_mapping("emd", options(1, 1, embedding=False))
        found = total(mapping(one, other, torch.ones(1, 300, dtype=torch.float16)))
        assert torch.equal(found, total(mapping(one, other, torch.ones(1, 300))))


class TestEmdState:
    @pytest.mark.parametrize(
        "cast", [lambda m: m, lambda m: m.half(), lambda m: m.bfloat16(), lambda m: m.to(torch.float16)]
    )
    def test_survives_casts_and_files_in_float64(self, tmp_path: Path, cast: Any) -> None:
        """As part of a larger module, through safetensors, bit for bit."""
        module = nn.ModuleDict({"mapping": build_mapping("emd", options(3, 5)), "projection": nn.Linear(2, 2)})
        advance(module["mapping"], 3)
        expected = weights_of(module["mapping"])
        assert len({round(float(w), 9) for w in expected["hidden_teacher"]}) > 1
        module = cast(module)
        for name, weights in weights_of(module["mapping"]).items():
            np.testing.assert_array_equal(weights, expected[name])
            assert weights.dtype == np.float64
        state = module.state_dict()
        own = [value for key, value in state.items() if "extra_state" in key]
        assert [value.dtype for value in own] == [torch.float64]
        save_file(state, tmp_path / "model.safetensors")

        fresh = cast(nn.ModuleDict({"mapping": build_mapping("emd", options(3, 5)), "projection": nn.Linear(2, 2)}))
        assert weights_of(fresh["mapping"])["hidden_teacher"].tolist() == [1 / 5] * 5
        fresh.load_state_dict(load_file(tmp_path / "model.safetensors"), strict=True)
        for name, weights in weights_of(fresh["mapping"]).items():
            np.testing.assert_array_equal(weights, expected[name])
            assert weights.dtype == np.float64

    def test_a_resumed_run_continues_as_if_never_stopped(self) -> None:
        whole, first, second = (build_mapping("emd", options(3, 5)) for _ in range(3))
        straight = advance(whole, 6)
        before = advance(first, 3)
        second.load_state_dict(copy.deepcopy(first.state_dict()))
        assert before + advance(second, 3, seed=106) == straight
        for name, weights in weights_of(second).items():
            np.testing.assert_array_equal(weights, weights_of(whole)[name])

    def test_a_saved_state_does_not_move_with_the_run(self) -> None:
        mapping = build_mapping("emd", options())
        advance(mapping, 1)
        saved = mapping.state_dict()
        copied = copy.deepcopy(saved)
        advance(mapping, 1, seed=7)
        loaded = build_mapping("emd", options())
        loaded.load_state_dict(saved)
        expected = weights_of(loaded)
        advance(loaded, 1, seed=9)
        assert all(torch.equal(saved[key], copied[key]) for key in saved)
        assert all((weights_of(loaded)[name] != expected[name]).any() for name in VECTORS)

    def test_a_loaded_state_is_a_copy(self) -> None:
        mapping, loaded = build_mapping("emd", options()), build_mapping("emd", options())
        advance(mapping, 1)
        state = mapping.state_dict()
        loaded.load_state_dict(state)
        for tensor in state.values():
            tensor.zero_()
        for name, weights in weights_of(loaded).items():
            np.testing.assert_array_equal(weights, weights_of(mapping)[name])

    @pytest.mark.parametrize("broken", [math.nan, math.inf, 0.9])
    def test_a_broken_state_is_refused(self, broken: float) -> None:
        mapping = build_mapping("emd", options())
        state = mapping.get_extra_state()
        state[0] = broken
        with pytest.raises(ValueError, match="do not sum to 1"):
            mapping.set_extra_state(state)

    @pytest.mark.parametrize("saved", [(3, 4), (2, 5), (2, 6), (6, 2), (1, 7), (7, 1), (3, 5), (5, 3)])
    def test_other_depths_are_refused(self, saved: tuple[int, int]) -> None:
        """Also where the vectors are as long together: 2 and 6 layers are not 4 and 4."""
        old, new = build_mapping("emd", options(*saved)), build_mapping("emd", options(4, 4))
        advance(old, 1)
        with pytest.raises(ValueError, match=r"other depths"):
            new.load_state_dict(old.state_dict())
        assert all(weights.tolist() == [1 / 4] * 4 for weights in weights_of(new).values())


class TestPairs:
    EXPECTED = {(2, 4): [1, 3], (3, 6): [1, 3, 5], (4, 12): [2, 5, 8, 11], (4, 6): [1, 2, 4, 5], (3, 3): [0, 1, 2]}

    @pytest.mark.parametrize("masked", [False, True])
    @pytest.mark.parametrize("depths", EXPECTED)
    def test_uniform(self, depths: tuple[int, int], masked: bool) -> None:
        """Sums over student layers, each against its one teacher layer."""
        m, n = depths
        mask = MASK if masked else None
        student, teacher = with_gradient(features(m, 0)), features(n, 1)
        exact = with_gradient(student)
        loss = build_mapping("uniform", options(m, n))(student, teacher, mask)
        hidden = attention = torch.zeros(())
        for i, j in enumerate(self.EXPECTED[depths]):
            hidden = hidden + reference.hidden_costs([exact.hidden[i]], [teacher.hidden[j]], mask)[0, 0]
            attention = attention + reference.attention_costs([exact.attention[i]], [teacher.attention[j]], mask)[0, 0]
        embedding = reference.hidden_costs([exact.embedding], [teacher.embedding], mask)[0, 0]
        for found, expected in ((loss.hidden, hidden), (loss.attention, attention), (loss.embedding, embedding)):
            assert worst_relative(found, expected) < 1e-12
        total(loss).backward()
        (hidden + attention + embedding).backward()
        for name in TERMS:
            for ours, theirs in zip(tensors(student)[name], tensors(exact)[name], strict=True):
                torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-10, atol=1e-14)

        for term in ("hidden", "attention"):
            plan, cost = loss.record[term]["plan"], loss.record[term]["cost"]
            assert plan.argmax(axis=1).tolist() == self.EXPECTED[depths]
            assert plan.sum() == m
            assert cost[plan > 0].sum() == pytest.approx(getattr(loss, term).item(), rel=1e-12)

    @pytest.mark.parametrize("masked", [False, True])
    @pytest.mark.parametrize(("depths", "layers"), [((2, 4), [1]), ((3, 6), [1, 3]), ((4, 6), [1, 2, 4])])
    def test_pkd(self, depths: tuple[int, int], layers: list[int], masked: bool) -> None:
        """Normalised first positions; padding has no part, the last student layer neither."""
        m, n = depths
        student, teacher = with_gradient(features(m, 0)), features(n, 1)
        loss = build_mapping("pkd", options(m, n))(student, teacher, MASK if masked else None)
        assert loss.attention is None
        assert loss.embedding is None
        expected = 0.0
        for i, j in enumerate(layers):
            for row in range(BATCH):
                s, t = student.hidden[i][row, 0].detach().numpy(), teacher.hidden[j][row, 0].numpy()
                unit_s, unit_t = s / np.sqrt((s**2).sum()), t / np.sqrt((t**2).sum())
                expected += ((unit_s - unit_t) ** 2).sum() / BATCH / len(layers)
        assert loss.hidden.item() == pytest.approx(expected, rel=1e-6)
        loss.hidden.backward()
        assert student.hidden[-1].grad is None
        for tensor in student.hidden[:-1]:
            assert tensor.grad[:, 0].abs().max() > 0
            assert (tensor.grad[:, 1:] == 0).all()

    def test_pkd_needs_two_layers(self) -> None:
        with pytest.raises(ValueError, match="2 layers or more"):
            build_mapping("pkd", options(1, 4))(features(1, 0), features(4, 1), None)


def test_an_unknown_mapping_is_refused() -> None:
    with pytest.raises(ValueError, match="there is no mapping 'emb'; choose one of emd, uniform, skip, last, reverse,"):
        build_mapping("emb", options())


@pytest.mark.parametrize("mask", [None, MASK])
def test_embedding_alone(mask: Tensor | None) -> None:
    student, teacher = with_gradient(features(2, 0)), features(4, 1)
    exact = with_gradient(student)
    loss = build_mapping("emd", options(attention=False, hidden=False))(student, teacher, mask)
    expected = reference.hidden_costs([exact.embedding], [teacher.embedding], mask)[0, 0]
    assert worst_relative(loss.embedding, expected) < 1e-12
    assert (loss.attention, loss.hidden) == (None, None)
    loss.embedding.backward()
    expected.backward()
    torch.testing.assert_close(student.embedding.grad, exact.embedding.grad, rtol=1e-12, atol=1e-15)


def test_embedding_alone_refuses_a_mask_that_keeps_nothing() -> None:
    mapping = build_mapping("emd", options(attention=False, hidden=False))
    with pytest.raises(ValueError, match="mask keeps no position"):
        mapping(features(2, 0), features(4, 1), torch.zeros_like(MASK))
