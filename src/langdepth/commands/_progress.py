"""What commands print while they work: a bar, and lines above it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import IO, Any

from langdepth.errors import printable


@contextmanager
def bar(count: int | None, unit: str = "image") -> Iterator[Callable[[], object]]:
    """What advances the progress bar; without a bar, tqdm is not imported, which takes as long as predicting.

    Args:
        count: Of what is to be done; None where nobody knows.
        unit: What is counted.
    """
    if count == 1 or not sys.stderr.isatty():
        yield lambda: None
        return
    from tqdm import tqdm

    with tqdm(total=count, unit=unit) as shown:
        yield shown.update


def complain(problem: object) -> None:
    """A line on stderr."""
    say(f"langdepth predict: {problem}", sys.stderr)


def say(line: str, file: IO[str] | None = None) -> None:
    """A line above the progress bar, if there is one; on stdout without a ``file``."""
    tqdm: Any = sys.modules.get("tqdm")
    write: Callable[..., object] = print if tqdm is None else tqdm.tqdm.write
    write(printable(line), file=file or sys.stdout)
