"""PKD-last: the teacher's last layers, without the last student layer."""

from __future__ import annotations

from collections.abc import Sequence

from bert_emd.method.mappings.pairs import PairMapping

__all__ = ["LastMapping"]


class LastMapping(PairMapping):
    """Student layer i learns from teacher layer N-M+i, i = 1..M-1.

    The last student layer learns through the prediction loss, so M = 1 leaves nothing: a ValueError.
    Source: Sun et al., EMNLP 2019.
    """

    name = "last"

    def pairs(self) -> Sequence[tuple[int, int]]:
        m, n = self.options.num_student, self.options.num_teacher
        return [(i - 1, n - m + i - 1) for i in range(1, m)]
