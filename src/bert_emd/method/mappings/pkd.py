"""PKD under the name that users of the reference know: `skip` with the normalised [CLS] loss."""

from __future__ import annotations

from bert_emd.method.mappings.skip import SkipMapping

__all__ = ["PkdMapping"]


class PkdMapping(SkipMapping):
    """The layers of `SkipMapping`, always with ``state_loss`` ``cls``. Source: Sun et al., EMNLP 2019."""

    name = "pkd"
    uses = frozenset({"projection", "share_param"})

    @property
    def first_position_only(self) -> bool:
        return True
