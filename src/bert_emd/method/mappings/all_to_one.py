"""A control: every student layer learns from the last teacher layer."""

from __future__ import annotations

from collections.abc import Sequence

from bert_emd.method.mappings.pairs import PairMapping

__all__ = ["AllToOneMapping"]


class AllToOneMapping(PairMapping):
    """Student layer i learns from teacher layer N, i = 1..M.

    Source: "Layer-Selection Strategy Doesn't Matter (Much)", arXiv 2502.04499.
    """

    name = "all-to-one"

    def pairs(self) -> Sequence[tuple[int, int]]:
        return [(i, self.options.num_teacher - 1) for i in range(self.options.num_student)]
