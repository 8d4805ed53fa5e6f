"""The one exception for mistakes that the user can mend."""

from __future__ import annotations

__all__ = ["MissingLabelsError", "UserError"]


class UserError(ValueError):
    """A mistake of the user's: bad input, a bad option, a folder in the way.

    The message is one line, says what is wrong (with file and line where there is one) and what to do.
    The commands print it as ``error: <message>`` and exit with status 2; Python users catch it as a `ValueError`.
    """


class MissingLabelsError(UserError):
    """Data without the labels that are needed."""
