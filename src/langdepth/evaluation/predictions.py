"""Finished depth maps in a folder, so that evaluation can score them like a system."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import itertools
import math
import os
import warnings
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

from langdepth.data.rows import Row
from langdepth.errors import ImageError, LangdepthError, UsageError, first_few
from langdepth.evaluation.protocols import Protocol, ScaleKind
from langdepth.evaluation.saved import DEPTH_ENDS, FORMATS, read_record
from langdepth.prediction.done import RECORD, Done, Result
from langdepth.prediction.names import names_of, place_of_key
from langdepth.records import Sample
from langdepth.utils.arguments import checked
from langdepth.utils.depth_files import read_depth, read_depth16
from langdepth.utils.files import file_identity

Size = tuple[int, int]  # height, width


class Predictions:
    """Finished depth maps in a folder, found by the path of their image.

    The image ``ROOT/a/b.jpg`` belongs to ``a/b.npy``, ``a/b.npz``, ``a/b_depth.png`` or ``a/b.png`` below ``folder``
    (or to ``a/b_jpg.npy`` and so on), or else to the same with its key (its path in the data set's own lists), so that
    one folder of maps fits images in files of their own, in a file that holds many, and in a cache.

    NumPy files hold the numbers themselves, in metres for "metric"; a 16-bit PNG holds ``value * png_scale``, or says
    its own scale (those of ``langdepth predict``). What is not finite is no depth, nor is what is not above 0, unless
    any number makes sense: disparity, and relative depth that gets a shift (alignment least_squares). A map is of the
    whole image or of the protocol's frame, see ``part_of``; of another size it is resized, and pixels that would mix
    depth with none have none.
    """

    @checked
    def __init__(
        self,
        folder: str | Path,
        root: str | Path,
        scale_kind: ScaleKind = "metric",
        png_scale: float | None = None,
    ) -> None:
        self.folder, self.root = Path(folder), Path(os.path.abspath(root))
        if not self.folder.is_dir():
            raise LangdepthError(f"{folder}: no such folder of depth maps")
        if png_scale is not None and not png_scale > 0:
            raise UsageError(f"the scale of the predictions must be above 0, got {png_scale:g}")
        self.name, self.scale_kind, self.png_scale = f"predictions ({folder})", scale_kind, png_scale
        self.record = read_record(self.folder)
        self.ends = DEPTH_ENDS if self.record is None else self.record.ends
        self._matched: dict[tuple[str, str], Path | None] = {}

    def places(self, path: str, key: str) -> list[Path]:
        """The files that may hold the depth of the image with this path and key, the likeliest first."""
        image = Path(os.path.abspath(path))  # links are not followed: those inside the root may lead out of it
        places = [image.relative_to(self.root)] if image.is_relative_to(self.root) else []
        # Maps that an evaluation has saved are called by the key.
        places = [place_of_key(key), *places] if self.record is not None else [*places, place_of_key(key)]
        names = [name for place in places if place.name for name in names_of(place)]
        return [self.folder / f"{name}{end}" for name in names for end in self.ends]

    def matched(self, rows: Sequence[Row]) -> Predictions:
        """These predictions for the images of a data set, each file for one image.

        Where ``langdepth predict`` has recorded which image a file was made of, the file belongs to that image. Without
        a record, ``x_depth.png`` may be the depth of ``x.jpg`` or, in KITTI's format, of ``x_depth.jpg``. Where both
        are in the data set, the image with the longer name chooses first, and the other one takes what is left.

        A warning says how many maps have no record. Raises UsageError where a file was made of an image outside the
        data set and fits two images in it, or is ground truth.
        """
        images = {(row.path, row.key): os.path.realpath(row.path) for row in rows}
        truths = {file_identity(row.path_depth) for row in rows} - {None}
        results = self._results()
        own = _by_image(results, set(images.values()))
        others = {file for files in own.values() for file in files}
        owners: dict[Path, str] = {}
        matched: dict[tuple[str, str], Path | None] = {}
        spare: list[tuple[Path, Path, str]] = []
        for (path, key), image in sorted(images.items(), key=lambda item: (-len(item[0][0]), item)):
            places = dict.fromkeys(self.places(path, key))
            near = [file for file in places if file not in others and file.is_file()]
            stems = (Path(path).stem, Path(key).stem)
            known = [file for file in near if file in results and results[file].image.stem in stems]
            recorded = own.get(image, known)
            free = [file for file in near if file not in results and file not in owners]
            found = _newest(recorded, results) or next(iter(free), None)
            matched[path, key] = found
            if found is None:
                continue
            if file_identity(found) in truths:
                raise UsageError(f"{found}: is ground truth of this data set; name the folder of the predictions")
            if owners.setdefault(found, image) != image:
                raise UsageError(
                    f"{found}: was made of {results[found].image}, which is not in the data set, and fits both "
                    f"{owners[found]} and {image}; predict the images of the data set"
                )
            if not recorded and self.record is None:
                spare += [(found, other, path) for other in free[1:]]
        doubt = next((names for names in spare if names[1] not in owners), None)
        if doubt is not None:
            found, other, path = doubt
            warnings.warn(
                f"{found} is used for {path}, but {other} fits as well; remove the outdated one", stacklevel=2
            )
        by_name = sum(file not in results for file in owners) if self.record is None else 0
        if by_name:
            warnings.warn(
                f"{self.folder}: {by_name} of {len(matched)} maps are matched to images by name alone; only the record "
                "of 'langdepth predict' says of which image a map is",
                stacklevel=2,
            )
        result = copy.copy(self)
        result._matched = matched
        return result

    def _results(self) -> dict[Path, Result]:
        """What ``langdepth predict`` has recorded of the files in this folder, there, above or below."""
        folder = self.folder.absolute()
        homes = (*folder.parents, *(record.parent for record in folder.rglob(RECORD)))
        results = itertools.chain.from_iterable(Done(home).results().items() for home in homes)
        return {self.folder / file.relative_to(folder): r for file, r in results if file.is_relative_to(folder)}

    def find(self, sample: Sample) -> Path | None:
        """The file with the depth of an image, or None."""
        image = sample.path, sample.key
        if image in self._matched:
            return self._matched[image]
        return next((path for path in self.places(*image) if path.is_file()), None)

    def why_missing(self, sample: Sample) -> str:
        """Why ``find`` gives nothing."""
        places = self.places(sample.path, sample.key)
        if not places:
            return f"{self.folder} holds no depth maps"
        other = next((place for place in places if place.is_file()), None)
        if other is not None:
            return f"{other} belongs to another image; name the maps of a.jpg and a.png a_jpg and a_png"
        return ", nor ".join((f"there is no {places[0]}", *self.ends[1:]))

    def depth(self, samples: list[Sample], protocol: Protocol) -> Tensor:
        """(B, 1, H, W) of the protocol's frame of the samples' images, NaN for no depth.

        Raises ImageError naming a bad file, or one whose size fits neither the image nor the frame.
        """
        return torch.cat([self._read(sample, protocol) for sample in samples])

    def _read(self, sample: Sample, protocol: Protocol) -> Tensor:
        path = self.find(sample)
        assert path is not None, sample.path
        if path.suffix != ".png" and self.png_scale is not None:
            raise UsageError(
                f"{path}: NumPy files hold metres, and --prediction-scale (prediction_scale in a matrix) is for 16-bit "
                "PNGs; leave it out, or store the maps in metres"
            )
        if path.suffix == ".png" and self.png_scale is None:
            values = _own_png(path)
        else:
            values = read_depth(path, self.png_scale or 1.0, keep_invalid=True)
        shifted = self.scale_kind == "disparity" or (
            self.scale_kind == "relative" and protocol.alignment == "least_squares"
        )
        depth = torch.from_numpy(values)[None, None]
        depth = torch.where(depth.isfinite() if shifted else depth.isfinite() & (depth > 0), depth, math.nan)
        (rows, columns), (height, width) = values.shape, sample.image.shape[-2:]
        if (rows, columns) == protocol.frame_size:  # as an evaluation saves it
            return depth
        try:
            part = part_of((rows, columns), (height, width), protocol)
        except ImageError as error:
            raise ImageError(f"{path}: {error}") from None
        if depth.shape[-2:] != part:
            depth = F.interpolate(depth, part, mode="bilinear", align_corners=protocol.resize == "bilinear-aligned")
        window = (..., *protocol.frame_slices(height, width))
        if part == (height, width):
            frame = depth[window]
            return (
                frame
                if protocol.frame_size is None
                else F.interpolate(frame, protocol.frame_size, mode="nearest-exact")
            )
        frame = torch.full((1, 1, *_size(protocol.frame_slices(height, width))), math.nan)
        view = (..., *protocol.view_slices(*frame.shape[-2:]))
        frame[view] = depth
        return frame

    def applicable(self, protocol: Protocol) -> Protocol:
        """The protocol that the maps are evaluated under.

        That is ``protocol`` itself where they were saved by an evaluation under the same rules, and otherwise ``rules``
        of it. Raises UsageError for maps that were fitted to the ground truth, or to a focal length, under other rules.
        """
        if self.record is None:
            return self.rules(protocol)
        if self.record.hash == protocol.hash:
            return protocol
        if self.record.fitted:
            raise UsageError(
                f"{self.folder}: these maps were saved under {self.record.protocol}, after "
                f"{first_few(self.record.fitted)}; evaluate them under the same rules"
            )
        return self.rules(protocol)

    def steps(self, protocol: Protocol) -> Protocol:
        """What of the ``applicable`` protocol is left to do: of maps saved under it, neither fitting nor averaging."""
        if self.record is None or self.record.hash != protocol.hash:
            return protocol
        done = ("flip", "clamp_views", "window", "stride", "alignment", "training_focal")
        return dataclasses.replace(protocol.without(*done), name=protocol.name)

    @staticmethod
    def rules(protocol: Protocol) -> Protocol:
        """The protocol without the steps around a network: flip, limits of both views, windows, a second resize.

        Its name says so.
        """
        around = ("flip", "clamp_views", "window", "stride")
        return protocol.without(*around, *(("resize",) if protocol.resize == "bilinear-twice" else ()))

    def fingerprint(self) -> str:
        """Changes when a file of the folder does (names, sizes and times), or what its numbers are."""
        digest = hashlib.sha256(f"{self.scale_kind} {self.png_scale}".encode())
        for path in sorted(path for path in self.folder.rglob("*") if path.is_file()):
            status = path.stat()
            digest.update(f"{path.relative_to(self.folder)}\0{status.st_size}\0{status.st_mtime_ns}\n".encode())
        return digest.hexdigest()[:16]


def _by_image(results: dict[Path, Result], images: set[str]) -> dict[str, list[Path]]:
    """The recorded depth maps of each of these images (real paths), the best format first."""
    found: dict[str, list[Path]] = defaultdict(list)
    no_depth = tuple(form.suffix for form in FORMATS.values() if form.suffix not in DEPTH_ENDS)
    for file, result in results.items():
        image = os.path.realpath(result.image)
        if image in images and file.name.endswith(DEPTH_ENDS) and not file.name.endswith(no_depth):
            found[image].append(file)
    return {image: sorted(files, key=_format) for image, files in found.items()}


def _format(file: Path) -> int:
    return next(place for place, end in enumerate(DEPTH_ENDS) if file.name.endswith(end))


def _newest(files: list[Path], results: dict[Path, Result]) -> Path | None:
    """The first of the files that are made as the newest of them is."""
    if not files:
        return None
    made_of = max((results[file] for file in files), key=lambda result: result.time).made_of
    return next(file for file in files if results[file].made_of == made_of)


def _own_png(path: Path) -> npt.NDArray[np.float32]:
    """The depth of a PNG that states its scale. Raises ImageError for others."""
    try:
        return read_depth16(path)[0]
    except ImageError as error:
        if "carries no depth scale" not in str(error):
            raise
        raise ImageError(
            f"{path}: does not state its depth scale; say how many metres a stored unit is: --prediction-scale 0.001 "
            "for millimetres, 0.00390625 for 1/256 m (prediction_scale in a matrix)"
        ) from None


def part_of(size: Size, image: Size, protocol: Protocol) -> Size:
    """What a finished map of this size shows: the size of the image or of the network's view of it.

    A map has one of these sizes, or comes from one by a plain change of size (to a pixel). Raises ImageError for one
    that fits neither or both: stretched over what it does not show, its numbers would mean nothing.
    """
    known = dict.fromkeys((image, _size(protocol.view_slices(*_size(protocol.frame_slices(*image))))))
    if size in known:
        return size
    found = [one for one in known if abs(size[0] * one[1] - size[1] * one[0]) <= sum(one)]
    if len(found) == 1:
        return found[0]
    wanted = " or ".join(f"{width}x{height}" for height, width in known)
    part = "the size of the image" + (f" or of its frame {protocol.frame}" if len(known) > 1 else "")
    raise ImageError(f"is {size[1]}x{size[0]}, expected {wanted}, {part}; resize it to what it shows")


def _size(window: tuple[slice, slice]) -> Size:
    rows, columns = window
    return rows.stop - rows.start, columns.stop - columns.start
