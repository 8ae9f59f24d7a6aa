"""Images of every format, changed as their format allows or byte by byte."""

from __future__ import annotations

import io
import re
import struct
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from .cases import Case, Outcome, Random, state
from .changes import ABSURD, NUMBERS, bytes_changed, twice


def photo(rng: Random, height: int = 48, width: int = 64) -> Any:
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

    image = Image.fromarray(photo(rng))
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
    Image.fromarray(photo(Random(1))).save(folder / "good.png")
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
