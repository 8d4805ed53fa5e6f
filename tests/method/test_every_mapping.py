"""One battery that every registered mapping passes, each against a plain loop over its pairs in float64."""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import reference
import torch
from layer_features import (
    BATCH,
    LENGTH,
    MASK,
    TERMS,
    advance,
    features,
    only_needed,
    options,
    tensors,
    total,
    with_gradient,
    worst_relative,
)
from safetensors.torch import load_file, save_file
from torch import Tensor

from bert_emd.method import MAPPINGS, Features, Mapping, Needs, Scores, build_mapping

# Every mapping, and each form in which its options change what is computed.
CASES: dict[str, dict[str, Any]] = {
    **{name: {} for name in MAPPINGS},
    "manual": {"layer_map": "1:2,2:4,2:1"},
    **{f"{name}+cls": {"state_loss": "cls"} for name in ("uniform", "skip", "last", "reverse", "random", "all-to-one")},
    "manual+cls": {"layer_map": "1:4,2:4", "state_loss": "cls"},
    "minilm+layer": {"relation_layer": 2, "relation_heads": 4},
    **{f"{name}+relative": {"cost_scale": "relative"} for name in ("emd", "uniform", "skip", "all-to-one", "reverse")},
}


def built(name: str, m: int = 2, n: int = 4, **more: Any) -> Mapping:
    """The mapping of a case."""
    return build_mapping(name.partition("+")[0], options(m, n, **(CASES[name] | more)))


def built_needs(name: str) -> Needs:
    return built(name).needs


# Each mapping's pairs for 6 -> 4, 6 -> 3 and 12 -> 4 layers, counted from 1, worked out by hand.
PAIRS: dict[str, dict[tuple[int, int], list[tuple[int, int]]]] = {
    "uniform": {
        (4, 6): [(1, 2), (2, 3), (3, 5), (4, 6)],
        (3, 6): [(1, 2), (2, 4), (3, 6)],
        (4, 12): [(1, 3), (2, 6), (3, 9), (4, 12)],
        (1, 3): [(1, 3)],
    },
    "skip": {(4, 6): [(1, 2), (2, 3), (3, 5)], (3, 6): [(1, 2), (2, 4)], (4, 12): [(1, 3), (2, 6), (3, 9)]},
    "pkd": {(4, 6): [(1, 2), (2, 3), (3, 5)], (3, 6): [(1, 2), (2, 4)], (4, 12): [(1, 3), (2, 6), (3, 9)]},
    "last": {(4, 6): [(1, 3), (2, 4), (3, 5)], (3, 6): [(1, 4), (2, 5)], (4, 12): [(1, 9), (2, 10), (3, 11)]},
    "reverse": {
        (4, 6): [(1, 6), (2, 5), (3, 3), (4, 2)],
        (3, 6): [(1, 6), (2, 4), (3, 2)],
        (4, 12): [(1, 12), (2, 9), (3, 6), (4, 3)],
        (1, 3): [(1, 3)],
    },
    "all-to-one": {(4, 6): [(1, 6), (2, 6), (3, 6), (4, 6)], (3, 6): [(1, 6), (2, 6), (3, 6)], (1, 3): [(1, 3)]},
}


def mean_square(layer: Tensor, mask: Tensor | None) -> Tensor:
    return reference.mean_squared_error(
        layer, torch.zeros_like(layer), None if mask is None else mask.bool()[:, :, None].expand_as(layer)
    )


def scores_mean_square(pair: tuple[Tensor, Tensor], mask: Tensor | None, average: bool) -> Tensor:
    scores = reference.attention_scores(*pair)
    scores = scores.mean(1, keepdim=True) if average else scores
    keep = None
    if mask is not None:
        kept = mask.bool()
        keep = (kept[:, None, :, None] & kept[:, None, None, :]).expand_as(scores)
    return reference.mean_squared_error(scores, torch.zeros_like(scores), keep)


def pair_losses(
    pairs: list[tuple[int, int]], student: Features, teacher: Features, mask: Tensor | None, relative: bool = False
) -> dict[str, Tensor]:
    """TinyBERT's sums over pairs (counted from 1), by loops."""
    found: dict[str, Tensor] = {"hidden": torch.zeros(()), "attention": torch.zeros(())}
    for i, j in pairs:
        s, t = student.hidden[i - 1], teacher.hidden[j - 1]
        q, r = student.attention[i - 1], teacher.attention[j - 1]
        average = q[0].shape[1] != r[0].shape[1]
        found["hidden"] = found["hidden"] + reference.hidden_costs([s], [t], mask)[0, 0] / (
            mean_square(t, mask) if relative else 1
        )
        found["attention"] = found["attention"] + reference.attention_costs([q], [r], mask)[0, 0] / (
            scores_mean_square(r, mask, average) if relative else 1
        )
    found["embedding"] = reference.hidden_costs([student.embedding], [teacher.embedding], mask)[0, 0] / (
        mean_square(teacher.embedding, mask) if relative else 1
    )
    return found


def with_scores(teacher: Features, mask: Tensor | None, layers: tuple[int, ...] | None) -> Features:
    """The features as a cache gives them: scores of kept positions in place of queries and keys, of these layers."""
    teacher = copy.copy(teacher)
    pairs = [teacher.attention[j] for j in layers] if layers is not None else teacher.attention
    whole = torch.stack([reference.attention_scores(*pair) for pair in pairs], 1)
    keep = torch.ones(len(whole), whole.shape[3]).bool() if mask is None else mask.bool()
    rows = [text[:, :, kept][:, :, :, kept] for text, kept in zip(whole, keep, strict=True)]
    teacher.attention = Scores(rows, layers)
    return teacher


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("case", [c for c in CASES if built_needs(c).attention and not built_needs(c).factors])
def test_the_teachers_scores_will_do_for_its_queries_and_keys(case: str, masked: bool) -> None:
    """Where a mapping does not say that it takes them apart: the same loss, and the same gradient to the student."""
    mask, mapping = MASK if masked else None, built(case)
    teacher, losses = features(4, 1), []
    given = with_scores(teacher, mask, mapping.teacher_needs.layers)
    gradients = []
    for theirs in (teacher, given):
        student, fresh = with_gradient(features(2, 0)), built(case)
        losses.append(total(fresh(student, theirs, mask)))
        losses[-1].backward()
        gradients.append([t.grad for pair in student.attention for t in pair])
    assert losses[1].item() == pytest.approx(losses[0].item(), rel=1e-9)
    for found, expected in zip(*gradients, strict=True):
        assert (found is None) == (expected is None)
        if expected is not None:
            torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-12)


def first_position_loss(pairs: list[tuple[int, int]], student: Features, teacher: Features) -> Tensor:
    loss = torch.zeros(())
    for i, j in pairs:
        for row in range(BATCH):
            s, t = student.hidden[i - 1][row, 0], teacher.hidden[j - 1][row, 0]
            loss = loss + (s / s.norm() - t / t.norm()).square().sum() / BATCH / len(pairs)
    return loss


def relation_loss(student: Features, teacher: Features, mask: Tensor | None, i: int, j: int, heads: int) -> Tensor:
    """Σ over Q, K, V of KL(teacher || student), one text, head and query at a time, padding never touched."""
    loss = torch.zeros(())
    kept = torch.ones(BATCH, LENGTH) if mask is None else mask
    for ours, theirs in zip(
        (*student.attention[i - 1], student.values[i - 1]),
        (*teacher.attention[j - 1], teacher.values[j - 1]),
        strict=True,
    ):
        total_kl, count = torch.zeros(()), 0
        for row in range(BATCH):
            positions = [p for p in range(LENGTH) if kept[row, p]]
            # Heads side by side, then cut anew.
            flat = [torch.cat([x[row, h] for h in range(x.shape[1])], -1) for x in (ours, theirs)]
            for a in range(heads):
                logs = []
                for x in flat:
                    width = x.shape[-1] // heads
                    part = torch.stack([x[p, a * width : (a + 1) * width] for p in positions])
                    logs.append(torch.log_softmax(part @ part.T / math.sqrt(width), -1))
                for p in range(len(positions)):
                    for k in range(len(positions)):
                        total_kl = total_kl + logs[1][p, k].exp() * (logs[1][p, k] - logs[0][p, k])
                    count += 1
        loss = loss + total_kl / count
    return loss


def assert_same_losses(
    mapping: Mapping, student: Features, teacher: Features, mask: Tensor | None, expected: dict[str, Tensor],
    exact: Features, tolerance: float = 1e-9,
) -> None:  # fmt: skip
    """The terms and the gradients of all the student's tensors."""
    loss = mapping(student, teacher, mask)
    for term in ("attention", "hidden", "embedding", "relation"):
        found = getattr(loss, term)
        assert (found is not None) is (term in expected)
        if found is not None:
            assert worst_relative(found, expected[term]) < tolerance
    total(loss).backward()
    torch.stack(list(expected.values())).sum().backward()
    for group, truths in zip(tensors(student).values(), tensors(exact).values(), strict=True):
        for ours, truth in zip(group, truths, strict=True):
            found = ours.grad if ours.grad is not None else torch.zeros_like(ours)
            wanted = truth.grad if truth.grad is not None else torch.zeros_like(truth)
            torch.testing.assert_close(found, wanted, rtol=10 * tolerance, atol=10 * tolerance)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("scale", ["absolute", "relative"])
@pytest.mark.parametrize(("name", "depths"), [(name, d) for name, by_depth in PAIRS.items() for d in by_depth])
def test_losses_and_gradients_of_pairs(name: str, depths: tuple[int, int], scale: str, masked: bool) -> None:
    mask, pairs = MASK if masked else None, PAIRS[name][depths]
    student, teacher = with_gradient(features(depths[0], 0)), features(depths[1], 1)
    exact = with_gradient(student)
    expected = (
        {"hidden": first_position_loss(pairs, exact, teacher)} if name == "pkd"
        else pair_losses(pairs, exact, teacher, mask, scale == "relative")
    )  # fmt: skip
    mapping = build_mapping(name, options(*depths, cost_scale=scale))
    assert_same_losses(mapping, student, teacher, mask, expected, exact, 1e-6 if name == "pkd" else 1e-9)
    assert (mapping.layers[0], mapping.layers[1]) == ([i - 1 for i, _ in pairs], [j - 1 for _, j in pairs])


@pytest.mark.parametrize(("name", "depths"), [(name, (4, 6)) for name in PAIRS])
def test_the_first_positions_loss_of_every_pair_mapping(name: str, depths: tuple[int, int]) -> None:
    pairs = PAIRS[name][depths]
    student, teacher = with_gradient(features(4, 0)), features(6, 1)
    exact = with_gradient(student)
    mapping = build_mapping(name, options(4, 6, state_loss="cls"))
    expected = {"hidden": first_position_loss(pairs, exact, teacher)}
    assert_same_losses(mapping, student, teacher, MASK, expected, exact, 1e-6)  # computed in float32
    assert mapping.needs.hidden
    assert not mapping.needs.embedding
    assert not mapping.needs.attention


def test_manual_pairs() -> None:
    """A layer may learn from two, or from none."""
    pairs = [(1, 2), (3, 5), (3, 1)]
    student, teacher = with_gradient(features(4, 0)), features(6, 1)
    exact = with_gradient(student)
    mapping = build_mapping("manual", options(4, 6, layer_map="1:2,3:5,3:1"))
    assert_same_losses(mapping, student, teacher, MASK, pair_losses(pairs, exact, teacher, MASK), exact)
    assert mapping.student_needs.layers == (0, 2)
    assert mapping.teacher_needs.layers == (0, 1, 4)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(("more", "layer", "heads"), [({}, 6, 2), ({"relation_layer": 3, "relation_heads": 4}, 3, 4)])
def test_minilm_relations(more: dict[str, Any], layer: int, heads: int, masked: bool) -> None:
    mask = MASK if masked else None
    student, teacher = with_gradient(features(4, 0)), features(6, 1)
    exact = with_gradient(student)
    expected = {"relation": relation_loss(exact, teacher, mask, 4, layer, heads)}
    assert_same_losses(build_mapping("minilm", options(4, 6, **more)), student, teacher, mask, expected, exact)


@pytest.mark.parametrize(
    ("student_heads", "teacher_heads", "heads"),
    [(2, 4, 4), (4, 2, 2), (3, 4, 4), (5, 6, 4), (3, 2, 2), (1, 6, 4)],
    ids=lambda n: str(n),
)
def test_minilm_splits_heads_anew(student_heads: int, teacher_heads: int, heads: int) -> None:
    """Head width 4: the teacher's head count where it divides both widths, else the largest number below that does."""
    student, teacher = with_gradient(features(2, 0, heads=student_heads)), features(3, 1, heads=teacher_heads)
    exact = with_gradient(student)
    expected = {"relation": relation_loss(exact, teacher, MASK, 2, 3, heads)}
    shapes = {"student_heads": student_heads, "teacher_heads": teacher_heads,
              "student_width": 4 * student_heads, "teacher_width": 4 * teacher_heads}  # fmt: skip
    mapping = build_mapping("minilm", options(2, 3, **shapes))
    assert_same_losses(mapping, student, teacher, MASK, expected, exact)
    (note,) = mapping.notes
    assert f"{heads} relation heads" in note
    assert (f"the teacher's {teacher_heads} do not divide" in note) is (heads != teacher_heads)


@pytest.mark.parametrize("scale", ["absolute", "relative"])
def test_head_averages_where_head_counts_differ(scale: str) -> None:
    student, teacher = with_gradient(features(2, 0, heads=3)), features(4, 1)
    exact = with_gradient(student)
    mapping = build_mapping("uniform", options(2, 4, student_heads=3, teacher_heads=2, cost_scale=scale))
    expected = pair_losses([(1, 2), (2, 4)], exact, teacher, MASK, scale == "relative")
    assert_same_losses(mapping, student, teacher, MASK, expected, exact)
    assert mapping.notes[-1] == "the teacher has 2 attention heads and the student 3: head averages are compared"
    same = build_mapping("uniform", options(2, 4, student_heads=2, teacher_heads=2))
    assert not [note for note in same.notes if "averages" in note]


class TestRandom:
    def test_each_epochs_draw_is_loss_and_record(self) -> None:
        mapping = built("random", 3, 6)
        seen = set()
        for epoch in range(8):
            mapping.start_epoch(epoch)
            student, teacher = with_gradient(features(3, epoch)), features(6, epoch + 50)
            exact = with_gradient(student)
            pairs = [(i + 1, j + 1) for i, j in mapping.pairs()]
            assert [i for i, _ in pairs] == [1, 2, 3]
            drawn = [j for _, j in pairs]
            assert drawn == sorted(set(drawn))
            assert set(drawn) <= set(range(1, 7))
            plan = mapping(student, teacher, MASK).record["hidden"]["plan"]
            assert [(i + 1, j + 1) for i, j in zip(*plan.nonzero(), strict=True)] == pairs
            assert_same_losses(mapping, student, teacher, MASK, pair_losses(pairs, exact, teacher, MASK), exact)
            seen.add(tuple(drawn))
        assert len(seen) > 3

    def test_draws_follow_seed_and_epoch_alone(self) -> None:
        def draws(seed: int, epochs: list[int]) -> list[Any]:
            mapping, found = built("random", 3, 6, seed=seed), []
            for epoch in epochs:
                mapping.start_epoch(epoch)
                found.append(mapping.pairs())
                torch.randn(3), np.random.rand()
            return found

        assert draws(1, [0, 1, 2, 3]) == [*draws(1, [0, 1]), *draws(1, [2, 3])]
        assert draws(1, [0, 1, 2, 3]) != draws(2, [0, 1, 2, 3])

    def test_every_layer_is_drawn_as_often(self) -> None:
        mapping, counts = built("random", 2, 4), np.zeros(4)
        for epoch in range(2000):
            mapping.start_epoch(epoch)
            for _, j in mapping.pairs():
                counts[j] += 1
        assert np.abs(counts / 2000 - 0.5).max() < 0.05

    def test_any_layer_may_be_needed(self) -> None:
        assert built("random").teacher_needs.layers is None


@pytest.mark.parametrize(
    ("name", "depths", "more", "message"),
    [
        ("skip", (1, 4), {}, "mapping skip leaves the last student layer unmatched: it needs a student of 2 layers or"),
        ("last", (1, 4), {}, "mapping last leaves the last student layer unmatched"),
        ("pkd", (1, 4), {}, "mapping pkd leaves the last student layer unmatched"),
        ("last", (5, 4), {}, "at least as many layers"),
        ("random", (5, 4), {}, "at least as many layers"),
        ("manual", (2, 4), {}, "mapping manual needs layer_map"),
        ("manual", (2, 4), {"layer_map": "3:1"}, "names student layer 3, but the student's layers are 1 to 2"),
        ("manual", (2, 4), {"layer_map": "1:5"}, "names teacher layer 5, but the teacher's layers are 1 to 4"),
        ("manual", (2, 4), {"layer_map": "0:1"}, "student layer 0"),
        ("minilm", (2, 4), {"relation_layer": 5}, "5 is no teacher layer; the teacher's layers are 1 to 4"),
        ("minilm", (2, 4), {"relation_heads": 3, "student_width": 12, "teacher_width": 16}, "must divide both widths"),
    ],
)  # fmt: skip
def test_what_cannot_be_defined_is_refused_when_built(
    name: str, depths: tuple[int, int], more: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        build_mapping(name, options(*depths, **more))


@pytest.mark.parametrize("name", ["uniform", "skip", "reverse", "pkd"])
def test_rounding_is_stated_where_depths_do_not_divide(name: str) -> None:
    assert "(⌈i·6/4⌉, rounded up as 4 does not divide 6)" in built(name, 4, 6).notes[0]
    assert "⌈" not in built(name, 3, 6).notes[0]


def test_notes_name_the_pairs() -> None:
    assert built("last", 3, 6).notes == ["mapping last, student layer from teacher layer: 1 from 4, 2 from 5"]


@pytest.mark.parametrize("name", CASES)
def test_padding_may_hold_anything(name: str) -> None:
    """Losses, records and gradients are those of texts cut to their length."""
    rows = torch.tensor([[1, 1, 1, 1, 0, 0]] * BATCH)
    student, teacher = features(2, 0), features(4, 1)
    dirty = [copy.deepcopy(side) for side in (student, teacher)]
    for side in dirty:
        for group in tensors(side).values():
            for tensor in group:
                tensor[..., 4:, :] = math.nan

    def cut(side: Features) -> Features:
        return Features(
            embedding=side.embedding[:, :4],
            hidden=[h[:, :4] for h in side.hidden],
            attention=[(q[:, :, :4], k[:, :, :4]) for q, k in side.attention],
            values=[v[:, :, :4] for v in side.values],
        )

    short, long = with_gradient(cut(student)), with_gradient(dirty[0])
    expected = total(built(name).train()(short, cut(teacher), None))
    found = total(built(name).train()(long, dirty[1], rows))
    assert worst_relative(found, expected) < 1e-9
    expected.backward()
    found.backward()
    for ours, truths in zip(tensors(long).values(), tensors(short).values(), strict=True):
        for one, truth in zip(ours, truths, strict=True):
            assert (one.grad is None) == (truth.grad is None)
            if truth.grad is not None:
                torch.testing.assert_close(one.grad[..., :4, :], truth.grad, rtol=1e-8, atol=1e-12)
                assert (one.grad[..., 4:, :] == 0).all()


@pytest.mark.parametrize("name", CASES)
def test_layers_that_are_not_needed_may_be_missing(name: str) -> None:
    """What the taps leave out and the teacher's cache does not keep."""
    mapping = built(name, 3, 5).train()
    student, teacher = features(3, 0), features(5, 1)
    whole = total(mapping(student, teacher, MASK))
    again = built(name, 3, 5).train()
    less = total(again(student.only(again.student_needs.layers), teacher.only(again.teacher_needs.layers), MASK))
    assert torch.equal(whole, less)


@pytest.mark.parametrize("name", CASES)
class TestEveryMapping:
    """What training relies on, whatever the mapping."""

    def test_is_registered_under_its_name(self, name: str) -> None:
        mapping = built(name)
        assert type(mapping) is MAPPINGS[mapping.name]
        assert mapping.name == name.partition("+")[0]

    @pytest.mark.parametrize("masked", [False, True])
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
    def test_loss_is_finite_and_backward_reaches_what_is_needed(
        self, name: str, dtype: torch.dtype, masked: bool
    ) -> None:
        mapping = built(name).train()
        mapping.start_epoch(0)
        student = with_gradient(only_needed(features(2, 0, dtype), mapping))
        teacher = with_gradient(only_needed(features(4, 1, dtype), mapping))
        loss = total(mapping(student, teacher, MASK if masked else None))
        assert loss.shape == ()
        assert loss.dtype in (torch.float32, torch.float64)
        assert loss.isfinite()
        assert loss > 0
        loss.backward()
        for group in tensors(student).values():
            reached = [t.grad for t in group if t.grad is not None]
            assert all(g.isfinite().all() for g in reached)
            assert not group or any(g.abs().max() > 0 for g in reached)
        assert all(t.grad is None for group in tensors(teacher).values() for t in group)

    @pytest.mark.parametrize("switch", TERMS)
    def test_needs_shrink_with_what_is_switched_off(self, name: str, switch: str) -> None:
        """What is not needed may be absent and changes nothing; what is needed is used."""
        mapping = built(name, **{term: term == switch for term in TERMS}).train()
        full = with_gradient(features(2, 0)), features(4, 1)
        alone = total(mapping(only_needed(full[0], mapping), only_needed(full[1], mapping), MASK))
        again = build_mapping(mapping.name, mapping.options).train()
        found = total(again(*full, MASK))
        assert torch.equal(found, alone)
        found.backward()
        used = {group for group, given in tensors(full[0]).items() if any(t.grad is not None for t in given)}
        assert used
        assert used == {group for group in tensors(full[0]) if getattr(mapping.needs, group)}

    def test_needs_say_what_must_be_tapped(self, name: str) -> None:
        needs = built(name).needs
        assert needs.tap is (needs.attention or needs.values)
        assert needs.states is (needs.embedding or needs.hidden)
        assert needs.tap or needs.states

    def test_state_round_trip(self, name: str, tmp_path: Path) -> None:
        """A copy made from a file continues with the same numbers."""
        mapping, fresh = built(name), built(name)
        advance(mapping, 3)
        state = mapping.state_dict()
        if state:
            save_file(state, tmp_path / "state.safetensors")
            state = load_file(tmp_path / "state.safetensors")
        fresh.load_state_dict(state, strict=True)
        assert fresh.layer_weights() == mapping.layer_weights()
        assert advance(fresh, 3, seed=50) == advance(mapping, 3, seed=50)

    def test_the_same_batches_give_the_same_numbers(self, name: str) -> None:
        assert advance(built(name), 3) == advance(built(name), 3)

    def test_evaluation_leaves_no_trace(self, name: str) -> None:
        mapping, control = built(name), built(name)
        mapping.eval()
        with torch.no_grad():
            assert total(mapping(features(2, 8), features(4, 9), MASK)).isfinite()
        assert advance(mapping, 2) == advance(control, 2)

    def test_adds_nothing_that_trains_or_casts(self, name: str) -> None:
        """No buffer either: data parallelism would overwrite it, a cast would round it."""
        mapping = built(name)
        assert list(mapping.parameters()) == []
        assert list(mapping.buffers()) == []

    def test_layer_weights_can_be_logged(self, name: str) -> None:
        mapping = built(name)
        advance(mapping, 1)
        logged = json.loads(json.dumps(mapping.layer_weights()))
        assert logged == mapping.layer_weights()
        for weights in logged.values():
            assert sum(weights) == pytest.approx(1, rel=1e-12)

    def test_records_are_plans_and_costs_of_all_layers(self, name: str) -> None:
        loss = built(name)(features(2, 0), features(4, 1), MASK)
        assert set(loss.record) <= {"attention", "hidden", "relation"}
        for entry in loss.record.values():
            assert entry["plan"].shape == entry["cost"].shape == (2, 4)
            assert (entry["plan"] >= 0).all()
            assert np.isfinite(entry["cost"][entry["plan"] > 0]).all()

    def test_inside_autocast(self, name: str) -> None:
        outside, inside = built(name), built(name)
        given = features(2, 0, torch.float32), features(4, 1, torch.float32)
        expected = total(outside(*given, MASK))
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(total(inside(*given, MASK)), expected)

    def test_a_mask_that_keeps_nothing_is_no_nan(self, name: str) -> None:
        """Either refused, or padding has no part in the mapping at all."""
        mapping = built(name)
        try:
            loss = total(mapping(features(2, 0), features(4, 1), torch.zeros_like(MASK)))
        except ValueError as error:
            assert "keeps no position" in str(error)  # noqa: PT017
        else:
            assert torch.equal(loss, total(mapping(features(2, 0), features(4, 1), None)))
