"""What a person reads when something they asked for cannot be done: what arrived, what is accepted, what to try."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """A mistake outside the code: the command line prints its message as one line and exits with status 1."""


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """'; did you mean "pattern"?' when a known name is near, else ''. Ends a message, so it starts with ';'."""
    near = difflib.get_close_matches(str(word), [str(k) for k in known], n=1, cutoff=0.5)
    return f'; did you mean "{near[0]}"?' if near else ""


def one_of(what: str, value: object, known: Iterable[str]) -> None:
    """Raise unless `value` is one of the known names: `act="rellu": accepted are relu, gelu; did you mean "relu"?`."""
    known = list(known)
    if value not in known:
        raise UserError(f"{what}={value!r}: accepted are {', '.join(known)}{did_you_mean(str(value), known)}")


def require(condition: bool, message: str) -> None:
    """Raise a UserError with this message unless the condition holds."""
    if not condition:
        raise UserError(message)
