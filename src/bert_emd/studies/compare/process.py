"""One run as a process of its own: started, watched through its log, stopped."""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from bert_emd.errors import UserError
from bert_emd.studies.compare.plan import Run

__all__ = ["Process", "command_of", "environments"]

_STEP = re.compile(rb"(\d+)/(\d+) \[")
_TAIL = 4096
_PATIENCE = 30.0


def command_of(run: Run) -> str:
    """The command that makes the run by hand."""
    return f"bert-emd {shlex.join(run.arguments)}"


def environments(jobs: int, given: Mapping[str, str], cores: int, gpus: int) -> list[dict[str, str]]:
    """One environment a job: the threads divided among them, and the GPUs dealt out where there are several.

    Args:
        jobs: how many run at a time.
        given: this process's environment; its ``OMP_NUM_THREADS`` is the number to be divided where it is set.
        cores: the CPUs that may be used.
        gpus: how many there are.
    """
    total = given.get("OMP_NUM_THREADS", "")
    threads = str(max(1, (int(total) if total.isdigit() and int(total) else cores) // jobs))
    visible = [name for name in given.get("CUDA_VISIBLE_DEVICES", "").split(",") if name] or [*map(str, range(gpus))]
    made = []
    for job in range(jobs):
        names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "RAYON_NUM_THREADS")
        environment = dict(given) | dict.fromkeys(names, threads)
        if jobs > 1 and gpus > 1:
            environment["CUDA_VISIBLE_DEVICES"] = visible[job % len(visible)]
        made.append(environment)
    return made


class Process:
    """A run that is under way.

    Its standard input is a pipe that nothing is written to: it closes when this process ends in whatever way, which
    the launcher takes as a Ctrl-C, so that a comparison that is killed leaves nothing running behind it.
    """

    def __init__(
        self,
        run: Run,
        launcher: Sequence[str],
        environment: dict[str, str],
        *,
        teacher: str | None,
        lock: int | None,
    ) -> None:
        self.run, self.ledger = run, run.ledger
        self.ledger.settle()
        resumed = self.ledger.resumable(run.config, run.data, teacher)
        words = [*launcher, *run.arguments]
        if "disable_tqdm" not in run.config.trainer_args:
            words += ["--disable_tqdm", "false"]  # its bar is what tells the progress
        if resumed:
            words += ["--resume_from_checkpoint", "true"]
        elif run.folder.exists():
            words += ["--overwrite_output_dir", "true"]
        try:
            self.ledger.log.parent.mkdir(parents=True, exist_ok=True)
            self._log = self.ledger.log.open("ab" if resumed else "wb")
        except OSError as error:
            raise UserError(f"{self.ledger.log} cannot be written: {error.strerror}; name another folder") from error
        self._from = self._log.tell()
        self.ledger.begin(run.config, run.data, teacher, resumed=resumed)
        # A session of its own: a Ctrl-C reaches this process alone, which then stops the others in good order.
        self._child = subprocess.Popen(
            words, stdin=subprocess.PIPE, stdout=self._log, stderr=subprocess.STDOUT, env=environment,
            start_new_session=True, pass_fds=() if lock is None else (lock,),
        )  # fmt: skip
        self.resumed = resumed
        self._steps = 0
        self._progress: tuple[int, int] | None = None

    @property
    def progress(self) -> tuple[int, int] | None:
        """Steps done and all steps, as the last bar of training in the log says."""
        bars = [(int(done), int(total)) for done, total in _STEP.findall(self._tail())]
        # Evaluation has bars of its own, over fewer batches.
        self._steps = max([self._steps, *(total for _, total in bars)])
        own = [bar for bar in bars if bar[1] == self._steps]
        self._progress = own[-1] if own else self._progress
        return self._progress

    def poll(self) -> int | None:
        """The exit status once it has ended, which is then on record."""
        status = self._child.poll()
        if status is None:
            return None
        self._close()
        self.ledger.end(status, None if status == 0 else self.error(status))
        return status

    def error(self, status: int) -> str:
        """The line of the log that says why it failed."""
        text = self._tail().decode("utf-8", "replace")
        lines: list[str] = [line.strip() for line in re.split(r"[\r\n]+", text) if line.strip()]
        for line in reversed(lines):
            if line.startswith("error:"):
                return line.removeprefix("error:").strip()
        for line in reversed(lines):
            if re.match(r"[\w.]*(Error|Exception|Interrupt)\b", line):
                return line
        if status < 0:
            why = " (is the memory enough?)" if status == -signal.SIGKILL else ""
            return f"ended by {signal.Signals(-status).name}{why}"
        return f"exit status {status}"

    def interrupt(self) -> None:
        """Ask it to end as after a Ctrl-C."""
        if self._child.poll() is None:
            self._signal(signal.SIGINT)

    def stop(self) -> None:
        """Wait until it has ended, and end it where it does not."""
        for last_word in (signal.SIGTERM, signal.SIGKILL, None):
            try:
                self._child.wait(_PATIENCE)
                break
            except subprocess.TimeoutExpired:
                if last_word is not None:
                    self._signal(last_word)
        self._close()
        self.ledger.interrupted()

    def _signal(self, what: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._child.pid, what)

    def _close(self) -> None:
        if self._child.stdin is not None:
            self._child.stdin.close()
        self._log.close()

    def _tail(self) -> bytes:
        path = Path(self.ledger.log)
        try:
            with path.open("rb") as stream:
                size = stream.seek(0, os.SEEK_END)
                stream.seek(max(self._from, size - _TAIL))
                return stream.read()
        except OSError:
            return b""
