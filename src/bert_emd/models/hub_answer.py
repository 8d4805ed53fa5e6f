"""Asking the hub, and what its answers mean to the user."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from typing import Any

import httpx2

from bert_emd.errors import UserError
from bert_emd.models.hub_names import HUB_NAMES
from bert_emd.transfer import Retry, UnreachableError, Watcher, masked

__all__ = ["ask"]

_PASSING = frozenset({408, 429, 500, 502, 503, 504})
"""Statuses that another attempt may change."""
_UNKNOWN = frozenset({401, 404})
"""What the hub answers for what it has not, and for what it does not show to everybody."""


def ask(
    question: Callable[[], Any], wanted: str, revision: str | None, endpoint: str, retry: Retry, watcher: Watcher
) -> Any:
    """Return the hub's answer, asking again where that may help.

    Args:
        question: asks.
        wanted: the model's id.
        revision: what was asked for, or None.
        endpoint: the hub's address.
        retry: how often to ask again.
        watcher: is told of attempts that failed.

    Raises:
        UserError: the answer is no, in a line that says what to do.
    """
    from huggingface_hub import errors

    shown, failures = masked(endpoint), 0
    while True:
        try:
            return question()
        except errors.OfflineModeIsEnabled as error:
            raise UserError(
                f"{wanted} has to be fetched and HF_HUB_OFFLINE (or TRANSFORMERS_OFFLINE) is set; unset it, or give "
                "--mirror, a folder of models"
            ) from error
        except errors.RevisionNotFoundError as error:
            raise UserError(f"{wanted} on {shown} has no revision {revision}; leave it out for the newest") from error
        except errors.GatedRepoError as error:
            raise UserError(
                f"{wanted} on {shown} is given to those who asked for it; ask on its page, then log in with "
                "`hf auth login`"
            ) from error
        except errors.HFValidationError as error:
            raise UserError(f"{wanted!r} is no model's name; give an id on the hub, as owner/name") from error
        except errors.HfHubHTTPError as error:
            status = error.response.status_code
            if status in _UNKNOWN:
                close = difflib.get_close_matches(wanted.lower(), HUB_NAMES, n=1)
                hint = f"did you mean {close[0]}?" if close else "a private one needs `hf auth login`"
                raise UserError(f"{shown} has no model {wanted}; {hint}") from error
            if status not in _PASSING:
                raise UserError(f"{shown} answers {status} when asked for {wanted}; give another --mirror") from error
            why, answered = f"{shown} answers {status}", True
        except httpx2.TransportError as error:
            why, answered = f"{shown} cannot be reached ({' '.join(str(error).split()) or type(error).__name__})", False
        except (ValueError, KeyError, TypeError, httpx2.HTTPError) as error:
            raise UserError(
                f"{shown} does not answer as the hub does when asked for {wanted}; mend --mirror"
            ) from error
        failures += 1
        if failures >= retry.attempts:
            kind = UserError if answered else UnreachableError
            raise kind(
                f"{why}, {failures} times in a row; is this machine online? Another place can be named with --mirror"
            )
        wait = retry.wait(failures)
        watcher.note(f"{wanted}: {why}; asking again in {wait:.0f} s")
        retry.sleep(wait)
