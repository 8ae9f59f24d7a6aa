"""The command line: a table of verbs, each a function in ``langdepth.commands`` whose signature is its options.

What is imported before ``main`` cannot be interrupted in one line, and is next to nothing.
"""

from __future__ import annotations

import errno
import gc
import io
import os
import sys

from langdepth.errors import LangdepthError, explained, is_memory_error, missing_package, nearest, one_line, say

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import FrameType
    from typing import IO

_interrupts: list[int] = []  # signals that came while a command worked
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)
COMMANDS: dict[str, tuple[str, str]] = {
    "predict": ("langdepth.commands.predict:main", "depth of images and folders"),
    "serve": ("langdepth.commands.serve:main", "depth for programs that send images to an address"),
    "demo": ("langdepth.commands.demo:main", "a form in the browser: photo, webcam or a sentence"),
    "imagine": ("langdepth.commands.imagine:main", "depth of scenes from words alone, without an image"),
    "scale": ("langdepth.commands.scale:main", "metres for a relative depth map, from words and known distances"),
    "train": ("langdepth.commands.train:main", "train a system from a recipe"),
    "evaluate": ("langdepth.commands.evaluate:main", "score a system on a data set under a named protocol"),
    "benchmark": ("langdepth.commands.benchmark:main", "several systems on several data sets, one table"),
    "protocols": ("langdepth.commands.protocols:main", "list the evaluation protocols, show one in words"),
    "convert": ("langdepth.commands.convert:main", "the authors' checkpoints and CLIP weights to .safetensors"),
    "export": ("langdepth.commands.export:main", "a system as a file for ONNX Runtime or OpenVINO"),
    "bench": ("langdepth.commands.bench:main", "which runtime is fastest on this machine"),
    "prompts": ("langdepth.commands.prompts:main", "what distance words give on an image"),
    "scenes": ("langdepth.commands.scenes:main", "list the scene names, encode them with CLIP"),
    "weights": ("langdepth.commands.weights:main", "the weights that papers' authors publish: list, get, verify"),
    "systems": ("langdepth.commands.systems:main", "list the systems, show one"),
    "data": ("langdepth.commands.data:main", "list, prepare, check and show data sets; write a small sample"),
}


def usage() -> str:
    """The text of ``langdepth --help``."""
    verbs = "\n".join(f"  {name:<10} {summary}" for name, (_, summary) in COMMANDS.items())
    return (
        "usage: langdepth COMMAND [options]\n\nDepth from one image, with the help of language.\n\n"
        f"commands:\n{verbs}\n\n"
        "options:\n  --help      this text, or a command's own: langdepth predict --help\n"
        "  --version   the package version\n  --debug     show the full traceback of an error\n\n"
        "example:\n  langdepth predict photo.jpg --out depth\n"
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code: 0 done, 1 failed, 2 wrong usage, 130 interrupted."""
    _open_missing_streams()
    argv = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in argv
    argv = [a for a in argv if a != "--debug"]
    try:
        try:
            return _run(argv)
        finally:
            sys.stdout.flush()  # a full disk is met here, not by the interpreter when it ends
    except KeyboardInterrupt:
        return _stop(argv)
    except BrokenPipeError:
        _drop_output()
        return 1
    except Exception as error:
        if _interrupts:  # modules in C turn it into errors of their own
            return _stop(argv)
        if debug:
            raise
        _complain(argv, _explained(error))
        return error.exit_code if isinstance(error, LangdepthError) else 1


def _stop(argv: Sequence[str]) -> int:
    _interrupts.clear()
    _complain(argv, "interrupted; what was already written is kept")
    return 130


def _run(argv: Sequence[str]) -> int:
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(usage(), end="")
        return 0 if argv else 2
    if argv[0] == "--version":
        from langdepth._version import __version__

        print(__version__)
        return 0
    if argv[0] not in COMMANDS:
        _complain([], f"unknown command '{argv[0]}': {nearest(argv[0], COMMANDS)}")
        return 2
    from importlib import import_module

    module, _, function = COMMANDS[argv[0]][0].partition(":")
    return int(getattr(import_module(module), function)(argv[1:]) or 0)


def _open_missing_streams() -> None:
    """Whoever closes a standard stream gets and gives nothing there. Python has None in its place."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        stream = getattr(sys, name)
        if stream is None or stream.closed:
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115


def _explained(error: Exception) -> str:
    """One line for whatever ended a command."""
    if isinstance(error, ImportError) and (advice := missing_package(error)):
        return advice
    line = explained(error)
    if isinstance(error, OSError) and error.filename is None and error.errno in _NO_ROOM:  # all other files have names
        _drop_output()
        return f"standard output cannot be written ({line})"
    foreseen = isinstance(error, LangdepthError) or is_memory_error(error) or getattr(error, "strerror", None)
    return line if foreseen else f"{line}; this was not foreseen, --debug shows where it happened"


def _complain(argv: Sequence[str], message: str) -> None:
    try:
        say(f"{' '.join(['langdepth', *argv[:1]])}: {one_line(message)}", file=sys.stderr)
    except OSError:  # nobody listens
        _drop_output(sys.stderr)


def _drop_output(stream: IO[str] | None = None) -> None:
    """Let what is still to be printed go nowhere, so that the interpreter ends in silence."""
    from contextlib import suppress

    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), (stream or sys.stdout).fileno())


def _note_interrupts() -> None:
    import signal

    def note(number: int, _: FrameType | None) -> None:
        _interrupts.append(number)
        raise KeyboardInterrupt

    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # nohup ignores it, for example
        signal.signal(signal.SIGINT, note)


def entry_point() -> None:
    """Console script."""
    try:
        _note_interrupts()
        gc.set_threshold(10_000)  # what modules define stays; searching it takes a twentieth of a short command's time
        os.environ["MPLBACKEND"] = "agg"  # no window is opened
        if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
            sys.stdout.reconfigure(errors="backslashreplace")  # names of files need not be UTF-8
        code = main()
    except KeyboardInterrupt:  # before or after the work
        code = _stop(sys.argv[1:])
    sys.exit(code)
