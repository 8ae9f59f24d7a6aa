"""What thousands of damaged and hostile inputs do to the commands: a seeded campaign, counted by kind of file.

Every case writes a small input, changes it (bytes, fields of headers, values that are valid but absurd), and runs one
command on it in a process of its own, with 4 GB of memory above what the imports take and 20 seconds. What comes out is
compared with what must hold:

accepted         exit code 0 and results that are right: finite depth of the image's size, the same as an independent
                 reader of the same file gives, the same depth for the same pixels
refused          exit code 1 or 2 and one line for each thing that is wrong, in words of the library
traceback        an error that nobody foresaw
crash            the process ended by a signal
hang             more than 20 seconds
memory           more than 4 GB, or "not enough memory" below that
damaged file     a file under its final name that cannot be read, or one of a name that is still being written
outside          something written beside the place that was named for results
nonsense         accepted, but not right; or refused although it is whole
poor line        no line, no file or option in it, a line of another library, or hundreds of characters too many

    python benchmarks/mutations.py --cases 500 --seed 1
    python benchmarks/mutations.py --cases 40 --seed 1 --kind weights --keep faults
    python benchmarks/mutations.py --seed 1 --only weights:17 --keep faults     # one case again

The exit code is 1 where any fault was found. ``--keep`` leaves the inputs of faults, the command and its output.
"""

from __future__ import annotations

import argparse
import csv
import gc
import gzip
import io
import json
import os
import random
import re
import resource
import select
import shutil
import signal
import struct
import sys
import tarfile
import tempfile
import time
import zipfile
import zlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import redirect_stderr, redirect_stdout, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from common import ROOT, parser, use_threads, write


def pool(text: str, separator: str = " ") -> tuple[str, ...]:
    """The values that a text holds."""
    return tuple(text.split(separator))


GOOD = ("accepted", "refused")
FAULTS = pool("traceback|crash|hang|memory|damaged file|outside|nonsense|poor line", "|")
SECONDS = 20
MEMORY = 4_000_000_000
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


# --- changes of bytes


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


# --- images


def _photo(rng: Random, height: int = 48, width: int = 64) -> Any:
    """(H, W, 3) uint8: a slope with a few boxes and some noise."""
    import numpy as np

    generator = np.random.default_rng(rng.randrange(2**32))
    pixels = np.broadcast_to(np.linspace(40, 200, width)[None, :, None], (height, width, 3)).copy()
    for _ in range(4):
        y, x = generator.integers(0, height - 8), generator.integers(0, width - 8)
        pixels[y : y + 16, x : x + 16] = generator.integers(0, 255, 3)
    return (pixels + generator.integers(-8, 8, pixels.shape)).clip(0, 255).astype(np.uint8)


def _exif(rng: Random) -> Any:
    from PIL import Image

    exif = Image.Exif()
    exif[0x0112] = rng.choice((1, 2, 3, 4, 5, 6, 7, 8, 0, 9, 65535))
    block = exif.get_ifd(0x8769)
    for tag in rng.sample((0x920A, 0xA405, 0xA002, 0xA003, 0xA20E, 0xA20F, 0xA210), rng.randrange(5)):
        block[tag] = rng.choice((0, 1, 35, 50, 65535)) if tag != 0x920A else rng.choice((0.0, 4.2, 50.0, 1e9))
    return exif


def image_content(rng: Random) -> tuple[str, bytes]:
    """(ending, content) of a small image of a random kind."""
    from PIL import Image

    image = Image.fromarray(_photo(rng))
    kinds: dict[str, tuple[tuple[str, ...], Callable[[], dict[str, Any]]]] = {
        "jpg": (("RGB", "L", "CMYK"), lambda: {"progressive": rng.random() < 0.4, "exif": _exif(rng)}),
        "png": (("RGB", "RGBA", "L", "LA", "P", "1", "I;16"), dict),
        "tiff": (
            ("RGB", "RGBA", "L", "P", "1", "I;16", "F", "CMYK"),
            lambda: {"compression": rng.choice(COMPRESSIONS)},
        ),
        "webp": (("RGB", "RGBA"), lambda: {"lossless": rng.random() < 0.5, "exif": _exif(rng)}),
        "ppm": (("RGB", "L", "1"), dict),
        "pgm": (("L", "I;16"), dict),
        "gif": (("P", "L"), lambda: {"save_all": True, "append_images": [image.convert("P")] * rng.randrange(3)}),
        "bmp": (("RGB", "L", "P", "1"), dict),
        "jp2": (("RGB", "L"), dict),
        "avif": (("RGB",), lambda: {"exif": _exif(rng)}),
    }
    ending = rng.choice(("jpg", "jpg", "png", "png", "tiff", "tiff", *kinds))
    modes, options = kinds[ending]
    mode = rng.choice(modes)
    if mode == "I;16":
        import numpy as np

        image = Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257)
    else:
        image = image.convert(mode)
    buffer = io.BytesIO()
    image.save(buffer, {"jpg": "JPEG", "jp2": "JPEG2000", "pgm": "PPM"}.get(ending, ending.upper()), **options())
    return ending, buffer.getvalue()


COMPRESSIONS = ("raw", "tiff_lzw", "tiff_adobe_deflate", "packbits")


def png_chunks(content: bytes) -> list[tuple[bytes, bytes]]:
    """Name and data of each chunk."""
    chunks, place = [], 8
    while place + 8 <= len(content):
        length = int.from_bytes(content[place : place + 4], "big")
        chunks.append((content[place + 4 : place + 8], content[place + 8 : place + 8 + length]))
        place += 12 + length
    return chunks


def png_of(chunks: Sequence[tuple[bytes, bytes]]) -> bytes:
    """A PNG with right checksums."""
    parts = [struct.pack(">I", len(d)) + n + d + struct.pack(">I", zlib.crc32(n + d)) for n, d in chunks]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def png_changed(rng: Random, content: bytes) -> tuple[bytes, str]:
    """Chunks changed, repeated, dropped or put in, with right checksums."""
    chunks = png_chunks(content)
    kind = rng.choice(("header", "header", "content", "drop", "double", "order", "text", "own", "wrong sum"))
    at = rng.randrange(len(chunks))
    name, data = chunks[at]
    if kind == "header":
        data, field = bytearray(chunks[0][1]), rng.choice((0, 4, 8, 9, 10, 11, 12))
        data[field : field + (4 if field < 8 else 1)] = (
            struct.pack(">I", rng.choice(ABSURD) % 2**32)
            if field < 8
            else bytes([rng.choice((0, 1, 2, 3, 4, 6, 16, 255))])
        )
        chunks[0] = (b"IHDR", bytes(data))
        kind += f" byte {field}"
    elif kind == "content" and data:
        chunks[at] = (name, bytes_changed(rng, data)[0])
    elif kind == "drop":
        del chunks[at]
    elif kind == "double":
        chunks.insert(at, chunks[at])
    elif kind == "order":
        rng.shuffle(chunks)
    elif kind == "wrong sum":
        return bytes_changed(rng, content)
    else:
        huge = zlib.compress(bytes(rng.choice((1000, 20_000_000))))
        scale = rng.choice((*NUMBERS, "0.001", '"x"', "[]", "{}"))
        made = rng.choice(
            (
                (b"zTXt", b"comment\0\0" + huge),
                (b"iTXt", b"comment\0\1\0\0\0" + huge),
                (b"tEXt", b"comment\0" + bytes([rng.randrange(1, 255)]) * rng.choice((10, 3_000_000))),
                (b"iCCP", b"profile\0\0" + huge),
                (b"eXIf", rng.randbytes(200)),
                (b"gAMA", rng.randbytes(rng.choice((0, 4, 9)))),
                (b"tRNS", rng.randbytes(rng.choice((0, 1, 2, 6, 300)))),
                (b"acTL", struct.pack(">II", rng.choice(ABSURD) % 2**32, 0)),
                (b"PLTE", rng.randbytes(rng.choice((0, 3, 7, 768, 900)))),
            )
        )
        own = (b"tEXt", b"langdepth\0" + f'{{"scale": {scale}}}'.encode())
        chunks.insert(1, own if kind == "own" else made)
        kind = f"{kind} {chunks[1][0].decode()}"
    return png_of(chunks), f"png {kind} chunk {at}"


def jpeg_changed(rng: Random, content: bytes) -> tuple[bytes, str]:
    """Segments changed, repeated, dropped or put in; sizes in the header."""
    places = [match.start() for match in re.finditer(rb"\xff[\xc0-\xc4\xda-\xdd\xe0-\xe2\xfe]", content)]
    at = rng.choice(places)
    length = int.from_bytes(content[at + 2 : at + 4], "big") + 2
    kind = rng.choice(("size", "size", "drop", "double", "scans", "exif", "length", "comment"))
    if kind == "size":
        frame = next((p for p in places if content[p + 1] in (0xC0, 0xC1, 0xC2)), at)
        number = struct.pack(">H", rng.choice((0, 1, 31, 32, 47, 49, 65, 1000, 9000, 65535)))
        place = frame + rng.choice((5, 7))
        return content[:place] + number + content[place + 2 :], f"jpeg size at {place}"
    if kind == "drop":
        return content[:at] + content[at + length :], f"jpeg without segment {content[at + 1]:x}"
    if kind == "double":
        return content[: at + length] + content[at:], f"jpeg segment {content[at + 1]:x} twice"
    if kind == "scans":
        scan = content[content.rindex(b"\xff\xda") : -2]
        return content[:-2] + rng.choice((1, 50, 200)) * scan + content[-2:], "jpeg scans repeated"
    if kind == "length":
        return content[: at + 2] + rng.randbytes(2) + content[at + 4 :], f"jpeg length of {content[at + 1]:x}"
    body = rng.randbytes(rng.choice((0, 10, 60000)))
    if kind == "exif":
        body = b"Exif\0\0" + rng.choice((b"II*\0\x08\0\0\0", b"MM\0*\0\0\0\x08", b"")) + body
    marker = b"\xff\xe1" if kind == "exif" else b"\xff\xfe"
    return content[:2] + marker + struct.pack(">H", len(body) + 2) + body + content[2:], f"jpeg {kind} put in"


def tiff_changed(rng: Random, content: bytes) -> tuple[bytes, str]:
    """One entry of the first directory changed: its kind, count or value."""
    order = "<" if content[:2] == b"II" else ">"
    (start,) = struct.unpack_from(order + "I", content, 4)
    (count,) = struct.unpack_from(order + "H", content, start)
    entry = start + 2 + 12 * rng.randrange(count)
    (tag,) = struct.unpack_from(order + "H", content, entry)
    data, field = bytearray(content), rng.choice((0, 2, 4, 8, 8, 8))
    small = rng.choice((0, 1, 2, 3, 4, 5, 8, 12, 16, 32, 64, 254, 257, 262, 274, 338, 50706, 65535))
    form = order + ("H" if field < 4 else "I")
    struct.pack_into(form, data, entry + field, small if field < 4 else rng.choice((small, rng.choice(ABSURD) % 2**32)))
    return bytes(data), f"tiff tag {tag} field {field}"


def netpbm_changed(rng: Random, content: bytes) -> tuple[bytes, str]:
    """A word of the header replaced."""
    parts = content.split(maxsplit=4)
    at = rng.randrange(min(4, len(parts) - 1))
    pool = [b"P1", b"P2", b"P3", b"P4", b"P5", b"P6", b"P7", b"Pf", b"PF", b"Py"] if at == 0 else []
    word = rng.choice(pool or [str(rng.choice(ABSURD)).encode(), b"-5", b"#x\n7", b"9" * 60, b"", b"4.5"])
    return content.replace(parts[at], word, 1), f"netpbm word {at} {word[:12]!r}"


def image_changed(rng: Random, ending: str, content: bytes) -> tuple[bytes, str]:
    """Changed as its format allows, or byte by byte."""
    by_format = {"png": png_changed, "jpg": jpeg_changed, "tiff": tiff_changed, "ppm": netpbm_changed}
    by_format["pgm"] = netpbm_changed
    if ending in by_format and rng.random() < 0.6:
        return by_format[ending](rng, content)
    if rng.random() < 0.06:
        return rng.choice(STRANGE), "another content"
    return twice(rng, content)


STRANGE = (
    b"",
    b"\0",
    b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
    b"<!DOCTYPE html><html><body>404</body></html>",
    b"PK\x05\x06" + bytes(18),
    b"\x89HDF\r\n\x1a\n" + bytes(40),
    b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 48\n",
    b"\x1f\x8b\x08" + bytes(30),
    b"\x93NUMPY\x01\0v\0{}" + bytes(120),
)


def seen_by_pillow(path: Path) -> Any:
    """(H, W, 3) uint8 as Pillow alone gives it, upright; None where it refuses, or a mode needs a choice."""
    from PIL import Image, ImageOps

    try:
        with Image.open(path) as image:
            if getattr(image, "n_frames", 1) > 1 and image.format not in ("GIF", "WEBP", "TIFF", "PNG", "AVIF"):
                return None
            image.load()
            return image if image.format == "TIFF" else ImageOps.exif_transpose(image)
    except Exception:
        return None


def images(rng: Random, folder: Path) -> Case:
    """predict of a changed image and a good one."""
    import numpy as np
    from PIL import Image

    ending, content = image_content(rng)
    changed, change = image_changed(rng, ending, content)
    name = f"changed.{rng.choice((ending, ending, ending, 'png', 'jpg', 'tif', 'JPEG'))}"
    (folder / name).write_bytes(changed)
    (folder / "before").write_bytes(content)
    Image.fromarray(_photo(Random(1))).save(folder / "good.png")
    words = rng.choice(([name, "good.png"], ["."]))
    formats = rng.choice(("npy", "npy,depth16", "npy,npz,color", "npy,ply"))
    before, after = seen_by_pillow(folder / "before"), seen_by_pillow(folder / name)
    (folder / "before").unlink()
    same = before is not None and after is not None and before.mode == after.mode and before.size == after.size
    same = same and before.tobytes() == after.tobytes()

    def right(outcome: Outcome) -> str | None:
        good = folder / "out" / "good.npy"
        if not good.exists():
            return "the good image has no result"
        path = folder / "out" / "changed.npy"
        if not path.exists():
            if (
                same
                and before.mode in ("RGB", "L")
                and changed[:16] == content[:16]
                and not re.search("scans|own", change)
            ):
                by_its_tags = re.search("is a camera raw file|its strips hold a part", outcome.err)
                return None if by_its_tags else "refused, though its pixels are whole"
            return None
        depth = np.load(path)
        if not (np.isfinite(depth).all() and (depth >= 0).all() and depth.max() < 1000 and (depth > 0).mean() > 0.99):
            return f"depth from {depth.min()} to {depth.max()}"
        if after is not None and depth.shape != after.size[::-1]:
            return f"depth of {depth.shape} for an image of {after.size[::-1]}"
        if after is not None and after.mode in ("RGB", "L") and "transparency" not in after.info:
            import langdepth

            expected = langdepth.predict(np.asarray(after.convert("RGB")), state["small"]).depth
            if not np.allclose(depth, expected, rtol=1e-4):
                return "another depth than for the same pixels from memory"
        return None

    argv = ["predict", *words, "--system", str(state["small file"]), "--out", "out", "--save", formats]
    return Case(argv, f"{ending}: {change}", right, partly=True)


# --- depth


def _depth_map(rng: Random) -> Any:
    """(H, W) float32 metres with a few unknown pixels."""
    import numpy as np

    depth = np.linspace(1, 6, 64, dtype=np.float32)[None].repeat(48, 0) + np.float32(rng.random())
    depth[:3, :3] = 0
    return depth


NPY_HEADERS: tuple[tuple[str, tuple[Any, ...]], ...] = (
    (
        "descr",
        ("<f4", ">f4", "<f8", "<f2", "|O", "<c8", "<i4", "|u1", "<M8[s]", "|S4", "f99", [("a", "<f4")], 7, "<f16"),
    ),
    ("fortran_order", (True, False, 1, "x", None)),
    ("shape", ((48, 64), (64, 48), (3072,), (1, 48, 64), (48, 64, 1), (), (0, 64), (-1, 64), (2**40, 2**40))),
    ("shape", ((9000, 9000), (48.0, 64), (2**31, 0), (48, 2**62), (10**30, 1), "48", None, [48, 64], (True, 3072))),
)


def npy_of(depth: Any, rng: Random) -> tuple[bytes, str]:
    """An .npy whose header may say something else than its content."""
    facts: dict[str, Any] = {"descr": depth.dtype.str, "fortran_order": False, "shape": depth.shape}
    change = "nothing"
    if rng.random() < 0.7:
        field, values = rng.choice(NPY_HEADERS)
        facts[field] = rng.choice(values)
        change = f"npy {field} {facts[field]!r}"
    header = repr(facts).encode() + b" " * rng.choice((0, 7, 60)) + b"\n"
    version = rng.choice((b"\1\0", b"\1\0", b"\1\0", b"\2\0", b"\3\0", b"\x09\0"))
    size = struct.pack("<H" if version == b"\1\0" else "<I", len(header))
    return b"\x93NUMPY" + version + size + header + depth.tobytes(), change


def absurd_values(depth: Any, rng: Random) -> tuple[Any, str]:
    """Depth of values that cannot be, or hardly."""
    import numpy as np

    depth = depth.copy()
    kind = rng.choice(
        ("nan", "inf", "negative", "huge", "mm", "tiny", "none", "saturated", "f2", "f8", "swapped", "turned")
    )
    part = np.s_[: rng.choice((1, 24, 48))]
    if kind in ("nan", "inf", "huge"):
        depth[part] = {"nan": np.nan, "inf": np.inf, "huge": 1e30}[kind]
    elif kind in ("negative", "none"):
        depth *= -1 if kind == "negative" else 0
    elif kind in ("mm", "tiny"):
        depth *= 1000 if kind == "mm" else 1e-5
    elif kind == "saturated":
        depth[part] = 65.535
    elif kind in ("f2", "f8"):
        depth = depth.astype(f"<{kind}")
    elif kind == "swapped":
        depth = depth.astype(">f4")
    else:
        depth = np.ascontiguousarray(depth.T)
    return depth, kind


def depth_content(rng: Random) -> tuple[str, bytes, str]:
    """(ending, content, change) of a depth map, perhaps absurd, perhaps damaged."""
    import numpy as np
    from PIL import Image

    depth, changes = _depth_map(rng), ""
    if rng.random() < 0.5:
        depth, changes = absurd_values(depth, rng)
    ending = rng.choice(("png", "png", "npy", "npy", "npz", "npz", "tiff", "pgm", "pfm", "exr", "mat"))
    buffer = io.BytesIO()
    if ending == "npy":
        content, change = npy_of(depth, rng)
    elif ending == "npz":
        arrays = rng.choice(
            ({"depth": depth}, {"a": depth}, {"a": depth, "b": depth}, {}, {"depth": depth, "other": np.zeros(9)})
        )
        rng.choice((np.savez, np.savez_compressed))(buffer, **arrays)
        content, change = buffer.getvalue(), f"arrays {', '.join(arrays)}"
    elif ending in ("png", "tiff", "pgm"):
        with np.errstate(all="ignore"):
            stored = np.nan_to_num(depth.astype(np.float64) * 1000, posinf=65535).clip(0, 65535).astype(np.uint16)
        image = Image.fromarray(stored) if rng.random() < 0.9 else Image.fromarray((stored >> 8).astype(np.uint8))
        image.save(buffer, {"png": "PNG", "tiff": "TIFF", "pgm": "PPM"}[ending])
        content, change = buffer.getvalue(), "nothing"
    else:
        content, change = b"Pf\n64 48\n-1.0\n" + depth.astype("<f4").tobytes(), "another kind"
    if rng.random() < 0.55:
        content, more = image_changed(rng, ending, content)
        change += f", {more}"
    return ending, content, f"{changes} {change}".strip()


def independent_depth(path: Path, scale: float) -> Any:
    """(H, W) metres as NumPy or Pillow gives them; None where these refuse."""
    import numpy as np
    from PIL import Image

    try:
        if path.suffix in (".npy", ".npz"):
            content = np.load(path, allow_pickle=False)
            if not isinstance(content, np.ndarray):
                content = content["depth"] if "depth" in content else content[content.files[0]]
            return content.astype(np.float64)
        with Image.open(path) as image:
            return None if image.mode not in ("I;16", "I;16B", "I") else np.asarray(image).astype(np.float64) * scale
    except Exception:
        return None


def write_set(folder: Path, rng: Random, ending: str, content: bytes, **cells: str) -> list[dict[str, str]]:
    """An indexed folder of a good pair and one whose depth has this content."""
    import numpy as np
    from PIL import Image

    folder.mkdir(exist_ok=True)
    rows = []
    for name in ("good", "changed"):
        Image.fromarray(_photo(rng)).save(folder / f"{name}.png")
        rows.append({"path_rgb": f"{name}.png", "path_depth": f"{name}_depth.png", "depth_scale": "0.001"})
    Image.fromarray((1000 * _depth_map(rng)).astype(np.uint16)).save(folder / "good_depth.png")
    (folder / f"changed_depth.{ending}").write_bytes(content)
    rows[1] |= {"path_depth": f"changed_depth.{ending}", **cells}
    write_index(folder, rows)
    return rows


def write_index(folder: Path, rows: Sequence[Mapping[str, str]]) -> None:
    """An index.csv of these rows."""
    with (folder / "index.csv").open("w", newline="", encoding="utf-8", errors="surrogatepass") as file:
        writer = csv.DictWriter(file, list(dict.fromkeys(key for row in rows for key in row)))
        writer.writeheader()
        writer.writerows(rows)


def report_right(path: Path) -> str | None:
    """What is wrong about the numbers of a report."""
    report = json.loads(path.read_text())
    text = json.dumps(report)
    if "NaN" in text or "Infinity" in text:
        return "a report with NaN or infinity"
    return None


def depth_files(rng: Random, folder: Path) -> Case:
    """data check, evaluate or evaluate --predictions with a changed depth map."""
    import numpy as np

    ending, content, change = depth_content(rng)
    way = rng.choice(("check", "evaluate", "evaluate", "predictions", "cache"))
    scale = rng.choice(("0.001",) * 5 + ("1", "1e-9", "0.01", "1e9"))
    if ending in ("npy", "npz") and rng.random() < 0.7:
        scale = "1"
    root = folder / "set"
    write_set(root, rng, ending, content, depth_scale="0.001" if way == "predictions" else scale)
    path = root / f"changed_depth.{ending}"

    def right(outcome: Outcome) -> str | None:
        from langdepth.errors import LangdepthError
        from langdepth.utils.depth_files import read_depth

        if way in ("evaluate", "predictions") and outcome.code == 0:
            wrong = report_right(folder / "out/r.json")
            if wrong:
                return wrong
        try:
            depth = read_depth(path, float(scale))
        except LangdepthError:
            return "accepted, but its depth cannot be read" if way == "check" and outcome.code == 0 else None
        if depth.ndim != 2 or depth.dtype != np.float32 or not (np.isfinite(depth).all() and (depth >= 0).all()):
            return f"depth {depth.shape} {depth.dtype} from {depth.min()} to {depth.max()}"
        other = independent_depth(path, float(scale))
        if other is not None and other.shape == depth.shape:
            other = np.where(np.isfinite(other) & (other > 0) & (other < 3e38), other, 0)
            if not np.allclose(other, depth, rtol=1e-3, atol=1e-4):
                return "depth differs from what NumPy or Pillow reads"
        known = depth[depth > 0]
        odd = not known.size or depth.max() > 4001 or not 0.05 < np.median(known) < 1000 or depth.shape != (48, 64)
        if way == "check" and outcome.code == 0 and odd:
            return "data check finds nothing about depth that cannot be"
        if way == "evaluate" and outcome.code == 0 and known.size and depth.max() > 4001:
            return "evaluated with depth that cannot be"
        return None

    small = ["--system", str(state["small file"])]
    commands = {
        "check": ["data", "check", "set"],
        "evaluate": ["evaluate", "--data", "folder", "--root", "set", "--out", "out/r.json", *small],
        "predictions": [*pool("evaluate --data folder --root set --out out/r.json --predictions maps")],
        "cache": ["data", "cache", "folder", "--root", "set", "--out", "out/cache"],
    }
    if way == "predictions":
        (folder / "maps").mkdir()
        path = folder / "maps" / f"changed.{ending}"
        shutil.copy(root / f"changed_depth.{ending}", path)
        shutil.copy(root / "good_depth.png", folder / "maps/good.png")
        shutil.copy(root / "good_depth.png", root / "changed_depth.png")
        write_index(root, SET)
        if rng.random() < 0.8:
            commands[way] += ["--prediction-scale", scale]
    return Case(commands[way], f"{way} {ending} x {scale}: {change}", right)


def containers(rng: Random, folder: Path) -> Case:
    """HDF5 and MATLAB files of NYU, with the wrong arrays or changed bytes."""
    import h5py
    import numpy as np

    folder.joinpath("set").mkdir()
    path, change = folder / "set/nyu_depth_v2_labeled.mat", "nothing"
    depths = np.stack([_depth_map(rng).T for _ in range(2)])
    photos = np.stack([_photo(rng).transpose(2, 1, 0) for _ in range(2)])
    kind = rng.choice(pool("bytes bytes bytes shape type type missing values values group count none none"))
    if kind == "shape":
        depths = rng.choice((depths[0], depths[None], depths[:, :0], depths[:, :5], depths.transpose(0, 2, 1)))
    elif kind == "type":
        depths = depths.astype(rng.choice(("f8", "i4", "u1", "c8", ">f4", "S3", "?")))
    elif kind == "values":
        depths = np.maximum(depths, 1) * np.float32(rng.choice((np.nan, np.inf, -1, 1e30, 1000, 0)))
    elif kind == "count":
        photos = photos[: rng.randrange(2)]
    with h5py.File(path, "w") as file:
        file["images"] = photos
        if kind == "group":
            file.create_group("depths")
        elif kind != "missing":
            chunks = (
                {"chunks": True, "compression": rng.choice(("gzip", "lzf"))}
                if depths.size and rng.random() < 0.4
                else {}
            )
            file.create_dataset("depths", data=depths, **chunks)
        types = np.array([[ord(c)] for c in "kitchen"], np.uint16)
        file["#refs#/a"] = types
        for name in ("scenes", "sceneTypes"):
            file[name] = np.array([[file["#refs#/a"].ref] * 2], h5py.ref_dtype)
    if kind == "bytes":
        content, change = twice(rng, path.read_bytes())
        path.write_bytes(content)
    if rng.random() < 0.95:
        from scipy.io import savemat

        place = rng.choice((2, 2, 2, 2, 2, 2, 2, 2, 0, 9, 2.5, -1))
        savemat(folder / "set/splits.mat", {"trainNdxs": [[1]], "testNdxs": [[place]]})
        if rng.random() < 0.25:
            content, more = twice(rng, (folder / "set/splits.mat").read_bytes())
            (folder / "set/splits.mat").write_bytes(content)
            change += f"; splits {more}"
    argv = rng.choice(
        (
            ["data", "prepare", "nyu", "--source", "set", "--out", "out"],
            ["data", "prepare", "nyu", "--source", "set/nyu_depth_v2_labeled.mat", "--out", "out"],
            ["data", "check", "nyu", "--root", "set"],
            [*pool("evaluate --data nyu --root set --out out/r.json --protocol full --system"), state["small"]],
            [*pool("evaluate --data nyu --root set --out out/r.json --protocol full --system"), state["small"]],
        )
    )

    def right(outcome: Outcome) -> str | None:
        from langdepth.data.base import open_dataset

        if argv[0] != "evaluate":
            return None
        depth = open_dataset("nyu", folder / "set", "test")[0].depth.numpy().squeeze()
        with h5py.File(path) as file:
            stored = np.asarray(file["depths"][-1]).T.astype(np.float32)
        stored = np.where(np.isfinite(stored) & (stored > 0), stored, 0)
        if depth.shape != stored.shape or not np.allclose(depth, stored, rtol=1e-3, atol=1e-3):
            return "depth differs from what h5py reads"
        return report_right(folder / "out/r.json")

    return Case(argv, f"{kind}: {change}", right)


# --- indexes, lists, captions, cameras


def text_changed(rng: Random, content: bytes) -> tuple[bytes, str]:
    """A text file with other lines, line ends, encodings or bytes."""
    kind = rng.choice(("bytes", "bytes", "encoding", "lines", "quotes", "long", "none"))
    if kind == "bytes":
        return twice(rng, content)
    if kind == "encoding":
        name = rng.choice(("utf-16", "utf-8-sig", "latin-1", "utf-32"))
        return (content.decode(errors="replace") + "é").encode(name, "replace"), name
    if kind == "lines":
        lines = content.splitlines()
        rng.shuffle(lines)
        return rng.choice((b"\r", b"\r\n", b"\n\n", b"", b"\0")).join(lines + lines[:1]), "lines shuffled"
    if kind == "quotes":
        place = rng.randrange(len(content))
        return content[:place] + b'"' + content[place:], f"quote at {place}"
    if kind == "long":
        return content + b"x" * 300_000 + b"\n" + b"," * 3000, "long lines"
    return content, "nothing"


COLUMNS = ("path_rgb", "path_depth", "depth_scale", "scene_type", "text", "width", "height", "fx", "fy", "cx", "cy")
COLUMNS += ("split", "source", "scene", "path_overlay", "path_depth", "depth_scale")


def indexes(rng: Random, folder: Path) -> Case:
    """index.csv with other cells, or as a whole in another shape."""
    import numpy as np
    from PIL import Image

    root, buffer = folder / "set", io.BytesIO()
    Image.fromarray((1000 * _depth_map(rng)).astype(np.uint16)).save(buffer, "PNG")
    camera = {"fx": "60", "fy": "60", "cx": "31.5", "cy": "23.5", "width": "64", "height": "48"}
    extra = {"split": "val", "source": "a", "scene": "b", "scene_type": "kitchen", "text": "a kitchen", **camera}
    rows = write_set(root, rng, "png", buffer.getvalue(), **(extra if rng.random() < 0.7 else {}))
    changes = []
    for _ in range(rng.choice((0, 1, 1, 1, 2))):
        row, column = rng.choice(rows), rng.choice(COLUMNS)
        number = column in ("depth_scale", "width", "height", "fx", "fy", "cx", "cy")
        row[column] = rng.choice(NUMBERS if number and rng.random() < 0.8 else TEXTS)
        changes.append(f"{column}={row[column][:20]!r}")
    write_index(root, rows)
    if rng.random() < 0.35:
        content, change = text_changed(rng, (root / "index.csv").read_bytes())
        (root / "index.csv").write_bytes(content)
        changes.append(change)
    if rng.random() < 0.1:
        name = rng.choice(("changed.png", "changed_depth.png", "index.csv"))
        (root / name).unlink()
        (root / name).symlink_to(rng.choice((name, "/etc/passwd", "good.png", "/dev/zero", "missing")))
        changes.append(f"{name} is a link")
    small = ["--system", str(state["small file"])]
    argv = rng.choice(
        (
            ["data", "check", "set"],
            ["data", "check", "set", "--json"],
            ["data", "show", "set", "--out", "out/sheet.png"],
            ["evaluate", "--data", "folder", "--root", "set", "--out", "out/r.json", *small],
            ["evaluate", "--data", "folder", "--root", "set", "--out", "out/r.json", "--training-focal", "60", *small],
            ["data", "cache", "folder", "--root", "set", "--out", "out/cache"],
        )
    )

    def right(outcome: Outcome) -> str | None:
        if "--json" in argv and outcome.code in (0, 1) and outcome.out:
            json.loads(outcome.out)
        return report_right(folder / "out/r.json") if outcome.code == 0 and argv[0] == "evaluate" else None

    return Case(argv, "; ".join(changes) or "nothing", right)


def lists(rng: Random, folder: Path) -> Case:
    """A list of pairs, captions or their features, or intrinsics."""
    import numpy as np
    from PIL import Image

    kind = rng.choice(("pairs", "pairs", "captions", "captions", "features", "features", "camera", "overlay"))
    root, buffer = folder / "set", io.BytesIO()
    Image.fromarray((1000 * _depth_map(rng)).astype(np.uint16)).save(buffer, "PNG")
    write_set(root, rng, "png", buffer.getvalue())
    small, change = ["--system", str(state["small file"])], ""
    predict = ["predict", "set/good.png", "set/changed.png", "--out", "out", "--save", "npy,ply", *small]
    if kind == "pairs":
        lines = [b"good.png good_depth.png 518.8", b"changed.png changed_depth.png 518.8", b"missing.png None 1"]
        if rng.random() < 0.5:
            pool = [text.encode("utf-8", "surrogatepass") for text in TEXTS]
            lines[1] = b" ".join(rng.choice((part, rng.choice(pool))) for part in lines[1].split())
        content, change = text_changed(rng, b"\n".join(lines))
        (folder / "pairs.txt").write_bytes(content)
        argv = rng.choice(
            (["data", "check", "nyu", "--root", "set"], ["data", "show", "nyu", "--root", "set", "--out", "out/s.png"])
        )
        argv = [*argv, "--list", "pairs.txt"]
    elif kind == "captions":
        content, change = text_changed(
            rng, f"image,caption\ngood,a room\nchanged,{rng.choice(TEXTS)}\n".encode("utf-8", "replace")
        )
        name = rng.choice(("captions.csv", "captions.csv", "captions.csv.gz", "tree"))
        if name == "tree":
            folder.joinpath(name).mkdir()
            folder.joinpath(name, "good.txt").write_bytes(b"a room")
            folder.joinpath(name, "changed.txt").write_bytes(content[20:])
        else:
            packed = name.endswith("gz") and rng.random() < 0.7
            folder.joinpath(name).write_bytes(twice(rng, gzip.compress(content))[0] if packed else content)
        argv = [*predict, "--captions", name]
    elif kind == "features":
        features = np.random.default_rng(rng.randrange(99)).normal(size=(3, 8)).astype(np.float32)
        features /= np.linalg.norm(features, axis=1, keepdims=True)
        arrays: dict[str, Any] = {
            "caption": np.array(["a room", "a street", "a desk"]),
            "feature": features.astype(np.float16),
        }
        key = rng.choice(("caption", "feature"))
        arrays[key] = rng.choice(
            (arrays[key], arrays[key][:2], arrays[key] * 1 if key == "feature" else arrays[key][:0], arrays[key][None])
        )
        if rng.random() < 0.4:
            arrays["feature"] = rng.choice(
                (features * np.nan, features * 9, features.astype("f8"), features.astype(complex))
            )
        np.savez(folder / "features.npz", **arrays)
        if rng.random() < 0.6:
            content, change = twice(rng, (folder / "features.npz").read_bytes())
            (folder / "features.npz").write_bytes(content)
        (folder / "captions.csv").write_text("image,caption\ngood,a room\nchanged,a street\n")
        argv = ["data", "pack-captions", "--text", "captions.csv", "--features", "features.npz", "--out", "out/packed"]
        if rng.random() < 0.4:
            argv = [*predict, "--captions", "captions.csv,features.npz"]
    elif kind == "camera":
        parts = ["60", "60", "31.5", "23.5"]
        for _ in range(rng.choice((0, 1, 2))):
            parts[rng.randrange(4)] = rng.choice(NUMBERS + TEXTS)
        change = rng.choice((",", ",", ", ", " ", ";")).join(parts[: rng.choice((4, 4, 4, 3))])
        argv = (
            [*predict, f"--intrinsics={change}"] if rng.random() < 0.7 else [*predict, f"--fov={rng.choice(NUMBERS)}"]
        )
    else:
        masks = np.zeros((2, 48, 64), bool)
        arrays = {
            rng.choice(("masks", "masks", "x")): rng.choice(
                (masks, masks[0], masks[:, :9], masks.astype("f4"), masks[:0])
            )
        }
        np.savez_compressed(folder / "masks.npz", **arrays)
        content, change = twice(rng, (folder / "masks.npz").read_bytes())
        (root / "masks.npz").write_bytes(content)
        write_index(root, [{**row, "path_overlay": "masks.npz"} for row in SET[:1]])
        argv = ["data", "check", "set"]

    def right(outcome: Outcome) -> str | None:
        for path in sorted((folder / "out").rglob("*.npy")):
            if not np.isfinite(np.load(path).astype(np.float32)).all():
                return f"{path.name} holds numbers that are not finite"
        return None

    return Case(argv, f"{kind}: {change}", right)


# --- recipes and other settings


def nested(kind: str, depth: int) -> str:
    """YAML that is deep, or stands for far more than it holds."""
    if kind == "aliases":
        lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
        lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, depth)]
        return "\n".join(lines)
    if kind == "merge":
        return "a: &a {b: 1}\n" + "\n".join(f"c{i}: &c{i} {{<<: [*a, *a]}}" for i in range(depth))
    if kind == "self":
        return "a: &a [*a]"
    opening, closing = {"list": ("[", "]"), "map": ("{a: ", "}"), "open": ("[", ""), "dash": ("- ", "")}[kind]
    return "a: " + opening * depth * 200 + "1" + closing * depth * 200


TAGS = pool(
    "!!python/object/apply:os.system ['true']|!!timestamp 2020-01-01|!!binary aGk=|!!set {a, b}|!x 1|&a *a", "|"
)
TAGS += pool("!!int x¦!!float .¦2020-01-01¦0o7¦0b2¦.inf¦.nan¦!!null x¦? [1]¦|\n   x¦*missing¦%YAML", "¦")


def yaml_changed(rng: Random, fields: Mapping[str, Any]) -> tuple[bytes, str]:
    """YAML or JSON of the fields, one of them with another value, or another text altogether."""
    import yaml

    kind = rng.choice(("value",) * 6 + ("key", "section", "bytes", "nested", "tag", "twice", "top", "json"))
    fields = json.loads(json.dumps(fields))
    section = rng.choice(list(fields))
    place = fields[section] if isinstance(fields[section], dict) and fields[section] else fields
    key = rng.choice(list(place))
    text = yaml.safe_dump(fields)
    if kind in ("value", "json"):
        pool: list[Any] = [
            *TEXTS[:17],
            None,
            True,
            False,
            -1,
            0,
            1,
            2**63,
            10**400,
            -0.5,
            1e308,
            float("nan"),
            float("inf"),
        ]
        pool += [[], {}, [[]], {"a": 1}, [1, 2, 3], "1e-3", "9" * 500, 0.5, 7, ["a"], {"": None}, 10**30]
        place[key] = rng.choice(pool)
        text = json.dumps(fields) if kind == "json" else yaml.safe_dump(fields)
        return text.encode("utf-8", "surrogatepass"), f"{section}.{key} = {str(place[key])[:30]!r}"
    if kind == "key":
        place[rng.choice((*TEXTS[:20], key + "x", key.upper()))] = place.pop(key)
        return yaml.safe_dump(fields).encode("utf-8", "surrogatepass"), f"key {section}.{key} renamed"
    if kind == "section":
        fields[section] = rng.choice((None, [], "x", 5, [{}], {}))
        return yaml.safe_dump(fields).encode(), f"section {section} = {fields[section]}"
    if kind == "bytes":
        return text_changed(rng, text.encode())
    if kind == "nested":
        form = rng.choice(("aliases", "merge", "self", "list", "map", "open", "dash"))
        return f"{text}\n{nested(form, rng.choice((3, 9, 30)))}\n".encode(), form
    if kind == "tag":
        place[key] = "HERE"
        tag = rng.choice(TAGS)
        return yaml.safe_dump(fields).replace("HERE", tag).encode(), f"{section}.{key}: {tag}"
    if kind == "twice":
        return (text + text).encode(), "everything twice"
    return rng.choice(
        (b"", b"[]", b"5", b"null", b"---\n---\n", b"- a\n- b", b"x", b"\xff\xfe", text.encode() + b"\n...\nx")
    ), "top"


def recipe_fields(rng: Random) -> dict[str, Any]:
    """A recipe of the small system, whose data set is not there unless a case writes it."""
    return {
        "system": {"name": rng.choice(("small", "small", "tiny", "wordepth-tiny")), "options": {}, "weights": None},
        "data": {
            "name": "folder",
            "root": "set",
            "batch_size": 2,
            "workers": 0,
            "val_split": "val",
            "weights": {"a": 1.0},
            "aspects": [1.3],
            "augmentation": {"zoom": 1.2, "flip": 0.5},
            "trust_unit": False,
        },
        "optim": {
            "lr": 1e-3,
            "schedule": "one_cycle",
            "clip": 1.0,
            "betas": [0.9, 0.99],
            "milestones": [],
            "warm_up": 0.1,
        },
        "train": {
            "out": "out/run",
            "epochs": 1,
            "protocol": "full",
            "monitor": "abs_rel",
            "seed": 0,
            "ema": 0.5,
            "licence": "x",
        },
    }


def recipes(rng: Random, folder: Path) -> Case:
    """A recipe, a matrix or a prompt set with other values."""
    kind = rng.choice(("train",) * 5 + ("matrix", "matrix", "prompts", "prompts", "override"))
    if kind == "train":
        fields = recipe_fields(rng)
        content, change = yaml_changed(rng, fields)
        (folder / "recipe.yaml").write_bytes(content)
        if rng.random() < 0.6 and b"epochs: 1" in content and b"name: small" in content and b"batch_size: 2" in content:
            _plain_set(folder, rng)
            write_index(folder / "set", [{**SET[0], "split": "train", "source": "a"}, {**SET[1], "split": "val"}])
        return Case(["train", "--config", "recipe.yaml"], change)
    if kind == "override":
        import yaml

        (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe_fields(rng)))
        section, key = rng.choice(
            (("optim", "lr"), ("train", "seed"), ("data", "root"), ("system", "name"), ("train", "epochs"))
        )
        value = rng.choice(TEXTS + NUMBERS + TAGS + ("[" * 3000, "{" * 90, "{a: 1}", nested("aliases", 9)))
        flag = f"--{rng.choice((section, section, '', 'x', section + '.a'))}.{rng.choice((key, key, '', 'x y', 'é'))}"
        argv = [flag, value] if rng.random() < 0.5 else [f"{flag}={value}"]
        return Case(["train", "--config", "recipe.yaml", *argv], f"{flag} {value[:30]!r}")
    if kind == "matrix":
        fields = {
            "data": [{"root": "set", "data": "folder", "protocols": ["full"], "limit": 1, "name": "s"}],
            "systems": [{"system": str(state["small file"]), "name": "a"}],
        }
        record = rng.choice(list(fields))
        content, change = yaml_changed(rng, {"x": fields[record][0]})
        text = content.decode("utf-8", "replace")
        if rng.random() < 0.7 and text.startswith("x:"):
            import yaml

            fields.pop(record)
            content = (yaml.safe_dump(fields) + text.replace("x:", f"{record}:\n-", 1)).encode()
        else:
            content, change = yaml_changed(rng, fields)
        (folder / "matrix.yaml").write_bytes(content)
        if rng.random() < 0.5:
            _plain_set(folder, rng)
        return Case(["benchmark", "matrix.yaml", "--out", "out"], f"matrix {record}: {change}")
    fields = {
        "words": ["near", "far"],
        "bin_centers": [1.0, 5.0],
        "templates": ["an object {}"],
        "scenes": {"kitchen": {"bin_centers": [1, 2]}},
    }
    content, change = yaml_changed(rng, fields)
    (folder / "prompts.yaml").write_bytes(content)
    _plain_set(folder, rng)
    argv = [*pool("predict set/good.png --system depthclip --clip-weights missing.pt --prompts prompts.yaml --out out")]
    return Case(argv, f"prompts: {change}")


SET = [
    {"path_rgb": f"{name}.png", "path_depth": f"{name}_depth.png", "depth_scale": "0.001"}
    for name in ("good", "changed")
]


def _plain_set(folder: Path, rng: Random) -> None:
    import numpy as np
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray((1000 * _depth_map(rng)).astype(np.uint16)).save(buffer, "PNG")
    write_set(folder / "set", rng, "png", buffer.getvalue())


# --- weights


def safetensors_parts(content: bytes) -> tuple[dict[str, Any], bytes]:
    """Header and tensors' bytes."""
    size = int.from_bytes(content[:8], "little")
    return json.loads(content[8 : 8 + size]), content[8 + size :]


def safetensors_of(header: Any, body: bytes) -> bytes:
    """A file whose header need not fit its body."""
    text = json.dumps(header).encode("utf-8", "surrogatepass")
    return len(text).to_bytes(8, "little") + text + body


def weights_changed(rng: Random, content: bytes) -> tuple[bytes, str]:
    """A weights file with another header, metadata, configuration or tensors."""
    header, body = safetensors_parts(content)
    name = rng.choice([key for key in header if key != "__metadata__"])
    kind = rng.choice(
        ("bytes", "values", "values", "tensor", "tensor", "metadata", "config", "config", "provenance", "lost")
    )
    if kind == "bytes":
        return twice(rng, content)
    if kind == "values":
        floats = {"F32": "<f", "F16": "<e"}
        name = rng.choice([key for key in header if key != "__metadata__" and header[key]["dtype"] in floats])
        start, end = header[name]["data_offsets"]
        form, size = floats[header[name]["dtype"]], 4 if header[name]["dtype"] == "F32" else 2
        value = rng.choice(
            (float("nan"), float("inf"), float("-inf"), 6e4, -6e4, 3e38 if size == 4 else 1.0, 0.0, 1e-40)
        )
        many = rng.random() < 0.3
        at = start if many else start + size * rng.randrange(max(1, (end - start) // size))
        new = struct.pack(form, value) * ((end - start) // size if many else 1)
        return safetensors_of(
            header, body[:at] + new + body[at + len(new) :]
        ), f"{name} {'=' if many else 'has'} {value}"
    if kind == "tensor":
        field = rng.choice(("dtype", "shape", "data_offsets"))
        pools: dict[str, tuple[Any, ...]] = {
            "dtype": ("F16", "BF16", "F64", "I64", "I32", "U8", "BOOL", "F8_E4M3", "F4", "C64", "x", 5, None),
            "shape": (
                [],
                [0],
                [-1],
                [2**40, 2**40],
                [2**63],
                [1, 1, 1, 1, 1],
                "x",
                None,
                [1.5],
                header[name]["shape"][::-1],
            ),
            "data_offsets": (
                [0, 0],
                [4, 0],
                [0, 2**62],
                [-1, 3],
                [0],
                None,
                [0, len(body)],
                [len(body), len(body) + 4],
            ),
        }
        header[name][field] = rng.choice(pools[field])
        return safetensors_of(header, body), f"{name} {field} {header[name][field]}"
    if kind == "lost":
        other = rng.choice(("extra", "gone", "renamed"))
        if other == "extra":
            header[rng.choice(TEXTS)] = {"dtype": "F32", "shape": [1], "data_offsets": [len(body), len(body) + 4]}
            body += struct.pack("<f", 1)
        else:
            entry = header.pop(name)
            if other == "renamed":
                header[name + rng.choice(TEXTS)] = entry
        return safetensors_of(header, body), f"{name} {other}"
    metadata = header["__metadata__"]
    if kind == "metadata":
        key = rng.choice(("format", "system", "langdepth_version", "licence", "config", "provenance"))
        metadata[key] = rng.choice(
            (*TEXTS, *NUMBERS, "tiny", "depthclip", "langdepth/2", 5, None, {}, "{" * 5000, "[1]")
        )
        if rng.random() < 0.2:
            header["__metadata__"] = rng.choice((None, [], 5, {}, {"format": 1}))
        return safetensors_of(header, body), f"metadata {key} {str(metadata[key])[:20]!r}"
    fields = json.loads(metadata[kind])
    values: list[Any] = [*ABSURD, -1, 0.5, 1e308, None, True, [], {}, *TEXTS[:9], [1, 2], "1e9", 10**400]
    key = rng.choice([*fields, "unknown"])
    fields[key] = rng.choice(values)
    metadata[kind] = json.dumps(fields) if rng.random() < 0.9 else json.dumps(fields).replace(":", ": NaN,", 1)
    return safetensors_of(header, body), f"{kind}.{key} {str(fields[key])[:30]!r}"


def weights(rng: Random, folder: Path) -> Case:
    """predict with changed weights of the small system or of tiny."""
    from PIL import Image

    base = state[rng.choice(("small file",) * 5 + ("tiny file",))]
    changed, change = weights_changed(rng, base.read_bytes())
    (folder / "w.safetensors").write_bytes(changed)
    Image.fromarray(_photo(Random(1))).save(folder / "good.png")

    def right(outcome: Outcome) -> str | None:
        import numpy as np
        import torch
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        import langdepth

        depth = np.load(folder / "out/good.npy")
        if not (np.isfinite(depth).all() and (depth >= 0).all()):
            return f"depth from {depth.min()} to {depth.max()}"
        try:
            stated = load_file(folder / "w.safetensors")
        except SafetensorError:
            return "loaded, though the library of the format refuses it"
        loaded = langdepth.load(folder / "w.safetensors").state_dict()
        if set(loaded) != set(stated) or any(
            not torch.equal(loaded[key], stated[key].to(loaded[key].dtype)) for key in stated
        ):
            return "what is loaded is not what the file holds"
        if not all(value.float().isfinite().all() for value in stated.values()):
            return "tensors that are not finite are loaded"
        return None

    argv = rng.choice((["predict", "good.png", "--system", "w.safetensors", "--out", "out", "--save", "npy"],))
    return Case(argv, f"{base.name}: {change}", right)


def checkpoints(rng: Random, folder: Path) -> Case:
    """convert of changed checkpoints of torch.save."""
    import numpy as np
    import torch

    tensors: dict[Any, Any] = dict(state["small system"].state_dict())
    key = rng.choice([name for name, value in tensors.items() if value.is_floating_point()])
    kind = rng.choice(("bytes", "bytes", "zip", "value", "value", "wrap", "wrap", "object", "name", "legacy"))
    change = kind
    content: Any = tensors
    if kind == "value":
        value = tensors[key]
        made: dict[str, Callable[[], Any]] = {
            "nan": lambda: value * torch.nan,
            "sparse": lambda: value.to_sparse(),
            "meta": lambda: value.to("meta"),
            "half": lambda: value.half(),
            "complex": lambda: value.to(torch.complex64),
            "expanded": lambda: torch.zeros(1).expand(100_000, 100_000),
            "parameter": lambda: torch.nn.Parameter(value),
            "array": lambda: value.numpy(),
            "list": lambda: value.tolist(),
            "none": lambda: None,
            "shape": lambda: value[None],
            "int": lambda: value.long(),
            "bool": lambda: value > 0,
            "scalar": lambda: 1.0,
            "strided": lambda: value.flip(0),
            "float8": lambda: value.to(torch.float8_e4m3fn),
        }
        change = rng.choice(list(made))
        tensors[key] = made[change]()
    elif kind == "wrap":
        change = rng.choice(
            ("state_dict", "model", "model_state_dict", "module.", "_orig_mod.module.", "net", "list", "lightning")
        )
        if change.endswith("."):
            content = {change + name: value for name, value in tensors.items()}
        elif change == "list":
            content = [tensors]
        elif change == "lightning":
            content = {
                "state_dict": tensors,
                "epoch": np.int64(3),
                "loops": {},
                "hyper_parameters": argparse.Namespace(a=1),
            }
        else:
            content = {change: tensors}
    elif kind == "name":
        tensors[rng.choice((*TEXTS, 5, None, ("a",), b"x", True))] = tensors.pop(key)
        change = f"{key} renamed"
    elif kind == "object":
        change = rng.choice(("function", "class", "exception", "lambda", "device", "set"))
        odd: dict[str, Any] = {"function": os.getcwd, "class": Path, "exception": ValueError("x"), "set": {1, 2}}
        odd |= {"lambda": re.compile("x"), "device": torch.device("cpu")}
        content = {"state_dict": tensors, "extra": odd[change]}
    path = folder / rng.choice(("c.pth", "c.pth", "c.pt", "c.ckpt", "c.bin", "c.safetensors", "c"))
    torch.save(content, path, _use_new_zipfile_serialization=kind != "legacy")
    if kind in ("bytes", "legacy"):
        changed, change = twice(rng, path.read_bytes())
        path.write_bytes(changed)
    elif kind == "zip":
        changed, change = _zip_changed(rng, path.read_bytes())
        path.write_bytes(changed)

    def right(outcome: Outcome) -> str | None:
        from safetensors.torch import load_file

        stored = load_file(folder / "out/w.safetensors")
        if not all(value.float().isfinite().all() for value in stored.values()):
            return "tensors that are not finite are written"
        return None

    return Case(["convert", path.name, "--system", "small", "--out", "out/w.safetensors"], f"{kind}: {change}", right)


def _zip_changed(rng: Random, content: bytes) -> tuple[bytes, str]:
    """A zip file with a member's content changed and right checksums, without one, or with another one twice."""
    out = io.BytesIO()
    kind = rng.choice(("content", "content", "gone", "huge", "order"))
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(out, "w") as new:
        names = old.namelist()
        chosen = rng.choice(names)
        for name in names if kind != "order" else reversed(names):
            data = old.read(name)
            if name == chosen and kind == "content":
                data, _ = twice(rng, data)
            elif name == chosen and kind == "huge":
                new.writestr(name, data + bytes(30_000_000), zipfile.ZIP_DEFLATED)
                continue
            if name != chosen or kind != "gone":
                new.writestr(name, data)
    return out.getvalue(), f"member {chosen} {kind}"


# --- archives


NAMES = pool("a.png|b/c.png|../up.png|/tmp/langdepth-mutation|a/../../up|a\\b.png|C:\\x.png||.|..|a/", "|")
NAMES += (
    "x" * 300,
    "d/" * 120 + "e",
    "a/" * 1800 + "b",
    "é.png",
    "\udcff.png",
    "a\nb",
    "a\0b",
    "index.csv",
    "con",
    "a.png/b",
    " ",
)
NAMES += pool(".langdepth-incomplete langdepth-manifest.csv __MACOSX/x ./a.png a//b - \x1b[31m .x.partial A.PNG")


def archive_content(rng: Random) -> tuple[str, bytes, str]:
    """(ending, content, change) of an archive of a few members, some of them hostile."""
    ending = rng.choice(("zip", "zip", "tar", "tar.gz", "tgz", "tar.bz2", "tar.xz"))
    index = b"path_rgb,path_depth,depth_scale\n0.png,1.png,0.001\n"
    members: list[tuple[str, bytes, str]] = [("set/index.csv", index, "file")]
    members += [(f"set/{i}.png", rng.randbytes(rng.choice((0, 50, 3000))), "file") for i in range(3)]
    changes = []
    for _ in range(rng.choice((0, 1, 1, 2))):
        kind = rng.choice(("file", "file", "file", "link", "hard link", "device", "pipe", "folder", "sparse", "bomb"))
        name = rng.choice(NAMES)
        members.insert(rng.randrange(len(members) + 1), (name, b"x" * 20, kind))
        changes.append(f"{kind} {name[:20]!r}")
    buffer = io.BytesIO()
    if ending == "zip":
        with zipfile.ZipFile(buffer, "w") as archive:
            for name, content, kind in members:
                info = zipfile.ZipInfo(name.replace("\udcff", "\xff") or "x")
                modes = {"link": 0o120777, "device": 0o060666, "pipe": 0o010666, "folder": 0o040777}
                info.external_attr = modes.get(kind, 0o100644) << 16
                info.compress_type = rng.choice((0, 8, 12, 14))
                with suppress(ValueError):
                    archive.writestr(
                        info, bytes(40_000_000) if kind == "bomb" else b"/etc/passwd" if kind == "link" else content
                    )
    else:
        mode: Any = {"tar": "w", "tar.gz": "w:gz", "tgz": "w:gz", "tar.bz2": "w:bz2", "tar.xz": "w:xz"}[ending]
        form = rng.choice((tarfile.GNU_FORMAT, tarfile.PAX_FORMAT, tarfile.USTAR_FORMAT))
        kinds = {"link": b"2", "hard link": b"1", "device": b"4", "pipe": b"6", "folder": b"5", "sparse": b"S"}
        with tarfile.open(fileobj=buffer, mode=mode, format=form) as archive:
            for name, content, kind in members:
                info = tarfile.TarInfo(name)
                info.type = kinds.get(kind, b"0")
                info.linkname = rng.choice(("/etc/passwd", "../up", "set/0.png", "")) if "link" in kind else ""
                content = bytes(40_000_000) if kind == "bomb" else content
                info.size = len(content) if kind in ("file", "bomb") else 0
                if rng.random() < 0.1:
                    info.pax_headers = {
                        rng.choice(("path", "size", "mtime", "GNU.sparse.map", "x")): rng.choice(NUMBERS + TEXTS)
                    }
                with suppress(ValueError, UnicodeError):
                    archive.addfile(info, io.BytesIO(content))
    content, change = buffer.getvalue(), ", ".join(changes) or "nothing"
    if rng.random() < 0.5:
        content, more = twice(rng, content)
        change += f"; {more}"
    if rng.random() < 0.08:
        ending = rng.choice(("zip", "tar", "tar.gz", "tar.xz", "rar", "7z"))
    return ending, content, change


def archives(rng: Random, folder: Path) -> Case:
    """data prepare from a hostile archive, at times twice."""
    ending, content, change = archive_content(rng)
    folder.joinpath("source").mkdir()
    name = f"a.{ending}"
    (folder / "source" / name).write_bytes(content)
    if rng.random() < 0.1:
        (folder / "out/target").mkdir(parents=True)
        (folder / "out/target/langdepth-manifest.csv").write_bytes(
            twice(rng, b"set/0.png,5," + b"0" * 64 + b",a 1 2\n")[0]
        )
        (folder / "out/target/.langdepth-incomplete").touch()
    source = rng.choice((f"source/{name}", f"source/{name}", "source"))
    argv = ["data", "prepare", rng.choice(("folder", "folder", "nyu", "diode-indoor")), "--source", source]

    def right(outcome: Outcome) -> str | None:
        from langdepth.data.tools.prepare import read_manifest

        root = folder / "out/target"
        known = read_manifest(root)
        files = {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file() and not path.is_symlink()}
        files -= {"langdepth-manifest.csv", ".langdepth-incomplete", ".langdepth-lock"}
        if any(path.is_symlink() for path in root.rglob("*")):
            return "a link was unpacked"
        if files != set(known):
            return f"files and manifest differ: {sorted(files ^ set(known))[:3]}"
        return None

    return Case([*argv, "--out", "out/target"], f"{ending}: {change}", right)


# --- what the commands wrote


def json_changed(rng: Random, content: bytes) -> tuple[bytes, str]:
    """JSON with another value, or without one, at some place of one of its lines; or with changed bytes."""
    if rng.random() < 0.3:
        return text_changed(rng, content)
    whole = b"\n{" not in content.lstrip(b"{")
    lines = [content] if whole else content.splitlines()
    at = rng.randrange(len(lines))
    fields = json.loads(lines[at])
    place, path = fields, ""
    while isinstance(place, dict | list) and place:
        key = rng.choice(list(place) if isinstance(place, dict) else range(len(place)))
        path += f".{key}"
        if not isinstance(place[key], dict | list) or not place[key] or rng.random() < 0.2:
            break
        place = place[key]
    if rng.random() < 0.2:
        del place[key]
        path += " gone"
    else:
        place[key] = rng.choice(
            (None, True, -1, 0, 2**70, 1e308, float("nan"), [], {}, "x", "../../up", "\0", 0.5, [[1]])
        )
        path += f" = {place[key]!r}"
    lines[at] = json.dumps(fields).encode()
    return b"\n".join(lines), path


def own_files(rng: Random, folder: Path) -> Case:
    """A file that a command wrote, changed before the next one reads it."""
    import yaml

    shutil.copytree(state["own"], folder, dirs_exist_ok=True)
    small = ["--system", state["small"]]
    commands = {
        "cache": rng.choice(
            (
                ["evaluate", "--data", "cache", "--root", "out/cache", "--out", "out/r.json", *small],
                [*pool("data check cache --root out/cache")],
            )
        ),
        "matrix": [*pool("benchmark matrix.yaml --out out/matrix")],
        "run": [*pool("train --config out/run/recipe.yaml --resume --train.max_steps=-1")],
        "packed": [*pool("predict set/good.png --captions out/packed --out out/depth --save npy"), *small],
    }
    kind = rng.choice(("cache", "cache", "matrix", "matrix", "run", "packed"))
    seldom = (".png", ".jpg", ".md", ".html", ".csv", ".u8", ".u16")
    files = [path for path in sorted((folder / "out" / kind).rglob("*")) if path.is_file() and path.stat().st_size]
    files = [path for path in files if path.name != "matrix.json" and "tensorboard" not in path.parts]
    path = rng.choice([path for path in files if path.suffix not in seldom or kind == "packed" or rng.random() < 0.1])
    content = path.read_bytes()
    if rng.random() < 0.04:
        path.unlink()
        change = "gone"
    elif path.suffix in (".json", ".jsonl"):
        changed, change = json_changed(rng, content)
        path.write_bytes(changed)
    elif path.suffix == ".yaml":
        changed, change = yaml_changed(rng, yaml.safe_load(content))
        path.write_bytes(changed.replace(b"epochs: 1", b"epochs: 2"))
    elif path.suffix == ".safetensors":
        changed, change = weights_changed(rng, content)
        path.write_bytes(changed)
    elif path.suffix == ".ckpt" and rng.random() < 0.5:
        changed, change = _zip_changed(rng, content)
        path.write_bytes(changed)
    else:
        changed, change = twice(rng, content)
        path.write_bytes(changed)

    def right(outcome: Outcome) -> str | None:
        import numpy as np

        from langdepth.errors import LangdepthError
        from langdepth.utils.tensors import read_safetensors, require_finite

        if (folder / "out/r.json").exists():
            return report_right(folder / "out/r.json")
        if kind == "run":
            try:
                for weights_file in sorted((folder / "out/run").rglob("*.safetensors")):
                    require_finite(read_safetensors(weights_file)[1], weights_file)
            except LangdepthError as error:
                return str(error) if weights_file != path else None
        if kind == "matrix" and re.search("nan|inf", (folder / "out/matrix/matrix.md").read_text().split("## ")[-1]):
            return "a table with numbers that are not finite"
        if kind == "packed" and not np.isfinite(np.load(folder / "out/depth/good.npy")).all():
            return "depth that is not finite"
        return None

    return Case(commands[kind], f"{path.relative_to(folder)}: {change}", right)


# --- command lines


OPTIONS: dict[str, tuple[list[str], tuple[str, ...]]] = {
    "predict": (
        ["good.png", "--system", "SMALL"],
        pool(
            "--save --range --colormap --intrinsics --fov --window --stride --samples --spread --seed "
            "--device --dtype --batch-size --text --scene --words --bins --prompts --captions "
            "--without-caption --overlay --system --clip-weights --flip --resume --unknown"
        ),
    ),
    "imagine": (
        ["a room"],
        ("--samples", "--seed", "--size", "--save", "--range", "--colormap", "--fov", "--intrinsics", "--device"),
    ),
    "evaluate": (
        ["--root", "set", "--out", "out/r.json", "--system", "SMALL"],
        pool(
            "--save --range --data --split --list --source --limit --protocol --flip --alignment --frame "
            "--crop --window --stride --resize --training-focal --min-depth --max-depth --min-pixels "
            "--predictions --prediction-scale --depth-kind --batch-size --truth-root --overlay"
        ),
    ),
    "data check": (["set"], ("--split", "--list", "--truth-root", "--root", "--json")),
    "data show": (["set", "--out", "out/s.png"], ("--count", "--split", "--list", "--root")),
    "data sample": (
        ["out/sample", "--count", "2", "--height", "48", "--width", "64"],
        ("--seed", "--height", "--width", "--count"),
    ),
    "data cache": (["folder", "--root", "set", "--out", "out/c"], ("--split", "--frame", "--list", "--trust-unit")),
    "systems": (["show"], ("", "--x")),
    "protocols": (["show"], ("", "--x")),
    "scenes": (["list"], ("--templates", "--architecture", "")),
    "convert": (
        ["good.png", "--system", "small", "--out", "out/w.safetensors"],
        ("--system", "--licence", "--options.width", "--options.x"),
    ),
    "train": (["--config", "missing.yaml"], ("--resume", "--config", "--optim.lr")),
    "benchmark": (["missing.yaml", "--out", "out"], ("--dtype", "--batch-size")),
}
CHEAP = pool("--samples --size --count --height --width --window --batch-size")  # what may rightly take long
WORDS = pool("npy npy,npy depth16, , 0,10 10,0 nan,1 0,inf kitchen train garg 32x32 0x0 1x1")
WORDS += pool("99999x99999 32x x -1x5 cuda cuda:99 cpu meta mps float16 bfloat16 median 60,60,31,23 full")
WORDS += ("set", "good.png", "out", "missing", "missing.yaml", "a,b", "near=far", "viridis", "magma_r", "1,2", "2,1")


VALID = {  # values that may be accepted, most of them at an edge
    "--save": "npy npz,ply color depth16,kitti16 npy,npz,depth16",
    "--range": "0,10 0,1e9 1e-9,1e-8 9,9.0001",
    "--colormap": "gray magma_r tab20",
    "--intrinsics": "60,60,31.5,23.5 1800,1800,0,0 9,9,63,47",
    "--fov": "2 150 60.5 149.999",
    "--window": "64x64 32x32 48x64 512x512",
    "--stride": "16x16 1x64 512x512",
    "--spread": "0 1 0.5 1e-9",
    "--seed": "0 9223372036854775807 1",
    "--dtype": "bfloat16 float32",
    "--batch-size": "1 64 4096",
    "--text": "null # ~ a",
    "--size": "32x32 64x48",
    "--data": "folder nyu cache",
    "--protocol": "full nyu-eigen kitti-eigen-garg ddad hypersim",
    "--flip": "true false",
    "--alignment": "none median least_squares disparity",
    "--frame": "stored kb kb-pasted nyu-inner",
    "--crop": "none eigen-nyu garg eigen-kitti eigen-nyu-inner",
    "--resize": "system bilinear bilinear-aligned bilinear-twice",
    "--training-focal": "60 1e-9 1e9",
    "--min-depth": "0 1e-9 3 1e9",
    "--max-depth": "3 1e9 1e-9 1e300",
    "--min-pixels": "0 1 3072 9999999",
    "--limit": "1 2 9999999",
    "--depth-kind": "metric relative disparity",
    "--prediction-scale": "0.001 1 1e-9",
    "--predictions": "set out",
    "--count": "2 3 9",
    "--height": "32 48",
    "--width": "32 64",
    "--list": "good.png missing set/index.csv",
    "--templates": "photo imagenet",
    "": "tiny wordepth-tiny full nyu-eigen depthclip",
}


def command_lines(rng: Random, folder: Path) -> Case:
    """A command with an option whose value is absurd, at the wrong place, or lacks."""
    from PIL import Image

    command = rng.choice(list(OPTIONS))
    plain, options = OPTIONS[command]
    Image.fromarray(_photo(Random(1))).save(folder / "good.png")
    if "set" in plain or rng.random() < 0.2:
        _plain_set(folder, rng)
    words = [str(state["small file"]) if word == "SMALL" else word for word in plain]
    if command == "predict":
        words += ["--out", "out"]
    if command == "imagine":
        words += ["--out", "out", "--samples", "1", "--save", "npy"]
    for _ in range(rng.choice((1, 1, 1, 2))):
        option = rng.choice(options)
        values = WORDS + TEXTS + NUMBERS
        if option in CHEAP:
            values = tuple(
                text
                for text in values
                if not text[:1].isdigit() or len(text) > 12 or text in ("0", "1", "3", "32x32", "0x0")
            )
        value = rng.choice(values).replace("\0", "")
        if option in VALID and rng.random() < 0.6:
            value = rng.choice(VALID[option].split())
        words += rng.choice(([option, value], [f"{option}={value}"], [option, value], [option])) if option else [value]
    if rng.random() < 0.08:
        rng.shuffle(words)
    words = [word.encode("utf-8", "replace").decode() for word in words]

    def right(outcome: Outcome) -> str | None:
        import numpy as np

        for path in sorted((folder / "out").rglob("*.npy")):
            if path.parent.name != "c" and not np.isfinite(np.load(path).astype(np.float32)).all():
                return f"{path.name} holds numbers that are not finite"
        return report_right(folder / "out/r.json") if (folder / "out/r.json").exists() else None

    return Case([*command.split(), *words], " ".join(words)[:200], right)


# --- videos


CODECS = {
    "mp4": ("libx264", "mpeg4", "mpeg4"),
    "mov": ("libx264", "mjpeg", "png"),
    "mkv": ("ffv1", "libx264", "mpeg4"),
    "webm": ("libvpx",),
    "avi": ("mpeg4", "mjpeg", "rawvideo"),
    "ts": ("mpeg2video", "libx264"),
}
PIXELS = {"mjpeg": "yuvj420p", "png": "rgb24", "rawvideo": "yuv420p"}
BOXES = pool("moov trak mdia minf stbl edts udta dinf")  # of MP4, that hold boxes


def clip_content(rng: Random, folder: Path) -> tuple[str, bytes, str]:
    """(ending, content, what it is) of a short clip in a container that is read."""
    import av
    import numpy as np

    ending = rng.choice(("mp4", "mp4", "mov", "mkv", "avi", "ts", *CODECS))
    codec, path = rng.choice(CODECS[ending]), folder / f"made.{ending}"
    count, rate = rng.choice((1, 2, 5, 8)), rng.choice((1, 10, 25, 25, 30, 1000))
    height, width = rng.choice(((48, 64), (48, 64), (64, 48), (50, 66), (32, 32)))
    if codec in ("ffv1", "png") and rng.random() < 0.3:
        height, width = height + 1, width + 1
    photo, comment = _photo(rng, height, width), rng.choice(("", "", "a\nb", "é", "x" * 3000))
    with av.open(str(path), "w", format="matroska" if ending == "mkv" else None) as container:
        container.metadata["comment"] = comment
        rate = 25 if codec == "mpeg2video" else rate  # which knows few
        stream = container.add_stream(codec, rate=rate, options={"deadline": "realtime"} if codec == "libvpx" else {})
        stream.width, stream.height, stream.pix_fmt = width, height, PIXELS.get(codec, "yuv420p")
        sound = (
            container.add_stream("pcm_s16le", rate=8000)
            if ending in ("mov", "mkv", "avi") and rng.random() < 0.3
            else None
        )
        if ending in ("mp4", "mov") and rng.random() < 0.3:
            stream.set_display_rotation(rng.choice((90, 180, 270, 45)))
        place = 0
        for number in range(count):
            frame = av.VideoFrame.from_ndarray(np.roll(photo, number, 1), format="rgb24")
            place += 1 if rng.random() < 0.9 else 1000
            frame.pts = place
            container.mux(stream.encode(frame))
            if sound is not None:
                heard = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), format="s16", layout="mono")
                heard.rate, heard.pts = 8000, 800 * number
                container.mux(sound.encode(heard))
        for one in (stream, *([] if sound is None else [sound])):
            container.mux(one.encode())
    content = path.read_bytes()
    path.unlink()
    return ending, content, f"{count} frames of {width}x{height}, {codec}"


def boxes_of(content: bytes) -> list[list[Any]]:
    """Name and content, or boxes, of each box of MP4."""
    found, place = [], 0
    while place + 8 <= len(content):
        size, name = int.from_bytes(content[place : place + 4], "big"), content[place + 4 : place + 8]
        end = place + size if size >= 8 else len(content)
        body = content[place + 8 : end]
        found.append([name, boxes_of(body) if name.decode("latin-1") in BOXES else body])
        place = end
    return found


def boxes_to(boxes: Sequence[Sequence[Any]]) -> bytes:
    """The content of boxes, with sizes that fit."""
    bodies = [(name, boxes_to(body) if isinstance(body, list) else body) for name, body in boxes]
    return b"".join(struct.pack(">I", len(body) + 8) + name + body for name, body in bodies)


def boxes_changed(rng: Random, content: bytes) -> tuple[bytes, str]:
    """A box of MP4 with another number in it, without one, twice, or of another name; sizes fit."""
    tree = boxes_of(content)
    siblings = tree
    while True:
        at = rng.randrange(len(siblings))
        name, body = siblings[at]
        if not isinstance(body, list) or not body or rng.random() < 0.05:
            break
        siblings = body
    kind = rng.choice(("number",) * 6 + ("bytes", "drop", "double", "name", "cut"))
    if isinstance(body, list) and kind in ("number", "bytes", "cut"):
        kind = "drop"
    if kind == "number" and len(body) >= 4:
        form = rng.choice((">H", ">I", ">I", ">Q"))
        place = rng.randrange(0, max(1, min(len(body) - struct.calcsize(form) + 1, 120)), 2)
        number = rng.choice(ABSURD) % (1 << 8 * struct.calcsize(form))
        siblings[at][1] = body[:place] + struct.pack(form, number) + body[place + struct.calcsize(form) :]
        kind += f" {number} at {place}"
    elif kind == "bytes" and body:
        siblings[at][1] = twice(rng, body)[0]
    elif kind == "drop":
        del siblings[at]
    elif kind == "double":
        siblings.insert(at, siblings[at])
    elif kind == "name":
        siblings[at][0] = rng.choice((b"free", b"mdat", b"moov", b"trak", b"xxxx", b"\0\0\0\0"))
    else:
        siblings[at][1] = body[: rng.randrange(len(body) + 1)]
    return boxes_to(tree), f"box {name.decode('latin-1')} {kind}"


def clip_changed(rng: Random, ending: str, content: bytes) -> tuple[bytes, str]:
    """A clip with other boxes, other packets of a transport stream, or changed bytes; at times as it is."""
    kind = rng.random()
    if kind < 0.12:
        return content, "nothing"
    if ending in ("mp4", "mov") and kind < 0.65:
        return boxes_changed(rng, content)
    if ending == "ts" and kind < 0.4:
        packets = [content[at : at + 188] for at in range(0, len(content), 188)]
        at, length = rng.randrange(len(packets)), rng.choice((1, 1, 3, 20))
        how = rng.choice(("drop", "double", "shuffle", "again"))
        if how == "shuffle":
            rng.shuffle(packets)
        else:
            part = packets[at : at + length]
            packets[at : at + length] = {"drop": [], "double": part * 2, "again": packets}[how]
        return b"".join(packets), f"packets {how} at {at}"
    if kind > 0.97:
        return rng.choice(
            (*STRANGE, content[:40], b"ftyp" + content, b"\0\0\0\x18ftypmp42" + bytes(20))
        ), "another content"
    return twice(rng, content)


def decoded(path: Path) -> list[Any] | None:
    """(H, W, 3) of the frames that FFmpeg alone gives of a whole file; None where it complains, or turns them."""
    import av

    try:
        with av.open(str(path)) as container:
            frames = list(container.decode(video=0))
        return (
            None if any(frame.rotation for frame in frames) else [frame.to_ndarray(format="rgb24") for frame in frames]
        )
    except Exception:
        return None


def clip_flaw(folder: Path) -> str | None:
    """What is wrong about the depth maps of the frames in a folder, and their times."""
    import numpy as np

    if not (folder / "frames.csv").exists():
        return None
    rows = list(csv.reader((folder / "frames.csv").open(newline="")))[1:]
    maps = sorted(path for path in folder.glob("*.npy"))
    if not rows and not maps:
        return None
    if [int(row[0]) for row in rows] != [int(path.stem) for path in maps] or len(maps) != int(maps[-1].stem) + 1:
        return f"{len(maps)} frames, {len(rows)} times"
    times = [float(row[1]) for row in rows]
    if not np.isfinite(times).all() or times[0] < 0 or (np.diff(times) <= 0).any():
        return f"times {times[:9]}"
    depths = [np.load(path) for path in maps]
    if len({depth.shape for depth in depths}) > 1 or not all(np.isfinite(d).all() and (d > 0).all() for d in depths):
        return "depth that is not finite, or of several sizes"
    return None


def videos(rng: Random, folder: Path) -> Case:
    """predict of a changed clip, or of numbered images of which one is changed."""
    import numpy as np

    options: list[str] = []
    for name in rng.sample(("--start", "--end", "--fps", "--steady"), rng.choice((0, 0, 0, 1, 2))):
        values = pool("off scale motion off") if name == "--steady" else ("0", "0.1", "0.35", "3", *NUMBERS)
        options += [f"{name}={rng.choice(values)}"]
    formats = rng.choice(("npy", "npy", "npy,depth-video", "npy,side-by-side", "depth-video,color-video"))
    argv = ["--system", state["small"], "--out", "out", "--save", formats, *options]
    if rng.random() < 0.15:
        return _numbered(rng, folder, argv)
    ending, content, change = clip_content(rng, folder)
    changed, more = clip_changed(rng, ending, content)
    name = f"changed.{rng.choice((ending, ending, ending, 'mp4', 'MOV'))}"
    (folder / name).write_bytes(changed)
    if rng.random() < 0.1:
        options.append("--resume")
        argv.append("--resume")

    def right(outcome: Outcome) -> str | None:
        import langdepth

        wrong = clip_flaw(folder / "out/changed")
        if wrong or options or "npy" not in formats:
            return wrong
        maps = sorted((folder / "out/changed").glob("*.npy"))
        if more == "nothing" and outcome.code:
            return "refused, though it is whole"
        frames = decoded(folder / name) if outcome.code == 0 else None
        if frames is None:
            return None
        if len(frames) != len(maps):
            return f"{len(maps)} frames, of which FFmpeg gives {len(frames)}"
        if more != "nothing" and not re.match("box (?!mdat)", more):
            return None  # what is damaged is patched up, each time in another way
        expected = langdepth.predict(frames[0], state["small"]).depth
        if np.load(maps[0]).shape != expected.shape or not np.allclose(np.load(maps[0]), expected, rtol=1e-4):
            return "another depth than for the same pixels from memory"
        return None

    return Case(["predict", name, *argv], f"{ending}, {change}: {more}", right, partly=True)


def _numbered(rng: Random, folder: Path, argv: Sequence[str]) -> Case:
    from PIL import Image

    numbers = sorted(rng.sample(range(20), 4))
    for number in numbers:
        Image.fromarray(_photo(rng)).save(folder / f"f_{number:03d}.png")
    path, kind = (
        folder / f"f_{rng.choice(numbers):03d}.png",
        rng.choice(("bytes", "bytes", "size", "kind", "link", "none")),
    )
    if kind == "bytes":
        path.write_bytes(image_changed(rng, "png", path.read_bytes())[0])
    elif kind == "size":
        Image.fromarray(_photo(rng, 64, 48)).save(path)
    elif kind == "kind":
        Image.fromarray(_photo(rng)).convert(rng.choice("L1P")).save(path)
    elif kind == "link":
        path.unlink()
        path.symlink_to(rng.choice((path.name, "missing", "/dev/zero", ".")))
    pattern = rng.choice(
        ("f_%03d.png",) * 4 + ("f_%d.png", "f_%04d.png", "f_%0999999999999d.png", "%%d_%d.png", "f_%03d.jpg")
    )

    def right(outcome: Outcome) -> str | None:
        return clip_flaw(folder / "out/f")

    return Case(["predict", pattern, *argv], f"{pattern}: {path.name} {kind}", right, partly=True)


# --- cameras


CAMERA = {"fx": 60.0, "fy": 60.0, "cx": 31.5, "cy": 23.5}
COEFFICIENTS = ("0.1", "-0.2", "0.001", "-0.001", "0.05", "0", "0.3", "0.01", "0", "0", "0", "0", "0", "0")


def camera_content(rng: Random) -> tuple[str, str, str]:
    """(ending, content, what was changed) of a calibration in one of the forms that are read."""
    values, changes = {name: str(value) for name, value in CAMERA.items()}, []
    values |= {"width": "64", "height": "48"}
    count = rng.choice((0, 4, 5, 8, 12, 14, 3))
    values |= {f"k{at}": value for at, value in enumerate(COEFFICIENTS[:count])}
    for _ in range(rng.choice((0, 1, 1, 2))):
        name = rng.choice([*values, "width", "height", "fx", "cx"])
        numbers = (*NUMBERS, "-60", "640", "48", "64", "1e300", "1e-300", "-1e30", "100", "9" * 4400, "9" * 310)
        values[name] = rng.choice(numbers if rng.random() < 0.9 else TEXTS)
        changes.append(f"{name}={values[name][:20]!r}")
    fx, fy, cx, cy, width, height, *bent = values.values()
    rows = [[fx, "0", cx], ["0", fy, cy], ["0", "0", "1"]]
    if rng.random() < 0.15:
        change = rng.choice(("row", "column", "turned", "last", "flat"))
        changes.append(f"matrix {change}")
        rows = {
            "row": rows[:2],
            "column": [row[:2] for row in rows],
            "turned": [list(row) for row in zip(*rows, strict=True)],
            "last": [*rows[:2], ["0", "0", "0"]],
            "flat": [[value for row in rows for value in row]],
        }[change]
    flat, kind = (
        ", ".join(value for row in rows for value in row),
        rng.choice(pool("ros ros opencv json lists colmap kitti text npy")),
    )
    model = rng.choice(("plumb_bob",) * 4 + ("rational_polynomial", "equidistant", "fisheye", "none", "mei", "", "5"))
    data = ", ".join(bent)
    count = rng.choice((f"{len(bent)}",) * 9 + ("0", "-1", "1000000000", "x"))
    if kind == "ros":
        turn, projection = "1, 0, 0, 0, 1, 0, 0, 0, 1", f"{fx}, 0, {cx}, 0, 0, {fy}, {cy}, 0, 0, 0, 1, 0"
        turn = rng.choice(
            (turn, turn, turn, "0, 0, 1, 1, 0, 0, 0, 1, 0", "-1, 0, 0, 0, -1, 0, 0, 0, 1", "2, 0, 0, 0, 2, 0, 0, 0, 2")
        )
        text = (
            f"image_width: {width}\nimage_height: {height}\ncamera_name: a\ncamera_matrix:\n  rows: 3\n  cols: 3\n"
            f"  data: [{flat}]\ndistortion_model: {model}\n"
            f"distortion_coefficients:\n  rows: {1 if bent else count}\n"
            f"  cols: {count if bent else 0}\n  data: [{data}]\nrectification_matrix:\n  rows: 3\n  cols: 3\n"
            f"  data: [{turn}]\nprojection_matrix:\n  rows: 3\n  cols: 4\n  data: [{projection}]\n"
        )
        return "yaml", text, f"ros {model}: {'; '.join(changes)}"
    if kind == "opencv":
        text = (
            f"%YAML:1.0\n---\nimage_width: {width}\nimage_height: {height}\ncamera_matrix: !!opencv-matrix\n"
            f"   rows: 3\n   cols: 3\n   dt: d\n   data: [ {flat} ]\n"
            "distortion_coefficients: !!opencv-matrix\n   rows: 1\n"
            f"   cols: {count}\n   dt: d\n   data: [ {data} ]\n"
        )
        return rng.choice(("yaml", "yml", "txt")), text, f"opencv: {'; '.join(changes)}"
    if kind == "json":
        size = f'"image_width": {width}, "image_height": {height}'
        text = f'{{{size}, "camera_matrix": {json.dumps(rows)}, "dist": [{data}]}}'
        return (
            "json",
            text.replace('"', "") if rng.random() < 0.03 else re.sub(r'"(-?\d[^"]*)"', r"\1", text),
            f"json: {'; '.join(changes)}",
        )
    if kind == "lists":
        fields = {
            "K": [*map(float_or_text, flat.split(", "))],
            "D": [*map(float_or_text, bent)],
            "width": float_or_text(width),
        }
        content, change = yaml_changed(
            rng, {"x": {**fields, "height": float_or_text(height), "distortion_model": model}}
        )
        lines = content.decode("utf-8", "replace").replace("x:\n", "", 1)
        return (
            "yaml",
            "\n".join(line.removeprefix("  ") for line in lines.split("\n")),
            f"lists: {change}; {'; '.join(changes)}",
        )
    if kind == "colmap":
        model = rng.choice(pool("PINHOLE OPENCV FULL_OPENCV OPENCV_FISHEYE SIMPLE_RADIAL FOV"))
        numbers = [fx, fy, cx, cy, *bent][
            : {"PINHOLE": 4, "OPENCV": 8, "OPENCV_FISHEYE": 8, "FULL_OPENCV": 12}.get(model, 4)
        ]
        line = f"1 {model} {width} {height} {' '.join(numbers)}\n"
        return "txt", "# cameras\n" + line * rng.choice((1, 1, 1, 2, 5000)), f"colmap {model}: {'; '.join(changes)}"
    if kind == "kitti":
        text = f"S_rect_02: {width} {height}\nP_rect_02: {fx} 0 {cx} 4.5e1 0 {fy} {cy} 1 0 0 1 0.003\n"
        return "txt", rng.choice((text, text.replace("P_rect_02", "P2"), text * 2)), f"kitti: {'; '.join(changes)}"
    between = rng.choice((" ", ",", ", ", ";", "\t"))
    text = "\n".join(between.join(row) for row in rows)
    return rng.choice(("txt", "csv", "npy", "json", "xml")), text, f"matrix: {'; '.join(changes)}"


def float_or_text(text: str) -> Any:
    """What YAML would make of it."""
    try:
        return int(text) if text.isdecimal() else float(text)
    except ValueError:
        return text


def cameras(rng: Random, folder: Path) -> Case:
    """predict with a changed calibration file."""
    import numpy as np
    from PIL import Image

    ending, text, change = camera_content(rng)
    content = text.encode("utf-8", "surrogatepass")
    if rng.random() < 0.3:
        content, more = text_changed(rng, content)
        change += f"; {more}"
    elif ending == "npy" or rng.random() < 0.05:
        content, more = npy_of(np.array([[60, 0, 31.5], [0, 60, 23.5], [0, 0, 1.0]]), rng)
        ending, change = "npy", more
    elif rng.random() < 0.06:
        form = rng.choice(("aliases", "merge", "self", "list", "map", "open", "dash"))
        content, change = f"{text}\n{nested(form, rng.choice((3, 9, 30)))}\n".encode("utf-8", "surrogatepass"), form
    elif rng.random() < 0.05:
        content, change = (
            text.encode("utf-8", "surrogatepass") + rng.choice((b"\n---", b": ", b"[", b"1 ")) * 200_000,
            "long",
        )
    (folder / f"camera.{ending}").write_bytes(content)
    Image.fromarray(_photo(Random(1), *rng.choice(((48, 64), (48, 64), (96, 128), (64, 48))))).save(folder / "good.png")
    keep = ["--keep-distortion"] if rng.random() < 0.3 else []
    argv = ["predict", "good.png", "--camera", f"camera.{ending}", "--system", state["small"], "--out", "out", *keep]

    def right(outcome: Outcome) -> str | None:
        with np.load(folder / "out/good.npz") as found:
            depth, camera = found["depth"], json.loads(str(found["metadata"]))["camera"]
        with Image.open(folder / "good.png") as image:
            size = image.size
        if depth.shape != size[::-1] or not (np.isfinite(depth).all() and (depth >= 0).all()):
            return f"depth of {depth.shape} from {depth.min()} to {depth.max()}"
        numbers = [camera[name] for name in ("fx", "fy", "cx", "cy")]
        if (camera["width"], camera["height"]) != size or not np.isfinite(numbers).all() or min(numbers[:2]) <= 0:
            return f"the camera {numbers}"
        if not (depth > 0).mean() > 0.02:
            return "a lens that leaves nothing of the image"
        plain = re.fullmatch(r"(matrix|opencv|colmap PINHOLE|kitti): ", change)
        factor = size[0] / 64 if plain and plain[1] != "matrix" else 1
        if plain and not np.allclose(numbers[:2], 60 * factor):
            return f"the camera {numbers}, the file states 60"
        return None

    return Case([*argv, "--save", "npz,ply,normals"], change, right)


# --- the service


def service(rng: Random, folder: Path) -> Case:
    """serve, to which one damaged request is sent, then a good one."""
    import socket
    import threading

    ending, image = image_content(rng)
    if rng.random() < 0.5:
        image, change = image_changed(rng, ending, image)
    else:
        change = "a good image"
    method, place, query = b"POST", b"/predict", []
    for name in rng.sample(("text", "scene", "intrinsics", "fov", "format", "x"), rng.choice((0, 0, 1, 2))):
        valid = {
            "fov": ("60",),
            "intrinsics": ("60,60,31.5,23.5",),
            "format": pool("png npz json"),
            "text": ("a room",),
        }
        value = rng.choice((*valid.get(name, ()), *valid.get(name, ()), *NUMBERS[:12], *TEXTS))
        query.append((name, value))
    body, headers = image, [(b"Content-Type", b"image/" + ending.encode())]
    form = rng.random() < 0.4
    if form:
        parts = [(f'name="{name}"', value.encode("utf-8", "replace")) for name, value in query]
        parts.insert(0, (f'name="image"; filename="{rng.choice(TEXTS[:10] + NAMES[:4])}"', image))
        query = []
        body = b"".join(
            b"--xyz\r\nContent-Disposition: form-data; "
            + name.encode("utf-8", "replace")
            + b"\r\n\r\n"
            + value
            + b"\r\n"
            for name, value in parts
        )
        body, headers = body + b"--xyz--\r\n", [(b"Content-Type", b"multipart/form-data; boundary=xyz")]
        if rng.random() < 0.4:
            body, more = twice(rng, body)
            change += f"; form {more}"
    length = str(len(body))
    kind = rng.choice(("none",) * 4 + pool("method place length chunked header accept type bytes"))
    if kind == "method":
        method = rng.choice(
            (b"GET", b"PUT", b"HEAD", b"OPTIONS", b"DELETE", b"TRACE", b"CONNECT", b"X" * 300, b"", b"\xff")
        )
    elif kind == "place":
        place = rng.choice(
            (
                b"/",
                b"/../../etc/passwd",
                b"/%2e%2e/%2e%2e/etc/passwd",
                b"/predict/",
                b"//predict",
                b"/health",
                b"/metrics",
                b"*",
                b"/" + b"a" * 70_000,
                b"/predict%0d%0aX-Y:%20z",
                b"http://other/predict",
                b"/%ff%00",
            )
        )
    elif kind == "length":
        length = rng.choice(
            (*NUMBERS[:11], "9" * 25, "+5", str(len(body) - 1), str(len(body) + 1), str(10**12), "5, 5")
        )
    elif kind == "header":
        name = rng.choice(
            (
                b"Content-Type",
                b"Transfer-Encoding",
                b"Content-Encoding",
                b"Expect",
                b"Host",
                b"Connection",
                b"Upgrade",
                b"X" * 9000,
                b"a b",
                b"",
            )
        )
        value = rng.choice(
            (
                b"gzip",
                b"100-continue",
                b"chunked, chunked",
                b"\xff\xfe",
                b"",
                b"x" * 70_000,
                b"websocket",
                b"a\r\n b",
                b"multipart/form-data",
                b"identity",
            )
        )
        headers.append((name, value))
    elif kind == "accept":
        headers.append(
            (
                b"Accept",
                rng.choice(
                    (
                        b"text/html",
                        b"*/*;q=nan",
                        b"*/*;q=1e400",
                        b",,;;",
                        b"image/png;q=0",
                        b"application/json;q=x, */*",
                        b"a" * 9000,
                        b"\xff",
                    )
                ),
            )
        )
    elif kind == "type" and form:
        headers = [
            (
                b"Content-Type",
                b"multipart/form-data"
                + rng.choice(
                    (
                        b"",
                        b"; boundary=",
                        b"; boundary=" + b"y" * 5000,
                        b"; boundary=\xff",
                        b"; boundary=xyz; charset=x",
                        b'; boundary="',
                    )
                ),
            )
        ]
    from urllib.parse import quote

    target = place + (
        b"?" + "&".join(f"{n}={quote(v.encode('utf-8', 'surrogatepass'))}" for n, v in query).encode() if query else b""
    )
    sent = b"%s %s HTTP/1.1\r\nHost: a\r\nConnection: close\r\n" % (method, target) + b"".join(
        n + b": " + v + b"\r\n" for n, v in headers
    )
    if kind == "chunked":
        size = rng.choice((b"%x" % len(body),) * 3 + (b"0", b"ffffffffffffffffff", b"-1", b"x", b"%x;a=b" % len(body)))
        sent += b"Transfer-Encoding: chunked\r\n\r\n" + size + b"\r\n" + body + b"\r\n0\r\n\r\n"
    else:
        sent += b"Content-Length: " + length.encode() + b"\r\n\r\n" + body
    if kind == "bytes":
        sent, more = twice(rng, sent)
        change += f"; request {more}"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    good = io.BytesIO()
    from PIL import Image

    Image.fromarray(_photo(Random(1))).save(good, "PNG")
    after = b"POST /predict HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % len(
        good.getvalue()
    )
    answers: list[bytes] = []

    def ask(content: bytes) -> bytes:
        with socket.create_connection(("127.0.0.1", port), timeout=8) as client:
            with suppress(OSError):  # answered before all was sent
                client.sendall(content)
            found = b""
            with suppress(OSError):
                while block := client.recv(1 << 16):
                    found += block
            return found

    def clients() -> None:
        until = time.monotonic() + SECONDS
        try:
            while time.monotonic() < until:
                with suppress(OSError):
                    answers.append(ask(sent))
                    break
                time.sleep(0.02)
            answers.append(ask(after + good.getvalue()))
        finally:
            os.kill(os.getpid(), signal.SIGTERM)

    def right(outcome: Outcome) -> str | None:
        if len(answers) != 2 or not answers[1].startswith(b"HTTP/1.1 200 "):
            return f"a good request after it: {[answer[:200] for answer in answers]!r}"
        status = re.match(rb"HTTP/1\.1 (\d+) ", answers[0])
        if answers[0] and (status is None or not (200 <= int(status[1]) < 500 or int(status[1]) in (503, 504))):
            return f"answered with {answers[0][:300]!r}"
        head, _, content = answers[0].partition(b"\r\n\r\n")
        if head and int(status[1]) >= 400 and b"application/json" in head and method != b"HEAD":
            line = json.loads(content.partition(b"HTTP/1.1")[0])["error"]
            if len(line) > LONGEST_LINE or OTHERS.search(line) or not line.isprintable():
                return f"said {line[:300]!r}"
        return None

    threading.Thread(target=clients, daemon=True).start()
    argv = ["serve", "--port", str(port), "--system", state["small"], "--timeout", "4", "--max-mb", "1"]
    return Case(argv, f"{kind}, {ending}: {change}", right)


KINDS: dict[str, tuple[Callable[[Random, Path], Case], int]] = {  # and its share of the cases
    "images": (images, 22),
    "depth": (depth_files, 16),
    "containers": (containers, 5),
    "indexes": (indexes, 10),
    "lists": (lists, 9),
    "recipes": (recipes, 11),
    "weights": (weights, 9),
    "checkpoints": (checkpoints, 6),
    "archives": (archives, 10),
    "own files": (own_files, 8),
    "command lines": (command_lines, 10),
    "videos": (videos, 12),
    "cameras": (cameras, 8),
    "service": (service, 6),
}


# --- running


state: dict[str, Any] = {}


def prepare(folder: Path) -> None:
    """Import what the commands import and write the weights that cases change, so that each case only forks."""
    sys.path.insert(0, str(ROOT))
    import av
    import h5py  # noqa: F401
    import python_multipart  # noqa: F401
    import scipy.io  # noqa: F401
    import torch
    from PIL import Image
    from tests.helpers import Learner

    from langdepth.data.sets import nyu
    from langdepth.serving import server  # noqa: F401
    from langdepth.systems import card, registry
    from langdepth.systems.capabilities import ConvertsOfficial

    class Small(Learner, ConvertsOfficial):
        """Its checkpoints have our names."""

        name = "small"

        def convert_official(self, state_dict: Mapping[str, Any]) -> Any:
            own = self.state_dict()
            report = {"used": [k for k in state_dict if k in own], "ignored": [k for k in state_dict if k not in own]}
            report["missing"] = [k for k in own if k not in state_dict]
            return {k: v for k, v in state_dict.items() if k in own}, report

    Image.init()
    av.logging.set_level(None)
    state["Small"] = Small
    sys.modules["mutations_small"] = type(sys)("mutations_small")
    sys.modules["mutations_small"].Small = Small  # type: ignore[attr-defined]
    registry.REGISTRY["small"] = card.Entry(name="small", target="mutations_small:Small", summary="small", paper="none")
    torch.manual_seed(0)
    state["small system"] = registry.build("small").eval()
    state["small file"] = state["small system"].save(folder / "small.safetensors")
    state["tiny file"] = registry.entry("tiny").weights.path  # type: ignore[union-attr]
    state["small"] = str(state["small file"])
    nyu.CARD = replace(nyu.CARD, splits={"train": 1, "test": 1})  # as many as the cases' files have
    _warm(folder)


def _warm(folder: Path) -> None:
    """Run the commands once, so that what they import late is there."""
    from langdepth import cli

    work = folder / "warm"
    work.mkdir()
    _plain_set(work, Random(0))
    (work / "clip.mp4").write_bytes(clip_content(Random(0), work)[1])
    (work / "camera.txt").write_text("60 0 31.5\n0 60 23.5\n0 0 1\n")
    small, root = ["--system", state["small"]], ["--root", str(work / "set")]
    with open(os.devnull, "w") as nothing, redirect_stdout(nothing), redirect_stderr(nothing):
        for argv in (
            ["predict", str(work / "set/good.png"), "--out", str(work / "out"), "--save", "npy,npz,color,ply", *small],
            ["predict", str(work / "clip.mp4"), "--out", str(work / "out"), "--save", "npy,depth-video", *small],
            [
                "predict",
                str(work / "set/good.png"),
                "--out",
                str(work / "out"),
                "--camera",
                str(work / "camera.txt"),
                "--save",
                "npz,normals",
                *small,
            ],
            ["evaluate", *root, "--data", "folder", "--out", str(work / "r.json"), *small],
            ["data", "check", str(work / "set")],
            ["data", "prepare", "folder", "--source", "missing", "--out", str(work / "out")],
            ["convert", "missing.pth", "--system", "small", "--out", "w.safetensors"],
            ["train", "--config", "missing.yaml"],
            ["imagine", "a room", "--samples", "1", "--out", str(work / "out")],
            ["benchmark", "missing.yaml", "--out", str(work / "out")],
        ):
            cli.main(argv)
        state["own"] = folder / "own"
        _write_own(state["own"])
    gc.freeze()


def _write_own(folder: Path) -> None:
    """What commands leave and read again: a cache, a finished table, a paused training, packed captions."""
    import numpy as np
    import torch
    import yaml

    from langdepth import cli

    folder.mkdir()
    _plain_set(folder, Random(0))
    write_index(
        folder / "set", [{**SET[0], "split": "train", "source": "a"}, {**SET[1], "split": "val", "source": "a"}]
    )
    matrix = {
        "data": [{"root": "set", "data": "folder", "protocols": ["full"]}],
        "systems": [{"system": state["small"]}],
    }
    (folder / "matrix.yaml").write_text(yaml.safe_dump(matrix))
    recipe = recipe_fields(Random(0))
    recipe["system"]["name"] = "small"
    recipe["train"] |= {"epochs": 2, "out": "out/run"}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    torch.save(state["small system"].state_dict(), folder / "whole.pth")
    features = np.eye(2, 8, dtype=np.float16)
    np.savez(folder / "features.npz", caption=np.array(["a room", "a street"]), feature=features)
    (folder / "captions.csv").write_text("image,caption\ngood,a room\nchanged,a street\n")
    here = Path.cwd()
    os.chdir(folder)
    for line in (
        "data cache folder --root set --out out/cache",
        "convert whole.pth --system small --out whole.safetensors",
        "benchmark matrix.yaml --out out/matrix",
        "train --config recipe.yaml --train.max_steps 1",
        "data pack-captions --text captions.csv --features features.npz --out out/packed",
    ):
        if cli.main(line.split()):
            raise SystemExit(f"the campaign cannot start: {line}")
    os.chdir(here)


def evaluated(case: Case, outcome: Outcome, before: Mapping[str, Any], peak: int) -> tuple[str, str]:
    """The kind of outcome, and what is wrong about it."""
    text = outcome.out + outcome.err
    if "Traceback" in text or "not foreseen" in text:
        return "traceback", next(line for line in text.splitlines()[::-1] if line.strip())
    if peak > MEMORY or "not enough memory" in text:
        return "memory", f"{peak / 1e6:,.0f} MB"
    if outcome.code not in (0, 1, 2):
        return "crash", f"exit code {outcome.code}"
    after = snapshot(outcome.folder)
    beside = [name for name in after if after[name] != before.get(name) and not name.startswith("work/out")]
    beside += [name for name in before if name not in after and not name.startswith("work/out")]
    if beside and "train.out = " not in case.change:  # which says where else it may write
        return "outside", ", ".join(beside[:3])
    for path in sorted((outcome.folder / "work/out").rglob("*")):
        name = str(path.relative_to(outcome.folder))
        flaw = damage(path) if after[name] != before.get(name) else None
        if flaw:
            return "damaged file", f"{path.name}: {flaw}"
    poor = poor_line(outcome, case.argv)
    if poor:
        return "poor line", poor
    wrong = case.right(outcome) if outcome.code == 0 or (case.partly and outcome.code == 1) else None
    return ("nonsense", wrong) if wrong else ("accepted" if outcome.code == 0 else "refused", "")


def snapshot(folder: Path) -> dict[str, Any]:
    """What lies in the folder of a case, with sizes and times."""
    found = {}
    for place, folders, files in os.walk(folder):
        for name in (*folders, *files):
            path = os.path.join(place, name)
            status = os.lstat(path)
            found[os.path.relpath(path, folder)] = (
                status.st_mode,
                None if name in folders else (status.st_size, status.st_mtime_ns),
            )
    return found


def damage(path: Path) -> str | None:
    """What is wrong about a file under its final name."""
    import numpy as np
    from PIL import Image

    if ".partial" in path.name and "target" not in path.parts:
        return "is left half-written"
    if not path.is_file() or "target" in path.parts or "c" in path.parts or "cache" in path.parts:
        return None
    try:
        if path.suffix == ".png":
            with Image.open(path) as image:
                image.load()
        elif path.suffix == ".npy":
            np.load(path)
        elif path.suffix == ".npz":
            with np.load(path) as arrays:
                [arrays[name] for name in arrays]
        elif path.suffix == ".json":
            json.loads(path.read_text())
        elif path.suffix == ".safetensors":
            from safetensors.numpy import load_file

            load_file(path)
        elif path.suffix in (".mkv", ".mp4"):
            import av

            with av.open(str(path)) as container:
                return None if any(True for _ in container.decode(video=0)) else "has no frames"
    except Exception as error:
        return str(error)
    return None


def poor_line(outcome: Outcome, argv: Sequence[str]) -> str | None:
    """Which line is no message of the library's."""
    lines = [line for line in outcome.err.splitlines() if not re.fullmatch(r"\d+ of \d+ \w+", line)]  # progress
    if outcome.code and not lines and not outcome.out:
        return "nothing is said"
    if outcome.code == 2 and sum(not re.match(r"skipped: |[a-z ]+: warning: ", line) for line in lines) != 1:
        return f"{len(lines)} lines for wrong usage"
    for line in lines:
        if not re.match(r"(langdepth( [a-z-]+){0,2}|skipped): |camera unknown for ", line):
            return f"a line of somebody else: {line[:300]}"
    for line in (*lines, *(outcome.out.splitlines() if outcome.code else ())):
        other = OTHERS.search(line)
        if other and other[0] not in " ".join(argv):
            return f"'{other[0]}' in: {line[:300]}"
        holds_all = argv[0] == "benchmark" or "--json" in argv
        if len(line) > LONGEST_LINE + max(map(len, argv)) and not holds_all:
            return f"{len(line)} characters: {line[:200]}"
        if not line.isprintable():
            return f"characters that steer a terminal: {line[:200]!r}"
    return None


def child(kind: str, number: int, seed: int, folder: Path) -> dict[str, Any]:
    """Run one case; in a process of its own, which may die of it."""
    from langdepth import cli

    rng = Random(f"{seed}:{kind}:{number}")
    work = folder / "work"
    work.mkdir()
    (folder / "tmp").mkdir()
    os.environ |= {"TMPDIR": str(folder / "tmp"), "HOME": str(folder / "tmp"), "HF_HUB_OFFLINE": "1"}
    tempfile.tempdir = None
    outputs = [folder.parent / f"{folder.name}.{name}" for name in ("out", "err")]
    saved = [os.dup(stream) for stream in (1, 2)]
    for stream, path in zip((1, 2), outputs, strict=True):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND), stream)
    case = KINDS[kind][0](rng, work)
    if rng.random() < 0.9:  # drawing takes most of an evaluation's time, and of what a case changes it sees nothing
        for name in ("plot_error_by_range", "write_figure"):
            setattr(sys.modules["langdepth.evaluation.evaluate"], name, lambda *_, **__: None)
    for stream in (1, 2):
        os.ftruncate(stream, 0)  # what the making of the case said
    (work / "out").mkdir(exist_ok=True)
    os.chdir(work)
    before = snapshot(folder)
    in_use = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (in_use + MEMORY, in_use + MEMORY))
    since = time.monotonic()
    signal.alarm(SECONDS)
    code = cli.main(case.argv)
    signal.alarm(0)
    sys.stdout.flush()
    sys.stderr.flush()
    seconds = time.monotonic() - since
    resource.setrlimit(resource.RLIMIT_AS, (in_use + MEMORY, in_use + MEMORY))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    for stream, kept in zip((1, 2), saved, strict=True):
        os.dup2(kept, stream)
    texts = [path.read_text(errors="surrogateescape") for path in outputs]
    outcome = Outcome(code, *texts, folder)
    facts = {"argv": case.argv, "change": case.change, "code": code, "seconds": seconds, "megabytes": peak / 1e6}
    try:
        found, why = evaluated(case, outcome._replace(folder=folder), before, peak)
    except Exception as error:
        import traceback

        found, why = (
            "nonsense",
            f"the results cannot be evaluated: {type(error).__name__}: {error} {traceback.format_exc()[-600:]}",
        )
    return {**facts, "found": found, "why": why, "out": texts[0][-3000:], "err": texts[1][-3000:]}


def one(kind: str, number: int, seed: int, base: Path) -> dict[str, Any]:
    """What became of a case. It runs in a fork, which is ended with its own children where it takes too long."""
    folder = base / f"{kind.replace(' ', '-')}-{number}"
    folder.mkdir()
    receive, send = os.pipe()
    process = os.fork()
    if not process:
        status = 70
        try:
            os.setsid()
            os.close(receive)
            result = child(kind, number, seed, folder)
            with os.fdopen(send, "w") as stream:
                json.dump(result, stream)
            status = 0
        except BaseException:
            import traceback

            os.write(2, traceback.format_exc().encode())
        finally:
            os._exit(status)
    os.close(send)
    text = b""
    deadline = time.monotonic() + 3 * SECONDS
    while (left := deadline - time.monotonic()) > 0 and select.select([receive], [], [], left)[0]:
        block = os.read(receive, 1 << 16)
        if not block:
            break
        text += block
    os.close(receive)
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process, signal.SIGKILL) if time.monotonic() > deadline else None
    _, status = os.waitpid(process, 0)
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process, signal.SIGKILL)
    result: dict[str, Any] = json.loads(text) if text else {"argv": [], "change": "", "seconds": 0.0, "megabytes": 0.0}
    if not text:
        ended = os.waitstatus_to_exitcode(status)
        result["found"] = "hang" if ended in (-signal.SIGALRM, -signal.SIGKILL) else "crash"
        outputs = [base / f"{folder.name}.{name}" for name in ("out", "err")]
        result["why"] = f"ended with {ended}"
        result |= {path.suffix[1:]: path.read_text(errors="replace")[-3000:] for path in outputs if path.exists()}
    return {"kind": kind, "number": number, **result}


def campaign(
    numbers: Mapping[str, Sequence[int]], seed: int, keep: Path | None, base: Path
) -> Iterator[dict[str, Any]]:
    """Every case, the kinds in turns, so that a run that is broken off has some of each; inputs of faults are kept."""
    turns = sorted((place / len(m), kind, n) for kind, m in numbers.items() for place, n in enumerate(m))
    for _, kind, number in turns:
        result = one(kind, number, seed, base)
        folder = base / f"{kind.replace(' ', '-')}-{number}"
        if keep is not None and result["found"] in FAULTS:
            target = keep / f"{result['found'].replace(' ', '-')}-{folder.name}"
            shutil.rmtree(target, ignore_errors=True)
            shutil.copytree(folder, target, symlinks=True)
            (target / "result.json").write_text(json.dumps(result, indent=1))
        shutil.rmtree(folder, ignore_errors=True)
        for name in ("out", "err"):
            (base / f"{folder.name}.{name}").unlink(missing_ok=True)
        yield result


def shares(cases: int, kinds: Sequence[str]) -> dict[str, range]:
    """The numbers of the cases of each kind, about as many as asked for in all."""
    total = sum(KINDS[kind][1] for kind in kinds)
    return {kind: range(max(1, round(cases * KINDS[kind][1] / total))) for kind in kinds}


def table(counts: Mapping[str, Counter[str]]) -> list[str]:
    """A line per kind, with all that was found and zeros."""
    head = ["kind", "cases", *GOOD, *FAULTS]
    rows = [[kind, found.total(), *(found[name] for name in (*GOOD, *FAULTS))] for kind, found in counts.items()]
    rows.append(["all", *(sum(row[i] for row in rows) for i in range(1, len(head)))])
    return ["| " + " | ".join(map(str, row)) + " |" for row in (head, ["---"] * len(head), *rows)]


def main() -> int:
    """Run the campaign; 1 where a fault was found."""
    options = parser(__doc__)
    options.add_argument("--cases", type=int, default=500, help="about so many in all")
    options.add_argument("--seed", type=int, default=0, help="another seed, other cases")
    options.add_argument("--kind", choices=KINDS, action="append", help="only this kind; may be given several times")
    options.add_argument("--only", help="KIND:NUMBER, one case")
    options.add_argument("--keep", type=Path, help="folder for the inputs of faults")
    arguments = options.parse_args()
    use_threads(1)
    numbers: Mapping[str, Sequence[int]] = shares(arguments.cases, arguments.kind or list(KINDS))
    if arguments.only:
        kind, _, number = arguments.only.rpartition(":")
        numbers = {kind: [int(number)]}
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    faults: list[dict[str, Any]] = []
    facts: dict[str, Any] = {"seed": arguments.seed, "cases": 0, "seconds": 0.0, "slowest_s": 0.0, "largest_mb": 0.0}
    since = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="mutations-") as place:
        prepare(Path(place))
        for result in campaign(numbers, arguments.seed, arguments.keep, Path(place)):
            counts[result["kind"]][result["found"]] += 1
            facts |= {"cases": facts["cases"] + 1, "seconds": time.monotonic() - since}
            facts["slowest_s"] = max(facts["slowest_s"], result["seconds"])
            facts["largest_mb"] = max(facts["largest_mb"], result["megabytes"])
            if result["found"] in FAULTS:
                faults.append(result)
                print(f"{result['kind']}:{result['number']}: {result['found']}: {result['why'][:400]}")
                print(f"    {' '.join(result['argv'])[:300]}\n    {result['change'][:200]}", flush=True)
            elif arguments.only:
                print(json.dumps(result, indent=1))
            if facts["cases"] % 500 == 0:
                print("\n".join(table(counts)), flush=True)
    print("\n".join(table(counts)))
    print(
        "{cases} cases, seed {seed}, {seconds:.0f} s; slowest {slowest_s:.1f} s, largest {largest_mb:.0f} MB".format(
            **facts
        )
    )
    found = {kind: {name: count[name] for name in (*GOOD, *FAULTS)} for kind, count in counts.items()}
    write({**facts, "counts": found, "faults": faults}, arguments.out)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
