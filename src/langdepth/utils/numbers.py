"""Numbers as people write them."""

from __future__ import annotations


def plain_number(text: str) -> float:
    """The number that a text states, in ASCII digits and without Python's "_" between them.

    Raises:
        ValueError: For anything else.
    """
    if not text.isascii() or "_" in text:
        raise ValueError(f"'{text}' is not a number")
    return float(text)


def short_number(value: float) -> str:
    """A depth as it is printed: two decimals, or two digits where these would be zeros."""
    return f"{value:.2f}" if abs(value) >= 0.1 or value == 0 else f"{value:.2g}"
