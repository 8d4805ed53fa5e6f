"""Google's BERT checkpoints by name, into folders that ``bert-emd convert`` reads."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from bert_emd.data.download.addresses import CHECKPOINTS
from bert_emd.data.download.bundle import Bundle
from bert_emd.data.download.install import Step, checksum_or_none, examine
from bert_emd.errors import UserError

__all__ = ["find_checkpoint", "plan_checkpoint"]


def find_checkpoint(name: str, table: Sequence[Bundle] = CHECKPOINTS) -> Bundle | None:
    """Return the published checkpoint of that name, whatever its case, or None."""
    wanted = name.strip().lower().removesuffix(".zip")
    return next((bundle for bundle in table if bundle.name.lower() == wanted), None)


def plan_checkpoint(bundle: Bundle, root: Path, *, checksums: bool = True, overwrite: bool = False) -> Step:
    """Say what a checkpoint's folder in ``root`` holds and what is missing.

    Raises:
        UserError: it holds files that are damaged or altered and ``overwrite`` does not allow to replace them.
    """
    step = examine(bundle, root / bundle.folder, checksums=checksums, fault=checksum_or_none)
    if step.faults and not overwrite:
        bad = "; ".join(f"{step.folder / name}: {why}" for name, why in step.faults.items())
        raise UserError(
            f"not the published files, so nothing of {bundle.name} was fetched: {bad}; --overwrite replaces them"
        )
    return step
