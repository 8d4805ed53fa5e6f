"""The GLUE benchmark into a folder that ``--task_name`` and ``--data_dir`` of the other commands read."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from bert_emd.data.download.addresses import GLUE
from bert_emd.data.download.bundle import Bundle, Kind, Member, Remote
from bert_emd.data.download.install import Step, examine
from bert_emd.data.download.mrpc import DEV_IDS_NAMES, TEST_NAME, TRAIN_NAME
from bert_emd.data.glue_tsv import read_glue_tsv
from bert_emd.data.labels import listing
from bert_emd.data.tasks import find_task, plain_name
from bert_emd.errors import UserError
from bert_emd.transfer import checksum_fault

__all__ = ["find_bundles", "glue_fault", "plan_glue"]

_ALL = "all"
_OTHER_NAMES = {
    "sst": "SST-2",
    "sts": "STS-B",
    "diagnostic": "AX",
    "diagnostics": "AX",
    "mnlim": "MNLI",
    "mnlimm": "MNLI",
}


def find_bundles(tasks: Sequence[str], table: Sequence[Bundle] = GLUE) -> list[Bundle]:
    """Return the bundles of tasks, each once and in the table's order.

    Args:
        tasks: names of tasks, as the other commands and the original download script take them, or ``all``.
        table: what there is.

    Raises:
        UserError: there is no such task.
    """
    if any(plain_name(name) == _ALL for name in tasks):
        return list(table)
    names = {find_task(_OTHER_NAMES.get(plain_name(name), name)).name for name in tasks}
    return [bundle for bundle in table if bundle.name in names]


def plan_glue(
    root: Path,
    bundles: Sequence[Bundle],
    *,
    checksums: bool = True,
    overwrite: bool = False,
    path_to_mrpc: Path | None = None,
) -> list[Step]:
    """Say for each task what its folder holds and what is missing.

    Args:
        root: the GLUE folder.
        bundles: the tasks.
        checksums: whether the files must be the published ones; where not, they must be readable.
        overwrite: whether files that are damaged or altered may be replaced.
        path_to_mrpc: a folder with the files of the paraphrase corpus, instead of fetching them.

    Raises:
        UserError: a task's folder holds files that are damaged or altered, the corpus is not where it should be, or a
            folder is a file.
    """
    if root.exists() and not root.is_dir():
        raise UserError(f"data_dir {root} is a file; name a folder")
    steps = []
    for bundle in bundles:
        folder = _folder(root, bundle)
        local = _originals(bundle, folder, path_to_mrpc) if bundle.kind is Kind.MRPC else {}
        steps.append(examine(bundle, folder, checksums=checksums, fault=glue_fault, local=local))
    bad = [f"{step.folder / name}: {why}" for step in steps for name, why in step.faults.items()]
    if bad and not overwrite:
        raise UserError(
            f"not the published files, so nothing was fetched: {'; '.join(bad)}; --overwrite replaces them"
            + (", --no_checksums keeps what can be read" if checksums else "")
        )
    return steps


def glue_fault(bundle: Bundle, member: Member, path: Path, checksums: bool) -> str | None:
    """Say what is wrong with a task's file: by its checksum, or else by reading it as the other commands do."""
    if checksums and member.checksum is not None:
        return checksum_fault(path, member.checksum)
    task = find_task(bundle.name)
    split = next(split for split in task.splits if split.tsv == member.name)
    try:
        rows = len(read_glue_tsv(path, task, split))
    except UserError as error:
        return str(error).removeprefix(f"{path}: ")
    if checksums and member.rows is not None and rows != member.rows:
        return f"it has {rows:,} examples and should have {member.rows:,}"
    return None


def _folder(root: Path, bundle: Bundle) -> Path:
    """The folder that the task is in already, under whichever of its names, or the official one."""
    official = root / bundle.folder
    if official.exists() or not root.is_dir():
        return official
    names = find_task(bundle.name).folder_names
    others = [path for path in sorted(root.iterdir()) if path.is_dir() and plain_name(path.name) in names]
    return next((path for path in others if any((path / m.name).is_file() for m in bundle.members)), official)


def _originals(bundle: Bundle, folder: Path, given: Path | None) -> dict[Remote, Path]:
    """The files of the paraphrase corpus that are here: where the user says, or in the task's folder itself."""
    place = given or folder
    found = [place / name for name in (TRAIN_NAME, TEST_NAME)]
    if absent := [path.name for path in found if not path.is_file()]:
        if given is None:
            return {}
        raise UserError(
            f"path_to_mrpc {given} has no {listing(absent)}; name the folder of the paraphrase corpus, or leave it out"
        )
    lists = [place / name for name in DEV_IDS_NAMES if (place / name).is_file()]
    return dict(zip(bundle.remotes, [*found, *lists[:1]], strict=False))
