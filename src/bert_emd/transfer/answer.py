"""One request for a file or for the rest of it, and what the server's answer means."""

from __future__ import annotations

import email.utils
import re
import ssl
import time
from collections.abc import Callable, Mapping

import httpx2

from bert_emd.transfer.part import Part

__all__ = ["AnewError", "BrokenError", "NotThereError", "RefusedError", "receive"]

_PASSING = frozenset({408, 425, 429, 500, 502, 503, 504})
"""Statuses that another attempt may change."""
_RANGE = re.compile(r"bytes (?:(\d+)-\d+|\*)/(\d+|\*)")
_NUMBER = re.compile(r"^\[Errno -?\d+\] ")
_GONE = frozenset({404, 410})
_WHOLE, _REST, _NO_REST = 200, 206, 416


class NotThereError(Exception):
    """The address has no such file."""


class RefusedError(Exception):
    """The answer is final and not the file."""


class BrokenError(Exception):
    """Another attempt may bring what is missing.

    Args:
        why: what happened.
        wait: seconds that the server asks to wait.
        answered: whether there was an answer at all.
    """

    def __init__(self, why: str, *, wait: float = 0.0, answered: bool = True) -> None:
        super().__init__(why)
        self.wait, self.answered = wait, answered


class AnewError(BrokenError):
    """What is there does not belong to what the server has now."""


def receive(
    client: httpx2.Client,
    address: str,
    part: Part,
    *,
    size: int | None,
    limit: int | None,
    headers: Mapping[str, str],
    moved: Callable[[int, int | None], None],
) -> None:
    """Ask once for what is missing of a part and add what comes; a normal return means that the end was reached.

    Args:
        client: the HTTP client.
        address: the file's.
        part: what is there already, and where it goes.
        size: bytes that the file must have, or None.
        limit: bytes that it may have at most, or None.
        headers: sent with the request.
        moved: told after each piece how many bytes are there, and how many there will be, or None.

    Raises:
        NotThereError: the server does not have it.
        RefusedError: the server will not give it, or gives something else.
        BrokenError: it broke off.
        AnewError: what is there has to go first.
    """
    have = part.size
    # Compressed on the way, it would have another length and could not be gone on with.
    asked = {**headers, "Accept-Encoding": "identity", "User-Agent": "bert-emd"}
    if have:
        asked["Range"] = f"bytes={have}-"
        if part.validator is not None:
            asked["If-Range"] = part.validator
    answered = False
    try:
        with client.stream("GET", address, headers=asked) as response:
            answered = True
            total = _total(response, have, part.validator, size)
            if response.status_code == _NO_REST:
                return
            resumed = response.status_code == _REST
            end = size if size is not None else total
            most = size if size is not None else limit
            done = have if resumed else 0
            with part.go_on() if resumed else part.begin(_validator(response)) as file:
                moved(done, end)
                # As it comes: of pieces of one size the last would be lost when it breaks off.
                for chunk in response.iter_raw():
                    done += len(chunk)
                    if most is not None and done > most:
                        part.discard()
                        raise RefusedError(f"it goes on past {most:,} bytes, so it is not the published file")
                    _write(file, chunk)
                    moved(done, end)
    except (httpx2.InvalidURL, httpx2.UnsupportedProtocol, httpx2.LocalProtocolError) as error:
        raise RefusedError(f"this is no address that can be asked ({error}); mend --mirror") from error
    except httpx2.TooManyRedirects as error:
        raise RefusedError("it leads from one address to another without end; give another --mirror") from error
    except httpx2.TransportError as error:
        if (why := _certificate(error)) is not None:
            raise RefusedError(f"the server's certificate is not trusted ({why}); give another --mirror") from error
        raise BrokenError(_why(error, part.size, size), answered=answered) from error
    if end is not None and part.size < end:
        raise BrokenError(f"it ended after {part.size:,} of {end:,} bytes")


def _total(response: httpx2.Response, have: int, validator: str | None, size: int | None) -> int | None:
    """The whole file's bytes as the answer tells them, None where it does not; raises what makes it useless."""
    status = response.status_code
    total: int | None = None
    if status == _WHOLE:
        length = response.headers.get("Content-Length", "")
        total = int(length) if length.isdigit() else None
    elif status in (_REST, _NO_REST):
        match = _RANGE.fullmatch(response.headers.get("Content-Range", ""))
        total = int(match[2]) if match and match[2] != "*" else None
        same = validator is None or _validator(response) in (None, validator)
        if status == _NO_REST and not (have and total == have and same):
            raise AnewError("the server has no more of it, so it is another file by now")
        if status == _REST and not (match and match[1] is not None and int(match[1]) == have and same):
            raise AnewError("the server's file has changed since")
    elif status in _GONE:
        raise NotThereError
    elif status in _PASSING:
        raise BrokenError(f"the server answers {status} {response.reason_phrase}".rstrip(), wait=_asked_wait(response))
    else:
        advice = "; it may need a login" if status in (401, 403) else ""
        raise RefusedError(f"the server answers {status} {response.reason_phrase}{advice}; give another --mirror")
    if response.headers.get("Content-Encoding", "identity") != "identity":
        raise RefusedError("the server sends it compressed once more, which was not asked for; give another --mirror")
    if size is not None and total is not None and total != size:
        raise RefusedError(
            f"the server announces {total:,} bytes and the published file has {size:,}, so it is another file or the "
            "page of a network's login; give another --mirror (--no_checksums takes it all the same)"
        )
    return total


def _write(file: object, chunk: bytes) -> None:
    """Write all of it: an unbuffered file may take less at a time."""
    rest = memoryview(chunk)
    while rest:
        rest = rest[file.write(rest) :]  # type: ignore[attr-defined]


def _validator(response: httpx2.Response) -> str | None:
    """What marks this version of the file: a strong entity tag, or else the date of its last change."""
    tag = response.headers.get("ETag")
    if tag is not None and not tag.startswith("W/"):
        return str(tag)
    date = response.headers.get("Last-Modified")
    return None if date is None else str(date)


def _asked_wait(response: httpx2.Response) -> float:
    asked = response.headers.get("Retry-After", "")
    if asked.isdigit():
        return float(asked)
    parsed = email.utils.parsedate_tz(asked)
    return 0.0 if parsed is None else max(0.0, email.utils.mktime_tz(parsed) - time.time())


def _certificate(error: BaseException | None) -> str | None:
    while error is not None:
        if isinstance(error, ssl.SSLCertVerificationError):
            return error.verify_message
        error = error.__cause__ or error.__context__
    return None


def _why(error: httpx2.TransportError, done: int, size: int | None) -> str:
    if isinstance(error, httpx2.TimeoutException):
        return "nothing came for too long"
    if isinstance(error, (httpx2.ConnectError, httpx2.ProxyError)):
        return _NUMBER.sub("", " ".join(str(error).split())) or "no connection"
    return f"the connection broke after {done:,}" + (f" of {size:,} bytes" if size is not None else " bytes")
