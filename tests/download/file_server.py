"""A file server on 127.0.0.1 that behaves as badly as it is told to, and counts what it had to send."""

from __future__ import annotations

import contextlib
import hashlib
import re
import socket
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass(frozen=True, kw_only=True)
class Answer:
    """How one request for a file is answered."""

    content: bytes = b""
    status: int = 200
    drop_after: int | None = None
    """Close the connection after so many bytes of the body."""
    length: int | None = None
    """What Content-Length says instead of the truth."""
    tag: str | None = "made of the content"
    modified: str | None = None
    ranges: bool = True
    """Whether Range is heeded."""
    if_range: bool = True
    """Whether If-Range is heeded."""
    headers: dict[str, str | None] = field(default_factory=dict)
    """Further headers; None leaves one out."""
    hold: threading.Event | None = None
    """Wait for this after ``drop_after`` bytes instead of closing at once."""

    def etag(self) -> str | None:
        if self.tag != "made of the content":
            return self.tag
        return f'"{hashlib.sha256(self.content).hexdigest()[:16]}"'


@dataclass(frozen=True)
class Request:
    path: str
    headers: dict[str, str]
    sent: int


class FileServer:
    """``answers[path]`` is a list of answers, the last of which is for all further requests."""

    def __init__(self) -> None:
        self.answers: dict[str, list[Answer]] = {}
        self._requests: list[Request] = []
        self._busy = 0
        self._change = threading.Condition()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                outer._answer(self, body=True)

            def do_HEAD(self) -> None:
                outer._answer(self, body=False)

            def log_message(self, *args: object) -> None:
                pass

        class Server(ThreadingHTTPServer):
            def handle_error(self, *args: object) -> None:
                """Clients that go away are what is tested."""

        self._server = Server(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    @property
    def requests(self) -> list[Request]:
        """What was asked and sent; a client may have all it wants before the server has written that down."""
        with self._change:
            self._change.wait_for(lambda: self._busy == 0, timeout=5)
        return self._requests

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    def put(self, path: str, content: bytes, *before: Answer, **more: object) -> str:
        """Serve a file, after the answers ``before``; return its address."""
        self.answers[f"/{path}"] = [*before, Answer(content=content, **more)]
        return f"{self.url}/{path}"

    def sent(self, path: str | None = None) -> int:
        return sum(request.sent for request in self.requests if path in (None, request.path.lstrip("/")))

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def _answer(self, handler: BaseHTTPRequestHandler, *, body: bool) -> None:
        with self._change:
            self._busy += 1
        path = handler.path.partition("?")[0]
        planned = self.answers.get(path)
        if planned is None:
            answer = Answer(status=404, tag=None)
        else:
            answer = planned.pop(0) if body and len(planned) > 1 else planned[0]
        status, content, extra = answer.status, answer.content, dict(answer.headers)
        asked = re.fullmatch(r"bytes=(\d+)-", handler.headers.get("Range", ""))
        if asked and status == 200 and answer.ranges:
            mark = handler.headers.get("If-Range")
            start = int(asked[1])
            if mark is None or not answer.if_range or mark in (answer.etag(), answer.modified):
                if start >= len(content):
                    status, content = 416, b""
                    extra["Content-Range"] = f"bytes */{len(answer.content)}"
                else:
                    status, content = 206, content[start:]
                    extra["Content-Range"] = f"bytes {start}-{len(answer.content) - 1}/{len(answer.content)}"
        handler.send_response(status)
        if answer.etag() is not None and answer.status == 200:
            extra.setdefault("ETag", answer.etag())
        if answer.modified is not None:
            extra["Last-Modified"] = answer.modified
        extra.setdefault("Content-Length", str(len(content) if answer.length is None else answer.length))
        for name, value in extra.items():
            if value is None:
                continue
            handler.send_header(name, value)
        handler.end_headers()
        sent = 0
        with contextlib.suppress(OSError):
            if body:
                part = content if answer.drop_after is None else content[: answer.drop_after]
                handler.wfile.write(part)
                handler.wfile.flush()
                sent = len(part)
        with self._change:
            self._requests.append(Request(path, dict(handler.headers), sent))
            self._busy -= 1
            self._change.notify_all()
        if answer.hold is not None:
            answer.hold.wait(300)
        if answer.drop_after is not None or answer.length is not None:
            handler.close_connection = True
            with contextlib.suppress(OSError):
                handler.connection.shutdown(socket.SHUT_RDWR)


def broken_after(count: int, content: bytes, **more: object) -> Answer:
    """An answer that announces all and breaks off."""
    return Answer(content=content, drop_after=count, **more)


def status(code: int, **headers: str) -> Answer:
    return Answer(status=code, tag=None, headers={name.replace("_", "-"): value for name, value in headers.items()})
