"""Runs the command blocks of one page in order, in one clean folder, as a reader would paste them."""

from __future__ import annotations

import contextlib
import io
import os
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from langdepth import cli
from tests.docs.reader import Block, Command, Given, commands

# What readies a machine. Continuous integration does it as README prints it (.ci/run); the suite runs in the result.
INSTALLING = (("python3", "-m", "venv"), (".venv/bin/pip",), ("pip", "install"), (".", ".venv/bin/activate"))
SUITE = ((".venv/bin/pytest",),)
LANGDEPTH = ("langdepth", ".venv/bin/langdepth")


@dataclass
class Outcome:
    """What became of a page.

    Attributes:
        ran: How many commands and Python blocks were run.
        failures: A line per command that failed: place, command, exit code, last line of stderr.
        not_run: (line, reason) of the blocks that are marked as not to be run here.
        unused: Things that were given and that no later step names.
    """

    ran: int = 0
    failures: list[str] = field(default_factory=list)
    not_run: list[tuple[int, str]] = field(default_factory=list)
    unused: list[str] = field(default_factory=list)


def run_page(
    name: str, steps: Iterable[Given | Block], folder: Path, things: Mapping[str, Callable[[Path], object]]
) -> Outcome:
    """Run a page's steps in ``folder``, which is the current folder; ``things`` lay out what is given."""
    steps = list(steps)
    outcome = Outcome()
    names: dict[str, object] = {}  # of the page's Python blocks
    for step in steps:
        if isinstance(step, Block) and step.file is not None and step.not_run is None:
            (folder / step.file).write_text(step.text + "\n", encoding="utf-8")
    for number, step in enumerate(steps):
        if isinstance(step, Given):
            later = " ".join(after.text for after in steps[number:] if isinstance(after, Block))
            outcome.unused += [f"{name}:{step.line}: {thing}" for thing in step.things if thing not in later]
            for thing in step.things:
                (folder / thing).parent.mkdir(parents=True, exist_ok=True)
                things[thing](folder / thing)
        elif step.not_run is not None:
            outcome.not_run.append((step.line, step.not_run))
        elif step.kind == "python":
            outcome.ran += 1
            _report(outcome, f"{name}:{step.line}", "the Python block", *_run_python(step, names))
        elif step.kind == "commands":
            for command in commands(step):
                if not _starts(command, INSTALLING + SUITE):
                    outcome.ran += 1
                    answer = run_command(command.words, folder)
                    _report(outcome, f"{name}:{command.line}", " ".join(command.words), *answer)
    return outcome


def run_command(words: tuple[str, ...], folder: Path) -> tuple[int, str]:
    """Exit code and stderr; ``langdepth`` runs in this process, everything else in one of its own."""
    if words[0] not in LANGDEPTH:
        try:
            done = subprocess.run(words, cwd=folder, capture_output=True, text=True, timeout=300)
        except OSError as error:
            return 127, str(error)
        return done.returncode, done.stderr
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = cli.main(list(words[1:]))
        except SystemExit as end:
            code = int(end.code or 0)
        except Exception:
            code = 99
            traceback.print_exc()
    return code, err.getvalue()


def _run_python(block: Block, names: dict[str, object]) -> tuple[int, str]:
    out = io.StringIO()
    try:
        with contextlib.redirect_stdout(out):
            exec(compile(block.text, "<page>", "exec"), names)
    except Exception:
        return 1, traceback.format_exc()
    return 0, ""


def _report(outcome: Outcome, place: str, what: str, code: int, err: str) -> None:
    if code:
        last = (err.strip().splitlines() or ["nothing on stderr"])[-1]
        outcome.failures.append(f"{place}: {what}\n    exit code {code}: {last}")
        if os.environ.get("LANGDEPTH_DOCS_VERBOSE"):
            print(err, file=sys.__stderr__)


def _starts(command: Command, starts: Iterable[tuple[str, ...]]) -> bool:
    return any(command.words[: len(start)] == start for start in starts)
