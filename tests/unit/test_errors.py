"""What errors say."""

from __future__ import annotations

import pytest

from langdepth.errors import first_line


@pytest.mark.parametrize(
    ("error", "line"),
    [(ValueError("\n  no such key \nTraceback"), "no such key"), (EOFError(), "EOFError"), (OSError(" \n"), "OSError")],
)
def test_one_line_of_another_librarys_complaint(error: Exception, line: str) -> None:
    assert first_line(error) == line
