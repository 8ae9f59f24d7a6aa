"""The training loader: batches made by worker processes, in shared memory that is reused.

Data flow: the plan's draws -> orders, each with a free place in that memory -> in a worker: samples, stacked right
there -> in the trainer: a Batch whose tensors are views of it. When the last of them is gone, its place is free again.
"""

from __future__ import annotations

import atexit
import os
import signal
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate

from langdepth.data.rows import RowDataset
from langdepth.errors import ImageError, LangdepthError, first_line
from langdepth.records import Batch, Sample
from langdepth.training.sampling import BatchPlan, Draw

PREFETCHED = 2  # batches that each worker makes ahead
HELD = 3  # batches that the trainer holds: the current one, the one before and the one after

Layers = tuple[Tensor, Tensor, Tensor]  # image, depth and mask of a batch
_PIXEL_BYTES = 12 + 4 + 1  # of the three together


def collate(samples: Sequence[Sample], into: Layers | None = None) -> Batch:
    """Stack samples of one size; ``into``: image, depth and mask to write to instead of new ones."""
    optional: dict[str, Any] = {}
    for name in ("text_features", "overlay", "source_image", "pose", "intrinsics"):
        values = [getattr(s, name) for s in samples]
        if not any(value is None for value in values):
            optional[name] = default_collate(values)
    pixels = [[s.image for s in samples], [s.depth for s in samples], [s.mask for s in samples]]
    if into is None:
        image, depth, mask = map(default_collate, pixels)
    else:
        image, depth, mask = (torch.stack(one, out=out) for one, out in zip(pixels, into, strict=True))
    return Batch(
        image=image,
        depth=depth,
        mask=mask,
        scene=torch.tensor([s.scene for s in samples]),
        text=[s.text for s in samples],
        mirrored=torch.tensor([s.mirrored for s in samples]),
        path=[s.path for s in samples],
        **optional,
    )


# A stored sample, image in bytes, to one of (height, width) for training; what is random in it comes from torch's
# global generator.
Transform = Callable[[Sample, tuple[int, int]], Sample]


class TrainingSet(Dataset[Sample]):
    """Rows of a data set under the training transform; the same ``Draw`` always gives the same sample."""

    def __init__(self, dataset: RowDataset, transform: Transform) -> None:
        self.dataset = dataset
        self.transform = transform

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, draw: Draw) -> Sample:
        sample = self.dataset.stored(draw.index)
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(draw.seed)  # not the accelerators': that takes 0.1 to 0.4 ms
            sample = self.transform(sample, draw.size)
        if not bool(torch.isfinite(sample.depth.sum())):
            raise ImageError(f"{sample.path}: depth is not finite after augmentation")
        return sample


class _Order(NamedTuple):
    """A batch for a worker to make: its images, and the place of their pixels (None: new memory)."""

    draws: list[Draw]
    place: int | None


class _Placed(NamedTuple):
    """A batch on its way from a worker: its pixels lie in a place; ``shape``: images, height, width."""

    place: int
    shape: tuple[int, int, int]
    batch: Batch


class _Places:
    """Shared memory for ``count`` batches of at most ``pixels`` pixels each.

    New memory for every batch would cost a page fault for each 4 KiB, a quarter of all that an image costs.
    """

    def __init__(self, count: int, pixels: int) -> None:
        memory = torch.empty(count, -(-_PIXEL_BYTES * pixels // 64) * 64, dtype=torch.uint8)
        try:
            self._memory = memory.share_memory_()
        except RuntimeError as error:
            raise LangdepthError(
                f"cannot reserve {memory.numel() / 2**20:.0f} MiB of shared memory for batches ({first_line(error)}); "
                "give the machine or container more, or lower data.batch_size or data.workers"
            ) from None
        self._free = list(range(count))

    def take(self) -> int | None:
        """A free place, if there is one."""
        return self._free.pop() if self._free else None

    def put(self, samples: Sequence[Sample], place: int) -> _Placed:
        """The batch of ``samples``, with its pixels written to ``place``."""
        shape = len(samples), *samples[0].depth.shape[-2:]
        batch = collate(samples, _pixels(self._memory[place], *shape))
        nothing = torch.empty(0)
        return _Placed(place, shape, replace(batch, image=nothing, depth=nothing, mask=nothing))

    def get(self, placed: _Placed) -> Batch:
        """The batch, as views of its place, which is free again when the last of them is gone."""
        memory = self._memory[placed.place].numpy()
        weakref.finalize(memory, self._free.append, placed.place)
        image, depth, mask = _pixels(torch.from_numpy(memory), *placed.shape)
        return replace(placed.batch, image=image, depth=depth, mask=mask)


def _pixels(memory: Tensor, count: int, height: int, width: int) -> Layers:
    """Image, depth and mask of ``count`` images, one after the other in the bytes of a place."""
    plane = count * height * width
    image, depth, mask, _ = memory.split([12 * plane, 4 * plane, plane, len(memory) - _PIXEL_BYTES * plane])
    return (
        image.view(torch.float32).view(count, 3, height, width),
        depth.view(torch.float32).view(count, 1, height, width),
        mask.view(torch.bool).view(count, 1, height, width),
    )


class _Plan:
    """The sampler behind ``TrainingLoader``: an order for each batch in the rest of the current epoch."""

    def __init__(self, draws: BatchPlan) -> None:
        self.draws, self.epoch, self.start = draws, 0, 0
        self.places: _Places | None = None

    def __len__(self) -> int:
        return len(self.draws)

    def set_epoch(self, epoch: int) -> None:
        """Go to the start of ``epoch``; where it is the current one, the place in it stays."""
        if epoch != self.epoch:
            self.epoch, self.start = epoch, 0

    def __iter__(self) -> Iterator[_Order]:
        places = self.places
        for draws in self.draws.epoch(self.epoch)[self.start :]:
            yield _Order(draws, places.take() if places else None)


class _Orders(Dataset[Any]):
    """Batches to order; errors are values, since one raised in a worker would arrive as a page of traceback."""

    def __init__(self, images: TrainingSet) -> None:
        self.images = images
        self.places: _Places | None = None

    def __getitem__(self, order: _Order) -> Batch | _Placed | LangdepthError:
        try:
            samples = [self.images[draw] for draw in order.draws]
        except LangdepthError as error:
            return error
        if self.places is None or order.place is None:
            return collate(samples)
        return self.places.put(samples, order.place)


class TrainingLoader(DataLoader[Any]):
    """A DataLoader whose state (epoch, batches handed out) lets it continue mid-epoch.

    ``finish`` adds to a batch what the workers do not pass on. Iterating raises ImageError naming an unusable file.
    """

    def __init__(
        self, dataset: TrainingSet, draws: BatchPlan, workers: int, finish: Callable[[Batch], Batch] | None = None
    ) -> None:
        self.plan = _Plan(draws)
        self.finish = finish
        self._orders = _Orders(dataset)
        self._done = 0
        self._batches: Any = None  # torch's iterator, which has the workers
        super().__init__(
            self._orders,
            batch_size=None,  # the workers' items are batches
            sampler=self.plan,
            num_workers=workers,
            collate_fn=_as_it_is,
            persistent_workers=False,
            prefetch_factor=PREFETCHED if workers else None,
            worker_init_fn=_start_worker,
        )

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]  # torch types its own iterator class
        self._done = self.plan.start
        places: _Places | None = None
        if self.num_workers:
            draws = self.plan.draws
            pixels = draws.batch_size * max(height * width for height, width in draws.sizes)
            places = _Places(self.num_workers * PREFETCHED + HELD, pixels)
        self.plan.places = self._orders.places = places
        self._batches = super().__iter__()
        if self.num_workers:
            _at_work.add(self._batches)
        for batch in self._batches:
            if isinstance(batch, LangdepthError):
                self.close()
                raise batch
            if places and isinstance(batch, _Placed):
                batch = places.get(batch)
            if self.finish is not None:
                batch = self.finish(batch)
            self._done += 1
            if self._done == len(self.plan):  # before the last one goes out: a checkpoint then points at the next epoch
                self.plan.epoch, self.plan.start, self._done = self.plan.epoch + 1, 0, 0
            yield batch

    def close(self) -> None:
        """End the workers of an epoch that was broken off."""
        if self.num_workers and self._batches is not None:
            self._batches._shutdown_workers()

    def state_dict(self) -> dict[str, int]:
        """Where training stands."""
        return {"epoch": self.plan.epoch, "batches": self._done}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Continue from ``state``."""
        self.plan.epoch, self.plan.start = state["epoch"], state["batches"]
        self._done = self.plan.start


def _as_it_is(made: Any) -> Any:
    return made


_at_work: weakref.WeakSet[Any] = weakref.WeakSet()  # torch's iterators, which have the workers


@atexit.register
def _end_workers() -> None:
    """End the workers of epochs that nobody closed: Python waits for them at its end, and they ignore signals."""
    for batches in list(_at_work):
        batches._shutdown_workers()


def _start_worker(_: int) -> None:
    # A signal to the whole process group must let the trainer finish its step; it ends the workers itself.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    torch.set_num_threads(1)  # workers decode; the processor belongs to the network
    os.environ["OMP_NUM_THREADS"] = "1"
