"""Sums of squared differences between all rows of two matrices: fast where that is exact, exact everywhere.

Legend: M student rows, N teacher rows, K elements of a row.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["is_small", "on_cpu", "pair_sums", "result_dtype", "too_close", "used_layers"]

# float32 products over this many elements keep their digits; the chunks are added up in float64.
_CHUNK = 1024
# (s - t)² = s² + t² - 2st loses digits where the left side is small against the right: below this ratio the
# differences themselves are taken.
_TOO_CLOSE = 0.1
# Elements of the differences that are taken in one call.
_AT_ONCE = 1 << 18
# With fewer elements than this the rounding of products does not average out, and differences cost next to nothing.
_SMALL = 1 << 18


def on_cpu(tensor: Tensor) -> bool:
    """Whether looking at a value costs nothing; elsewhere it means to wait for the device."""
    return tensor.device.type == "cpu"


def is_small(elements: int) -> bool:
    """Whether one layer has so few elements that `pair_sums` should take differences only."""
    return elements < _SMALL


def used_layers(weights_MN: Tensor) -> list[int]:
    """The teacher layers with any weight; all of them where looking would mean to wait for the device."""
    if not on_cpu(weights_MN):
        return list(range(weights_MN.shape[1]))
    return [int(j) for j in (weights_MN != 0).any(0).nonzero().squeeze(1)]


def result_dtype(tensors: Sequence[Tensor]) -> torch.dtype:
    """float64 for float64 input, else float32."""
    return torch.float64 if any(t.dtype == torch.float64 for t in tensors) else torch.float32


def pair_sums(
    student_MK: Tensor, teacher_NK: Tensor, *, small: bool = False, squares_N: Tensor | None = None
) -> Tensor:
    """Σ_k (s_ik - t_jk)², [M, N] float64.

    On a CPU all pairs come from one product of matrices, and those that nearly agree are taken again by their
    differences. Other devices take differences throughout: choosing would mean to wait for them.

    Args:
        student_MK: [M, K].
        teacher_NK: [N, K].
        small: whether these are all there is, and not many.
        squares_N: [N] float64, to which Σ_k t_jk² is added where it is given.
    """
    m, n = len(student_MK), len(teacher_NK)
    if not on_cpu(student_MK) or small or student_MK.dtype == torch.float64 or m * n <= m + n:
        if squares_N is not None:
            squares_N += _squares(teacher_NK)
        return (_by_differences if on_cpu(student_MK) else _by_distance)(student_MK, teacher_NK)
    norms_M, norms_N, total_MN = _by_product(student_MK, teacher_NK)
    if squares_N is not None:
        squares_N += norms_N
    for i, j in too_close(total_MN, norms_M, norms_N):
        total_MN[i, j] = _by_differences(student_MK[i : i + 1], teacher_NK[j : j + 1])[0, 0]
    return total_MN


def too_close(total_MN: Tensor, norms_M: Tensor, norms_N: Tensor, ratio: float = _TOO_CLOSE) -> list[tuple[int, int]]:
    """The pairs whose difference is small against their norms (also any that is not finite)."""
    fine_MN = total_MN >= ratio * (norms_M[:, None] + norms_N)
    return [(int(i), int(j)) for i, j in (~fine_MN).nonzero().tolist()]


def _by_product(student_MK: Tensor, teacher_NK: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Squared norms of both sides and |s|² + |t|² - 2 s·t."""
    m, n, k = len(student_MK), len(teacher_NK), student_MK.shape[1]
    norms_M, norms_N = _squares(student_MK), _squares(teacher_NK)
    cross_MN = student_MK.new_zeros(m, n, dtype=torch.float64)
    for start, stop, width in _cuts(k, _CHUNK):
        # [P, M, width] and [P, N, width]: views, no copies.
        s, t = (_chunks(x, start, stop, width) for x in (student_MK, teacher_NK))
        cross_MN += torch.bmm(s, t.transpose(1, 2)).sum(0, dtype=torch.float64)
    return norms_M, norms_N, norms_M[:, None] + norms_N - 2 * cross_MN


def _by_differences(student_MK: Tensor, teacher_NK: Tensor) -> Tensor:
    """The differences themselves, a student row against as many teacher rows at a time as fit a cache."""
    total_MN = student_MK.new_empty(len(student_MK), len(teacher_NK), dtype=torch.float64)
    rows = max(1, _AT_ONCE // student_MK.shape[1])
    room = torch.empty_like(teacher_NK[:rows])
    for total_N, s in zip(total_MN, student_MK, strict=True):
        for total, t in zip(total_N.split(rows), teacher_NK.split(rows), strict=True):  # type: ignore[no-untyped-call]
            # `sum` adds pairwise; a norm or a dot product adds in sequence and loses digits on long rows.
            total.copy_(torch.sub(t, s, out=room[: len(t)]).square_().sum(1))
    return total_MN


def _squares(rows_MK: Tensor) -> Tensor:
    """Σ_k x_ik², [M] float64."""
    total_M = rows_MK.new_zeros(len(rows_MK), dtype=torch.float64)
    for start, stop, width in _cuts(rows_MK.shape[1], _CHUNK):
        chunks = _chunks(rows_MK, start, stop, width)
        total_M += torch.linalg.vector_norm(chunks, dim=2).double().square_().sum(0)
    return total_M


def _by_distance(student_MK: Tensor, teacher_NK: Tensor) -> Tensor:
    """Euclidean distances of chunks, differences taken inside the kernel."""
    k = student_MK.shape[1]
    total_MN = student_MK.new_zeros(len(student_MK), len(teacher_NK), dtype=torch.float64)
    for start, stop, width in _cuts(k, 4 * _CHUNK):
        s, t = (_chunks(x, start, stop, width) for x in (student_MK, teacher_NK))
        total_MN += torch.cdist(s, t, compute_mode="donot_use_mm_for_euclid_dist").double().square_().sum(0)
    return total_MN


def _cuts(k: int, width: int) -> list[tuple[int, int, int]]:
    """Where K elements are cut: from, to, and the width of the chunks in between; the rest is one chunk."""
    whole = k - k % width
    return [(start, stop, w) for start, stop, w in ((0, whole, width), (whole, k, k - whole)) if stop > start]


def _chunks(rows_MK: Tensor, start: int, stop: int, width: int) -> Tensor:
    """[P, M, width], a view."""
    return rows_MK[:, start:stop].view(len(rows_MK), -1, width).transpose(0, 1)
