"""What reaches the user, line by line: errors (what was wrong, where, what to do), and what commands print."""

from __future__ import annotations

import errno
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from typing import IO

_LONGEST, _END = 1200, 400  # characters of a message, and of its end where it is longer
_LONGEST_VALUE = 160  # of a value in quotation marks, so that what is said about it is not far away
_LONGEST_WORD = 500  # of a path


class LangdepthError(Exception):
    """Something failed while working (exit code 1 on the command line). Its text is one line, whatever it quotes."""

    exit_code = 1

    def __str__(self) -> str:
        return one_line(super().__str__())


class UsageError(LangdepthError, ValueError):
    """The request itself was wrong: an unknown name, key or value (exit code 2)."""

    exit_code = 2


class ImageError(LangdepthError, ValueError):
    """An image or depth file cannot be read or is not usable."""


class CheckpointError(LangdepthError, ValueError):
    """A weights file cannot be read or does not fit the system."""


class MissingFileError(LangdepthError, FileNotFoundError):
    """A file that was named is not there."""


class MissingImageError(ImageError, MissingFileError):
    """An image or depth file is not there."""


class MissingCheckpointError(CheckpointError, MissingFileError):
    """A weights file is not there."""


class MissingConfigError(UsageError, MissingFileError):
    """A recipe or another file of settings is not there."""


class ShortMemoryError(LangdepthError, MemoryError):
    """There is not enough memory for what was asked for."""


class NonFiniteLossError(LangdepthError, ArithmeticError):
    """The training loss became NaN or infinite."""


class FileWarning(UserWarning):
    """Something to know about a file. Of many files with the same ``text``, commands name the first."""

    def __init__(self, path: object, text: str) -> None:
        super().__init__(f"{path}: {text}")
        self.text = text


def one_line(text: str) -> str:
    """The text without what would break a line or steer a terminal: such characters are written as in Python.

    Of a long value, and of a long text, the beginning and the end.
    """
    if len(text) > _LONGEST_VALUE:
        import re

        text = re.sub(r"(?<!\w)'([^']*)'(?!\w)", lambda found: f"'{_shortened(found[1], _LONGEST_VALUE)}'", text)
        text = re.sub(rf"\S{{{_LONGEST_WORD + 1},}}", lambda found: _shortened(found[0], _LONGEST_WORD), text)
    return printable(_shortened(text, _LONGEST, _END))


def _shortened(text: str, longest: int, end: int = 40) -> str:
    return text if len(text) <= longest else f"{text[: longest - end]} ... {text[-end:]}"


def printable(text: str) -> str:
    """The text with what would break a line or steer a terminal written as in Python."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() or "\ud800" <= char <= "\udfff" else repr(char)[1:-1] for char in text)


def say(*lines: object, file: IO[str] | None = None) -> None:
    """Print each as one line; names of files may hold anything. ``file``: by default stdout."""
    print(*(printable(str(line)) for line in lines), sep="\n", file=file or sys.stdout, flush=True)


def is_memory_error(error: BaseException) -> bool:
    """Whether an error says that memory is short: Python's, NumPy's, a device's, or the plain one of a runtime."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    text = str(error)
    plain = isinstance(error, RuntimeError | OSError) or type(error).__module__.startswith("onnxruntime")
    return plain and any(
        words in text
        for words in (
            "not enough memory",
            "allocate memory",
            "bad_alloc",
            "out of memory",
            "smaller than requested bytes",
        )
    )


def explained(error: Exception) -> str:
    """An error that ended a piece of work, for a message: other libraries' memory and file errors in plain words."""
    if isinstance(error, LangdepthError):
        return str(error)
    if is_memory_error(error):
        return "not enough memory for this; use smaller images, a smaller batch size or a machine with more"
    if isinstance(error, OSError) and error.strerror:
        return one_line(f"{error.filename}: {error.strerror}" if error.filename else error.strerror)
    return one_line(f"{type(error).__name__}: {first_line(error)}")


def is_disk_error(error: BaseException) -> bool:
    """Whether a file cannot be read for a reason beside its content."""
    if not isinstance(error, OSError) or error.errno is None:
        return False
    # Readers of damaged archives look for parts before the file's first byte, which is an invalid argument.
    return error.errno != errno.EINVAL or error.filename is not None


_EXTRAS = {
    "torch": "torch torchvision timm open_clip safetensors huggingface_hub jinja2 matplotlib scipy typing_extensions",
    "train": "lightning torchmetrics",
    "data": "h5py",
    "export": "onnx",
    "openvino": "openvino",
    "serve": "fastapi uvicorn starlette python_multipart multipart",
    "demo": "gradio",
    "video": "av",
}
"""Of langdepth's optional dependencies, the packages that they bring."""


def missing_package(error: ImportError) -> str | None:
    """What to install where an import failed for a package of an extra; None for any other package."""
    package = (error.name or "").partition(".")[0]
    extra = next((extra for extra, packages in _EXTRAS.items() if package in packages.split()), None)
    return extra and f"this needs {package}, which is not installed: pip install 'langdepth[{extra}]'"


def text_flaw(error: BaseException) -> str:
    """Why a file cannot be read as text or CSV, in a few words."""
    if isinstance(error, UnicodeDecodeError):
        return "it is not UTF-8 text"
    if isinstance(error, EOFError) or type(error).__name__ == "BadGzipFile":
        return "it is damaged, truncated or not compressed"
    return getattr(error, "strerror", None) or first_line(error)


def nearest(name: str, known: Iterable[str]) -> str:
    """A hint naming the known word closest to ``name``, or the list of known words when none is close."""
    import difflib

    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    if close:
        return f"did you mean '{close[0]}'?"
    return "known: " + (", ".join(known) or "none")


def first_line(error: BaseException) -> str:
    """The first line of what another library complains of, without its number; its kind where it says nothing.

    Of the runtimes ONNX Runtime and OpenVINO without places in their code, and not longer than what is said around it.
    """
    text = str(error).strip()
    if text.startswith("[Errno "):
        text = text.partition("]")[2]
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    said = [line for line in lines if not line.startswith(("Exception from ", "Check '"))] or lines
    if not said:
        return type(error).__name__
    if said[0].startswith("[ONNXRuntimeError]"):
        import re

        said[0] = re.sub(
            r"^\[ONNXRuntimeError\] : \d+ : \w+ : |/onnxruntime_src/\S+ [^()]*\([^()]*\)( const)? ", "", said[0]
        )
    return _shortened(said[0], 2 * _LONGEST_VALUE)


def first_few(names: Sequence[object]) -> str:
    """The first five of names for a message, and whether there are more."""
    return ", ".join(map(str, names[:5])) + (", ..." if len(names) > 5 else "")
