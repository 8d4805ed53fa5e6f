"""One file from one of several addresses: gone on with where it broke off, tried again, checked, then named."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import httpx2

from bert_emd.errors import UserError
from bert_emd.transfer.answer import AnewError, BrokenError, NotThereError, RefusedError, receive
from bert_emd.transfer.checksums import checksum_fault
from bert_emd.transfer.mirror import masked
from bert_emd.transfer.part import Part
from bert_emd.transfer.retry import Retry, Silent, Watcher

__all__ = ["UnreachableError", "Wanted", "announced_size", "fetch"]


class UnreachableError(UserError):
    """No server answered at all, so the next file will fare no better."""


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """A file to be had, and what it must be."""

    name: str
    """How to call it in messages."""
    addresses: Sequence[str | Path]
    """Where to look for it, in this order: addresses, or files on this machine."""
    size: int | None = None
    """Bytes, where they are known."""
    checksum: str | None = None
    """As `checksum_fault` takes it, where it is known."""
    limit: int | None = None
    """Bytes that it cannot have more of, where the size is not known."""
    headers: Mapping[str, str] = field(default_factory=dict)
    """Sent with each request; none that authorises is sent on to another host."""


def fetch(wanted: Wanted, target: Path, *, retry: Retry | None = None, watcher: Watcher | None = None) -> None:
    """Bring a file to ``target``, which appears whole or not at all.

    What an earlier call left of it (``NAME.part``) is gone on with where the server still has the same file. Where the
    target itself is there already and as wanted, nothing is fetched.

    Raises:
        UnreachableError: no server answered.
        UserError: none of the addresses has it, the server refuses it or goes on failing, it is not what is wanted, or
            it cannot be written.
    """
    retry, watcher = retry or Retry(), watcher or Silent()
    if target.is_file() and _as_wanted(wanted, target):
        return
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        for address in wanted.addresses:
            try:
                _bring(wanted, address, target, retry, watcher)
            except NotThereError:
                continue
            return
    except OSError as error:
        raise UserError(
            f"{target} cannot be written: {error.strerror or error}; what is there is kept, so make room and run the "
            "same command again"
        ) from error
    places = " nor at ".join(masked(address) for address in wanted.addresses)
    raise UserError(f"{wanted.name} is not at {places}; name another place with --mirror, or try again later")


def _as_wanted(wanted: Wanted, path: Path) -> bool:
    """Whether a file that is there already can be relied on: without a checksum it cannot."""
    return (
        wanted.checksum is not None
        and wanted.size in (None, path.stat().st_size)
        and checksum_fault(path, wanted.checksum) is None
    )


def _bring(wanted: Wanted, address: str | Path, target: Path, retry: Retry, watcher: Watcher) -> None:
    part = Part(target, masked(address), wanted.checksum)
    if wanted.size is not None and part.size > wanted.size:
        part.discard()
    while True:
        watcher.begin(wanted.name, wanted.size, part.size)
        try:
            if isinstance(address, Path):
                _copy(wanted, address, part, watcher)
            else:
                _download(wanted, address, part, retry, watcher)
        finally:
            watcher.end()
        fault = _fault(wanted, part)
        if fault is None:
            part.finish()
            return
        pieced = part.pieced
        part.discard()
        if not pieced:
            raise UserError(
                f"{wanted.name} from {masked(address)} is not the published file: {fault}; nothing of it is kept: try "
                "again later or give another --mirror (--no_checksums takes it all the same)"
            )
        watcher.note(f"{wanted.name}: the pieces do not fit together ({fault}); fetching it anew")


def _fault(wanted: Wanted, part: Part) -> str | None:
    if wanted.size is not None and part.size != wanted.size:
        return f"it has {part.size:,} bytes and should have {wanted.size:,}"
    if not part.path.exists():
        return "it is empty"
    return checksum_fault(part.path, wanted.checksum)


def _copy(wanted: Wanted, source: Path, part: Part, watcher: Watcher) -> None:
    if not source.is_file():
        raise NotThereError
    size = source.stat().st_size
    if wanted.size is not None and size != wanted.size:
        raise UserError(
            f"{source} is not the published {wanted.name}: it has {size:,} bytes and should have {wanted.size:,}; "
            "give another --mirror (--no_checksums takes it all the same)"
        )
    with source.open("rb") as read, part.begin(None) as write:
        shutil.copyfileobj(read, write, 1 << 20)
    watcher.moved(part.size, size)


def _download(wanted: Wanted, address: str, part: Part, retry: Retry, watcher: Watcher) -> None:
    """Fill the part, trying again as long as attempts bring something new."""
    most, failures = part.size, 0
    with httpx2.Client(follow_redirects=True, timeout=retry.timeout) as client:
        while wanted.size is None or part.size != wanted.size:
            wait = 0.0
            try:
                receive(
                    client, address, part, size=wanted.size, limit=wanted.limit,
                    headers=wanted.headers, moved=watcher.moved,
                )  # fmt: skip
                return
            except RefusedError as error:
                raise UserError(f"{wanted.name} from {masked(address)}: {error}") from error
            except AnewError as error:
                part.discard()
                trouble: BrokenError = error
            except BrokenError as error:
                trouble = error
            failures = 0 if part.size > most else failures + 1
            most = max(most, part.size)
            if failures >= retry.attempts or trouble.wait > 2 * retry.longest_wait:
                raise _given_up(wanted, address, part, trouble, failures)
            if not isinstance(trouble, AnewError):
                wait = max(retry.wait(max(1, failures)), trouble.wait)
            watcher.note(f"{wanted.name}: {trouble}; trying again" + (f" in {wait:.0f} s" if wait >= 1 else ""))
            retry.sleep(wait)


def _given_up(wanted: Wanted, address: str, part: Part, trouble: BrokenError, failures: int) -> UserError:
    kept = f"; {part.size:,} bytes are kept, and the same command goes on from there" if part.size else ""
    if not trouble.answered:
        return UnreachableError(
            f"{wanted.name}: {httpx2.URL(address).host} cannot be reached ({trouble}, {failures} times in a row)"
            f"{kept}; is this machine online? Another place can be named with --mirror"
        )
    return UserError(
        f"{wanted.name} from {masked(address)}: {trouble}, and {failures} attempts in a row brought nothing "
        f"more{kept}; try again later or give another --mirror"
    )


def announced_size(addresses: Sequence[str | Path], *, timeout: float) -> int | None:
    """Return the bytes that a file has by what its first good address says, or None where none says it."""
    with httpx2.Client(follow_redirects=True, timeout=timeout) as client:
        for address in addresses:
            try:
                if isinstance(address, Path):
                    return address.stat().st_size
                answer = client.head(address, headers={"Accept-Encoding": "identity"})
            except (OSError, httpx2.HTTPError, httpx2.InvalidURL):
                continue
            length = answer.headers.get("Content-Length", "")
            if answer.is_success and length.isdigit():
                return int(length)
    return None
