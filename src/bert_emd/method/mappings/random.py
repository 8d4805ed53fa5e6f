"""RAIL-KD: teacher layers drawn anew in each epoch."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from bert_emd.method.mappings.base import MappingOptions
from bert_emd.method.mappings.pairs import PairMapping

__all__ = ["RandomMapping"]


class RandomMapping(PairMapping):
    """Student layer i learns from the i-th of M teacher layers, drawn without replacement and sorted.

    The draw of an epoch depends on the seed and the epoch's number alone, so a resumed run, and each of several
    processes, has the same. Source: Haidar et al., Findings of NAACL 2022 (RAIL-KD).
    """

    name = "random"

    def __init__(self, options: MappingOptions) -> None:
        self.epoch = 0
        super().__init__(options)

    def start_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def pairs(self) -> Sequence[tuple[int, int]]:
        m, n = self.options.num_student, self.options.num_teacher
        drawn = np.random.default_rng((self.options.seed, self.epoch)).choice(n, m, replace=False)
        return list(enumerate(sorted(drawn.tolist())))

    @property
    def layers(self) -> tuple[Sequence[int] | None, Sequence[int] | None]:
        # Any of the teacher's layers may be drawn in a later epoch.
        return None, None

    @property
    def notes(self) -> list[str]:
        first, *others = super().notes
        return [f"{first} in the first epoch, drawn anew in each (seed {self.options.seed})", *others]
