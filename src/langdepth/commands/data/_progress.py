"""What long work shows: a bar on a terminal, plain lines elsewhere, and a line for each failure."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

from langdepth.errors import LangdepthError, printable, say


@contextmanager
def progress_bar(unit: str) -> Iterator[Callable[[int, int], None]]:
    """Yield a function to call with how many units are done and how many there are.

    Off a terminal, work on a thousand units or more prints a line for each tenth of it.
    """
    from tqdm import tqdm

    with tqdm(unit=unit, disable=not sys.stderr.isatty(), leave=False) as bar:

        def progress(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)
            if bar.disable and total >= 1000 and 10 * done // total > 10 * (done - 1) // total:
                say(f"{done} of {total} {unit}s")

        yield progress


def count_outcomes(outcomes: Iterable[object], command: str, unit: str) -> tuple[int, int]:
    """How many images were done and how many failed; each error is printed on stderr as it comes."""
    from tqdm import tqdm

    done = failed = 0
    for outcome in tqdm(outcomes, unit=unit, disable=not sys.stderr.isatty(), leave=False):
        if isinstance(outcome, LangdepthError):
            failed += 1
            tqdm.write(printable(f"{command}: {outcome}"), file=sys.stderr)
        else:
            done += 1
    return done, failed
