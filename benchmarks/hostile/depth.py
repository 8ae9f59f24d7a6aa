"""Depth maps, predictions, and the containers of NYUv2 (MATLAB, HDF5)."""

from __future__ import annotations

import io
import shutil
from pathlib import Path
from typing import Any

from .cases import Case, Outcome, Random, pool, state
from .changes import twice
from .images import image_changed, photo
from .sets import SET, depth_map, npy_of, report_right, write_index, write_set


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

    depth, changes = depth_map(rng), ""
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
    depths = np.stack([depth_map(rng).T for _ in range(2)])
    photos = np.stack([photo(rng).transpose(2, 1, 0) for _ in range(2)])
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
