"""A system on a data set under a protocol: one pass, one report.

Data flow: images decoded ahead in threads -> the protocol's frame -> system -> flip, alignment, clamp -> a tally of
one short record per image -> report (JSON, plots, sheet, HTML: report.py). In a torch.distributed group of n
processes each takes every n-th batch, and all get the same report, to the last bit that of one process.
"""

from __future__ import annotations

import copy
import sys
import time
import warnings
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future
from contextlib import closing, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, distributed
from tqdm import tqdm

from langdepth.data.overlays import with_overlays
from langdepth.data.rows import RowDataset
from langdepth.errors import (
    ImageError,
    LangdepthError,
    ShortMemoryError,
    UsageError,
    first_few,
    first_line,
    is_memory_error,
    nearest,
)
from langdepth.evaluation.foreign import Predictions
from langdepth.evaluation.metrics import align, depth_metrics
from langdepth.evaluation.plausibility import Plausibility
from langdepth.evaluation.report import (
    extremes,
    images_beside,
    plot_error_by_range,
    require_own_report,
    sheet_row,
    write_figure,
    write_html,
    write_json,
    write_sheet,
)
from langdepth.evaluation.saved import MapStore, SaveMaps
from langdepth.evaluation.tally import Tally
from langdepth.prediction.options import AUTOMATIC, ColorScale
from langdepth.prediction.predictor import DTYPES, infer
from langdepth.records import Sample
from langdepth.systems.capabilities import DepthSystem, HasMembers
from langdepth.utils.devices import move
from langdepth.utils.threads import reading_threads

if TYPE_CHECKING:
    from langdepth.data.base import DepthDataset
    from langdepth.evaluation.protocols import Protocol
    from langdepth.prediction.viz import SheetRow

_READERS = 2


@dataclass(frozen=True, kw_only=True)
class Judged:
    """A batch under a protocol, cut to its frame, on the CPU.

    image (B, 3, H, W) in bytes or in [0, 1], as in the samples; prediction (B, 1, H, W) metres after flip, alignment
    and clamp; target (B, 1, H, W) metres; valid (B, 1, H, W) bool, True where the protocol compares the two; edges
    (B, 1, H, W) bool, the true ones, where the data set states them; given (B, 1, H, W), the prediction as the system
    gave it, before alignment and clamp.
    """

    image: Tensor
    prediction: Tensor
    target: Tensor
    valid: Tensor
    given: Tensor
    edges: Tensor | None = None


def evaluate(
    system: DepthSystem | Predictions,
    dataset: DepthDataset,
    protocol: Protocol,
    *,
    split: str | None = None,
    source: str | None = None,
    captions: str | Path | None = None,
    overlay: str | Path | None = None,
    limit: int | None = None,
    out: str | Path | None = None,
    html: str | Path | None = None,
    save: SaveMaps | None = None,
    colors: ColorScale = AUTOMATIC,
    batch_size: int = 1,
    device: str | torch.device | None = None,
    dtype: str = "float32",
    progress: bool = True,
) -> dict[str, Any]:
    """Score ``system`` on all images of ``dataset``; returns the report, a dictionary ready for JSON.

    Its keys: system (and the members of an ensemble), dataset, split, images, skipped, protocol (name, hash and every
    switch), image_mean and pixel_mean (each with ``langdepth.evaluation.metrics.METRICS`` and the protocol's
    ``extra_metrics``), by_scene (image means), by_depth
    (pixel means in ``metrics.RANGES``), edges (``metrics.edge_scores``), boundaries (image means of ``boundary_errors``
    where true edges are stated), seconds. Images that cannot be read or have no pixel to judge are skipped with one
    line on stderr. The system gets the image alone, neither text nor scene, unless the data set was opened with
    captions: then it gets the ``text_features``, too. Finished ``Predictions`` may stand in the place of a system; all
    of them must be there.

    ``split``, ``source`` and ``captions``: what the data set was opened with, for the report. ``overlay``: folder of
    the overlays for systems that take one, see ``data.overlays.with_overlays``. ``limit``: judge the first images.
    ``out``: write the report there (JSON), and beside it ``<stem>_error_by_range.png`` and
    ``<stem>_sheet.png``. ``html``: write it there as one page with images.
    ``save``: keep each image's depth map as evaluated, and what else it says. ``colors``: of the depth maps in sheet
    and page. ``batch_size``: neighbours of one size go through the network together. ``device``: None leaves the system
    where it is, "auto" moves it to an accelerator if there is one. ``dtype``: "float32" or "bfloat16".

    Raises LangdepthError when no image is usable or the network's depth is not finite, UsageError for wrong options.
    """
    if dtype not in DTYPES:
        raise UsageError(f"unknown dtype '{dtype}': {nearest(dtype, DTYPES)}")
    for name, number in (("batch size", batch_size), ("limit", limit)):
        if number is not None and not (isinstance(number, int) and number >= 1):
            raise UsageError(f"{name} must be a whole number of at least 1, got {number}")
    out, html = (None if path is None else Path(path) for path in (out, html))
    require_own_report(out, html)
    count = len(dataset) if limit is None else min(limit, len(dataset))
    if count == 0:
        raise LangdepthError(f"'{dataset.name}' has no images")
    if isinstance(system, Predictions):
        if overlay is not None:
            raise UsageError(f"{overlay}: finished depth maps take no overlay; leave the folder out")
        protocol = system.obeyed(protocol)
        steps = system.steps(protocol)
        if isinstance(dataset, RowDataset):
            system = system.matched(dataset.rows)
    else:
        system = move(system, device).eval().inference_copy()
        steps = protocol
        if isinstance(dataset, RowDataset):
            dataset = copy.copy(dataset)
            dataset.rows = with_overlays(dataset.rows[:count], system, overlay)
    require_comparable(system, steps)
    facts: dict[str, Any] = {
        "system": _label(system),
        "dataset": _dataset_label(dataset.name, source, captions, limit),
        "split": split,
    }
    if isinstance(system, HasMembers):
        facts["members"] = system.provenance["members"]
    grouped = distributed.is_available() and distributed.is_initialized()
    rank, processes = (distributed.get_rank(), distributed.get_world_size()) if grouped else (0, 1)
    start = time.monotonic()
    plausibility = Plausibility(system.scale_kind, protocol.alignment)
    tally, missing = Tally(), list[tuple[str, str]]()
    indices = [index for index in range(count) if index // batch_size % processes == rank]

    def usable(bar: _Progress) -> Iterator[tuple[int, Sample]]:
        for index, sample in _read_ahead(dataset, indices):
            bar.advance()
            if isinstance(sample, ImageError):
                bar.say(f"skipped: {sample}")
                tally.skip(index)
            elif isinstance(system, Predictions) and system.find(sample) is None:
                missing.append((sample.path, _looked_for(system, sample)))
            else:
                yield index, sample

    failure: Exception | None = None
    try:
        with (
            nullcontext() if save is None else MapStore(save, dataset, protocol, facts) as store,
            closing(_Progress(len(indices), shown=progress and rank == 0)) as bar,
        ):
            for batch in _batches(usable(bar), batch_size):
                samples = [sample for _, sample in batch]
                judged, numbers_of = judge(system, samples, steps, dtype), [index for index, _ in batch]
                for one in zip(judged.given, judged.target, judged.valid, strict=True):
                    plausibility.add(*(depth[one[2]].numpy() for depth in one[:2]))
                judged_pixels = tally.add(numbers_of, samples, judged)
                if store is not None:
                    store.add(numbers_of, samples, judged)
                for sample, pixels in zip(samples, judged_pixels, strict=True):
                    if not pixels:
                        bar.say(f"skipped: {sample.path}: {_too_few(protocol)}")
            if store is not None:
                store.finish()
                if store.guessed:
                    bar.say(
                        f"camera unknown for {store.guessed} of {len(indices)} images, guessed for the point clouds"
                    )
    except Exception as error:
        failure = error  # raised when the other processes know; they would wait for this one
    _refuse(failure, missing, processes, count, system)
    tally.gather(count)
    if not tally.scores():
        raise LangdepthError(f"none of the {count} images of '{dataset.name}' is usable, see the lines above")
    for doubt in plausibility.doubts() if progress and rank == 0 else ():
        warnings.warn(f"{system.name}: {doubt}", stacklevel=2)
    numbers = tally.report(protocol.extra_metrics)
    report = {
        **facts,
        "images": numbers.pop("images"),
        "skipped": numbers.pop("skipped"),
        "protocol": {"name": protocol.name, "hash": protocol.hash, **protocol.switches()},
        **numbers,
        "seconds": round(time.monotonic() - start, 3),
    }
    if rank == 0 and store is not None:
        store.complete()
    if rank == 0 and (out is not None or html is not None):
        ranges = tally.quartiles()
        rows = _extreme_rows(system, dataset, steps, dtype, tally.scores())
        if out is not None:
            plot, sheet = images_beside(out)
            write_json(report, out)
            write_figure(plot_error_by_range(ranges, report), plot)
            write_sheet(rows, sheet, colors)
        if html is not None:
            write_html(report, ranges, tally.medians(), rows, html, colors)
    return report


def require_comparable(system: DepthSystem | Predictions, protocol: Protocol) -> None:
    """Raise UsageError when the protocol compares metres but the system's depth has no unit, or is no depth."""
    if system.scale_kind == "relative" and protocol.alignment == "none":
        raise UsageError(f"'{system.name}' tells depth up to a factor; give an alignment: median or least_squares")
    if system.scale_kind == "disparity" and protocol.alignment != "disparity":
        raise UsageError(f"'{system.name}' tells disparity, which is no depth; give the alignment disparity")


def _refuse(
    failure: Exception | None,
    missing: list[tuple[str, str]],
    processes: int,
    count: int,
    system: DepthSystem | Predictions,
) -> None:
    """Raise, in every process, what went wrong in one of them: ``failure``, or LangdepthError naming the first images
    without prediction. ``missing``: these images, with the file that was looked for first."""
    told = None if failure is None else first_line(failure)
    parts: list[Any] = [(told, missing)]
    if processes > 1:
        parts = [None] * processes
        distributed.all_gather_object(parts, (told, missing))
    if failure is not None:
        raise failure
    for rank, (message, _) in enumerate(parts):
        if message is not None:
            raise LangdepthError(f"process {rank} of {processes} failed: {message}")
    missing = [pair for _, part in parts for pair in part]
    if missing:
        images, looked_for = zip(*missing, strict=True)
        raise LangdepthError(
            f"{system.name}: {len(missing)} of {count} images have no prediction: {first_few(images)}; {looked_for[0]}"
        )


def _looked_for(predictions: Predictions, sample: Sample) -> str:
    """Why an image has no prediction."""
    places = predictions.places(sample.path, sample.key)
    if not places:
        return f"{predictions.folder} holds no depth maps"
    other = next((place for place in places if place.is_file()), None)
    if other is not None:
        return f"{other} belongs to another image; name the maps of a.jpg and a.png a_jpg and a_png"
    return ", nor ".join((f"there is no {places[0]}", *predictions.ends[1:]))


@torch.inference_mode()
def judge(
    system: DepthSystem | Predictions, samples: list[Sample], protocol: Protocol, dtype: str = "float32"
) -> Judged:
    """Depth of samples of one size under a protocol.

    Raises LangdepthError, naming the image, for depth that is not finite, cannot be aligned or, where the protocol
    does not clamp, is not above 0; and when the device's memory does not suffice.
    """
    window = (..., *protocol.frame_window(*samples[0].image.shape[-2:]))
    image, target, known = (
        _stack([getattr(sample, name) for sample in samples])[window] for name in ("image", "depth", "mask")
    )
    valid = _enough(protocol.valid_mask(target, known), protocol)
    stated = [sample.edges for sample in samples if sample.edges is not None]
    edges = _stack(stated)[window] if len(stated) == len(samples) else None
    if isinstance(system, Predictions):
        prediction = system.depth(samples, protocol)
        has_depth = prediction.isfinite()
        if protocol.mask_prediction:
            valid = _enough(valid & has_depth, protocol)
        _require_depth(system, samples, has_depth, valid if edges is None else torch.ones_like(valid))
        prediction = prediction.nan_to_num(0)
    else:
        prediction = _predict(system, samples, image, protocol, dtype)
        if not prediction.sum().isfinite():  # NaN and infinity show in the sum, which takes no time
            hint = "its weights may be damaged" + ("" if dtype == "float32" else f", or {dtype} is too coarse")
            _require(prediction.isfinite(), samples, f"'{system.name}' gave depth that is not finite; {hint}")
    if protocol.training_focal is not None:
        prediction = prediction * (_focal_lengths(samples) / protocol.training_focal)
    given = prediction
    prediction = align(prediction, target, valid, protocol.alignment, disparity=system.scale_kind == "disparity")
    if protocol.alignment == "median":
        reason = "no alignment by median, since the median of the predicted depth is not above 0"
        _require(prediction.isfinite(), samples, f"'{system.name}': {reason}")
    if protocol.mask_prediction:
        valid = _enough(valid & (prediction > protocol.min_depth), protocol)
    if protocol.clamp_prediction:
        prediction = prediction.clamp(protocol.min_depth, protocol.max_depth)
    else:
        reason = "depth is not above 0 everywhere; use a protocol with clamp_prediction"
        _require((prediction > 0) | ~valid, samples, reason)
    return Judged(image=image, prediction=prediction, target=target, valid=valid, given=given, edges=edges)


def _enough(valid: Tensor, protocol: Protocol) -> Tensor:
    """``valid`` (B, 1, H, W), emptied for images with fewer pixels than the protocol needs."""
    return valid & (valid.flatten(1).sum(1) >= protocol.needed_pixels).view(-1, 1, 1, 1)


def _too_few(protocol: Protocol) -> str:
    """Why an image is skipped that can be read."""
    known = "no known depth" if protocol.needed_pixels == 1 else f"fewer than {protocol.needed_pixels} known depths"
    return f"{known} inside the window and range of {protocol.name}"


def _predict(system: DepthSystem, samples: list[Sample], image: Tensor, protocol: Protocol, dtype: str) -> Tensor:
    """Depth of the frames ``image`` (B, 3, H, W), at their size and on the CPU; 0 outside what the network sees."""
    height, width = samples[0].image.shape[-2:]
    window = (..., *protocol.frame_window(height, width))
    view = (..., *protocol.view_window(*image.shape[-2:]))
    depth = torch.zeros(len(image), 1, *image.shape[-2:])
    image = image[view]
    device = system.device
    overlay = None
    if system.takes_overlay:
        without = [sample.path for sample in samples if sample.overlay is None]
        if without:
            raise UsageError(f"{without[0]}: '{system.name}' needs an overlay, and this sample has none")
        overlays = torch.stack([sample.overlay for sample in samples if sample.overlay is not None])
        overlay = overlays[window][view].to(device)
    words = [sample.text_features for sample in samples if sample.text_features is not None]
    if words and not system.text_per_image:
        raise UsageError(f"'{system.name}' takes no captions of images; leave them out")
    text = torch.stack(words).to(device) if words else None
    try:
        with torch.autocast(device.type, dtype=DTYPES[dtype], enabled=dtype != "float32"):
            limit = protocol.max_depth if protocol.clamp_views else None
            output = infer(
                system,
                image.to(device),
                text,
                overlay=overlay,
                flip=protocol.flip,
                resize=protocol.resize,
                limit=limit,
                window=protocol.window,
                stride=protocol.stride,
                via=(height, width) if protocol.resize == "bilinear-twice" else None,
            )
            depth[view] = output.depth.cpu()
            return depth
    except (RuntimeError, MemoryError) as error:
        if not is_memory_error(error):
            raise
        raise ShortMemoryError(
            f"{device}: not enough memory for {len(samples)} images of {image.shape[-1]}x{image.shape[-2]}; "
            "use a smaller batch size or another device"
        ) from None


def _stack(tensors: list[Tensor]) -> Tensor:
    """``torch.stack`` that leaves channels last where they are so, and does not copy a single tensor."""
    parts = [tensor.movedim(0, -1) for tensor in tensors]
    return (parts[0][None] if len(parts) == 1 else torch.stack(parts)).movedim(-1, 1)


def _focal_lengths(samples: list[Sample]) -> Tensor:
    """(B, 1, 1, 1) pixels. Raises UsageError for an image without camera."""
    without = [sample.path for sample in samples if sample.camera is None]
    if without:
        raise UsageError(f"{without[0]}: the protocol needs its focal length; name it in the column fx (fy, cx, cy)")
    return torch.tensor([sample.camera.fx for sample in samples if sample.camera is not None]).view(-1, 1, 1, 1)


def _require_depth(system: Predictions, samples: list[Sample], has_depth: Tensor, needed: Tensor) -> None:
    """Raise LangdepthError, naming the file, where a finished map has no depth but needs it."""
    lacking, wanted = (pixels.flatten(1).sum(1).tolist() for pixels in (needed & ~has_depth, needed))
    for sample, holes, pixels in zip(samples, lacking, wanted, strict=True):
        if holes:
            raise LangdepthError(
                f"{system.find(sample)}: no depth at {holes} of the {pixels} pixels that need it "
                "(0, negative or not finite); fill them or, unless true edges are judged, mask them (mask_prediction)"
            )


def _require(good: Tensor, samples: list[Sample], message: str) -> None:
    for sample, fine in zip(samples, good.flatten(1).all(1).tolist(), strict=True):
        if not fine:
            raise LangdepthError(f"{sample.path}: {message}")


def _label(system: DepthSystem | Predictions) -> str:
    weights = None if isinstance(system, Predictions) else system.provenance.get("weights")
    return f"{system.name} ({weights})" if weights and weights != system.name else system.name


def _dataset_label(name: str, source: str | None, captions: str | Path | None, limit: int | None) -> str:
    part = [f"source {source}"] * (source is not None) + [f"captions {captions}"] * (captions is not None)
    part += [f"first {limit}"] * (limit is not None)
    return f"{name} ({', '.join(part)})" if part else name


class _Progress:
    """A bar on a terminal, about ten lines elsewhere; messages go to stderr without tearing the bar."""

    def __init__(self, total: int, shown: bool) -> None:
        self.bar = tqdm(total=total, unit="image", disable=None if shown else True)
        self.total, self.done, self.lines = total, 0, shown and self.bar.disable
        self.close = self.bar.close

    def advance(self) -> None:
        self.done += 1
        self.bar.update()
        if self.lines and 10 * self.done // self.total > 10 * (self.done - 1) // self.total:
            self.say(f"{self.done} of {self.total} images")

    def say(self, message: str) -> None:
        self.bar.write(message, file=sys.stderr)


def _read_ahead(dataset: DepthDataset, indices: Iterable[int]) -> Iterator[tuple[int, Sample | ImageError]]:
    """Samples in order, a few decoded ahead in threads; an unusable one as its error."""

    def read(index: int) -> tuple[int, Sample | ImageError]:
        try:
            return index, dataset[index]
        except ImageError as error:
            return index, error

    ahead: deque[Future[tuple[int, Sample | ImageError]]] = deque()
    with reading_threads(_READERS) as pool:
        for index in indices:
            ahead.append(pool.submit(read, index))
            if len(ahead) > 2 * _READERS:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()


def _batches(samples: Iterable[tuple[int, Sample]], size: int) -> Iterator[list[tuple[int, Sample]]]:
    """Images of one size among each ``size`` neighbours of the data set, however many processes there are."""
    batch: list[tuple[int, Sample]] = []
    for index, sample in samples:
        if batch and (batch[-1][0] // size != index // size or batch[0][1].image.shape != sample.image.shape):
            yield batch
            batch = []
        batch.append((index, sample))
    if batch:
        yield batch


def _extreme_rows(
    system: DepthSystem | Predictions,
    dataset: DepthDataset,
    protocol: Protocol,
    dtype: str,
    scores: list[tuple[float, int]],
) -> list[SheetRow]:
    """Photo, judged truth and prediction of the best, median and worst images; these few are run again.

    ``scores``: abs_rel and index of each image, best first.
    """
    rows = []
    for place, index in extremes(scores):
        sample = dataset[index]
        judged = judge(system, [sample], protocol, dtype)
        found = {name: float(v) for name, v in depth_metrics(judged.prediction, judged.target, judged.valid).items()}
        numbers = "  ".join(f"{name} {found[name]:.3f}" for name in ("abs_rel", "rmse", "delta1"))
        rows.append(sheet_row(judged, f"{place}:  {numbers}  {'/'.join(Path(sample.path).parts[-2:])}"))
    return rows
