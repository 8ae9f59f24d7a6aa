"""The features of a frozen trunk for the training images: computed once, then read from disk at every step.

    before the first step   images without a file -> training transform -> frozen_features -> a file per view
    at every step           Batch (path, mirrored) -> files -> Batch with features, and mirror_features where needed

A view is the image or its mirror image. The file's name is a hash of everything that decides its content: the image as
the network gets it, the view, the trunk's tensors and options, this package's version. So a file is never outdated;
runs that share trunk and images share files, and several processes may write at once. Files lie in ``features`` below
the folder of ``text/cache.py`` and may be deleted whenever no run is using them.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple, cast

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor
from tqdm import tqdm

from langdepth._version import __version__
from langdepth.errors import CheckpointError, LangdepthError, UsageError, first_few, say
from langdepth.records import Batch
from langdepth.systems.capabilities import DepthSystem, HasFrozenTrunk, require
from langdepth.text.cache import add_tensors, content_key, keep, read_kept
from langdepth.training.loaders import TrainingSet
from langdepth.training.module import DepthTraining
from langdepth.training.sampling import Draw
from langdepth.utils.cache import cache_folder
from langdepth.utils.tensors import read_safetensors, require_finite
from langdepth.utils.threads import reading_threads

_READERS = 4


class View(NamedTuple):
    """An image of the data set or its mirror image, and the file of its features."""

    place: int
    mirrored: bool
    path: Path


class FeatureCache(Callback):
    """Features of images of ``dataset``, whose transform gives the same image every time but for its mirroring.

    Args:
        system: With a frozen trunk.
        dataset: The training images.
        sizes: (height, width) inside the network of every image that is learned from, by its place in the data set.
        flip: The probability that an image is mirrored.
        batch_size: How many images pass through the trunk at once.

    Raises:
        UsageError: The system's trunk is not frozen.
    """

    def __init__(
        self,
        system: DepthSystem,
        dataset: TrainingSet,
        sizes: Mapping[int, tuple[int, int]],
        flip: float,
        batch_size: int,
    ) -> None:
        self.folder = cache_folder() / "features" / trunk_key(system)
        self.dataset, self.sizes, self.batch_size = dataset, sizes, batch_size
        self.both = require(system, HasFrozenTrunk).learns_from_mirror
        self.views = [mirrored for mirrored, used in ((False, flip < 1), (True, flip > 0)) if used or self.both]
        self.files: dict[tuple[str, bool], Path] = {}  # by the image's path and whether it is mirrored

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Make the files that are missing, once the system is on its device."""
        since = time.monotonic()
        made = self.fill(cast(DepthTraining, pl_module).system, trainer.global_rank, trainer.world_size)
        trainer.strategy.barrier()
        if trainer.is_global_zero:
            found = f"{len(self.files)} views of images have features in {self.folder}"
            say(f"{found}, {made} of them made in {time.monotonic() - since:.0f} s")

    def fill(self, system: DepthSystem, rank: int = 0, world_size: int = 1) -> int:
        """Find or make the files; of several processes each makes its share. Returns how many were made.

        Raises ImageError naming an unusable image, LangdepthError when the folder cannot be written or is too small.
        """
        missing = self._missing(rank, world_size)
        count = sum(map(len, missing.values()))
        with tqdm(total=count, desc="features", unit="image", disable=None if rank == 0 else True) as bar:
            for size, views in missing.items():
                for first in range(0, len(views), self.batch_size):
                    chunk = views[first : first + self.batch_size]
                    features = self._computed(require(system, HasFrozenTrunk), chunk, size)
                    if first == 0:
                        self._require_space(features, count * world_size // len(chunk))
                    for number, view in enumerate(chunk):
                        # Channels lie last in the files, as the trunks compute them.
                        channels_last = {name: value[number].movedim(0, -1) for name, value in features.items()}
                        keep(view.path, {name: value.cpu().contiguous() for name, value in channels_last.items()})
                    bar.update(len(chunk))
        return count

    def _missing(self, rank: int, world_size: int) -> dict[tuple[int, int], list[View]]:
        """Views without a whole file, by size inside the network; fills ``files``."""
        missing: dict[tuple[int, int], dict[Path, View]] = {}  # by path, too: an image may be listed twice
        with reading_threads(_READERS) as pool:
            keys = pool.map(self._key, self.sizes)
            for number, (place, (name, key)) in enumerate(zip(self.sizes, keys, strict=True)):
                for mirrored in self.views:
                    path = self.folder / f"{content_key(key, mirrored)}.safetensors"
                    if self.files.setdefault((name, mirrored), path) != path:
                        raise LangdepthError(f"{name}: several images have this name; set data.cache to none")
                    if number % world_size == rank and read_kept(path) is None:
                        missing.setdefault(self.sizes[place], {})[path] = View(place, mirrored, path)
        return {size: list(views.values()) for size, views in missing.items()}

    def _image(self, place: int, size: tuple[int, int], mirrored: bool = False) -> tuple[str, Tensor]:
        """Path and pixels of an image as the network gets it."""
        sample = self.dataset[Draw(place, size, seed=0)]
        return sample.path, sample.image if sample.mirrored == mirrored else sample.image.flip(-1)

    def _key(self, place: int) -> tuple[str, str]:
        path, image = self._image(place, self.sizes[place])
        return path, content_key(tuple(image.shape), sha256(image.contiguous().numpy().data).hexdigest())

    @torch.no_grad()
    def _computed(self, system: HasFrozenTrunk, views: Sequence[View], size: tuple[int, int]) -> dict[str, Tensor]:
        paths, images = zip(*(self._image(view.place, size, view.mirrored) for view in views), strict=True)
        features = system.frozen_features(torch.stack(images).to(system.device))
        require_finite(features, f"features of {first_few(paths)}", "check the weights")
        return features

    def _require_space(self, features: dict[str, Tensor], batches: int) -> None:
        """Raise LangdepthError where the disk has no room for the features of so many batches."""
        needed = batches * sum(value.numel() * value.element_size() for value in features.values())
        with suppress(OSError):
            self.folder.mkdir(parents=True, exist_ok=True)
            free = shutil.disk_usage(self.folder).free
            if needed > free:
                raise LangdepthError(
                    f"{self.folder}: the features need {needed / 1e9:.1f} GB, {free / 1e9:.1f} GB are free; name a "
                    "folder with more in LANGDEPTH_CACHE, or set data.cache to none"
                )

    def add(self, batch: Batch) -> Batch:
        """The batch with its features. Raises LangdepthError naming a file that is no longer there or whole."""
        assert batch.mirrored is not None
        mirrored = batch.mirrored.tolist()
        return replace(
            batch,
            features=self._read(batch.path, mirrored),
            mirror_features=self._read(batch.path, [not one for one in mirrored]) if self.both else None,
        )

    def _read(self, paths: Sequence[str], mirrored: Sequence[bool]) -> dict[str, Tensor]:
        each = [_read(self.files[key]) for key in zip(paths, mirrored, strict=True)]
        return {name: torch.stack([one[name] for one in each]).movedim(-1, 1) for name in each[0]}


def trunk_key(system: DepthSystem) -> str:
    """A name for the system's frozen trunk that changes with its tensors and options. Raises UsageError without one."""
    frozen = system.frozen_trunk() if isinstance(system, HasFrozenTrunk) else None
    if frozen is None:
        raise UsageError(
            f"data.cache: '{system.name}' with its system.options has no frozen trunk; set data.cache to none"
        )
    trunk, options = frozen
    digest = sha256()
    add_tensors(digest, trunk.state_dict())
    # The class, because it chooses which of the trunk's maps it takes.
    kind = f"{type(system).__module__}.{type(system).__qualname__}"
    return content_key(__version__, kind, options, digest.hexdigest())


def _read(path: Path) -> dict[str, Tensor]:
    """Without the checksum, which was compared at the start."""
    try:
        return read_safetensors(path)[1]
    except CheckpointError:
        raise LangdepthError(
            f"{path}: features cannot be read; continue with --resume, which computes them again"
        ) from None
