"""Archives of data sets, for `data prepare`."""

from __future__ import annotations

import io
import tarfile
import zipfile
from contextlib import suppress
from pathlib import Path
from typing import Any

from .cases import Case, Outcome, Random, pool
from .changes import NUMBERS, TEXTS, twice

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
