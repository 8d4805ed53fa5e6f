"""PKD-skip: as uniform, without the last student layer."""

from __future__ import annotations

from collections.abc import Sequence

from bert_emd.method.mappings.pairs import PairMapping, evenly

__all__ = ["SkipMapping"]


class SkipMapping(PairMapping):
    """Student layer i learns from teacher layer ⌈i·N/M⌉, i = 1..M-1 (i·N/M where M divides N).

    The last student layer learns through the prediction loss, so M = 1 leaves nothing: a ValueError.
    Source: Sun et al., EMNLP 2019.
    """

    name = "skip"
    rounds = True

    def pairs(self) -> Sequence[tuple[int, int]]:
        m, n = self.options.num_student, self.options.num_teacher
        return [(i - 1, evenly(i, m, n) - 1) for i in range(1, m)]
