"""What an evaluation keeps of each image: its depth map as evaluated, in any format of predictions, and an error map.

Beside the maps lies ``maps.json``, which states system, data and protocol. By it
``langdepth.evaluation.predictions.Predictions`` knows which steps the maps have behind them, so that evaluating them
again gives the same numbers.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from langdepth._version import __version__
from langdepth.camera import Camera
from langdepth.data.base import DepthDataset
from langdepth.errors import LangdepthError, UsageError, nearest
from langdepth.evaluation.protocols import Protocol
from langdepth.evaluation.records import EvaluatedBatch
from langdepth.prediction import viz
from langdepth.prediction.background import Background
from langdepth.prediction.names import names_of, place_of_key, unique_names
from langdepth.prediction.options import AUTOMATIC, ColorScale, writer_options
from langdepth.prediction.results import DEPTH_UNIT, WRITERS, DepthResult, Writer, write_result
from langdepth.records import Sample
from langdepth.utils.arguments import check_fields
from langdepth.utils.files import LONGEST_NAME, atomic_path
from langdepth.utils.png import write_own_png
from langdepth.utils.reading import read_text

RECORD = "maps.json"
DEPTH_ENDS = (".npy", ".npz", "_depth.png", ".png")
"""Of the files that may hold a depth map, the best first."""
_FAR_UNIT = 0.004  # metres of depth16 where a protocol goes beyond 65.5 m; reaches 262 m
_KIND = "langdepth maps/1"


@dataclass(frozen=True, kw_only=True)
class SaveMaps:
    """What to keep, and where.

    Args:
        folder: Where the maps go; new, empty, or with the maps of the same evaluation.
        formats: Keys of ``FORMATS``.
        colors: Of the format "color".

    Raises:
        UsageError: For an unknown format, or none.
    """

    folder: Path
    formats: tuple[str, ...]
    colors: ColorScale = AUTOMATIC

    def __post_init__(self) -> None:
        check_fields(self)
        for name in self.formats:
            if name not in FORMATS:
                raise UsageError(f"unknown format '{name}': {nearest(name, FORMATS)}")
        if not self.formats:
            raise UsageError(f"no format to save; known: {', '.join(FORMATS)}")


@dataclass(frozen=True, kw_only=True)
class MapsRecord:
    """What ``maps.json`` says of the maps beside it."""

    protocol: str
    hash: str
    ends: tuple[str, ...]
    """Ends of the names of its depth maps, the best first."""
    fitted: tuple[str, ...]
    """Steps behind the maps that must not be done again under other rules: "alignment median", "training_focal 518.9".
    """


def read_record(folder: Path) -> MapsRecord | None:
    """The record in a folder of depth maps, or None where there is none.

    Raises:
        LangdepthError: For a record that is damaged, or of an evaluation that did not end.
    """
    path = folder / RECORD
    try:
        content = json.loads(read_text(path))
        if content["kind"] != _KIND:
            raise ValueError
        protocol, complete = content["protocol"], content["complete"]
        fitted = [f"alignment {protocol['alignment']}"] if protocol["alignment"] != "none" else []
        if protocol["training_focal"] is not None:
            fitted.append(f"training_focal {protocol['training_focal']:g}")
        written = {FORMATS[form].suffix for form in content["formats"]}
        record = MapsRecord(
            protocol=str(protocol["name"]),
            hash=str(protocol["hash"]),
            ends=tuple(end for end in DEPTH_ENDS if end in written),
            fitted=tuple(fitted),
        )
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        raise LangdepthError(
            f"{path}: is no record of saved maps; remove it to evaluate the maps beside it as they are"
        ) from None
    if complete is not True:
        raise LangdepthError(f"{path}: the evaluation that saved these maps did not end; run it again")
    return record


class MapStore:
    """Writes the maps of one evaluation in background threads. All processes of a group may write into one folder."""

    def __init__(
        self,
        save: SaveMaps,
        dataset: DepthDataset,
        protocol: Protocol,
        facts: Mapping[str, Any],
        focal: float | None = None,
    ) -> None:
        """``facts``: what the record says beside the protocol, for example system and data set.

        ``focal``: of images of unknown cameras, see ``prediction.network.usual_focal``.
        """
        rows = getattr(dataset, "rows", None)
        if rows is None:
            raise UsageError(f"'{dataset.name}' has no list of images, by which saved maps could be named")
        self._save, self._protocol, self._focal = save, protocol, focal
        self._system = str(facts.get("system", ""))
        self._names = _names([str(row.key) for row in rows], dataset.name)
        self._require_one_file_each(dataset.name)
        suffix = max((FORMATS[form].suffix for form in save.formats), key=len)
        longest = max((name.name for name in self._names), key=lambda name: len(os.fsencode(name)), default="")
        if len(os.fsencode(longest + suffix)) > LONGEST_NAME:
            raise LangdepthError(f"'{dataset.name}': the name of a map, {longest}{suffix}, is too long; shorten it")
        self._record = {
            "kind": _KIND,
            **facts,
            "formats": list(save.formats),
            "langdepth_version": __version__,
            "protocol": {"name": protocol.name, "hash": protocol.hash, **protocol.switches()},
        }
        self._require_same_maps(save.folder)
        self._write_record(complete=False)
        self._pool = Background("langdepth-maps")
        near = protocol.max_depth <= 65535 * DEPTH_UNIT
        self._unit = DEPTH_UNIT if near else _FAR_UNIT  # one for all maps
        self.guessed = 0
        """Images whose camera had to be guessed for points in space."""

    def __enter__(self) -> MapStore:
        self._pool.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._pool.__exit__(*error)

    def add(self, indices: Sequence[int], samples: Sequence[Sample], batch: EvaluatedBatch) -> None:
        """Queue the maps of an evaluated batch. Raises what went wrong with earlier ones."""
        for place, (index, sample) in enumerate(zip(indices, samples, strict=True)):
            result = self._result(sample, batch, place)
            target, valid = (part[place, 0].numpy() for part in (batch.target, batch.valid))
            for _ in self._pool.submit(self._write, self._names[index], result, target, valid):
                pass

    def finish(self) -> None:
        """Wait until all maps are there."""
        for _ in self._pool.finish():
            pass

    def complete(self) -> None:
        """Say in the record that nothing is missing."""
        self._write_record(complete=True)

    def _require_one_file_each(self, dataset: str) -> None:
        """Raise LangdepthError where the maps of two images would have one file: x_depth.png of x and of x_depth."""
        owners: dict[str, Path] = {}
        for name in self._names:
            for form in self._save.formats:
                file = f"{name}{FORMATS[form].suffix}"
                other = owners.setdefault(file.casefold(), name)
                if other != name:
                    raise LangdepthError(
                        f"'{dataset}': {file} would be a map of {other} and one of {name}; save fewer formats at once, "
                        f"not {','.join(self._save.formats)}"
                    )

    def _require_same_maps(self, folder: Path) -> None:
        """Raise LangdepthError for a folder with depth maps or images of something else."""
        path = folder / RECORD
        if path.exists():
            try:
                known = json.loads(read_text(path))
            except (OSError, ValueError, RecursionError):
                known = None
            if known == {**self._record, "complete": isinstance(known, dict) and known.get("complete")}:
                return
            raise LangdepthError(f"{folder}: holds the maps of another evaluation; give another folder or remove it")
        if folder.exists() and not folder.is_dir():
            raise LangdepthError(f"{folder}: is a file; give a folder for the maps")
        other = next((found for end in (".npy", ".npz", ".png") for found in folder.rglob(f"*{end}")), None)
        if other is not None:
            raise LangdepthError(f"{folder}: holds other files ({other.name}); give a new folder for the maps")

    def _write_record(self, complete: bool) -> None:
        with atomic_path(self._save.folder / RECORD) as temporary:
            temporary.write_text(json.dumps({**self._record, "complete": complete}, indent=2) + "\n", encoding="utf-8")

    def _result(self, sample: Sample, batch: EvaluatedBatch, place: int) -> DepthResult:
        """A batch's map ``place`` as a result of its own, of the protocol's frame."""
        depth = batch.prediction[place, 0].numpy()
        rows, columns = self._protocol.frame_slices(*sample.image.shape[-2:])
        camera = sample.camera
        if camera is not None:
            across, down = depth.shape[1] / (columns.stop - columns.start), depth.shape[0] / (rows.stop - rows.start)
            cx, cy = camera.cx - columns.start, camera.cy - rows.start
            camera = replace(
                camera,
                fx=camera.fx * across,
                fy=camera.fy * down,
                cx=(cx + 0.5) * across - 0.5,
                cy=(cy + 0.5) * down - 0.5,
                width=depth.shape[1],
                height=depth.shape[0],
            )
        elif any(FORMATS[form].needs_camera or FORMATS[form].image for form in self._save.formats):
            camera = Camera.guess(depth.shape[1], depth.shape[0], self._focal)
            self.guessed += 1
        return DepthResult(
            depth=depth,
            valid=np.isfinite(depth) & (depth > 0),
            system=self._system,
            camera=camera,
            provenance={"path": sample.path, "key": sample.key, "evaluation": self._record},
            image=batch.pixels(place),
        )

    def _write(
        self, name: Path, result: DepthResult, target: npt.NDArray[np.float32], valid: npt.NDArray[np.bool_]
    ) -> None:
        for form in self._save.formats:
            path = self._save.folder / name.with_name(name.name + FORMATS[form].suffix)
            if form in WRITERS:
                write_result(result, path, format=form, **writer_options(form, self._save.colors, self._unit))
            else:
                with atomic_path(path) as temporary, temporary.open("wb") as file:
                    FORMATS[form].write(result.depth, target, valid, file)


def _names(keys: Sequence[str], dataset: str) -> list[Path]:
    """The name of each image's files; ``Predictions`` finds every one of them by the key alone."""
    places = [place_of_key(key) for key in keys]
    if not all(place.name for place in places):
        raise LangdepthError(f"'{dataset}' has images without a name, so their maps cannot be saved")
    names = unique_names(places)
    for key, place, name in zip(keys, places, names, strict=True):
        if name not in names_of(place):
            raise LangdepthError(f"'{dataset}' names {key} more than once, so its maps would overwrite each other")
    return names


def _write_error(
    depth: npt.NDArray[np.float32], target: npt.NDArray[np.float32], valid: npt.NDArray[np.bool_], file: IO[bytes]
) -> None:
    write_own_png(file, viz.error_map(depth, target, valid), kind="error")


FORMATS: dict[str, Writer] = {**WRITERS, "error": Writer("_error.png", _write_error)}
