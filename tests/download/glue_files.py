"""Small official-looking files of every task, archives of them, and a table that knows their checksums."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import stat
import zipfile
from collections.abc import Mapping
from pathlib import Path

from bert_emd.data.download import GLUE, Bundle, Member

LABELS = {"STS-B": "2.5", "MNLI": "neutral", "QNLI": "entailment", "RTE": "entailment"}
TEXTS = {"QQP": ("question1", "question2"), "QNLI": ("question", "sentence"), "SST-2": ("sentence",)}
LABEL_COLUMNS = {"STS-B": "score", "QQP": "is_duplicate", "MNLI": "gold_label"}


def tsv(task: str, name: str) -> bytes:
    """Three rows as the official file of that name has them."""
    label, test = LABELS.get(task, "1"), name.startswith(("test", "diagnostic"))
    if task == "CoLA":
        head = "index\tsentence\n" if test else ""
        return (head + "".join(f"{i}\tA b.\n" if test else f"src\t{label}\t\tA b.\n" for i in range(3))).encode()
    columns = ["index", *TEXTS.get(task, ("sentence1", "sentence2"))]
    if not test:
        columns.append(LABEL_COLUMNS.get(task, "label"))
    row = ["0", *["A b."] * len(TEXTS.get(task, "12")), *([] if test else [label])]
    return ("\t".join(columns) + "\n" + ("\t".join(row) + "\n") * 3).encode()


def zipped(files: Mapping[str, bytes], *, links: Mapping[str, str] | None = None) -> bytes:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
        for name, target in (links or {}).items():
            info = zipfile.ZipInfo(name)
            info.external_attr = (stat.S_IFLNK | 0o777) << 16
            archive.writestr(info, target)
    return made.getvalue()


def sum_of(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def bundle_of(task: str, archive: bytes, contents: Mapping[str, bytes]) -> Bundle:
    """The table's row for a task, but for another archive and other files."""
    row = next(bundle for bundle in GLUE if bundle.name == task)
    remote = dataclasses.replace(row.remotes[0], size=len(archive), sha256=sum_of(archive))
    members = tuple(Member(name=name, checksum=sum_of(content)) for name, content in contents.items())
    return dataclasses.replace(row, remotes=(remote,), members=members)


def task_files(task: str) -> dict[str, bytes]:
    row = next(bundle for bundle in GLUE if bundle.name == task)
    return {member.name: tsv(task, member.name) for member in row.members}


def archive_of(task: str, **more: bytes) -> bytes:
    return zipped({f"{task}/{name}": content for name, content in {**task_files(task), **more}.items()})


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}
