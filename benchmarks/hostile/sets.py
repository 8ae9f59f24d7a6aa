"""An indexed folder of two pairs, which most commands take, and what must hold of a report."""

from __future__ import annotations

import csv
import io
import json
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .cases import Random
from .images import photo

SET = [
    {"path_rgb": f"{name}.png", "path_depth": f"{name}_depth.png", "depth_scale": "0.001"}
    for name in ("good", "changed")
]


def depth_map(rng: Random) -> Any:
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


def write_set(folder: Path, rng: Random, ending: str, content: bytes, **cells: str) -> list[dict[str, str]]:
    """An indexed folder of a good pair and one whose depth has this content."""
    import numpy as np
    from PIL import Image

    folder.mkdir(exist_ok=True)
    rows = []
    for name in ("good", "changed"):
        Image.fromarray(photo(rng)).save(folder / f"{name}.png")
        rows.append({"path_rgb": f"{name}.png", "path_depth": f"{name}_depth.png", "depth_scale": "0.001"})
    Image.fromarray((1000 * depth_map(rng)).astype(np.uint16)).save(folder / "good_depth.png")
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


def plain_set(folder: Path, rng: Random) -> None:
    import numpy as np
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray((1000 * depth_map(rng)).astype(np.uint16)).save(buffer, "PNG")
    write_set(folder / "set", rng, "png", buffer.getvalue())
