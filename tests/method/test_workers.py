"""Pieces that are shared out among threads: the same costs and gradients, and nothing else that changes."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial

import pytest
import reference
import torch
from torch import Tensor

from bert_emd.method import Scores, attention_distances
from bert_emd.method.attention_pieces import Pieces
from bert_emd.method.workers import shared_out, worker_count

BATCH, LENGTH, HEADS, WIDTH = 6, 24, 3, 8
MASK = (torch.arange(LENGTH) < torch.tensor([24, 20, 20, 13, 24, 6])[:, None]).long()
SCATTERED = (torch.arange(LENGTH) < torch.tensor([6, 24, 5, 7, 9, 6])[:, None]).long()


normal = partial(reference.normal, dtype=torch.float32)


@pytest.fixture(params=[2, 3])
def threads(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """As many threads, and pieces so small that each has some."""

    def seen(pieces: Sequence[object], work: Callable[[Sequence[object]], object], workers: int) -> list[object]:
        assert torch.get_num_threads() == 1 or len(pieces) >= workers == torch.get_num_threads()
        return shared_out(pieces, work, workers)

    monkeypatch.setattr(sys.modules["bert_emd.method.attention"], "shared_out", seen)
    pieces = sys.modules["bert_emd.method.attention_pieces"]
    monkeypatch.setattr(pieces, "_PIECE", {"cpu": 1 << 12, "other": 1 << 12})
    monkeypatch.setattr(pieces, "_SHARED_FROM", 0)
    torch.set_num_threads(request.param)
    return int(request.param)


Costs = Callable[[Sequence[Tensor]], Tensor]


def attention(mask: Tensor | None, *, width: int = WIDTH, given: bool = False) -> tuple[list[Tensor], Costs, Costs]:
    student = [normal(i, BATCH, HEADS, LENGTH, width) * (1 + i) for i in range(4)]
    teacher = [
        (normal(9 + i, BATCH, HEADS, LENGTH, WIDTH), normal(19 + i, BATCH, HEADS, LENGTH, WIDTH)) for i in (1, 2)
    ]
    there: Sequence[tuple[Tensor, Tensor]] | Scores = teacher
    if given:
        keep = torch.ones(BATCH, LENGTH) if mask is None else mask
        whole = torch.stack([reference.attention_scores(q, k) for q, k in teacher])
        there = Scores([whole[:, row][:, :, kept][:, :, :, kept] for row, kept in enumerate(keep.bool())])

    def pairs(x: Sequence[Tensor]) -> list[tuple[Tensor, Tensor]]:
        return list(zip(x[::2], x[1::2], strict=True))

    return (
        student,
        lambda x: attention_distances(pairs(x), there, mask),
        lambda x: reference.attention_costs(pairs(x), teacher, mask),
    )


CASES = {
    "attention": attention,
    "other width": lambda mask: attention(mask, width=5),
    "given scores": lambda mask: attention(mask, given=True),
}


@pytest.mark.parametrize("mask", [None, MASK, SCATTERED], ids=["no mask", "mask", "scattered"])
@pytest.mark.parametrize("case", CASES)
def test_costs_and_gradients_are_the_loops(case: str, mask: Tensor | None, threads: int) -> None:
    leaves, ours, loop = CASES[case](mask)
    leaves = [leaf.requires_grad_() for leaf in leaves]
    exact = [leaf.detach().double().requires_grad_() for leaf in leaves]
    found, truth = ours(leaves), loop(exact)
    weights = normal(77, *found.shape)
    (found * weights).sum().backward()
    (truth * weights).sum().backward()
    torch.testing.assert_close(found.double(), truth, rtol=1e-6, atol=0)
    for a, b in zip(leaves, exact, strict=True):
        torch.testing.assert_close(a.grad.double(), b.grad, rtol=1e-5, atol=1e-5 * float(b.grad.abs().max()))
    assert torch.get_num_threads() == threads

    again = [leaf.detach().clone().requires_grad_() for leaf in leaves]
    second = ours(again)
    (second * weights).sum().backward()
    assert torch.equal(second, found)
    assert all(torch.equal(a.grad, b.grad) for a, b in zip(again, leaves, strict=True))


def test_long_rows_by_products(threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows so long that no score is made, a head or two a piece."""
    monkeypatch.setattr(sys.modules["bert_emd.method.attention_pieces"], "_PIECE_OF_PRODUCTS", 1 << 12)
    shape = 3, 2, 380, 4
    student = [normal(i, *shape).requires_grad_() for i in range(2)]
    teacher = [(normal(5, *shape), normal(6, *shape)), (normal(7, *shape), normal(8, *shape))]
    exact = [s.detach().double().requires_grad_() for s in student]
    found = attention_distances([tuple(student)], teacher)
    truth = reference.attention_costs([tuple(exact)], teacher)
    found.sum().backward()
    truth.sum().backward()
    torch.testing.assert_close(found.double(), truth, rtol=1e-6, atol=0)
    for a, b in zip(student, exact, strict=True):
        torch.testing.assert_close(a.grad.double(), b.grad, rtol=1e-4, atol=1e-5 * float(b.grad.abs().max()))


class TestAttentionPieces:
    @pytest.fixture(autouse=True)
    def _shared_always(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(sys.modules["bert_emd.method.attention_pieces"], "_SHARED_FROM", 0)

    @staticmethod
    def pieces(shape: tuple[int, int, int, int], *, average: bool = False) -> Pieces:
        pairs = [(torch.zeros(shape), torch.zeros(shape))] * 2
        return Pieces(None, pairs[:1], pairs[1:], average)

    @pytest.mark.parametrize(("batch", "length"), [(1, 512), (1, 90), (2, 90), (4, 9), (32, 9)])
    def test_every_worker_has_one_where_there_are_enough_heads_or_rows(self, batch: int, length: int) -> None:
        torch.set_num_threads(4)
        assert len(list(self.pieces((batch, 8, length, 64)))) >= 4

    def test_fewer_workers_where_the_scores_of_all_would_not_fit(self, monkeypatch: pytest.MonkeyPatch) -> None:
        torch.set_num_threads(4)
        monkeypatch.setattr(sys.modules["bert_emd.method.attention_pieces"], "_MOST_SCORES", 2 * 400**2 * 3)
        found = [self.pieces((2, 2, length, 64), average=True).workers for length in (300, 400, 500, 4000)]
        assert found == [4, 3, 1, 1]

    def test_that_is_so_for_the_worst_of_all_rows(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Products make the scores of two layers at a time, where a pair nearly agrees."""
        torch.set_num_threads(4)
        monkeypatch.setattr(sys.modules["bert_emd.method.attention_pieces"], "_MOST_SCORES", 2 * 4 * 400**2)
        assert self.pieces((2, 2, 400, 64)).workers == 4
        assert self.pieces((2, 2, 500, 64)).workers == 2
        # Of 12 layers: 400 tokens by products, 150 by scores.
        pairs = [(torch.zeros(2, 8, 400, 26),) * 2] * 4 + [(torch.zeros(2, 8, 400, 64),) * 2] * 12
        lengths = torch.tensor([[400], [150]])
        mixed = Pieces(torch.arange(400) < lengths, pairs[:4], pairs[4:], False)
        assert {piece.products for piece in mixed} == {True, False}
        assert mixed.workers == 2 * 4 * 400**2 // (16 * 150**2)


@pytest.mark.parametrize(("batch", "workers"), [(3, 1), (4, 3)])
def test_few_scores_are_not_shared_out(batch: int, workers: int) -> None:
    torch.set_num_threads(3)
    pair = (torch.zeros(batch, 4, 128, 8),) * 2
    assert Pieces(None, [pair], [pair], False).workers == workers


def test_in_inference_mode(threads: int) -> None:
    leaves, ours, _ = attention(MASK)
    expected = ours(leaves)
    with torch.inference_mode():
        assert torch.equal(ours(leaves), expected)


class TestSharedOut:
    def test_every_worker_has_a_thread_of_its_own_and_no_gradients(self) -> None:
        torch.set_num_threads(3)
        met = threading.Barrier(3, timeout=20)

        def work(share: Sequence[int]) -> tuple[list[int], int, int, bool]:
            met.wait()  # which nobody passes alone
            return list(share), threading.get_ident(), torch.get_num_threads(), torch.is_grad_enabled()

        found = shared_out(range(7), work, 3)
        assert [share for share, *_ in found] == [[0, 5, 6], [1, 4], [2, 3]]
        assert len({thread for _, thread, *_ in found} - {threading.get_ident()}) == 3
        assert [tuple(rest) for *_, rest in ((0, f[2:]) for f in found)] == [(1, False)] * 3
        assert torch.get_num_threads() == 3

    def test_one_piece_is_done_here(self) -> None:
        torch.set_num_threads(3)

        def work(_: Sequence[int]) -> tuple[int, int, bool]:
            return threading.get_ident(), torch.get_num_threads(), torch.is_grad_enabled()

        assert shared_out([5], work, 3) == [(threading.get_ident(), 3, False)]
        assert torch.is_grad_enabled()

    def test_where_one_fails_the_others_have_ended(self) -> None:
        torch.set_num_threads(2)
        ended = []

        def work(share: Sequence[int]) -> None:
            if share[0] == 0:
                raise ValueError("at once")
            time.sleep(0.2)
            ended.append(torch.get_num_threads())

        with pytest.raises(ValueError, match="at once"):
            shared_out([0, 1], work, 2)
        assert ended == [1]
        assert torch.get_num_threads() == 2

    def test_an_error_is_the_callers_and_the_threads_are_as_before(self) -> None:
        torch.set_num_threads(2)

        def work(share: Sequence[int]) -> None:
            raise ValueError(f"no {share[0]}")

        with pytest.raises(ValueError, match="no 4"):
            shared_out([4, 5], work, 2)
        assert torch.get_num_threads() == 2

    def test_a_forked_process_has_threads_of_its_own(self) -> None:
        assert shared_out([1, 2], sum, 2) == [1, 2]
        child = os.fork()
        if child == 0:
            os._exit(0 if shared_out([3, 4], sum, 2) == [3, 4] else 1)
        deadline = time.monotonic() + 30
        while (ended := os.waitpid(child, os.WNOHANG)) == (0, 0) and time.monotonic() < deadline:
            time.sleep(0.01)
        if ended == (0, 0):
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
        assert ended == (child, 0)

    def test_as_many_as_torch_has_up_to_sixteen(self, monkeypatch: pytest.MonkeyPatch) -> None:
        torch.set_num_threads(3)
        assert worker_count() == 3
        torch.set_num_threads(40)
        assert worker_count() == 16
        monkeypatch.setattr(torch.__config__, "parallel_info", lambda: "ATen parallel backend: native thread pool")
        assert worker_count() == 1
