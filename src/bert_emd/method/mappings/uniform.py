"""TinyBERT's mapping: the teacher's layers at even distances."""

from __future__ import annotations

from collections.abc import Sequence

from bert_emd.method.mappings.pairs import PairMapping, evenly

__all__ = ["UniformMapping"]


class UniformMapping(PairMapping):
    """Student layer i learns from teacher layer ⌈i·N/M⌉, i = 1..M (i·N/M where M divides N).

    Source: Jiao et al., Findings of EMNLP 2020, section 3.
    """

    name = "uniform"
    rounds = True

    def pairs(self) -> Sequence[tuple[int, int]]:
        m, n = self.options.num_student, self.options.num_teacher
        return [(i - 1, evenly(i, m, n) - 1) for i in range(1, m + 1)]
