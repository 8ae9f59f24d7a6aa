"""Images with depth as rows, how their files are decoded, and the samples that come of them, for every data set."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from langdepth.camera import Camera, turned_upright
from langdepth.data.hdf5 import read_hdf5
from langdepth.data.lists import Listing
from langdepth.data.masks import OverlayReader, read_overlay
from langdepth.errors import ImageError, LangdepthError, UsageError, first_few
from langdepth.records import Sample, WithoutCaption
from langdepth.utils.depth_files import depth_orientation, read_depth
from langdepth.utils.files import file_state
from langdepth.utils.images import DecodedImage, read_image

if TYPE_CHECKING:
    from torch import Tensor

    from langdepth.text.caption_features import Captions, Found

TRUST = "if it is right, say so: --trust-unit, data.trust_unit"

RgbArray = npt.NDArray[np.uint8]
Metres = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]
Intrinsics = tuple[float, float, float, float]


class Decoder(NamedTuple):
    """image(row): upright, with how it was turned. depth(row): (H, W) float32 metres as stored; 0, NaN or negative for
    no value.

    edges(row): (H, W), the true depth edges, for sets that state them. intrinsics(row): as ``Row.intrinsics``, for sets
    that have them inside the image's file. All raise ImageError naming the file.
    """

    image: Callable[[Row], DecodedImage]
    depth: Callable[[Row], Metres]
    edges: Callable[[Row], Mask] | None = None
    intrinsics: Callable[[Row], Intrinsics | None] | None = None


def _image(row: Row) -> DecodedImage:
    return read_image(row.path_rgb)


def _depth_map(row: Row) -> Metres:
    return read_depth(row.path_depth, row.depth_scale, keep_invalid=True)


def _hdf5_image(row: Row) -> DecodedImage:
    array = read_hdf5(row.path_rgb, ("images", "rgb", "image"), row.item)
    if array.dtype != np.uint8 or array.ndim != 3 or 3 not in (array.shape[0], array.shape[-1]):
        raise ImageError(f"{row.path_rgb}: an image of shape {array.shape} and {array.dtype} is not understood")
    return DecodedImage(pixels=np.ascontiguousarray(array if array.shape[-1] == 3 else array.transpose(1, 2, 0)))


def _hdf5_depth(row: Row) -> Metres:
    array = read_hdf5(row.path_depth, ("rawDepths", "depths", "depth"), row.item)
    if array.ndim != 2:
        raise ImageError(f"{row.path_depth}: a depth map is (H, W), found shape {array.shape}")
    return array.astype(np.float32) * np.float32(row.depth_scale)


def _mat_image(row: Row) -> DecodedImage:
    return DecodedImage(pixels=np.ascontiguousarray(_hdf5_image(row).pixels.transpose(1, 0, 2)))


def _mat_depth(row: Row) -> Metres:
    return np.ascontiguousarray(_hdf5_depth(row).T)


# Any image; depth as 16-bit PNG, .npy or .npz. A data set with a coding of its own has its decoder in its module.
FILES = Decoder(_image, _depth_map)
HDF5 = Decoder(_hdf5_image, _hdf5_depth)  # images or rgb ([N,] 3, H, W), depths or depth ([N,] H, W)
MATLAB = Decoder(_mat_image, _mat_depth)  # the same in MATLAB 7.3, which stores width before height


@dataclass(frozen=True, kw_only=True)
class Row:
    """One image with depth; paths are absolute.

    key: the image's path in the data set's own lists, for messages and captions. decoder: what reads its files.
    needs: further files that depth, edges or camera come from: masks, the description of a scene, a table of lenses.
    depth_scale: metres per stored unit. item: number of the image inside a file that holds many (then ``path_rgb`` is
    that file). source, scene_run: which part of the data, and which drive or place, it comes from. scene: index into
    SCENES or -1. size: (height, width), intrinsics: fx, fy, cx, cy in pixels of the stored image and depth;
    both where known without opening the file. table: the index or list of the user that names
    it; line: of whatever list does. stated: what an index says about it.
    """

    key: str
    path_rgb: Path
    path_depth: Path
    needs: tuple[Path, ...] = ()
    depth_scale: float = 1.0
    decoder: Decoder = FILES
    item: int | None = None
    table: Path | None = None
    line: int = 0
    source: str = ""
    scene_run: str = ""
    split: str = ""
    scene: int = -1
    text: str | None = None
    path_overlay: Path | None = None
    read_overlay: OverlayReader = read_overlay
    size: tuple[int, int] | None = None
    intrinsics: Intrinsics | None = None
    stated: dict[str, str] = field(default_factory=dict)

    @property
    def path(self) -> str:
        """The image's path, as its sample states it."""
        return str(self.path_rgb if self.item is None else self.path_rgb / self.key)

    @property
    def files(self) -> tuple[Path, ...]:
        """All that it is read from."""
        overlay = () if self.path_overlay is None else (self.path_overlay,)
        return tuple(dict.fromkeys((self.path_rgb, self.path_depth, *self.needs, *overlay)))


Doubt = Callable[[Row, Metres], str | None]
"""Why the depth of a row cannot be right, see ``data.truth.impossible_depth``."""


class Upright(NamedTuple):
    """What the files of a row hold, turned upright together: image (H, W, 3), depth (H, W) in metres, 0 = unknown."""

    pixels: RgbArray
    depth: Metres
    camera: Camera | None


def read_pair(row: Row, doubt: Doubt | None = None) -> Upright:
    """A row's image, depth and camera; where the row states none, that of the photo's EXIF.

    Raises ImageError naming a file that is unusable or does not fit the other, also where there is a ``doubt``.
    """
    image, depth = row.decoder.image(row), known_depth(row)
    upright, camera = turned_with_image(row, image, depth)
    doubtful = None if doubt is None else doubt(row, depth)
    if doubtful is not None:
        raise ImageError(f"{doubtful}; {TRUST}")
    return Upright(image.pixels, upright, camera or image.camera)


def turned_with_image(row: Row, image: DecodedImage, depth: Metres) -> tuple[Metres, Camera | None]:
    """Depth (H, W) as the row's decoder gives it, and the row's camera, both turned upright as the image was.

    Depth and stated intrinsics belong to the pixels of the image as they are stored, and are turned with them. If only
    the upright image has the size of the depth, both belong to that. Depth whose file states an orientation of its own
    has been turned by it and is upright.

    Raises:
        ImageError: The depth has neither size, or the stated intrinsics cannot be.
    """
    size, upright = depth.shape, image.pixels.shape[:2]
    stored = upright[::-1] if image.orientation >= 5 else upright
    has_own = image.orientation != 1 and depth_orientation(row.path_depth) != 1
    if size not in ((upright,) if has_own else (stored, upright)):
        turn = image.orientation
        exif = "" if turn == 1 else f", turned from its stored size by EXIF orientation {turn}"
        raise ImageError(
            f"{row.path_depth}: depth is {size[1]}x{size[0]}, but its image {row.path_rgb.name} "
            f"is {upright[1]}x{upright[0]}{exif}; both must have one size"
        )
    if has_own:
        return depth, _camera(row, stored, image.orientation)
    turn = image.orientation if size == stored else 1
    return turned_upright(depth, turn), _camera(row, size, turn)


def known_depth(row: Row) -> Metres:
    """The row's depth (H, W) in metres, 0 where it is unknown. Raises ImageError naming the file."""
    metres = row.decoder.depth(row)
    if not (metres.min(initial=0) >= 0 and metres.max(initial=0) < np.inf):  # also true for NaN
        metres[~(np.isfinite(metres) & (metres > 0))] = 0
    return metres


def true_edges(row: Row, size: Sequence[int]) -> Mask | None:
    """The true depth edges (H, W) of a row whose depth has this ``size``, None where the set states none.

    Raises ImageError.
    """
    if row.decoder.edges is None:
        return None
    edges = row.decoder.edges(row)
    if edges.shape != tuple(size):
        raise ImageError(f"{row.path_depth}: is {size[1]}x{size[0]}, its edges are of shape {edges.shape}")
    return edges


def _camera(row: Row, size: tuple[int, ...], turn: int) -> Camera | None:
    """The camera of a row, stated for pixels of this ``size`` (H, W) that were turned upright afterwards.

    Raises ImageError naming the file of the image for stated intrinsics that cannot be. The cameras of published sets
    are taken as they are, for copies in another size, too.
    """
    stated = row.intrinsics if row.decoder.intrinsics is None else row.decoder.intrinsics(row)
    if stated is None:
        return None
    (fx, fy, cx, cy), (height, width) = stated, size
    try:
        if row.stated:
            camera = Camera.from_intrinsics(fx, fy, cx, cy, width, height, "data set")
        else:
            camera = Camera(fx=fx, fy=fy, cx=cx, cy=cy, width=width, height=height, source="data set")
    except UsageError as error:
        raise ImageError(f"{row.path_rgb}: {error}") from None
    return camera.oriented(turn)


# Files of rows

# Of a row, however its files are coded
FACTS: dict[str, Any] = {  # of a row, with their types
    **dict.fromkeys(("key", "source", "scene_run", "split"), str),
    **dict.fromkeys(("line", "scene"), int),
    "text": str | None,
}


def made_of(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """What each row is made of, as JSON keeps it: its facts, and its files with their states, see ``file_state``."""
    states = {path: (os.path.abspath(path), file_state(path)) for path in {path for row in rows for path in row.files}}
    return [
        {
            **{name: getattr(row, name) for name in (*FACTS, "item", "depth_scale")},
            "intrinsics": None if row.intrinsics is None else list(row.intrinsics),
            "files": dict(states[path] for path in row.files),
        }
        for row in rows
    ]


_RANKS = ("RANK", "SLURM_PROCID", "LOCAL_RANK")  # where the launchers of processes say which one this is


def first_process() -> bool:
    """Whether this is the one of several processes that warns."""
    return all(os.environ.get(rank, "0") == "0" for rank in _RANKS)


def present(
    rows: list[Row], where: str | Path, problems: list[LangdepthError] | None = None, *, counted: bool = True
) -> list[Row]:
    """Those of ``rows`` all of whose files are there.

    Where pairs are incomplete, their number and the first files missing are stated: with ``problems``, as an error that
    is appended to it; else, where nothing is left, as a LangdepthError that is raised, and otherwise as a warning,
    unless it is ``counted`` elsewhere how many pairs there are.
    """
    kept, missing, there = [], [], Listing()
    for row in rows:
        lacking = [path for path in row.files if path not in there]
        missing += lacking[:1]
        if not lacking:
            kept.append(row)
    if missing:
        error = LangdepthError(f"{where}: {len(missing)} of {len(rows)} pairs are missing: {first_few(missing)}")
        if problems is not None:
            problems.append(error)
        elif not kept:
            raise error
        elif not counted and first_process():
            share = f"{len(kept) / len(rows):.2%} are there, and figures of a part do not compare with published ones"
            warnings.warn(f"{error}; {share}", stacklevel=2)
    return kept


# Samples


class ReadsWords(Protocol):
    """A system, of which this module asks whether it takes captions as sentences."""

    reads_sentences: bool


class RowDataset:
    """The rows of a data set as samples at their stored size.

    ``captions``: in any form of text/caption_features.py; every sample then has ``text_features``, those of its
    ``text`` or, without one, of its image's caption. Where there is no caption, "stop" raises LangdepthError and
    "neutral" gives zeros. ``doubt``: see ``read_pair``.
    ``dataset[i]`` raises ImageError naming an unusable file.
    """

    def __init__(
        self,
        name: str,
        rows: list[Row],
        captions: str | Path | Captions | None = None,
        without_caption: WithoutCaption = "stop",
        doubt: Doubt | None = None,
    ) -> None:
        self.name = name
        self.rows = rows
        self.split: str | None = None
        """What reports call the split."""
        self.part: dict[str, str] = {}
        """What else these images were chosen by, such as {"source": "kitchen"}, for reports."""
        self.doubt = doubt
        self.captions: Captions | None = None
        if captions is not None:
            from langdepth.text.caption_features import open_captions

            self.captions = open_captions(captions, sentences_alone=True)
            missing = [row for row in rows if self._caption(row) is None]
            if missing and without_caption == "stop":
                raise LangdepthError(
                    f"{missing[0].path_rgb}: has no caption in {self.captions.reach} ({len(missing)} of {len(rows)} "
                    "images); add its caption and feature, or use such images without words: without_caption neutral"
                )

    def _caption(self, row: Row) -> Found | None:
        return self.captions.find(row.key, row.text) if self.captions is not None else None

    def require_words_for(self, system: ReadsWords) -> None:
        """Raise LangdepthError where the captions are sentences alone and the system needs their features."""
        if self.captions is not None and not system.reads_sentences:
            self.captions.require_features()

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Sample:
        import torch

        sample, row = self.stored(index), self.rows[index]
        edges = true_edges(row, sample.depth.shape[1:])
        return sample if edges is None else replace(sample, edges=torch.from_numpy(edges)[None])

    def stored(self, index: int) -> Sample:
        """``self[index]`` without its true edges, which only evaluation needs."""
        import torch

        row = self.rows[index]
        pixels, metres, camera = read_pair(row, self.doubt)
        text, text_features = row.text, None
        if self.captions is not None:
            caption = self._caption(row)
            text = row.text if caption is None else caption.sentence
            known = None if caption is None else caption.row
            if self.captions.features is not None:
                text_features = torch.zeros(self.captions.width) if known is None else self.captions.feature(known)
        overlay: Tensor | None = None
        if row.path_overlay is not None:
            values = torch.tensor(row.read_overlay(row.path_overlay, pixels)).permute(2, 0, 1)
            overlay = values.float() / 255 if values.dtype == torch.uint8 else values
        depth = torch.from_numpy(metres).unsqueeze(0)
        return Sample(
            image=torch.tensor(pixels).permute(2, 0, 1),
            depth=depth,
            mask=depth > 0,
            scene=row.scene,
            text=text,
            text_features=text_features,
            camera=camera,
            overlay=overlay,
            path=row.path,
            key=row.key,
            source=row.source,
        )
