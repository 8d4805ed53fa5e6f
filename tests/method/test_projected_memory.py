"""What layers that are projected inside the distances take room for."""

from __future__ import annotations

import sys
import weakref

import pytest
import reference
import torch
from projected_layers import Seen, masks, setting, teacher_of

from bert_emd.method import hidden_distances


class TestMemory:
    SIZE = (4, 64, 8, 96)
    WIDE_BYTES = 4 * 64 * 96 * 4

    @pytest.mark.parametrize("mask", ["none", "ragged"])
    @pytest.mark.parametrize("noise", [None, 1e-3])
    @pytest.mark.parametrize("kind", ["shared", "own"])
    def test_no_tensor_is_as_large_as_a_projected_layer(
        self, kind: str, noise: float | None, mask: str, route: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(sys.modules["bert_emd.method.hidden_pieces"], "_PIECE", {"cpu": 1 << 12, "other": 1 << 12})
        ours, kept = setting(kind, self.SIZE), []
        teacher = teacher_of(ours, noise)
        seen = Seen(*teacher, *ours.leaves)
        with seen, torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
            hidden_distances(ours.inside(), teacher, masks(*self.SIZE[:2])[mask]).sum().backward()
        narrow = self.SIZE[0] * self.SIZE[1] * self.SIZE[2] * 4
        assert narrow <= seen.largest < self.WIDE_BYTES / 2
        for tensor in kept:
            assert tensor.numel() * 4 <= narrow or any(tensor is t for t in teacher)
        assert len(kept) == len(ours.leaves) + len(teacher)

    @pytest.mark.parametrize("mask", ["none", "ragged", "holes"])
    def test_under_autocast_16_bits_of_the_kept_rows_stay_until_backward(self, mask: str) -> None:
        ours, saved = setting("shared", self.SIZE), []
        teacher, keep = teacher_of(ours, None), masks(*self.SIZE[:2])[mask]
        hooks = torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(weakref.ref(t)) or t, lambda t: t)
        with torch.autocast("cpu", torch.bfloat16), hooks:
            cost = hidden_distances(ours.inside(), teacher, keep).sum()
        (wide,) = (t for ref in saved if (t := ref()) is not None and t.dtype == torch.bfloat16)
        # Few padded rows are zeroed rather than left out.
        rows = self.SIZE[0] * self.SIZE[1]
        assert wide.numel() / (3 * 96) == (int(keep.sum()) if mask == "holes" else rows)
        assert wide.untyped_storage().nbytes() == wide.numel() * 2
        kept = weakref.ref(wide)
        del wide
        cost.backward()
        assert cost.grad_fn is not None
        assert kept() is None

    @pytest.mark.parametrize("mask", ["none", "ragged", "holes"])
    @pytest.mark.parametrize(("kind", "layers"), [("shared", 12), ("own", 9), ("shared", 9), ("shared", 8)])
    def test_in_float32_they_stay_where_the_teacher_has_three_times_as_many(
        self, kind: str, layers: int, mask: str
    ) -> None:
        """Three student layers; the first test has four of the teacher's."""
        ours, saved = setting(kind, self.SIZE), []
        teacher, keep = (teacher_of(ours, None) * 3)[:layers], masks(*self.SIZE[:2])[mask]
        hooks = torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(weakref.ref(t)) or t, lambda t: t)
        with hooks:
            cost = hidden_distances(ours.inside(), teacher, keep)
        known = {t.data_ptr() for t in (*teacher, *ours.leaves)}
        wide = [t for ref in saved if (t := ref()) is not None and t.data_ptr() not in known]
        rows = int(keep.sum()) if mask == "holes" else self.SIZE[0] * self.SIZE[1]
        assert sum(t.numel() for t in wide) == (3 * rows * 96 if layers >= 9 else 0)
        assert all(t.dtype == torch.float32 for t in wide)
        kept = [weakref.ref(t) for t in wide]
        del wide
        weights = torch.linspace(-1, 1, cost.numel()).view_as(cost)
        (cost * weights).sum().backward()
        assert not any(ref() is not None for ref in kept)
        exact = ours.copy(torch.float64)
        truth = reference.hidden_costs(exact.outside(), [t.double() for t in teacher], keep)
        torch.testing.assert_close(cost.double(), truth, rtol=1e-6, atol=0)
        (truth * weights.double()).sum().backward()
        for leaf, other in zip(ours.leaves, exact.leaves, strict=True):
            atol = 1e-5 * float(other.grad.abs().max())
            torch.testing.assert_close(leaf.grad.double(), other.grad, rtol=1e-5, atol=atol)

    @pytest.mark.parametrize("reason", ["no_grad", "nothing asks"])
    def test_nothing_stays_where_no_backward_follows(self, reason: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(sys.modules["bert_emd.method.hidden_pieces"], "_PIECE", {"cpu": 1 << 12, "other": 1 << 12})
        ours = setting("shared", self.SIZE)
        teacher = teacher_of(ours, None)
        seen = Seen(*teacher, *ours.leaves)
        for leaf in ours.leaves:
            leaf.requires_grad_(reason == "no_grad")
        with torch.autocast("cpu", torch.bfloat16), torch.set_grad_enabled(reason != "no_grad"), seen:
            hidden_distances(ours.inside(), teacher)
        assert seen.largest < self.WIDE_BYTES / 2

    def test_that_is_seen_where_it_is(self) -> None:
        ours = setting("shared", self.SIZE)
        seen = Seen(*ours.leaves)
        with seen:
            hidden_distances(ours.outside(), teacher_of(ours, None)).sum().backward()
        assert seen.largest >= self.WIDE_BYTES


def test_where_float32_is_too_rough_its_first_piece_is_the_last(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules["bert_emd.method.hidden_pieces"], "_PIECE", {"cpu": 1 << 12, "other": 1 << 12})
    module, seen = sys.modules["bert_emd.method.hidden"], []
    original = module.pair_sums
    monkeypatch.setattr(module, "pair_sums", lambda s, *a, **k: seen.append(s.dtype) or original(s, *a, **k))
    ours = setting("shared", TestMemory.SIZE)
    teacher = teacher_of(ours, 0.0)
    cost = hidden_distances(ours.inside(), teacher)
    truth = reference.hidden_costs(ours.copy(torch.float64).outside(), [t.double() for t in teacher])
    torch.testing.assert_close(cost.double(), truth, rtol=1e-6, atol=0)
    assert seen.count(torch.float32) == 1
    assert seen.count(torch.float64) > 1


def test_in_inference_mode_under_autocast() -> None:
    ours = setting("shared", TestMemory.SIZE)
    teacher = teacher_of(ours, None)
    with torch.autocast("cpu", torch.bfloat16):
        expected = hidden_distances(ours.inside(), teacher)
        with torch.inference_mode():
            assert torch.equal(hidden_distances(ours.inside(), teacher), expected)
