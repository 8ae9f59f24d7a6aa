"""A folder of pictures with depth, described by ``index.csv``.

Needed columns: path_rgb, path_depth (relative to the folder), depth_scale (metres per stored unit of a 16-bit PNG,
0 = no value). Optional: source, scene, split, width, height, fx, fy, cx, cy (pixels of the stored picture, all four or
none), scene_type (one of ``text.scenes.SCENES``), text, path_overlay (the picture with masks drawn over it, see
data/sam.py). Other columns are ignored.
"""

from __future__ import annotations

import csv
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from langdepth.camera import Camera
from langdepth.errors import LangdepthError, UsageError, nearest
from langdepth.text.scenes import SCENES
from langdepth.types import Sample

if TYPE_CHECKING:
    from langdepth.text.captions import Captions

WithoutCaption = Literal["stop", "neutral"]
REQUIRED = ("path_rgb", "path_depth", "depth_scale")


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of an index; paths are absolute. ``scene`` is an index into SCENES or -1."""

    line: int
    path_rgb: Path
    path_depth: Path
    depth_scale: float
    source: str = ""
    scene_run: str = ""
    split: str = ""
    scene: int = -1
    text: str | None = None
    path_overlay: Path | None = None
    intrinsics: tuple[float, float, float, float] | None = None
    stated: dict[str, str]


def read_index(root: str | Path, problems: list[LangdepthError] | None = None) -> list[Row]:
    """All rows of ``root/index.csv`` in file order.

    Raises LangdepthError naming file, line and column of a mistake; with ``problems``, wrong rows are left out and
    their errors appended to it instead.
    """
    root = Path(root)
    index = root / "index.csv"
    if not root.is_dir():
        raise LangdepthError(f"{root}: no such folder")
    if not index.is_file():
        raise LangdepthError(f"{root}: has no index.csv; make one with the columns {', '.join(REQUIRED)}")
    try:
        with index.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, strict=True)
            missing = [column for column in REQUIRED if column not in (reader.fieldnames or ())]
            if missing:
                raise LangdepthError(f"{index}: column {', '.join(missing)} is missing")
            rows = []
            for values in reader:
                try:
                    rows.append(_row(root, reader.line_num, values))
                except LangdepthError as error:
                    if problems is None:
                        raise
                    problems.append(error)
    except (csv.Error, OSError, UnicodeDecodeError) as error:
        raise LangdepthError(f"{index}: not readable as CSV ({error})") from None
    if not rows and not problems:
        raise LangdepthError(f"{index}: has no rows")
    return rows


def _row(root: Path, line: int, values: dict[str, str]) -> Row:
    where = f"{root / 'index.csv'} line {line}"

    def inside(column: str) -> Path:
        text = values[column] or ""
        path = root / text
        if not text or "\0" in text or not path.resolve().is_relative_to(root.resolve()):
            raise LangdepthError(f"{where}: {column} '{text}' does not lie inside the folder")
        return path

    def number(column: str) -> float:
        text = values.get(column) or ""
        try:
            value = float(text)
        except ValueError:
            raise LangdepthError(f"{where}: {column} '{text}' is not a number") from None
        if not math.isfinite(value):
            raise LangdepthError(f"{where}: {column} '{text}' is not finite")
        return value

    scale = number("depth_scale")
    if scale <= 0:
        raise LangdepthError(f"{where}: depth_scale {scale} must be positive (metres per stored unit)")
    scene_type = (values.get("scene_type") or "").strip()
    if scene_type and scene_type not in SCENES:
        raise LangdepthError(f"{where}: unknown scene_type '{scene_type}': {nearest(scene_type, SCENES)}")
    intrinsics = None
    if any(values.get(column) for column in ("fx", "fy", "cx", "cy")):
        intrinsics = (number("fx"), number("fy"), number("cx"), number("cy"))
        if min(intrinsics[:2]) <= 0:
            raise LangdepthError(f"{where}: focal lengths fx {intrinsics[0]:g}, fy {intrinsics[1]:g} must be positive")
    return Row(
        line=line,
        path_rgb=inside("path_rgb"),
        path_depth=inside("path_depth"),
        depth_scale=scale,
        source=values.get("source") or "",
        scene_run=values.get("scene") or "",
        split=values.get("split") or "",
        scene=SCENES.index(scene_type) if scene_type else -1,
        text=values.get("text") or None,
        path_overlay=inside("path_overlay") if values.get("path_overlay") else None,
        intrinsics=intrinsics,
        stated={key: value for key, value in values.items() if key and value},
    )


class FolderDataset:
    """Samples of an indexed folder at their stored size.

    ``captions``: a packed folder (text/captions.py); every sample then has ``text_features``, those of its ``text`` or,
    without one, of its picture's caption. Where there is no caption, "stop" raises LangdepthError and "neutral" gives
    zeros. Raises UsageError when ``split`` or ``source`` keeps nothing; ``dataset[i]`` raises ImageError naming an
    unusable file.
    """

    name = "folder"

    def __init__(
        self,
        root: str | Path,
        split: str | None = None,
        source: str | None = None,
        captions: str | Path | None = None,
        without_caption: WithoutCaption = "stop",
    ) -> None:
        rows = read_index(root)
        for column, wanted in (("split", split), ("source", source)):
            if wanted is None:
                continue
            known = {getattr(row, column) for row in rows}
            if wanted not in known:
                raise UsageError(f"{root}: no row has {column} '{wanted}': {nearest(wanted, known)}")
            rows = [row for row in rows if getattr(row, column) == wanted]
        self.rows = rows
        self.captions: Captions | None = None
        if captions is not None:
            from langdepth.text.captions import Captions

            self.captions = Captions(captions)
            missing = [row for row in rows if self._caption(row) is None]
            if missing and without_caption == "stop":
                raise LangdepthError(
                    f"{missing[0].path_rgb}: has no caption in {captions} ({len(missing)} of {len(rows)} pictures); "
                    "pack its caption, or let such pictures speak without words: without_caption neutral"
                )

    def _caption(self, row: Row) -> tuple[str, int] | None:
        return self.captions.find(row.stated["path_rgb"], row.text) if self.captions is not None else None

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Sample:
        import torch

        from langdepth.data.sam import read_overlay
        from langdepth.errors import ImageError
        from langdepth.io import read_depth, read_image

        row = self.rows[index]
        pixels = read_image(row.path_rgb).pixels
        metres = read_depth(row.path_depth, row.depth_scale)
        if metres.shape != pixels.shape[:2]:
            raise ImageError(
                f"{row.path_depth}: depth is {metres.shape[1]}x{metres.shape[0]}, but its picture {row.path_rgb.name} "
                f"is {pixels.shape[1]}x{pixels.shape[0]}; both must have one size"
            )
        text, text_features = row.text, None
        if self.captions is not None:
            caption = self._caption(row)
            text = row.text if caption is None else caption[0]
            text_features = torch.zeros(self.captions.width) if caption is None else self.captions.feature(caption[1])
        image = torch.tensor(pixels).permute(2, 0, 1)
        overlay = None
        if row.path_overlay is not None:
            overlay = torch.tensor(read_overlay(row.path_overlay, pixels)).permute(2, 0, 1).float() / 255
        depth = torch.from_numpy(metres).unsqueeze(0)
        camera = None
        if row.intrinsics is not None:
            fx, fy, cx, cy = row.intrinsics
            height, width = metres.shape
            camera = Camera(fx=fx, fy=fy, cx=cx, cy=cy, width=width, height=height, source="data set")
        return Sample(
            image=image.float() / 255,
            depth=depth,
            mask=depth > 0,
            scene=row.scene,
            text=text,
            text_features=text_features,
            camera=camera,
            overlay=overlay,
            path=str(row.path_rgb),
            source=row.source,
        )
