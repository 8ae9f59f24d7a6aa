"""Command blocks of Markdown pages and of ``--help`` texts, in the order in which a reader meets them.

Four HTML comments steer how a page is tested; a reader of the page does not see them:

``<!-- given: photo.jpg, RN50.pt -->``  From here on the reader has these things (``tests/docs/things.py``).
``<!-- fresh folder -->``               What follows starts in a folder of its own.
``<!-- not run: REASON -->``            The next block cannot run in a test.
``<!-- command: NAME -->``              The next block is what ``.ci/run`` runs under this name.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_COMMENT = re.compile(r"<!-- (given|not run|command): (.+?) -->")
_FRESH = "<!-- fresh folder -->"
_FILE = re.compile(r"# (\S+\.ya?ml)\b")


@dataclass(frozen=True)
class Given:
    """Things that the page says the reader has."""

    line: int
    things: tuple[str, ...]


@dataclass(frozen=True)
class Block:
    """A fenced block.

    Attributes:
        line: Of the page, counted from 1, where the block's text begins.
        kind: "commands", "python", "yaml" or "other" (diagrams, outputs).
        text: Without the fences.
        not_run: Why a test cannot run it, or None.
    """

    line: int
    kind: str
    text: str
    not_run: str | None = None

    @property
    def file(self) -> str | None:
        """The file name that a YAML block states in its first line, ``# matrix.yaml: ...``."""
        found = _FILE.match(self.text) if self.kind == "yaml" else None
        return found[1] if found else None


@dataclass(frozen=True)
class Command:
    """One command of a block: its line in the page and its words, without comment and continued lines joined."""

    line: int
    words: tuple[str, ...]


def read_page(page: Path) -> list[list[Given | Block]]:
    """The steps of a Markdown page, a list for each folder that it starts in.

    Raises ValueError for an unclosed fence or a command outside of one.
    """
    parts: list[list[Given | Block]] = [[]]
    fence, start, collected, not_run = None, 0, [], None
    lines = page.read_text(encoding="utf-8").splitlines()
    for number, line in enumerate(lines, 1):
        if fence is not None:
            if line.strip() == "```":
                text = "\n".join(collected)
                parts[-1].append(Block(start, _kind(fence, text), text, not_run))
                fence, not_run = None, None
            else:
                collected.append(line)
        elif line.lstrip().startswith("```"):
            fence, start, collected = line.strip().removeprefix("```"), number + 1, []
        elif line == _FRESH:
            parts.append([])
        elif re.match(r"(\t| {4,})langdepth ", line):
            raise ValueError(f"{page}:{number}: a command outside of a fenced block is not tested")
        else:
            comment = _COMMENT.fullmatch(line)  # a line of its own, not one that is quoted in a sentence
            if comment and comment[1] == "given":
                parts[-1].append(Given(number, tuple(thing.strip() for thing in comment[2].split(","))))
            elif comment and comment[1] == "not run":
                not_run = comment[2]
    if fence is not None:
        raise ValueError(f"{page}:{start}: the block is not closed")
    return [part for part in parts if part]


def read_help(text: str) -> Block:
    """The example at the end of a ``--help`` text; lines that do not begin with a command are prose."""
    _, mark, example = text.partition("\nexample:\n")
    kept: list[str] = []
    for line in example.splitlines() if mark else []:
        goes_on = kept and kept[-1].endswith("\\")
        kept.append(line.strip() if goes_on or line.strip().startswith("langdepth") else "")
    return Block(1, "commands", "\n".join(kept))


def commands(block: Block) -> Iterator[Command]:
    """The commands of a block in their order, split at ``&&``."""
    pending, first = "", block.line
    for number, line in enumerate(block.text.splitlines(), block.line):
        first = first if pending else number
        pending += line
        if pending.endswith("\\"):
            pending = pending[:-1] + " "
            continue
        lexer = shlex.shlex(pending, posix=True, punctuation_chars=True)
        lexer.whitespace_split = True
        pending, words = "", []
        for word in (*lexer, "&&"):
            if word != "&&":
                words.append(word)
            elif words:
                yield Command(first, tuple(words))
                words = []


def _kind(fence: str, text: str) -> str:
    if fence in ("sh", "bash", "console") or text.lstrip().startswith("langdepth "):
        return "commands"
    return fence if fence in ("python", "yaml") else "other"
