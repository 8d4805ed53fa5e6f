"""How often and after which waits a broken transfer is tried again, and who is told about it."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

__all__ = ["Retry", "Silent", "Watcher"]


@dataclass(frozen=True, kw_only=True)
class Retry:
    """Attempts that bring nothing new are counted, and each of them is waited for twice as long as the one before."""

    attempts: int = 5
    """Attempts in a row that brought no new byte, after which it is given up."""
    first_wait: float = 1.0
    """Seconds before the second attempt."""
    longest_wait: float = 60.0
    """Seconds that no wait of ours exceeds; a server that asks for more than twice as much is not waited for."""
    timeout: float = 30.0
    """Seconds without a byte, after which a connection counts as broken."""
    sleep: Callable[[float], None] = time.sleep
    jitter: Callable[[], float] = random.random
    """Draws from [0, 1): a wait is lengthened by up to a quarter, so that many clients do not come back at once."""

    def wait(self, failures: int) -> float:
        """Return the seconds to wait after so many failures in a row.

        >>> [Retry(jitter=lambda: 0.0).wait(failures) for failures in (1, 2, 3, 10)]
        [1.0, 2.0, 4.0, 60.0]
        """
        doubled = self.first_wait * 2.0 ** (failures - 1)
        return float(min(doubled * (1 + self.jitter() / 4), self.longest_wait))


class Watcher(Protocol):
    """Is told how transfers go."""

    def begin(self, name: str, total: int | None, done: int) -> None:
        """A transfer starts, of so many bytes where that is known, so many of which are there already."""

    def moved(self, done: int, total: int | None) -> None:
        """So many bytes of it are there now (less than before where it had to start anew), of so many, if known."""

    def end(self) -> None:
        """It is over, one way or the other."""

    def note(self, text: str) -> None:
        """Something that the user should know, one line."""


class Silent:
    """A watcher that says nothing."""

    def begin(self, name: str, total: int | None, done: int) -> None:
        """Say nothing."""

    def moved(self, done: int, total: int | None) -> None:
        """Say nothing."""

    def end(self) -> None:
        """Say nothing."""

    def note(self, text: str) -> None:
        """Say nothing."""
