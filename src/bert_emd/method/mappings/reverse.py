"""A control: uniform's layers in the reverse order."""

from __future__ import annotations

from collections.abc import Sequence

from bert_emd.method.mappings.pairs import PairMapping, evenly

__all__ = ["ReverseMapping"]


class ReverseMapping(PairMapping):
    """Student layer i learns from teacher layer ⌈(M+1-i)·N/M⌉, i = 1..M: uniform's layer of M+1-i.

    Source: "Layer-Selection Strategy Doesn't Matter (Much)", arXiv 2502.04499.
    """

    name = "reverse"
    rounds = True

    def pairs(self) -> Sequence[tuple[int, int]]:
        m, n = self.options.num_student, self.options.num_teacher
        return [(i - 1, evenly(m + 1 - i, m, n) - 1) for i in range(1, m + 1)]
