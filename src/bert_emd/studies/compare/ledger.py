"""What is known about each run: a record beside its folder, by which a rerun skips it, goes on with it or refuses."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from bert_emd.errors import UserError
from bert_emd.training.config import DistillConfig, RunConfig
from bert_emd.training.outputs import complete_checkpoints, write_json
from bert_emd.training.values import show

__all__ = ["Ledger", "State", "settings_of", "teacher_print"]

State = Literal["new", "started", "failed", "done"]
# Where things lie says nothing about the numbers; data and teacher are held by their fingerprints.
_PLACES = frozenset({
    "output_dir", "overwrite_output_dir", "resume_from_checkpoint", "cache_dir", "overwrite_cache", "teacher_cache_dir",
    "data_dir", "train_file", "validation_file", "test_file", "teacher_model", "strict",
})  # fmt: skip


def settings_of(config: RunConfig, *, all_of_them: bool = False) -> dict[str, Any]:
    """The values that decide a run's numbers, as JSON reads them back; values without effect left out, or not."""
    unused = set() if all_of_them else set(config.without_effect())
    values = dataclasses.asdict(config)
    if isinstance(config, DistillConfig):
        # One method is one setting, whichever of the switches named it.
        values["mapping"] = config.effective_mapping
        unused = unused - {"mapping"} | {"use_emd"}
    values = {k: v for k, v in values.items() if k not in _PLACES and k not in unused}
    return dict(json.loads(json.dumps(values)))


def teacher_print(folder: str | Path) -> str:
    """A fingerprint of a teacher's weights; of one on the hub its name."""
    digest, files = hashlib.sha256(), sorted(Path(folder).glob("*.safetensors"))
    for path in files:
        with path.open("rb") as stream:
            while block := stream.read(1 << 24):
                digest.update(block)
    return digest.hexdigest() if files else str(folder)


@dataclass(frozen=True, kw_only=True)
class Ledger:
    """The record of one run, ``<folder>.json``, and its log, ``<folder>.log``."""

    folder: Path

    @property
    def path(self) -> Path:
        """The record's file."""
        return self.folder.with_name(f"{self.folder.name}.json")

    @property
    def log(self) -> Path:
        """What the run printed."""
        return self.folder.with_name(f"{self.folder.name}.log")

    def read(self) -> dict[str, Any]:
        """The record; empty where there is none."""
        try:
            record = json.loads(self.path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return record if isinstance(record, dict) else {}

    @property
    def state(self) -> State:
        """``done`` only with scores that were written to their end by a run that ended well."""
        record = self.read()
        if not record:
            return "new"
        if record.get("state") == "done":
            return "done" if (self.folder / "metrics.json").is_file() else "new"
        return "failed" if record.get("state") == "failed" else "started"

    def check(self, config: RunConfig, data: dict[str, str], teacher: str | None) -> None:
        """Refuse what was made, or begun, with other settings.

        Args:
            config: the run's, as it would be made now.
            data: fingerprints of the rows.
            teacher: of `teacher_print`; None where it is not there yet.

        Raises:
            UserError: naming what differs.
        """
        if self.state not in ("done", "started") or (self.state == "started" and not self.checkpoints):
            return
        if told := self.differences(config, data, teacher):
            more = f" and {len(told) - 3} more" if len(told) > 3 else ""
            raise UserError(
                f"{self.folder} was made with other settings ({'; '.join(told[:3])}{more}); "
                "name another --output_dir, or remove that folder and the .json beside it"
            )

    def differences(self, config: RunConfig, data: dict[str, str], teacher: str | None) -> list[str]:
        """What differs between these settings and those that the run was made or begun with.

        An option that an earlier version did not have counts as left at its default there, and one that now is known
        to have no effect as equal: whatever made it so is among the others.
        """
        record = self.read()
        settings, rows = settings_of(config), record.get("data", {})
        old = settings_of(type(config)(), all_of_them=True) | record.get("settings", {})
        told = [f"{k} {show(old[k])} there, {show(settings[k])} now" for k in settings if settings[k] != old[k]]
        told += [f"other {k}" for k in dict.fromkeys([*data, *rows]) if data.get(k) != rows.get(k)]
        if teacher is not None and record.get("teacher") not in (None, teacher):
            told.append("another teacher")
        return told

    def resumable(self, config: RunConfig, data: dict[str, str], teacher: str | None) -> bool:
        """Whether the run goes on from a checkpoint: not if that failed already, or if it was another run."""
        attempts = self.read().get("attempts") or [{}]
        failed = self.state == "failed" and attempts[-1].get("resumed")
        return bool(self.checkpoints) and not failed and not self.differences(config, data, teacher)

    @property
    def checkpoints(self) -> list[Path]:
        """Complete checkpoints to go on from; a run of several stages keeps some one folder deeper."""
        if not self.folder.is_dir():
            return []
        places = [self.folder, *(path for path in self.folder.iterdir() if path.is_dir() and not path.is_symlink())]
        return [checkpoint for place in places for checkpoint in complete_checkpoints(place)]

    def begin(self, config: RunConfig, data: dict[str, str], teacher: str | None, *, resumed: bool) -> None:
        """Note that the run starts, or goes on."""
        record = self.read()
        record |= {"settings": settings_of(config), "data": data, "teacher": teacher, "state": "started"}
        record.pop("error", None)
        earlier = record.get("attempts", []) if resumed else []
        record["attempts"] = [*earlier, {"started": time.time(), "resumed": resumed}]
        self._write(record)

    def end(self, status: int, error: str | None) -> None:
        """Note how it ended."""
        record = self.read()
        attempts = record.get("attempts") or [{"started": time.time()}]
        attempts[-1] |= {"ended": time.time(), "status": status}
        record |= {"attempts": attempts, "state": "done" if status == 0 else "failed"}
        if error is not None:
            record["error"] = error
        self._write(record)

    def interrupted(self) -> None:
        """Note that it was stopped, and may go on."""
        record = self.read()
        if record.get("attempts"):
            record["attempts"][-1]["ended"] = time.time()
            self._write(record)

    @property
    def wall_seconds(self) -> float | None:
        """Over all attempts; one whose end nobody saw ended when it last wrote to its log."""
        attempts = self.read().get("attempts", [])
        if not attempts:
            return None
        return round(float(sum(max(0.0, a.get("ended", a["started"]) - a["started"]) for a in attempts)), 1)

    def settle(self) -> None:
        """Give an attempt whose end nobody saw the time of its last sign of life."""
        record = self.read()
        attempts = record.get("attempts", [])
        if attempts and "ended" not in attempts[-1] and self.log.is_file():
            attempts[-1]["ended"] = self.log.stat().st_mtime
            self._write(record)

    def _write(self, record: dict[str, Any]) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_json(self.path, record)
