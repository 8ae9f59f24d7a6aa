"""Changes of bytes, and the absurd numbers and texts that take the place of good ones."""

from __future__ import annotations

import struct

from .cases import Random, pool

ABSURD = (0, 1, 2, 3, 7, 127, 128, 255, 256, 32767, 32768, 65535, 65536, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**63 - 1)
NUMBERS = ("0", "-1", "1", "3", "nan", "inf", "-inf", "1e308", "1e-308", "1e400", "9" * 400, "-0", "0x10", "1_000", "٣")
NUMBERS += ("", " ", "1,5", "true", "null", "1e", "--", "65535", "2147483648", "0.5", "1e9", "1e-9")
TEXTS = (
    "",
    " ",
    "#",
    "~",
    "null",
    "a\nb",
    "\0",
    "\x1b[31mred",
    "\u202eleft",
    "🙂" * 30,
    "x" * 3000,
    "%s%n",
    "{}",
    "[1",
    "'",
)
TEXTS += pool("../../up|/etc/passwd|-|--|\ud800|a,b,c|a: b|é|con|NaN|*|\\|\t|$HOME|-1", "|")


def bytes_changed(rng: Random, content: bytes) -> tuple[bytes, str]:
    """The content with a change of a random kind, more often in its first bytes."""
    data, size = bytearray(content), max(1, len(content))
    place = rng.randrange(min(size, rng.choice((16, 64, 256, size, size))))
    length = rng.choice((1, 2, 4, 8, 64, size // 4 + 1))
    kind = rng.choice(("flip", "flip", "set", "number", "number", "cut", "extend", "drop", "double", "zero", "random"))
    if kind == "flip":
        for _ in range(rng.choice((1, 1, 2, 8, 40))):
            at = rng.randrange(size) if rng.random() < 0.5 else min(size - 1, place + rng.randrange(16))
            data[at : at + 1] = bytes([data[at] ^ (1 << rng.randrange(8))]) if at < len(data) else b""
    elif kind == "set":
        data[place : place + 1] = bytes([rng.choice((0, 1, 127, 128, 255))])
    elif kind == "number":
        form = rng.choice("<>") + rng.choice("HIQ")
        number = rng.choice(ABSURD) % (1 << 8 * struct.calcsize(form))
        data[place : place + struct.calcsize(form)] = struct.pack(form, number)
    elif kind == "cut":
        del data[rng.choice((place, size - 1, size // 2, rng.randrange(size))) :]
    elif kind == "extend":
        data += rng.choice((b"\0", rng.randbytes(10), bytes(5000), content, b"\n"))
    elif kind == "drop":
        del data[place : place + length]
    elif kind == "double":
        data[place:place] = data[place : place + length]
    elif kind == "zero":
        data[place : place + length] = bytes(min(length, size - place))
    else:
        data[place : place + length] = rng.randbytes(min(length, size - place))
    return bytes(data), f"{kind} at {place} of {size}"


def twice(rng: Random, content: bytes) -> tuple[bytes, str]:
    """One change, at times two or three."""
    changes = []
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        content, change = bytes_changed(rng, content)
        changes.append(change)
    return content, "; ".join(changes)
