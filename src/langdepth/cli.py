"""The command line: a table of verbs, each a function in ``langdepth.commands`` whose signature is its options."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Sequence
from importlib import import_module

from langdepth.errors import LangdepthError, nearest

COMMANDS: dict[str, tuple[str, str]] = {
    "predict": ("langdepth.commands.predict:main", "depth of pictures and folders"),
    "imagine": ("langdepth.commands.imagine:main", "depth of scenes from words alone, without a picture"),
    "train": ("langdepth.commands.train:main", "train a system from a recipe"),
    "evaluate": ("langdepth.commands.evaluate:main", "score a system on a data set under a named protocol"),
    "benchmark": ("langdepth.commands.benchmark:main", "several systems on several data sets, one table"),
    "protocols": ("langdepth.commands.protocols:main", "list the evaluation protocols, show one in words"),
    "convert": ("langdepth.commands.convert:main", "the authors' checkpoints and CLIP weights to .safetensors"),
    "prompts": ("langdepth.commands.prompts:main", "what distance words give on a picture"),
    "scenes": ("langdepth.commands.scenes:main", "list the scene names, encode them with CLIP"),
    "systems": ("langdepth.commands.systems:main", "list the systems, show one"),
    "data": ("langdepth.commands.data:main", "list, prepare, check and show data sets; write a small sample"),
}


def usage() -> str:
    """The text of ``langdepth --help``."""
    verbs = "\n".join(f"  {name:<10} {summary}" for name, (_, summary) in COMMANDS.items())
    return (
        "usage: langdepth COMMAND [options]\n\nDepth from one picture, with the help of language.\n\n"
        f"commands:\n{verbs}\n\n"
        "options:\n  --help      this text, or a command's own: langdepth predict --help\n"
        "  --version   the package version\n  --debug     show the full traceback of an error\n\n"
        "example:\n  langdepth predict photo.jpg --out depth\n"
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code: 0 done, 1 failed, 2 wrong usage, 130 interrupted."""
    argv = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in argv
    argv = [a for a in argv if a != "--debug"]
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(usage(), end="")
        return 0 if argv else 2
    if argv[0] == "--version":
        from langdepth import __version__

        print(__version__)
        return 0
    if argv[0] not in COMMANDS:
        print(f"langdepth: unknown command '{argv[0]}': {nearest(argv[0], COMMANDS)}", file=sys.stderr)
        return 2
    module, _, function = COMMANDS[argv[0]][0].partition(":")
    try:
        return int(getattr(import_module(module), function)(argv[1:]) or 0)
    except LangdepthError as error:
        if debug:
            raise
        print(f"langdepth {argv[0]}: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print(f"langdepth {argv[0]}: interrupted; what was already written is kept", file=sys.stderr)
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        if debug:
            raise
        place = f"{error.filename}: " if error.filename else ""
        print(f"langdepth {argv[0]}: {place}{error.strerror or error}", file=sys.stderr)
        return 1


def entry_point() -> None:
    """Console script."""
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors="backslashreplace")  # names of files need not be UTF-8
    sys.exit(main())
