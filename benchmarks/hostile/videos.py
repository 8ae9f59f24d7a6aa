"""Clips in every container that is read, and numbered images."""

from __future__ import annotations

import csv
import re
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .cases import Case, Outcome, Random, pool, state
from .changes import ABSURD, NUMBERS, twice
from .images import STRANGE, image_changed, photo

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
    image, comment = photo(rng, height, width), rng.choice(("", "", "a\nb", "é", "x" * 3000))
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
            frame = av.VideoFrame.from_ndarray(np.roll(image, number, 1), format="rgb24")
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
        Image.fromarray(photo(rng)).save(folder / f"f_{number:03d}.png")
    path, kind = (
        folder / f"f_{rng.choice(numbers):03d}.png",
        rng.choice(("bytes", "bytes", "size", "kind", "link", "none")),
    )
    if kind == "bytes":
        path.write_bytes(image_changed(rng, "png", path.read_bytes())[0])
    elif kind == "size":
        Image.fromarray(photo(rng, 64, 48)).save(path)
    elif kind == "kind":
        Image.fromarray(photo(rng)).convert(rng.choice("L1P")).save(path)
    elif kind == "link":
        path.unlink()
        path.symlink_to(rng.choice((path.name, "missing", "/dev/zero", ".")))
    pattern = rng.choice(
        ("f_%03d.png",) * 4 + ("f_%d.png", "f_%04d.png", "f_%0999999999999d.png", "%%d_%d.png", "f_%03d.jpg")
    )

    def right(outcome: Outcome) -> str | None:
        return clip_flaw(folder / "out/f")

    return Case(["predict", pattern, *argv], f"{pattern}: {path.name} {kind}", right, partly=True)
