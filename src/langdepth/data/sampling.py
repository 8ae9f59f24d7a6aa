"""Which pictures form which batch: weighted by source, batched by shape.

The batches follow from the seed alone, wherever training was interrupted.
"""

from __future__ import annotations

import math
import os
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, default_collate

from langdepth.data.rows import Row, RowDataset
from langdepth.errors import ImageError, LangdepthError, UsageError, nearest
from langdepth.types import Batch, InputSpec, Sample


@dataclass(frozen=True, slots=True)
class Draw:
    """One place in a batch: which row, at which (height, width), with which random seed."""

    index: int
    size: tuple[int, int]
    seed: int


def collate(samples: Sequence[Sample]) -> Batch:
    """Stack samples of one size; in a worker process straight into memory that the trainer sees."""
    optional: dict[str, Any] = {}
    for name in ("text_features", "overlay", "source_image", "pose", "intrinsics"):
        values = [getattr(s, name) for s in samples]
        if not any(value is None for value in values):
            optional[name] = default_collate(values)
    return Batch(
        image=default_collate([s.image for s in samples]),
        depth=default_collate([s.depth for s in samples]),
        mask=default_collate([s.mask for s in samples]),
        scene=torch.tensor([s.scene for s in samples]),
        text=[s.text for s in samples],
        mirrored=torch.tensor([s.mirrored for s in samples]),
        path=[s.path for s in samples],
        **optional,
    )


# A stored sample, picture in bytes, to one of (height, width) for training; what is random in it comes from torch's
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


class Sizes:
    """The few network sizes that training pictures are cut to: each picture takes the nearest of ``aspects``.

    ``crop``: one (height, width) for all instead. Raises UsageError for one that the network does not take.
    """

    def __init__(self, spec: InputSpec, aspects: Sequence[float], crop: tuple[int, int] | None = None) -> None:
        self.aspects = tuple(aspects) if crop is None else (crop[1] / crop[0],)
        self.sizes = [spec.network_size(1000, round(1000 * aspect)) for aspect in self.aspects]
        if crop is not None:
            taken = spec.size or tuple(-(-side // spec.multiple_of) * spec.multiple_of for side in crop)
            if taken != tuple(crop):
                raise UsageError(
                    f"data.crop: the network takes {taken[0]}x{taken[1]} pixels (height x width), not "
                    f"{crop[0]}x{crop[1]}"
                )
            self.sizes = [crop]

    def of(self, height: int, width: int) -> int:
        """Index of the size for a stored picture."""
        return int(np.argmin([abs(np.log(width / height / aspect)) for aspect in self.aspects]))


@dataclass(frozen=True, kw_only=True)
class Draws:
    """Batches of every epoch, the same number in every epoch and on every rank.

    For each picture ``shapes`` is the index of its size in ``sizes``, ``weights`` the mean number of times that it is
    drawn in an epoch.
    """

    shapes: Sequence[int]
    sizes: Sequence[tuple[int, int]]
    weights: Sequence[float]
    batch_size: int
    seed: int
    rank: int = 0
    world_size: int = 1

    def _counts(self) -> dict[int, int]:
        """Batches per size."""
        shapes, weights = np.asarray(self.shapes), np.asarray(self.weights)
        totals = {int(s): float(weights[shapes == s].sum()) for s in np.unique(shapes)}
        return {s: max(1, round(total / self.batch_size)) for s, total in totals.items() if total > 0}

    def __len__(self) -> int:
        return sum(self._counts().values()) // self.world_size or 1

    def epoch(self, epoch: int) -> list[list[Draw]]:
        """The batches of one epoch for this rank."""
        random = np.random.default_rng([self.seed, epoch])
        shapes, weights = np.asarray(self.shapes), np.asarray(self.weights)
        batches = []
        for shape, count in self._counts().items():
            members = np.flatnonzero((shapes == shape) & (weights > 0))
            wanted = count * self.batch_size
            repeats = np.floor(weights[members] + random.random(len(members))).astype(int)
            chosen = random.permutation(np.repeat(members, repeats))[:wanted]
            probabilities = weights[members] / weights[members].sum()
            more = random.choice(members, wanted - len(chosen), p=probabilities)
            chosen = random.permutation(np.concatenate([chosen, more]))
            seeds = random.integers(2**62, size=wanted)
            draws = [Draw(int(i), self.sizes[shape], int(s)) for i, s in zip(chosen, seeds, strict=True)]
            batches += [draws[i : i + self.batch_size] for i in range(0, wanted, self.batch_size)]
        order = random.permutation(len(batches))
        mine = [batches[i] for i in order[self.rank :: self.world_size]]
        return (mine or [batches[order[0]]])[: len(self)]


def source_weights(sources: Sequence[str], weights: Mapping[str, float]) -> list[float]:
    """A weight for every row, 1 where ``weights`` does not name its source.

    Raises UsageError for a source that no row has, a weight that is not a number from 0 up, and weights that leave no
    row.
    """
    known = set(sources)
    for source, weight in weights.items():
        if source not in known:
            raise UsageError(f"data.weights: no training picture has source '{source}': {nearest(source, known)}")
        if not (math.isfinite(weight) and weight >= 0):
            raise UsageError(f"data.weights.{source}: {weight} must be a number from 0 up")
    chosen = [weights.get(source, 1.0) for source in sources]
    if not any(chosen):
        raise UsageError("data.weights: no training picture has a weight above 0")
    return chosen


def few_shots(scenes: Sequence[int], shots: int, seed: int | None = None) -> list[int]:
    """Places of ``shots`` pictures of each scene (fewer where there are fewer), in list order.

    ``scenes``: labels, -1 unknown, which are left out. ``seed``: draw them, instead of taking each scene's first ones.
    Raises UsageError when no picture has a label.
    """
    labels = np.asarray(scenes)
    order = np.arange(len(labels)) if seed is None else np.random.default_rng(seed).permutation(len(labels))
    chosen = [order[labels[order] == scene][:shots] for scene in np.unique(labels[labels >= 0])]
    if not chosen:
        raise UsageError("data.shots: no training picture has a scene label")
    return sorted(int(i) for i in np.concatenate(chosen))


class _Plan:
    """The batch sampler behind ``TrainingLoader``: the rest of the current epoch."""

    def __init__(self, draws: Draws) -> None:
        self.draws, self.epoch, self.start = draws, 0, 0
        self.sampler = self  # where trainers look for set_epoch

    def __len__(self) -> int:
        return len(self.draws)

    def set_epoch(self, epoch: int) -> None:
        """Go to the start of ``epoch``; where it is the current one, the place in it stays."""
        if epoch != self.epoch:
            self.epoch, self.start = epoch, 0

    def __iter__(self) -> Iterator[list[Draw]]:
        yield from self.draws.epoch(self.epoch)[self.start :]


class _ErrorsAsValues(Dataset[Any]):
    """Hands an error on as a value: raised in a worker process, it would arrive as a page of traceback."""

    def __init__(self, dataset: TrainingSet) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, draw: Draw) -> Sample | LangdepthError:
        try:
            return self.dataset[draw]
        except LangdepthError as error:
            return error


def _collate_or_error(samples: Sequence[Sample | LangdepthError]) -> Batch | LangdepthError:
    errors = [sample for sample in samples if isinstance(sample, LangdepthError)]
    return errors[0] if errors else collate(cast("Sequence[Sample]", samples))


class TrainingLoader(DataLoader[Any]):
    """A DataLoader that knows where it is: from its state (epoch, batches handed out) it continues in mid-epoch.

    ``finish`` adds to a batch what the workers do not pass on. Iterating raises ImageError naming an unusable file.
    """

    def __init__(
        self, dataset: TrainingSet, draws: Draws, workers: int, finish: Callable[[Batch], Batch] | None = None
    ) -> None:
        self.plan = _Plan(draws)
        self.finish = finish
        self._done = 0
        super().__init__(
            _ErrorsAsValues(dataset),
            batch_sampler=self.plan,
            num_workers=workers,
            collate_fn=_collate_or_error,
            persistent_workers=False,
            prefetch_factor=4 if workers else None,
            worker_init_fn=_quiet_worker,
        )

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]  # torch types its own iterator class
        self._done = self.plan.start
        for batch in super().__iter__():
            if isinstance(batch, LangdepthError):
                raise batch
            if self.finish is not None:
                batch = self.finish(batch)
            self._done += 1
            if self._done == len(self.plan):  # before the last one goes out: a checkpoint then points at the next epoch
                self.plan.epoch, self.plan.start, self._done = self.plan.epoch + 1, 0, 0
            yield batch

    def state_dict(self) -> dict[str, int]:
        """Where training stands."""
        return {"epoch": self.plan.epoch, "batches": self._done}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Continue from ``state``."""
        self.plan.epoch, self.plan.start = state["epoch"], state["batches"]
        self._done = self.plan.start


def _quiet_worker(_: int) -> None:
    # A signal to the whole process group must let the trainer finish its step; it ends the workers itself.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    torch.set_num_threads(1)  # workers decode; the processor belongs to the network
    os.environ["OMP_NUM_THREADS"] = "1"


def training_shapes(dataset: RowDataset, sizes: Sizes) -> list[int]:
    """Index of the network size of every row: from the row's stated size, else from the picture's header."""
    from PIL import ExifTags, Image

    def shape(row: Row) -> int:
        if row.size is not None:
            return sizes.of(*row.size)
        try:
            with Image.open(row.path_rgb) as picture:
                lying = picture.getexif().get(ExifTags.Base.Orientation, 1) >= 5  # stored on its side
                return sizes.of(*(picture.size if lying else picture.size[::-1]))
        except (OSError, Image.DecompressionBombError) as error:
            raise ImageError(f"{row.path_rgb}: cannot be opened ({error})") from None

    return [shape(row) for row in dataset.rows]
