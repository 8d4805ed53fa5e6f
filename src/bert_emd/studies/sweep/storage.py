"""The study's storage: a SQLite file or a database, who works on it, and what it was made for."""

from __future__ import annotations

import contextlib
import json
import os
import re
import sqlite3
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import filelock
import optuna
import sqlalchemy.engine
import sqlalchemy.exc
from optuna.exceptions import StorageInternalError
from optuna.storages import RDBStorage

from bert_emd.errors import UserError

__all__ = [
    "Worker",
    "check_storage",
    "compare_settings",
    "is_alive",
    "masked",
    "open_study",
    "storage_errors",
    "storage_url",
]

_PATIENCE = 600
"""Seconds to wait for another process that writes."""
_FIRST_PATIENCE = 15
"""The same before anything has begun."""
_SETTINGS = "settings"
_SILENT = 3600
"""Seconds after which a worker on another machine counts as gone."""


def storage_url(storage: str | None, output_dir: Path) -> str:
    """Return SQLAlchemy's URL of a storage: of ``study.db`` in the output folder, of a file, or as it is."""
    if storage is not None and "://" in storage:
        return storage
    path = Path(storage) if storage is not None else output_dir / "study.db"
    return f"sqlite:///{path.absolute()}"


def masked(text: str) -> str:
    """Return a URL, or a word of a command line that holds one, without its password.

    >>> masked("postgresql://me:secret@host/db?password=secret")
    'postgresql://me:***@host/db?password=***'
    """
    text = re.sub(r"(://[^:/@\s]*):[^@\s]*@", r"\1:***@", text)
    return re.sub(r"(password=)[^&\s]+", r"\1***", text)


@contextlib.contextmanager
def storage_errors(url: str) -> Iterator[None]:
    """Turn what the storage says into one line for the user; finished trials are in it all the same."""
    try:
        yield
    except (sqlalchemy.exc.SQLAlchemyError, StorageInternalError, sqlite3.Error, filelock.Timeout) as error:
        cause = error.__cause__ if isinstance(error, StorageInternalError) and error.__cause__ is not None else error
        why = " ".join(str(getattr(cause, "orig", None) or cause).split())
        if "locked" in why or isinstance(error, filelock.Timeout):
            raise UserError(
                f"the storage {masked(url)} is locked by another program that writes to it; close that program (or end "
                "a sweep that hangs) and start the same command again, or name another place with --storage"
            ) from error
        raise UserError(
            f"the storage {masked(url)} cannot be used: {why[:200]}; mend it, or name another with --storage"
        ) from error


def _sqlite_file(url: str) -> Path | None:
    parsed = sqlalchemy.engine.make_url(url)
    if parsed.get_backend_name() != "sqlite" or not parsed.database or parsed.database == ":memory:":
        return None
    return Path(parsed.database)


def check_storage(url: str, *, patience: float = _FIRST_PATIENCE) -> None:
    """Refuse a storage that is no URL, cannot be reached as a file, or stays locked for ``patience`` seconds.

    Raises:
        UserError: what is wrong with it.
    """
    with storage_errors(url):
        _check(url, patience)


def _check(url: str, patience: float) -> None:
    try:
        backend = sqlalchemy.engine.make_url(url).get_backend_name()
        sqlalchemy.engine.make_url(url).get_dialect()
    except ImportError as error:
        raise UserError(f"--storage {masked(url)} needs a driver: {error}; install it with pip") from error
    except (sqlalchemy.exc.ArgumentError, sqlalchemy.exc.NoSuchModuleError):
        raise UserError(
            "--storage is no URL that SQLAlchemy knows; write sqlite:///study.db, postgresql://…, mysql://… or a file"
        ) from None
    file = _sqlite_file(url)
    if file is None:
        if backend == "sqlite":
            raise UserError("--storage in memory would be lost at the end; name a file")
        return
    if file.is_dir():
        raise UserError(f"--storage {file} is a folder; name a file")
    if not file.parent.is_dir():
        raise UserError(f"--storage {file}: there is no folder {file.parent}; make it first")
    if file.exists() and not os.access(file, os.W_OK):
        raise UserError(f"--storage {file} may not be written to; name another")
    connection = sqlite3.connect(file, timeout=patience, isolation_level=None)
    try:
        # Asks for the right to write, and gives it back.
        connection.execute("BEGIN IMMEDIATE")
        connection.execute("ROLLBACK")
    finally:
        connection.close()


def open_study(url: str, name: str, *, patience: float = _FIRST_PATIENCE) -> optuna.Study:
    """Return the study of this name, made where it is not there yet.

    Args:
        url: SQLAlchemy's.
        name: the study's.
        patience: seconds to wait for a storage that is locked.

    Raises:
        UserError: the storage is locked or cannot be used.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    check_storage(url, patience=patience)
    with storage_errors(url):
        arguments = {"connect_args": {"timeout": _PATIENCE}} if _sqlite_file(url) is not None else {}
        try:
            storage = RDBStorage(url, engine_kwargs=arguments)
            return optuna.create_study(storage=storage, study_name=name, direction="maximize", load_if_exists=True)
        except ImportError as error:
            raise UserError(f"--storage {masked(url)} needs a driver: {' '.join(str(error).split())}") from error
        except RuntimeError as error:
            raise UserError(f"the storage {masked(url)} cannot be used: {' '.join(str(error).split())}") from error


def compare_settings(study: optuna.Study, settings: dict[str, Any], defaults: dict[str, Any]) -> None:
    """Write down what a new study is made for; refuse to go on with one that was made for something else.

    Args:
        study: new or not.
        settings: all that its scores depend on.
        defaults: what counts for options that the version which made the study did not have.

    Raises:
        UserError: naming what differs.
    """
    before = study.user_attrs.get(_SETTINGS)
    if before is None:
        if study.get_trials(deepcopy=False):
            raise UserError(
                f"the study {study.study_name} was not made by bert-emd sweep; name another with --study_name"
            )
        study.set_user_attr(_SETTINGS, json.loads(json.dumps(settings)))
        return
    now = json.loads(json.dumps(settings))
    before = {name: value for name, value in json.loads(json.dumps(defaults)).items() if name in now} | before
    if "use_emd" not in now:
        before.pop("use_emd", None)  # of an earlier version; the mapping says it
    differing = [name for name in sorted({*before, *now}) if before.get(name, ...) != now.get(name, ...)]
    if not differing:
        return
    said = "; ".join(f"{name}: {_short(before.get(name))} there, {_short(now.get(name))} now" for name in differing[:4])
    more = f" and {len(differing) - 4} more" if len(differing) > 4 else ""
    raise UserError(
        f"the study that is there was made with other settings ({said}{more}), and its scores cannot be compared; "
        "go on with the same ones, or name another --output_dir or --study_name"
    )


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False) if not isinstance(value, str) else value
    return text if len(text) <= 60 else f"{text[:57]}…"


class Worker:
    """A process that works on trials. Its lock is held as long as it lives, so others can tell.

    Args:
        output_dir: the search's folder.
    """

    def __init__(self, output_dir: Path) -> None:
        self.name = uuid.uuid4().hex[:12]
        self.folder = output_dir / "workers"
        self.folder.mkdir(parents=True, exist_ok=True)
        self._alive = filelock.FileLock(_lock_file(output_dir, self.name))
        self._turn = filelock.FileLock(self.folder / "turn.lock", timeout=_PATIENCE)

    def __enter__(self) -> Worker:
        self._alive.acquire()
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        self._alive.release()
        # After a fault the file stays, free, and tells the others that a trial which still counts as running is not.
        if kind is None:
            _lock_file(self.folder.parent, self.name).unlink(missing_ok=True)

    @contextlib.contextmanager
    def turn(self) -> Iterator[None]:
        """One worker at a time chooses its trial or writes the results."""
        with self._turn:
            yield


def _lock_file(output_dir: Path, name: str) -> Path:
    return output_dir / "workers" / f"{name}.lock"


def is_alive(output_dir: Path, name: str | None, seen: float | None) -> bool:
    """Whether a worker still runs: it holds its lock, or, on a machine with another folder, was heard of lately.

    Args:
        output_dir: the search's folder.
        name: the worker's.
        seen: when it was last heard of, in seconds since 1970.
    """
    if name is None:
        return False
    path = _lock_file(output_dir, name)
    if not path.exists():
        return seen is not None and time.time() - seen < _SILENT
    lock = filelock.FileLock(path, timeout=0)
    try:
        with lock:
            pass
    except filelock.Timeout:
        return True
    path.unlink(missing_ok=True)
    return False
