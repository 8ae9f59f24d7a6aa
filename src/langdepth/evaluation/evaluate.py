"""A system on a data set under a protocol: one pass, one report.

Data flow: images decoded ahead in threads -> one batch under the protocol (batch.py) -> a record per image (tally.py)
-> report (JSON, plots, sheet, HTML: report.py). In a torch.distributed group of n processes each takes every n-th
batch, and all get the same report, to the last bit that of one process.
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
from typing import Any

import torch
from tqdm import tqdm

from langdepth.data.base import DepthDataset
from langdepth.data.overlays import with_overlays
from langdepth.data.rows import RowDataset
from langdepth.errors import ImageError, LangdepthError, UsageError, first_few, first_line
from langdepth.evaluation.batch import evaluate_batch, require_comparable, too_few_pixels
from langdepth.evaluation.plausibility import Plausibility
from langdepth.evaluation.predictions import Predictions
from langdepth.evaluation.protocols import Protocol
from langdepth.evaluation.report import require_own_report, write_html, write_report
from langdepth.evaluation.saved import MapStore, SaveMaps
from langdepth.evaluation.sheet import Sheet
from langdepth.evaluation.tally import Tally, per_image
from langdepth.prediction.network import usual_focal
from langdepth.prediction.options import AUTOMATIC, ColorScale, Precision
from langdepth.records import Sample
from langdepth.systems.capabilities import DepthSystem, HasMembers
from langdepth.utils.arguments import checked
from langdepth.utils.processes import gathered, rank_and_count
from langdepth.utils.threads import reading_threads

_READERS = 2


@checked
def evaluate(
    system: DepthSystem | Predictions,
    dataset: DepthDataset,
    protocol: Protocol,
    *,
    overlay: str | Path | None = None,
    limit: int | None = None,
    out: str | Path | None = None,
    html: str | Path | None = None,
    save: SaveMaps | None = None,
    colors: ColorScale = AUTOMATIC,
    batch_size: int = 1,
    device: str | torch.device | None = None,
    dtype: Precision = "float32",
    progress: bool = True,
) -> dict[str, Any]:
    """Evaluate a system on a data set.

    Images that cannot be read or have no pixel to evaluate are skipped with one line on stderr. The system gets the
    image alone, without text and scene, unless the data set was opened with captions: then it gets their features, too.
    A system that reads sentences gets those of the samples.

    Args:
        system: A system, or finished predictions, of which every image needs one.
        dataset: Its images with ground truth. Where it has ``split`` and ``part`` (see ``RowDataset``), the report
            states them.
        protocol: The rules.
        overlay: Folder of the overlays for systems that take one, see ``data.overlays.with_overlays``.
        limit: Evaluate the first images only.
        out: Where to write the report (JSON), with ``<stem>_images.csv`` (the metrics of each image),
            ``<stem>_error_by_range.png`` and ``<stem>_sheet.png`` beside it.
        html: Where to write the report as one page with images.
        save: Keep each image's depth map as evaluated.
        colors: Of the depth maps in sheet and page.
        batch_size: How many neighbours of one size go through the network together.
        device: None leaves the system where it is, "auto" moves it to an accelerator if there is one.
        dtype: "float32" or "bfloat16".
        progress: Show it on stderr, and warn of predictions whose kind or unit seems wrong.

    Returns:
        The report, ready for JSON: system (and the members of an ensemble), dataset, split, images, skipped, protocol
        (name, hash and every switch), image_mean and pixel_mean (``metrics.METRICS`` and the protocol's
        ``extra_metrics``), by_scene (image means), by_depth (pixel means in ``metrics.RANGES``), edges
        (``metrics.edge_scores``), boundaries (image means of ``boundary_errors``, or None), seconds, per_image
        (each image's index and metrics; in files a table of its own).

    Raises:
        LangdepthError: No image is usable, or the network's depth is not finite.
        UsageError: Wrong options.
    """
    for name, number in (("batch size", batch_size), ("limit", limit)):
        if number is not None and number < 1:
            raise UsageError(f"{name} must be at least 1, got {number}")
    out, html = (None if path is None else Path(path) for path in (out, html))
    require_own_report(out, html)
    task = _task(system, dataset, protocol, limit, overlay, device)
    start = time.monotonic()
    run = _Pass(task, dtype, batch_size, sheet=out is not None or html is not None)
    run.do(save, progress)
    tally, table = run.tally, run.tally.table()
    if not len(table):
        raise LangdepthError(f"none of the {task.count} images of '{dataset.name}' is usable, see the lines above")
    for problem in run.plausibility.warnings() if progress and run.rank == 0 else ():
        warnings.warn(f"{system.name}: {problem}", stacklevel=3)
    report = {**_report(task, tally), "seconds": round(time.monotonic() - start, 3)}
    report["per_image"] = per_image(table, task.protocol.extra_metrics)
    rows = [] if run.sheet is None else run.sheet.gather(table)
    if run.rank == 0 and out is not None:
        write_report(report, tally, rows, out, colors, _names(dataset))
    if run.rank == 0 and html is not None:
        write_html(report, tally, rows, html, colors)
    return report


@dataclass(frozen=True, kw_only=True)
class _Task:
    """What is evaluated: the first ``count`` images; ``steps`` is what of the protocol is left to do.

    facts: what the report says of system and data.
    """

    system: DepthSystem | Predictions
    dataset: DepthDataset
    protocol: Protocol
    steps: Protocol
    count: int
    facts: dict[str, Any]


def _task(
    system: DepthSystem | Predictions,
    dataset: DepthDataset,
    protocol: Protocol,
    limit: int | None,
    overlay: str | Path | None,
    device: str | torch.device | None,
) -> _Task:
    """The arguments of ``evaluate``, ready for the pass. Raises UsageError for what does not go together."""
    count = min(len(dataset), limit or len(dataset))
    if count == 0:
        raise LangdepthError(f"'{dataset.name}' has no images")
    steps = protocol
    if isinstance(system, Predictions):
        if overlay is not None:
            raise UsageError(f"{overlay}: finished depth maps take no overlay; leave the folder out")
        protocol = system.applicable(protocol)
        steps = system.steps(protocol)
        if isinstance(dataset, RowDataset):
            system = system.matched(dataset.rows)
    else:
        system = system.for_inference(device)
        if isinstance(dataset, RowDataset):
            dataset = copy.copy(dataset)
            dataset.require_words_for(system)
            dataset.rows = with_overlays(dataset.rows[:count], system, overlay)
    require_comparable(system, steps)
    facts = _facts(system, dataset, limit)
    return _Task(system=system, dataset=dataset, protocol=protocol, steps=steps, count=count, facts=facts)


def _facts(system: DepthSystem | Predictions, dataset: DepthDataset, limit: int | None) -> dict[str, Any]:
    weights = None if isinstance(system, Predictions) else system.provenance.get("weights")
    part = {**getattr(dataset, "part", {}), **({} if limit is None else {"first": limit})}
    words = ", ".join(f"{name} {value}" for name, value in part.items())
    facts: dict[str, Any] = {
        "system": f"{system.name} ({weights})" if weights and weights != system.name else system.name,
        "dataset": f"{dataset.name} ({words})" if words else dataset.name,
        "split": getattr(dataset, "split", None),
    }
    return facts | ({"members": system.provenance["members"]} if isinstance(system, HasMembers) else {})


def _names(dataset: DepthDataset) -> list[str] | None:
    """What the images are called, where the data set has a list of them."""
    return [row.key for row in dataset.rows] if isinstance(dataset, RowDataset) else None


def _report(task: _Task, tally: Tally) -> dict[str, Any]:
    protocol, numbers = task.protocol, tally.report(task.protocol.extra_metrics)
    return {
        **task.facts,
        "images": numbers.pop("images"),
        "skipped": numbers.pop("skipped"),
        "protocol": {"name": protocol.name, "hash": protocol.hash, **protocol.switches()},
        **numbers,
    }


class _Pass:
    """The pass over the images that falls to this process."""

    def __init__(self, task: _Task, dtype: Precision, batch_size: int, sheet: bool) -> None:
        self.task, self.dtype, self.batch_size = task, dtype, batch_size
        self.rank, self.processes = rank_and_count()
        self.indices = [index for index in range(task.count) if index // batch_size % self.processes == self.rank]
        self.plausibility = Plausibility(task.system.scale_kind, task.protocol.alignment)
        self.tally = Tally()
        self.sheet = Sheet() if sheet else None
        self.missing: list[tuple[str, str]] = []
        """Images without prediction, each with the reason."""

    def do(self, save: SaveMaps | None, progress: bool) -> None:
        """Evaluate all images; afterwards the tally is that of all processes. Raises what went wrong in one of them."""
        failure: Exception | None = None
        store, task = None, self.task
        focal = None if isinstance(task.system, Predictions) else usual_focal(task.system)
        try:
            with (
                nullcontext()
                if save is None
                else MapStore(save, task.dataset, task.protocol, task.facts, focal) as store,
                closing(_Progress(len(self.indices), shown=progress and self.rank == 0)) as bar,
            ):
                for batch in _batches(self._usable(bar), self.batch_size):
                    self._add(batch, store, bar)
                if store is not None:
                    store.finish()
                    if store.guessed:
                        bar.say(
                            f"camera unknown for {store.guessed} of {len(self.indices)} images, guessed for points in "
                            "space"
                        )
        except Exception as error:
            failure = error  # raised when the other processes know; they would wait for this one
        self._raise_together(failure)
        self.tally.gather(task.count)
        if self.rank == 0 and store is not None and len(self.tally.table()):
            store.complete()

    def _usable(self, bar: _Progress) -> Iterator[tuple[int, Sample]]:
        system = self.task.system
        for index, sample in _read_ahead(self.task.dataset, self.indices):
            bar.advance()
            if isinstance(sample, ImageError):
                bar.say(f"skipped: {sample}")
                self.tally.skip(index)
            elif isinstance(system, Predictions) and system.find(sample) is None:
                self.missing.append((sample.path, system.why_missing(sample)))
            else:
                yield index, sample

    def _add(self, batch: list[tuple[int, Sample]], store: MapStore | None, bar: _Progress) -> None:
        indices, samples = [index for index, _ in batch], [sample for _, sample in batch]
        evaluated = evaluate_batch(self.task.system, samples, self.task.steps, self.dtype)
        for raw, target, valid in zip(evaluated.raw, evaluated.target, evaluated.valid, strict=True):
            self.plausibility.add(raw[valid].numpy(), target[valid].numpy())
        records = self.tally.add(indices, samples, evaluated)
        if store is not None:
            store.add(indices, samples, evaluated)
        if self.sheet is not None:
            self.sheet.add(records, samples, evaluated)
        for sample, pixels in zip(samples, records["sums"][..., 0].sum(1), strict=True):
            if not pixels:
                bar.say(f"skipped: {sample.path}: {too_few_pixels(self.task.protocol)}")

    def _raise_together(self, failure: Exception | None) -> None:
        """Raise, in every process, what went wrong in one of them."""
        message = None if failure is None else first_line(failure)
        parts = gathered((message, self.missing))
        if failure is not None:
            raise failure
        for rank, (message, _) in enumerate(parts):
            if message is not None:
                raise LangdepthError(f"process {rank} of {self.processes} failed: {message}")
        missing = [pair for _, part in parts for pair in part]
        if missing:
            images, reasons = zip(*missing, strict=True)
            raise LangdepthError(
                f"{self.task.system.name}: {len(missing)} of {self.task.count} images have no prediction: "
                f"{first_few(images)}; {reasons[0]}"
            )


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
