"""Indexes, lists, captions, masks and intrinsics."""

from __future__ import annotations

import gzip
import io
import json
from pathlib import Path
from typing import Any

from .cases import Case, Outcome, Random, state
from .changes import NUMBERS, TEXTS, twice
from .sets import SET, depth_map, report_right, write_index, write_set


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
    Image.fromarray((1000 * depth_map(rng)).astype(np.uint16)).save(buffer, "PNG")
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
    Image.fromarray((1000 * depth_map(rng)).astype(np.uint16)).save(buffer, "PNG")
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
