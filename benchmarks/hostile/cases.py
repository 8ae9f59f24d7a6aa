"""What a case of the campaign is, and what all kinds of cases share."""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple


def pool(text: str, separator: str = " ") -> tuple[str, ...]:
    """The values that a text holds."""
    return tuple(text.split(separator))


SECONDS = 20
LONGEST_LINE = 1500
OTHERS = re.compile(  # names that only the inside of a library has
    r"Traceback|not foreseen|Errno|(?<!\()\btorch\.(?!save)|jsonargparse|argparse|yaml\.|PIL\.|pickle\.|numpy\.|h5py|"
    r"python_name|safetensors_|has no attribute|NoneType|object is not|unexpected keyword|positional argument|<class|"
    r"(?<![\d.])0x[0-9a-f]{6,}|InvalidHeader|Error\(|tag:yaml|std::|site-packages|File \"|\bat line \d+ column|"
    r"Metadata Warning|EXIF data|Tag data|codec can|literal for|\(b'"
)
Random = random.Random


class Case(NamedTuple):
    """A command on an input. right(outcome): what is wrong about accepted results, or None.

    partly: there are results to look at where the command failed for one input, too.
    """

    argv: list[str]
    change: str
    right: Callable[[Outcome], str | None] = lambda outcome: None
    partly: bool = False


class Outcome(NamedTuple):
    """What a command did."""

    code: int
    out: str
    err: str
    folder: Path


state: dict[str, Any] = {}  # what is made once for all cases: small weights, what commands left
