"""A system on a data set under a protocol: one pass, one report, two pictures.

Data flow: pictures decoded ahead in threads -> the protocol's frame -> system -> flip, alignment, clamp -> sums. Memory
does not grow with the data set. In a torch.distributed group of n processes each takes every n-th picture, and all
get the same report.
"""

from __future__ import annotations

import json
import math
import sys
import time
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, distributed
from tqdm import tqdm

from langdepth import viz
from langdepth.errors import ImageError, LangdepthError, UsageError, nearest
from langdepth.inference import DTYPES, infer
from langdepth.io import atomic_path
from langdepth.metrics import METRICS, DepthMetrics, ErrorByRange, align, depth_metrics
from langdepth.types import Sample

if TYPE_CHECKING:
    from langdepth.data.base import DepthDataset
    from langdepth.protocols import Protocol
    from langdepth.systems.base import System

SHEET_ROWS = 2  # pictures each of the best, the median and the worst
_READERS = 4


@dataclass(frozen=True, kw_only=True)
class Judged:
    """A batch under a protocol, cut to its frame, on the CPU.

    image (B, 3, H, W) in [0, 1]; prediction (B, 1, H, W) metres after flip, alignment and clamp; target (B, 1, H, W)
    metres; valid (B, 1, H, W) bool, True where the protocol compares the two.
    """

    image: Tensor
    prediction: Tensor
    target: Tensor
    valid: Tensor


def evaluate(
    system: System,
    dataset: DepthDataset,
    protocol: Protocol,
    *,
    split: str | None = None,
    source: str | None = None,
    limit: int | None = None,
    out: str | Path | None = None,
    batch_size: int = 1,
    device: str | torch.device | None = None,
    dtype: str = "float32",
    progress: bool = True,
) -> dict[str, Any]:
    """Score ``system`` on all pictures of ``dataset``; returns the report, a dictionary ready for JSON.

    Its keys: system, dataset, split, images, skipped, protocol (name, hash and every switch), image_mean and pixel_mean
    (each with ``langdepth.metrics.METRICS`` and the protocol's ``extra_metrics``), seconds. Pictures that cannot be
    read or have no pixel to judge are skipped with one line on stderr. The system gets the picture alone, neither text
    nor scene, unless the data set was opened with captions: then it gets the ``text_features``, too.

    ``split`` and ``source``: what the data set was opened with, for the report. ``limit``: judge the first pictures.
    ``out``: write the report there (JSON), and beside it ``<stem>_error_by_range.png`` and ``<stem>_sheet.png``.
    ``batch_size``: neighbours of one size go through the network together. ``device``: None leaves the system where it
    is, "auto" moves it to an accelerator if there is one. ``dtype``: "float32" or "bfloat16".

    Raises LangdepthError when no picture is usable or the network's depth is not finite, UsageError for wrong options.
    """
    if dtype not in DTYPES:
        raise UsageError(f"unknown dtype '{dtype}': {nearest(dtype, DTYPES)}")
    if batch_size < 1:
        raise UsageError(f"batch size must be at least 1, got {batch_size}")
    if limit is not None and limit < 1:
        raise UsageError(f"limit must be at least 1, got {limit}")
    count = len(dataset) if limit is None else min(limit, len(dataset))
    if count == 0:
        raise LangdepthError(f"'{dataset.name}' has no pictures")
    require_comparable(system, protocol)
    grouped = distributed.is_available() and distributed.is_initialized()
    rank, processes = (distributed.get_rank(), distributed.get_world_size()) if grouped else (0, 1)
    system = system.move(device).eval().inference_copy()
    start = time.monotonic()
    metrics, by_range = DepthMetrics(), ErrorByRange()
    scores: list[tuple[float, int]] = []  # abs_rel and index of every judged picture
    indices = range(rank, count, processes)
    # What an unreadable picture adds: a picture without a valid pixel.
    nothing = torch.ones(1, 1, 1, 1), torch.ones(1, 1, 1, 1), torch.zeros(1, 1, 1, 1, dtype=torch.bool)

    def readable(bar: _Progress) -> Iterator[tuple[int, Sample]]:
        for index, sample in _read_ahead(dataset, indices):
            bar.advance()
            if isinstance(sample, Sample):
                yield index, sample
            else:
                bar.say(f"skipped: {sample}")
                metrics.update(*nothing)
                by_range.update(*nothing)

    with closing(_Progress(len(indices), shown=progress and rank == 0)) as bar:
        for batch in _batches(readable(bar), batch_size):
            judged = judge(system, [sample for _, sample in batch], protocol, dtype)
            metrics.update(judged.prediction, judged.target, judged.valid)
            by_range.update(judged.prediction, judged.target, judged.valid)
            for (index, sample), abs_rel in zip(batch, metrics.last["abs_rel"].tolist(), strict=True):
                if math.isnan(abs_rel):
                    bar.say(f"skipped: {sample.path}: no known depth inside the window and range of {protocol.name}")
                else:
                    scores.append((abs_rel, index))
    if grouped and distributed.get_backend() == "nccl":  # which moves nothing but what is on the GPU
        metrics, by_range = metrics.cuda(), by_range.cuda()
    means, ranges = metrics.compute(), {name: part.cpu() for name, part in by_range.compute().items()}
    if processes > 1:
        gathered: list[Any] = [None] * processes
        distributed.all_gather_object(gathered, scores)
        scores = [score for part in gathered for score in part]
    if not scores:
        raise LangdepthError(f"none of the {count} pictures of '{dataset.name}' is usable, see the lines above")
    shown = (*METRICS, *protocol.extra_metrics)
    report = {
        "system": _label(system),
        "dataset": _dataset_label(dataset.name, source, limit),
        "split": split,
        "images": int(means["images"]),
        "skipped": int(means["skipped"]),
        "protocol": {"name": protocol.name, "hash": protocol.hash, **protocol.switches()},
        **{mean: {name: float(means[mean][name]) for name in shown} for mean in ("image_mean", "pixel_mean")},
        "seconds": round(time.monotonic() - start, 3),
    }
    if out is not None and rank == 0:
        out = Path(out)
        _write(report, out)
        plot_error_by_range(ranges, report, out.with_name(f"{out.stem}_error_by_range.png"))
        write_sheet(system, dataset, protocol, dtype, scores, out.with_name(f"{out.stem}_sheet.png"))
    return report


def require_comparable(system: System, protocol: Protocol) -> None:
    """Raise UsageError when the protocol compares metres but the system's depth has no unit."""
    if system.scale_kind == "relative" and protocol.alignment == "none":
        raise UsageError(f"'{system.name}' tells depth up to a factor; give an alignment: median or least_squares")


@torch.inference_mode()
def judge(system: System, samples: list[Sample], protocol: Protocol, dtype: str = "float32") -> Judged:
    """Depth of samples of one size under a protocol.

    Raises LangdepthError, naming the picture, for depth that is not finite or, where the protocol does not clamp, not
    above 0; and when the device's memory does not suffice.
    """
    height, width = samples[0].image.shape[-2:]
    window = (..., *protocol.frame_window(height, width))
    image, target, known = (
        torch.stack([getattr(sample, name) for sample in samples])[window] for name in ("image", "depth", "mask")
    )
    device = system.get_buffer("_mean").device
    overlay = None
    if system.takes_overlay:
        without = [sample.path for sample in samples if sample.overlay is None]
        if without:
            raise UsageError(f"{without[0]}: '{system.name}' needs an overlay; name it in the column path_overlay")
        overlay = torch.stack([sample.overlay for sample in samples if sample.overlay is not None])[window].to(device)
    words = [sample.text_features for sample in samples if sample.text_features is not None]
    if words and not system.text_per_picture:
        raise UsageError(f"'{system.name}' takes no captions of pictures; leave them out")
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
            prediction = output.depth.cpu()
    except torch.OutOfMemoryError:
        raise LangdepthError(
            f"{device}: not enough memory for {len(samples)} pictures of {image.shape[-1]}x{image.shape[-2]}; "
            "use a smaller batch size or another device"
        ) from None
    coarse = "" if dtype == "float32" else f", or {dtype} is too coarse"
    not_finite = f"'{system.name}' gave depth that is not finite; its weights may be damaged{coarse}"
    _require(prediction.isfinite(), samples, not_finite)
    if protocol.training_focal is not None:
        prediction = prediction * (_focal_lengths(samples) / protocol.training_focal)
    valid = protocol.valid_mask(target, known)
    prediction = align(prediction, target, valid, protocol.alignment)
    if protocol.mask_prediction:
        valid &= prediction > protocol.min_depth
    if protocol.clamp_prediction:
        prediction = prediction.clamp(protocol.min_depth, protocol.max_depth)
    _require(
        (prediction > 0) | ~valid, samples, "depth is not above 0 everywhere; use a protocol with clamp_prediction"
    )
    return Judged(image=image, prediction=prediction, target=target, valid=valid)


def _focal_lengths(samples: list[Sample]) -> Tensor:
    """(B, 1, 1, 1) pixels. Raises UsageError for a picture without camera."""
    without = [sample.path for sample in samples if sample.camera is None]
    if without:
        raise UsageError(f"{without[0]}: the protocol needs its focal length; name it in the column fx (fy, cx, cy)")
    return torch.tensor([sample.camera.fx for sample in samples if sample.camera is not None]).view(-1, 1, 1, 1)


def _require(good: Tensor, samples: list[Sample], message: str) -> None:
    for sample, fine in zip(samples, good.flatten(1).all(1).tolist(), strict=True):
        if not fine:
            raise LangdepthError(f"{sample.path}: {message}")


def _label(system: System) -> str:
    weights = system.provenance.get("weights")
    return f"{system.name} ({weights})" if weights and weights != system.name else system.name


def _dataset_label(name: str, source: str | None, limit: int | None) -> str:
    part = [f"source {source}"] * (source is not None) + [f"first {limit}"] * (limit is not None)
    return f"{name} ({', '.join(part)})" if part else name


class _Progress:
    """A bar on a terminal, about ten lines elsewhere; messages go to stderr without tearing the bar."""

    def __init__(self, total: int, shown: bool) -> None:
        self.bar = tqdm(total=total, unit="picture", disable=None if shown else True)
        self.total, self.done, self.lines = total, 0, shown and self.bar.disable
        self.close = self.bar.close

    def advance(self) -> None:
        self.done += 1
        self.bar.update()
        if self.lines and 10 * self.done // self.total > 10 * (self.done - 1) // self.total:
            self.say(f"{self.done} of {self.total} pictures")

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
    with ThreadPoolExecutor(_READERS, thread_name_prefix="langdepth-read") as pool:
        for index in indices:
            ahead.append(pool.submit(read, index))
            if len(ahead) > 2 * _READERS:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()


def _batches(samples: Iterable[tuple[int, Sample]], size: int) -> Iterator[list[tuple[int, Sample]]]:
    """Neighbours of one picture size, at most ``size`` of them."""
    batch: list[tuple[int, Sample]] = []
    for index, sample in samples:
        if batch and (len(batch) == size or batch[0][1].image.shape != sample.image.shape):
            yield batch
            batch = []
        batch.append((index, sample))
    if batch:
        yield batch


def _write(report: dict[str, Any], path: Path) -> None:
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(report, indent=2, allow_nan=False) + "\n", encoding="utf-8")


def plot_error_by_range(ranges: dict[str, Tensor], report: dict[str, Any], path: Path) -> None:
    """Draw what ``ErrorByRange.compute`` returned: abs_rel and the share of pixels against true depth."""
    from matplotlib.figure import Figure

    share = 100 * ranges["count"] / ranges["count"].sum()
    seen = share >= 0.01  # rarer depths would stretch the axes without meaning anything
    first, last = seen.nonzero().flatten()[[0, -1]].tolist()
    edges = ranges["edges"][first : last + 2].numpy()
    low, middle, high = (torch.where(seen, row, torch.nan)[first : last + 1].numpy() for row in ranges["quartiles"])
    figure = Figure(figsize=(8, 5.5), layout="constrained")
    error, pixels = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    error.stairs(high, edges, baseline=low, fill=True, alpha=0.3, label="quartiles")
    error.stairs(middle, edges, baseline=None, linewidth=2, label="median")
    error.axhline(report["pixel_mean"]["abs_rel"], color="0.4", linestyle="--", linewidth=1, label="mean of all pixels")
    error.set(
        ylabel="|prediction - truth| / truth",
        xscale="log",
        xlim=(edges[0], edges[-1]),
        ylim=(0, max(0.05, error.get_ylim()[1])),
    )
    error.set_title(
        f"{report['system']} on {report['dataset']}, {report['images']} pictures\n"
        f"{report['protocol']['name']} ({report['protocol']['hash']})"
    )
    error.legend(loc="upper right")
    pixels.stairs(share[first : last + 1].numpy(), edges, fill=True, color="0.6")
    pixels.set(xlabel="true depth (m)", ylabel="pixels (%)", ylim=(0, None))
    pixels.xaxis.set_major_locator(_ticks(edges[0], edges[-1]))
    pixels.xaxis.set_major_formatter("{x:g}")
    pixels.minorticks_off()
    for axes in (error, pixels):
        axes.grid(alpha=0.3)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=120)


def _ticks(low: float, high: float) -> Any:
    """Round metres: 1, 2, 5 per decade."""
    from matplotlib.ticker import FixedLocator

    return FixedLocator([m * 10.0**k for k in range(-2, 4) for m in (1, 2, 5) if low <= m * 10.0**k <= high])


def write_sheet(
    system: System, dataset: DepthDataset, protocol: Protocol, dtype: str, scores: list[tuple[float, int]], path: Path
) -> None:
    """Photo, judged truth, prediction and error of the best, median and worst pictures; these few are run again.

    ``scores``: abs_rel and index of each picture.
    """
    from PIL import Image

    rows = []
    for place, index in _extremes(sorted(scores)):
        sample = dataset[index]
        judged = judge(system, [sample], protocol, dtype)
        found = {name: float(v) for name, v in depth_metrics(judged.prediction, judged.target, judged.valid).items()}
        numbers = "  ".join(f"{name} {found[name]:.3f}" for name in ("abs_rel", "rmse", "delta1"))
        rows.append(sheet_row(judged, f"{place}:  {numbers}  {'/'.join(Path(sample.path).parts[-2:])}"))
    with atomic_path(path) as temporary:
        Image.fromarray(viz.sheet(rows)).save(temporary)


def sheet_row(judged: Judged, title: str) -> viz.SheetRow:
    """The first picture of a judged batch as a row of a contact sheet."""
    return viz.SheetRow(
        image=judged.image[0].mul(255).round().byte().permute(1, 2, 0).numpy(),
        truth=torch.where(judged.valid, judged.target, 0)[0, 0].numpy(),
        prediction=judged.prediction[0, 0].numpy(),
        title=title,
    )


def _extremes(ordered: list[tuple[float, int]]) -> list[tuple[str, int]]:
    """Place and index of the best, median and worst few of a sorted list; each picture once."""
    middle = max(0, (len(ordered) - SHEET_ROWS) // 2)
    parts = {  # with few pictures the later name holds
        "median": ordered[middle : middle + SHEET_ROWS],
        "worst": ordered[-SHEET_ROWS:],
        "best": ordered[:SHEET_ROWS],
    }
    place = {index: name for name, part in parts.items() for _, index in part}
    return [(place[index], index) for _, index in ordered if index in place]
