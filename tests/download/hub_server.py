"""As much of the hub as answers for one model: what it has, and its files."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping

from file_server import FileServer

COMMIT = "a" * 40


def git_blob(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


class Hub:
    """Serves models by id; weights as large files with a SHA-256, the others with their Git ids."""

    def __init__(self, server: FileServer) -> None:
        self.server = server

    def put(self, model: str, files: Mapping[str, bytes], *, commit: str = COMMIT, names: tuple[str, ...] = ()) -> None:
        siblings = []
        for name, content in files.items():
            large = name.endswith((".safetensors", ".bin"))
            entry = {"rfilename": name, "size": len(content), "blobId": git_blob(content)}
            if large:
                entry["lfs"] = {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 130}
            siblings.append(entry)
            self.server.put(self.path(model, name, commit), content)
        info = json.dumps({"_id": "0", "id": model, "modelId": model, "sha": commit, "siblings": siblings}).encode()
        for name in (model, *names):
            self.server.put(f"api/models/{name}", info)
            self.server.put(f"api/models/{name}/revision/{commit}", info)

    @staticmethod
    def path(model: str, name: str, commit: str = COMMIT) -> str:
        return f"{model}/resolve/{commit}/{name}"

    def asked(self) -> list[str]:
        """The files that were asked for, in that order."""
        paths = [request.path for request in self.server.requests if "/resolve/" in request.path]
        return [path.split("/resolve/")[1].split("/", 1)[1] for path in paths]
