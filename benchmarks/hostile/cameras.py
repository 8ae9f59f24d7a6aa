"""Files of cameras in every form that is read."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from .cases import Case, Outcome, Random, pool, state
from .changes import NUMBERS, TEXTS
from .images import photo
from .recipes import nested, yaml_changed
from .sets import npy_of
from .texts import text_changed

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
    Image.fromarray(photo(Random(1), *rng.choice(((48, 64), (48, 64), (96, 128), (64, 48))))).save(folder / "good.png")
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
