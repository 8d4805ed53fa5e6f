"""Models from the hub, a mirror of it or a folder, into a folder of their own: whole, checked, and without code.

The hub's client says what there is. The files themselves go through `bert_emd.transfer`, as that client drops a part
of a file when it is interrupted, and a model's weights are one file.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bert_emd.errors import UserError
from bert_emd.models.hub_answer import ask
from bert_emd.models.hub_names import hub_id
from bert_emd.models.model_files import model_files
from bert_emd.transfer import (
    Failures,
    Retry,
    UnreachableError,
    Wanted,
    Watcher,
    checksum_fault,
    fetch,
    is_local,
    masked,
    mirror_folder,
    sha256,
)

__all__ = ["RECORD", "ModelFile", "ModelStep", "carry_out_models", "plan_model"]

RECORD = "download.json"
"""The file in a model's folder that says what it is and where it came from."""


@dataclass(frozen=True, kw_only=True)
class ModelFile:
    """One file of a model."""

    name: str
    source: str | Path
    size: int | None
    checksum: str | None
    """As `checksum_fault` takes it."""


@dataclass(frozen=True, kw_only=True)
class ModelStep:
    """A model: what its folder holds, and so what is to be done."""

    name: str
    """Its id, and the revision where one was asked for."""
    folder: Path
    revision: str | None
    """The commit that is fetched."""
    source: str
    files: tuple[ModelFile, ...] = ()
    """What is to be fetched; empty where the folder is whole."""
    kept: tuple[ModelFile, ...] = ()
    """What the folder holds already and keeps."""
    headers: dict[str, str] = field(default_factory=dict, repr=False)

    @property
    def size(self) -> int:
        """Bytes to fetch, as far as they are known."""
        return sum(file.size or 0 for file in self.files)


def plan_model(
    name: str, root: Path, *, mirror: str | None, overwrite: bool, retry: Retry, watcher: Watcher
) -> ModelStep:
    """Say what a model's folder in ``root`` holds and what is to be fetched. A whole one is told without the hub.

    Args:
        name: an id on the hub or a short name, with ``@revision`` after it where it is not the newest.
        root: the folder that gets a folder of the model's name.
        mirror: an address that stands for the hub's, or a folder of models; None is the hub, or ``HF_ENDPOINT``.
        overwrite: whether files that are damaged may be replaced.
        retry: how often to ask again.
        watcher: is told of attempts that failed.

    Raises:
        UserError: there is no such model, it has no weights for PyTorch, the hub is out of reach, or the folder holds
            something else or is damaged.
    """
    wanted, _, revision = name.strip().partition("@")
    wanted = hub_id(wanted)
    folder = root / wanted.rstrip("/").rpartition("/")[2]
    if not folder.name or folder.name in (".", ".."):
        raise UserError(f"{name!r} is no model's name; give an id on the hub, as google-bert/bert-base-uncased")
    known = _recorded(folder)
    if known is None and folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(
            f"{folder} is there already and is no download of {wanted}, so nothing in it is replaced; move it, or name "
            "another --model_dir"
        )
    bad: dict[str, str] = {}
    if known is not None:
        if not _same_model(str(known.get("id")), wanted) or (revision and known.get("asked") != revision):
            raise UserError(
                f"{folder} holds {known.get('id')} ({known.get('asked') or 'the newest'}), so {name} is not put there; "
                "name another --model_dir"
            )
        bad = _faults(folder, known)
        if not bad:
            return ModelStep(name=name, folder=folder, revision=known.get("revision"), source=str(known.get("from")))
        if not overwrite:
            shown = "; ".join(f"{folder / file}: {why}" for file, why in bad.items())
            raise UserError(f"damaged, so nothing of {wanted} was fetched: {shown}; --overwrite replaces it")
    if mirror is not None and is_local(mirror):
        step = _from_folder(name, wanted, mirror_folder(mirror), folder)
    else:
        # A damaged folder is mended with the files that it was made of, not with newer ones.
        commit = revision or (known or {}).get("revision") or None
        step = _from_hub(name, wanted, commit, mirror, folder, retry, watcher)
    if known is None:
        return step
    same = step.revision is not None and step.revision == known.get("revision")
    sound = tuple(file for file in step.files if same and file.name in known["files"] and file.name not in bad)
    files = tuple(file for file in step.files if file not in sound)
    return ModelStep(
        name=name, folder=folder, revision=step.revision, source=step.source, files=files, kept=sound,
        headers=step.headers,
    )  # fmt: skip


def carry_out_models(
    steps: Sequence[ModelStep],
    work: Path,
    *,
    retry: Retry,
    watcher: Watcher,
    failures: Failures,
    done: Callable[[ModelStep], None],
) -> None:
    """Bring each model to its folder, which appears whole; one that fails leaves the others to be tried, unless no
    server is reached.

    Args:
        steps: the models; those that are whole are left alone.
        work: the place for what is under way (`bert_emd.transfer.workplace`).
        retry: how often to try again.
        watcher: is told how the transfers go.
        failures: gets those that could not be had.
        done: is told each step that is done.
    """
    left = [step for step in steps if step.files]
    for i, step in enumerate(left):
        try:
            _bring(step, work / step.folder.name, retry, watcher)
        except UnreachableError as error:
            failures.add(error, *(other.name for other in left[i:]))
            return
        except UserError as error:
            failures.add(error, step.name)
        except OSError as error:
            why = (
                f"{step.folder} cannot be written: {error.strerror or error}; make room and run the same command again"
            )
            failures.add(UserError(why), step.name)
        else:
            done(step)


def _bring(step: ModelStep, stage: Path, retry: Retry, watcher: Watcher) -> None:
    stage.mkdir(parents=True, exist_ok=True)
    for file in step.files:
        wanted = Wanted(
            name=f"{step.folder.name}/{file.name}", addresses=(file.source,), size=file.size, checksum=file.checksum,
            headers=step.headers,
        )  # fmt: skip
        fetch(wanted, stage / file.name, retry=retry, watcher=watcher)
    names = {file.name for file in step.files}
    for path in stage.iterdir():
        if path.name not in names:  # of an earlier revision
            path.unlink()
    files = {
        file.name: {
            "size": (place / file.name).stat().st_size,
            "checksum": file.checksum or sha256(place / file.name),
        }
        for place, members in ((step.folder, step.kept), (stage, step.files))
        for file in members
    }
    wanted_id, _, asked = step.name.partition("@")
    record = {
        "id": hub_id(wanted_id), "asked": asked or None, "revision": step.revision, "from": step.source, "files": files,
    }  # fmt: skip
    (stage / RECORD).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    if step.folder.is_dir():
        # The record last: until then the folder counts as damaged.
        for name in (*sorted(names), RECORD):
            os.replace(stage / name, step.folder / name)
        shutil.rmtree(stage)
    else:
        os.replace(stage, step.folder)


def _recorded(folder: Path) -> dict[str, Any] | None:
    try:
        known = json.loads((folder / RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return known if isinstance(known, dict) and isinstance(known.get("files"), dict) else None


def _same_model(recorded: str, wanted: str) -> bool:
    """Whether two ids are one model: the hub still knows some by their last part alone."""
    return recorded == wanted or ("/" not in wanted and recorded.endswith(f"/{wanted}"))


def _faults(folder: Path, known: dict[str, Any]) -> dict[str, str]:
    """The recorded files that are not as they were, each with what is wrong."""
    faults = {}
    for name, facts in known["files"].items():
        path = folder / name
        if not path.is_file():
            faults[name] = "it is missing"
        elif path.stat().st_size != facts.get("size"):
            faults[name] = f"it has {path.stat().st_size:,} bytes and should have {facts.get('size'):,}"
        elif (why := checksum_fault(path, facts.get("checksum"))) is not None:
            faults[name] = why
    return faults


def _from_folder(name: str, wanted: str, mirror: Path, folder: Path) -> ModelStep:
    places = (mirror / wanted, mirror / folder.name)
    source = next((place for place in places if (place / "config.json").is_file()), None)
    if source is None:
        raise UserError(f"there is no model {wanted} in {mirror} (looked for {places[0]}/config.json)")
    names = model_files(path.name for path in source.iterdir() if path.is_file())
    if not names:
        raise _no_weights(str(source))
    files = tuple(
        ModelFile(name=file, source=source / file, size=(source / file).stat().st_size, checksum=None) for file in names
    )
    return ModelStep(name=name, folder=folder, revision=None, source=str(source), files=files)


def _from_hub(
    name: str, wanted: str, revision: str | None, mirror: str | None, folder: Path, retry: Retry, watcher: Watcher
) -> ModelStep:
    import huggingface_hub
    from huggingface_hub import constants, hf_hub_url
    from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]

    endpoint = (mirror or constants.ENDPOINT).rstrip("/")
    # The hub's token is the user's secret, and a mirror of theirs is not the hub.
    token = False if mirror is not None else None
    api = huggingface_hub.HfApi(endpoint=endpoint, token=token)
    info = ask(
        lambda: api.model_info(wanted, revision=revision, files_metadata=True, timeout=retry.timeout),
        wanted, revision, endpoint, retry, watcher,
    )  # fmt: skip
    siblings = {sibling.rfilename: sibling for sibling in info.siblings or ()}
    names = model_files(siblings)
    if not names:
        raise _no_weights(wanted)
    if "config.json" not in names:
        raise UserError(f"{wanted} on {masked(endpoint)} has no config.json, so Transformers cannot load it")

    login = {name: value for name, value in build_hf_headers(token=token).items() if name.lower() == "authorization"}

    def file(name: str) -> ModelFile:
        sibling = siblings[name]
        lfs = sibling.lfs.sha256 if sibling.lfs is not None else None
        blob = f"git:{sibling.blob_id}" if sibling.blob_id and lfs is None else None
        address = hf_hub_url(wanted, name, revision=info.sha, endpoint=endpoint)
        return ModelFile(name=name, source=address, size=sibling.size, checksum=lfs or blob)

    return ModelStep(
        name=name, folder=folder, revision=info.sha, source=masked(endpoint), files=tuple(map(file, names)),
        headers=login,
    )  # fmt: skip


def _no_weights(where: str) -> UserError:
    return UserError(
        f"{where} has no model.safetensors and no pytorch_model.bin, so PyTorch cannot load it; a TensorFlow "
        "checkpoint is for `bert-emd convert`"
    )
