"""From a bundle to its folder: what is there already, what is missing, and how it gets there whole or not at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from bert_emd.archives import unpack
from bert_emd.data.download.bundle import Bundle, Kind, Member, Remote
from bert_emd.data.download.mrpc import build_mrpc
from bert_emd.data.labels import listing
from bert_emd.errors import UserError
from bert_emd.transfer import Failures, Retry, UnreachableError, Wanted, Watcher, addresses, checksum_fault, fetch

__all__ = ["Fault", "Step", "carry_out", "checksum_or_none", "examine"]

_LOOSE = 4  # times the published size, which a file may have where it need not be the published one

Fault = Callable[[Bundle, Member, Path, bool], "str | None"]
"""What is wrong with a file of a bundle; the last argument says whether it must be the published one."""


@dataclass(frozen=True, kw_only=True)
class Step:
    """One bundle: what its folder holds, and so what is to be done."""

    bundle: Bundle
    folder: Path
    missing: tuple[str, ...] = ()
    """Files that are not there."""
    faults: Mapping[str, str] = field(default_factory=dict)
    """Files that are there and are not what they should be, each with what is wrong."""
    local: Mapping[Remote, Path] = field(default_factory=dict)
    """What need not be fetched as the user has it, whatever edition it is."""

    @property
    def whole(self) -> bool:
        """Whether there is nothing to do."""
        return not self.missing and not self.faults

    @property
    def remotes(self) -> tuple[Remote, ...]:
        """What is to be fetched."""
        return () if self.whole else tuple(remote for remote in self.bundle.remotes if remote not in self.local)


def examine(
    bundle: Bundle, folder: Path, *, checksums: bool, fault: Fault, local: Mapping[Remote, Path] | None = None
) -> Step:
    """Look at a bundle's folder; it need not be there.

    Args:
        bundle: the bundle.
        folder: where its files are or will be.
        checksums: whether the files must be the published ones.
        fault: tells what is wrong with a file.
        local: files of the user's to take instead of fetching them.

    Raises:
        UserError: the folder is a file.
    """
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file where the folder of {bundle.name} should be; move it, or name another one")
    missing, faults = [], {}
    for member in bundle.members:
        path = folder / member.name
        if not path.is_file():
            missing.append(member.name)
        elif (why := fault(bundle, member, path, checksums)) is not None:
            faults[member.name] = why
    return Step(bundle=bundle, folder=folder, missing=tuple(missing), faults=faults, local=local or {})


def carry_out(
    steps: Sequence[Step],
    work: Path,
    *,
    mirror: str | None,
    checksums: bool,
    fault: Fault,
    retry: Retry,
    watcher: Watcher,
    failures: Failures,
    done: Callable[[Step], None],
) -> None:
    """Bring each bundle to its folder; one that fails leaves the others to be tried, unless no server is reached.

    Args:
        steps: the bundles; those that are whole are left alone.
        work: the place for what is under way (`bert_emd.transfer.workplace`).
        mirror: stands for the publishers' addresses (`addresses`).
        checksums: whether everything must be the published.
        fault: tells what is wrong with a file.
        retry: how often to try again.
        watcher: is told how the transfers go.
        failures: gets those that could not be had.
        done: is told each step that is done.
    """
    left = [step for step in steps if not step.whole]
    for i, step in enumerate(left):
        try:
            _bring(step, work, mirror, checksums, fault, retry, watcher)
        except UnreachableError as error:
            failures.add(error, *(other.bundle.name for other in left[i:]))
            return
        except UserError as error:
            failures.add(error, step.bundle.name)
        else:
            done(step)


def _bring(
    step: Step, work: Path, mirror: str | None, checksums: bool, fault: Fault, retry: Retry, watcher: Watcher
) -> None:
    bundle = step.bundle
    fetched = {remote: work / remote.name for remote in step.remotes}
    for remote, path in fetched.items():
        fetch(_wanted(remote, mirror, checksums), path, retry=retry, watcher=watcher)
    stage = work / bundle.folder
    try:
        shutil.rmtree(stage, ignore_errors=True)
        made = _make(bundle, {**fetched, **step.local}, stage)
        _check(bundle, made, checksums, fault)
        _install(step, made)
    except UserError:
        # What nothing vouches for and is of no use is fetched anew by the next try.
        _remove(path for remote, path in fetched.items() if not checksums or remote.sha256 is None)
        raise
    except OSError as error:
        raise UserError(f"{step.folder} cannot be written: {error.strerror or error}; make room") from error
    finally:
        shutil.rmtree(stage, ignore_errors=True)
    _remove(fetched.values())


def _wanted(remote: Remote, mirror: str | None, checksums: bool) -> Wanted:
    return Wanted(
        name=remote.name,
        addresses=addresses(remote.host, remote.path, mirror),
        size=remote.size if checksums else None,
        checksum=remote.sha256 if checksums else None,
        limit=None if checksums or remote.size is None else _LOOSE * remote.size,
    )


def _remove(paths: Iterable[Path]) -> None:
    for path in paths:
        with suppress(OSError):
            path.unlink()


def _make(bundle: Bundle, files: Mapping[Remote, Path], stage: Path) -> Path:
    """Make the bundle's files and return the folder that they are in."""
    given = [files[remote] for remote in bundle.remotes]
    if bundle.kind is Kind.ARCHIVE:
        needed = {f"{bundle.name}/{member.name}" for member in bundle.members}
        wanted = needed | {f"{bundle.name}/{name}" for name in bundle.also}
        names = unpack(given[0], stage, wanted=wanted.__contains__)
        if missing := sorted(needed - set(names)):
            raise UserError(f"{given[0].name} has no {listing(missing)}, so it is not the published {bundle.name}")
        return stage / bundle.name
    stage.mkdir(parents=True)
    if bundle.kind is Kind.PLAIN:
        shutil.copyfile(given[0], stage / bundle.members[0].name)
    else:
        train, test, dev_ids = given
        build_mrpc(train, test, dev_ids, stage)
    return stage


def _check(bundle: Bundle, made: Path, checksums: bool, fault: Fault) -> None:
    for member in bundle.members:
        if (why := fault(bundle, member, made / member.name, checksums)) is not None:
            raise UserError(
                f"{member.name} of {bundle.name} is not the published file: {why}; nothing of it is kept: try again "
                "later or give another --mirror"
                + (" (--no_checksums takes another edition)" if checksums and member.checksum else "")
            )


def _install(step: Step, made: Path) -> None:
    if not step.folder.exists():
        step.folder.parent.mkdir(parents=True, exist_ok=True)
        os.replace(made, step.folder)
        return
    # Beside them may lie files of the user's, so each one is put in its place by itself.
    replaced = {*step.missing, *step.faults}
    for path in sorted(made.iterdir()):
        if path.name in replaced or not (step.folder / path.name).exists():
            os.replace(path, step.folder / path.name)


def checksum_or_none(bundle: Bundle, member: Member, path: Path, checksums: bool) -> str | None:
    """The `Fault` of files that nothing but a checksum tells."""
    return checksum_fault(path, member.checksum) if checksums else None
