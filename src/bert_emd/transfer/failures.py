"""What could not be had, kept until everything else has been fetched."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from bert_emd.errors import UserError
from bert_emd.transfer.retry import Watcher

__all__ = ["Failures"]


class Failures:
    """Collects what fails, so that one failure leaves the others to be fetched.

    Args:
        watcher: is told each failure when it happens, where there is more than one thing to fetch.
        among: how many things there are.
    """

    def __init__(self, watcher: Watcher, among: int) -> None:
        self._watcher, self._among = watcher, among
        self._failed: dict[str, UserError] = {}

    @contextmanager
    def collected(self, *names: str) -> Iterator[None]:
        """Keep a `UserError` raised inside as the failure of what is named."""
        try:
            yield
        except UserError as error:
            self.add(error, *names)

    def add(self, error: UserError, *names: str) -> None:
        """Keep the failure of what is named."""
        self._failed.update(dict.fromkeys(names, error))
        if self._among > len(names):
            self._watcher.note(f"{', '.join(names)} failed, the others are fetched all the same: {error}")

    def tell(self) -> None:
        """Raise what was kept.

        Raises:
            UserError: the failure itself, or a line with all of them.
        """
        different = list(dict.fromkeys(self._failed.values()))
        if len(self._failed) == 1:
            raise different[0]
        if different:
            raise UserError(f"{', '.join(self._failed)} could not be had: {'; '.join(map(str, different))}")
