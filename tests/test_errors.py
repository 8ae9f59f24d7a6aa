"""What errors say."""

from __future__ import annotations

import ast
import errno
import gzip
import io
import os
import sys
from pathlib import Path
from typing import Any

import pytest

import langdepth
from langdepth import cli, errors
from langdepth.errors import LangdepthError, UsageError, first_line, is_disk_error, is_memory_error, one_line, text_flaw


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("\n  no such key \nTraceback"), "no such key"),
        (EOFError(), "EOFError"),
        (OSError(" \n"), "OSError"),
        (
            RuntimeError(
                "[ONNXRuntimeError] : 1 : FAIL : Non-zero status code returned while running Add node. Name:'a' Status "
                "Message: /onnxruntime_src/onnxruntime/core/framework/op.h:5 void onnxruntime::F::G(int, bool) const "
                "axis was 3\nStacktrace:\n"
            ),
            "Non-zero status code returned while running Add node. Name:'a' Status Message: axis was 3",
        ),
        (
            RuntimeError("Exception from src/core.cpp:92:\nCheck 'a == b' failed at src/x.cpp:4:\nno such file"),
            "no such file",
        ),
        (RuntimeError("x" * 5000), "x" * 280 + " ... " + "x" * 40),
        (ConnectionError("[Errno -2] Name or service not known"), "Name or service not known"),
    ],
)
def test_one_line_of_another_librarys_complaint(error: Exception, line: str) -> None:
    assert first_line(error) == line


@pytest.mark.parametrize(
    ("kind", "bases"),
    [
        (UsageError, (LangdepthError, ValueError)),
        (errors.ImageError, (LangdepthError, ValueError)),
        (errors.CheckpointError, (LangdepthError, ValueError)),
        (errors.MissingImageError, (errors.ImageError, FileNotFoundError)),
        (errors.MissingCheckpointError, (errors.CheckpointError, FileNotFoundError)),
        (errors.MissingConfigError, (UsageError, FileNotFoundError)),
        (errors.NonFiniteLossError, (LangdepthError, ArithmeticError)),
    ],
)
def test_errors_are_also_what_python_users_expect(kind: type[LangdepthError], bases: tuple[type, ...]) -> None:
    assert all(issubclass(kind, base) for base in bases)
    assert str(kind("a.png: gone")) == "a.png: gone"


def test_missing_files_are_file_not_found_errors(tmp_path: Path) -> None:
    for call in (
        lambda: langdepth.predict(tmp_path / "none.png"),
        lambda: langdepth.load(tmp_path / "none.safetensors"),
    ):
        with pytest.raises(FileNotFoundError, match="no such file"):
            call()


def test_one_message_is_one_line() -> None:
    assert str(UsageError("'a\nb\r\x1b[31m\u2028c'")) == r"'a\nb\r\x1b[31m\u2028c'"
    assert one_line("Küche \udce9 深度") == "Küche \udce9 深度"


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (MemoryError(), True),
        (RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 8 bytes"), True),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"), True),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), True),
        (RuntimeError("shapes do not match"), False),
        (ValueError("not enough memory"), False),
    ],
)
def test_memory_errors(error: Exception, expected: bool) -> None:
    assert is_memory_error(error) == expected


class TestNet:
    """Whatever ends a command is one line."""

    @pytest.mark.parametrize(
        ("error", "line"),
        [
            (
                ZeroDivisionError("division\nby zero"),
                "ZeroDivisionError: division; this was not foreseen, --debug shows",
            ),
            (RecursionError("too deep"), "RecursionError: too deep; this was not foreseen"),
            (MemoryError(), "not enough memory for this"),
            (RuntimeError("not enough memory: you tried to allocate"), "not enough memory for this"),
            (OSError(errno.EACCES, "Permission denied", "a\nb"), r"a\nb: Permission denied"),
            (UsageError("wrong\nword"), r"wrong\nword"),
        ],
    )
    def test_one_line(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: Exception, line: str
    ) -> None:
        def fail(_: Any) -> int:
            raise error

        monkeypatch.setattr("langdepth.commands.systems.main", fail)
        assert cli.main(["systems"]) == (2 if isinstance(error, UsageError) else 1)
        out, err = capsys.readouterr()
        assert out == ""
        assert err.startswith(f"langdepth systems: {line}")
        assert err.count("\n") == 1
        with pytest.raises(type(error)):
            cli.main(["systems", "--debug"])

    @pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
    def test_output_that_cannot_be_written(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        descriptor = os.open("/dev/full", os.O_WRONLY)
        with io.TextIOWrapper(os.fdopen(descriptor, "wb"), write_through=False) as full:
            monkeypatch.setattr(sys, "stdout", full)
            assert cli.main(["systems"]) == 1
        assert capsys.readouterr().err == (
            "langdepth systems: standard output cannot be written (No space left on device)\n"
        )


def test_messages_of_thousands_of_characters() -> None:
    text = str(LangdepthError("key: expected a number, got '" + "x" * 5000 + "'"))
    assert len(text) < 1500
    assert text.startswith("key: expected a number, got 'xxx")
    assert text.endswith("xxx'")


def test_why_a_file_cannot_be_read() -> None:
    with pytest.raises(UnicodeDecodeError) as caught:
        b"\xff".decode()
    assert text_flaw(caught.value) == "it is not UTF-8 text"
    with pytest.raises(gzip.BadGzipFile) as packed:
        gzip.decompress(b"image,caption")
    assert text_flaw(packed.value) == "it is damaged, truncated or not compressed"
    assert text_flaw(OSError(errno.EACCES, "Permission denied")) == "Permission denied"
    assert is_disk_error(OSError(errno.EIO, "Input/output error"))
    assert not is_disk_error(OSError("image file is truncated"))


@pytest.mark.parametrize(
    ("text", "shorter"),
    [
        (f"system '{'a' * 5000}': known: tiny", f"system '{'a' * 120} ... {'a' * 40}': known: tiny"),
        (
            f"text '{'a b ' * 99}' is long, '{'c' * 160}' is not",
            f"'{'a b ' * 30} ... {'a b ' * 10}' is long, '{'c' * 160}'",
        ),
        (f"{'a' * 5000}: no such file", f"{'a' * 460} ... {'a' * 39}: no such file"),
        (f"{'/ab' * 160}.jpg: the image's depth is not '{'x' * 9}'", f"{'/ab' * 160}.jpg: the image's depth"),
        (f"an image's {'long ' * 60} story of users' files", f"an image's {'long ' * 60} story of users' files"),
    ],
)
def test_long_values_are_shortened_where_they_stand(text: str, shorter: str) -> None:
    assert shorter in one_line(text)
    assert one_line(one_line(text)) == one_line(text)


def test_what_is_printed_is_one_line_each(capsys: pytest.CaptureFixture[str]) -> None:
    errors.say("a\x1b[31m\nb.png", "Küche")
    errors.say("\r.png", file=sys.stderr)
    assert capsys.readouterr() == ("a\\x1b[31m\\nb.png\nKüche\n", "\\r.png\n")


def test_everything_is_printed_by_say() -> None:
    by_hand = {"errors.py", "cli.py", "training/logs.py"}
    by_hand |= {f"commands/{name}.py" for name in ("_parse", "_systems", "data/__init__")}
    package = Path(errors.__file__).parent
    for file in package.rglob("*.py"):
        calls = (node.func for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.Call))
        if any(isinstance(function, ast.Name) and function.id == "print" for function in calls):
            assert str(file.relative_to(package)) in by_hand
