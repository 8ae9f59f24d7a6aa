"""Errors that reach the user as one line: what was wrong, where, and what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence


class LangdepthError(Exception):
    """Something failed while working (exit code 1 on the command line)."""

    exit_code = 1


class UsageError(LangdepthError):
    """The request itself was wrong: an unknown name, key or value (exit code 2)."""

    exit_code = 2


class ImageError(LangdepthError):
    """A picture or depth file cannot be read or is not usable."""


class CheckpointError(LangdepthError):
    """A weights file cannot be read or does not fit the system."""


class NonFiniteLossError(LangdepthError):
    """The training loss became NaN or infinite."""


def nearest(name: str, known: Iterable[str]) -> str:
    """A hint naming the known word closest to ``name``, or the list of known words when none is close."""
    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    if close:
        return f"did you mean '{close[0]}'?"
    return "known: " + ", ".join(known)


def first_line(error: BaseException) -> str:
    """The first line of what another library complains of; the kind of error where it says nothing."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def first_few(names: Sequence[object]) -> str:
    """The first five of names for a message, and whether there are more."""
    return ", ".join(map(str, names[:5])) + (", ..." if len(names) > 5 else "")
