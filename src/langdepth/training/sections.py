"""The sections of a recipe, as strict records.

The text below a field is its documentation: `python docs/tables.py` writes it into docs/train.md.
"""

from __future__ import annotations

import inspect
import math
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

from langdepth.data.base import layout
from langdepth.data.transforms import Augmentation
from langdepth.errors import UsageError, nearest
from langdepth.evaluation import protocols
from langdepth.records import WithoutCaption
from langdepth.systems import registry


def _require(**conditions: tuple[bool, str]) -> None:
    """Raise ValueError naming the first field whose condition is false and what it must be."""
    for name, (good, wanted) in conditions.items():
        if not good:
            raise ValueError(f"{name} must be {wanted}")


def _require_at_least(least: int, section: object, *names: str) -> None:
    for name in names:
        value = getattr(section, name)
        _require(**{name: (value is None or value >= least, f"at least {least}")})


@dataclass(frozen=True, kw_only=True)
class SystemSection:
    """Which system, and how it starts."""

    name: str = "tiny"
    """A name of ``langdepth systems list``."""
    options: dict[str, Any] = field(default_factory=dict)
    """Values of the system's own config."""
    prepare: dict[str, Any] = field(default_factory=dict)
    """What the system's ``prepare_training`` takes: files of start weights or features. ``text_features`` is
    ``data.captions`` where it is left out."""
    weights: str | None = None
    """Continue from these weights (anything ``langdepth.load`` opens) instead of a fresh system."""

    def __post_init__(self) -> None:
        registry.entry(self.name)


def _repeats_mistakes(pipeline: str) -> bool:
    """Whether a pipeline can make the images of official code that has mistakes."""
    if pipeline == "standard":
        return False
    return "reference_exact" in inspect.signature(registry.pipeline(pipeline)).parameters


@dataclass(frozen=True, kw_only=True)
class MoreData:
    """Another data set to learn from."""

    name: str
    root: Path
    split: str = "train"
    truth_root: Path | None = None

    def __post_init__(self) -> None:
        layout(self.name)


@dataclass(frozen=True, kw_only=True)
class DataSection:
    """The images to learn from and to validate on."""

    name: str = "folder"
    """Which data set: a name of ``langdepth data list``; ``folder`` is a folder with ``index.csv``."""
    root: Path
    """Its folder."""
    truth_root: Path | None = None
    """The folder of the ground truth, where it lies in a tree of its own."""
    more: tuple[MoreData, ...] = ()
    """Other data sets (``name``, ``root``, ``split``, ``truth_root``) whose images are learned from as well, every one
    as often as the others."""
    train_split: str = "train"
    """The split to learn from."""
    train_list: Path | None = None
    """A list file whose pairs are learned from, instead of a split."""
    val_split: str | None = None
    """The split to validate on; ``val`` where neither ``val_list`` nor ``hold_out`` is given."""
    val_list: Path | None = None
    """A list file whose pairs are validated on, instead of a split."""
    hold_out: float | None = None
    """Share of the training images that is held out to validate on, where neither ``val_split`` nor ``val_list`` is
    given."""
    val_source: str | None = None
    """Validate on the images of this source only."""
    captions: Path | None = None
    """Captions with CLIP features, in one of their forms: images get their caption and its feature, and systems that
    start from captions start from these."""
    without_caption: WithoutCaption = "stop"
    """What an image without caption does: stop the run, or (``neutral``) be learned from as if nothing were known about
    it."""
    overlay: Path | None = None
    """Folder of overlays for systems that take one; without it ``sam_out`` beside or above the data."""
    trust_unit: bool = False
    """Take depth as it is, even where its unit seems wrong."""
    weights: dict[str, float] = field(default_factory=dict)
    """Source name -> mean number of times each of its images is drawn in an epoch; 1 if not named."""
    shots: int | None = None
    """Learn from this many images of each scene label, the first ones; images without one are left out."""
    shots_seed: int | None = None
    """Draw them with this seed, instead of taking the first ones."""
    aspects: tuple[float, ...] = (4 / 3,)
    """Width / height of the shapes that training images are cut to."""
    crop: tuple[int, int] | None = None
    """(height, width) that training images are cut to at their own resolution, black where they are smaller; instead of
    a part with the shape of an aspect, resized. The standard pipeline then needs ``zoom: 1``. A network of one size
    resizes the crops of a paper's pipeline."""
    kb_sources: tuple[str, ...] = ()
    """Sources whose training images are first cut to the KITTI benchmark's 352 x 1216."""
    batch_size: int = 8
    """Images per batch and device."""
    workers: int = 2
    """Processes that read images; 0 reads in the training process. Their batches lie in shared memory: two for each
    process and three more, 17 bytes a pixel."""
    pipeline: str = "standard"
    """How training images are made: ``standard`` cuts and varies them by ``data.augmentation``; every other one is a
    paper's own, or that of an installed plug-in."""
    reference_exact: bool = False
    """The official images of a paper's pipeline, their mistakes included, where it has some."""
    augmentation: Augmentation = field(default_factory=Augmentation)
    """Of the standard pipeline."""
    cache: Literal["none", "features"] = "none"
    """``features``: what a frozen trunk gives is computed once per image and its mirror image, then read from
    disk."""

    @property
    def validation_named(self) -> bool:
        """Whether a split or a list names the validation images, and none are held out."""
        return self.val_list is not None or self.val_split is not None

    @property
    def validation(self) -> str:
        """Name of the validation images, for messages and records."""
        if self.val_list is not None:
            return self.val_list.name
        learned = self.train_split if self.train_list is None else self.train_list.name
        return self.val_split or f"{self.hold_out or 0:g} of {learned} held out"

    def __post_init__(self) -> None:
        layout(self.name)
        if not self.validation_named and self.hold_out is None:
            object.__setattr__(self, "val_split", "val")
        standard = self.pipeline == "standard"
        if not standard:
            registry.pipeline(self.pipeline)
        wanted = {} if standard else {"data.pipeline": "standard"}
        wanted |= {f"data.augmentation.{name}": value for name, value in self.augmentation.varying().items()}
        if self.cache == "features" and wanted:
            settings = ", ".join(f"{name}: {str(value).lower()}" for name, value in wanted.items())
            raise UsageError(f"data.cache: features need images that at most are mirrored; set {settings}")
        _require(
            hold_out=(self.hold_out is None or 0 < self.hold_out < 1, "between 0 and 1"),
            without_caption=(self.captions is not None or self.without_caption == "stop", "used with captions"),
            reference_exact=(
                not self.reference_exact or _repeats_mistakes(self.pipeline),
                f"false with the {self.pipeline} pipeline",
            ),
            augmentation=(standard or self.augmentation == Augmentation(), f"left out with pipeline {self.pipeline}"),
            shots_seed=(
                self.shots_seed is None or (self.shots is not None and self.shots_seed >= 0),
                "used with shots",
            ),
            aspects=(bool(self.aspects) and min(self.aspects) > 0, "one or more positive numbers"),
            crop=(
                self.crop is None or (min(self.crop) > 0 and (self.augmentation.zoom == 1 or not standard)),
                "two positive numbers, height and width; the standard pipeline then needs zoom 1",
            ),
            kb_sources=(standard or not self.kb_sources, f"left out with pipeline {self.pipeline}"),
        )
        _require_at_least(1, self, "shots", "batch_size")
        _require_at_least(0, self, "workers")


@dataclass(frozen=True, kw_only=True)
class OptimSection:
    """The optimiser and its schedule over all steps of the run."""

    optimiser: Literal["adamw", "sgd"] = "adamw"
    """``adamw`` (without weight decay it is Adam) or ``sgd``."""
    lr: float = 1e-3
    """Highest learning rate."""
    end_lr: float = 0.0
    """Where one_cycle, torch_one_cycle, poly and cosine end."""
    weight_decay: float = 0.01
    """Weight decay, on matrices and filters only."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Of AdamW."""
    momentum: float = 0.9
    """Of SGD."""
    schedule: Literal["one_cycle", "torch_one_cycle", "poly", "cosine", "step", "constant"] = "one_cycle"
    """How the rate falls after the warm-up: one_cycle and cosine along a cosine, poly by ``power``, step by ``factor``
    at every one of the ``milestones``, constant never. torch_one_cycle is PyTorch's OneCycleLR: the rate rises from lr
    / 25, and while it does, beta1 (or the momentum) falls from 0.95 to 0.85; then both go back."""
    warm_up: float = 0.1
    """Share of the steps in which the rate rises: linearly, with one_cycle along a cosine."""
    power: float = 0.9
    """Exponent of the poly schedule."""
    milestones: tuple[int, ...] = ()
    """Epochs after which the step schedule multiplies the rate by ``factor``, rising."""
    factor: float = 0.1
    """What a milestone multiplies the rate by."""
    clip: float = 1.0
    """Largest gradient norm; 0 switches clipping off."""
    accumulate: int = 1
    """Batches per optimiser step."""
    effective_batch: int | None = None
    """Images per optimiser step on all devices together, kept whatever their number: ``accumulate`` follows."""

    def __post_init__(self) -> None:
        _require(
            lr=(self.lr > 0, "above 0"),
            end_lr=(0 <= self.end_lr <= self.lr, "from 0 to lr"),
            betas=(all(0 <= beta < 1 for beta in self.betas), "two numbers from 0 to below 1"),
            warm_up=(0 <= self.warm_up < 1, "from 0 to below 1"),
            momentum=(0 <= self.momentum < 1, "from 0 to below 1"),
            power=(self.power > 0, "above 0"),
            milestones=(
                (self.schedule == "step") == bool(self.milestones)
                and all(0 < a < b for a, b in pairwise((*self.milestones, math.inf))),
                "rising numbers of epochs for the step schedule, and empty for the others",
            ),
            factor=(0 < self.factor <= 1, "above 0 and at most 1"),
            accumulate=(self.accumulate == 1 or self.effective_batch is None, "left out with effective_batch"),
        )
        _require_at_least(0, self, "weight_decay", "clip")
        _require_at_least(1, self, "accumulate", "effective_batch")


@dataclass(frozen=True, kw_only=True)
class TrainSection:
    """How the run goes."""

    out: Path = Path("runs/run")
    """The run folder."""
    epochs: int = 10
    """Passes over the training images; the schedule spans them all."""
    seed: int = 0
    """Of weights, order and augmentation."""
    precision: Literal["32-true", "bf16-mixed", "16-mixed"] = "32-true"
    """``32-true``, ``bf16-mixed`` or ``16-mixed`` (the last on GPUs only)."""
    ema: float = 0.0
    """Highest decay per step of the moving average of the weights, which is evaluated and saved: after n steps it is (1
    + n) / (10 + n) if that is less. 0 switches the average off."""
    ema_warm_up: bool = True
    """Whether the decay starts low in this way; false: ``ema`` in every step, from the start weights on."""
    accelerator: str = "auto"
    """``auto``, ``cpu``, ``gpu``, ``mps`` ..."""
    devices: int = 1
    """Processes per machine, one device each."""
    num_nodes: int = 1
    """Machines."""
    strategy: str = "auto"
    """How several processes share the work, a name that Lightning knows; with more than one device auto is ddp."""
    compile: bool = False
    """torch.compile for the system's parts: slower start, quicker steps."""
    protocol: str = "full"
    """Evaluation protocol of the validation images."""
    monitor: str | tuple[str, ...] = "abs_rel"
    """Metric (image mean) whose best value is kept as best.safetensors; of a list the first one, and the best of every
    other one as best-METRIC.safetensors."""
    validate_every: int = 1
    """Epochs between validations; the end of the run is always evaluated."""
    validate_every_steps: int | None = None
    """Steps between validations, instead of ``validate_every``."""
    save_every_steps: int | None = None
    """Steps between weights files that are kept, steps/NUMBER.safetensors."""
    checkpoint_every: int = 100
    """Steps between the checkpoints that ``--resume`` continues from; the end of an epoch always makes one."""
    log_every: int = 20
    """Steps between rows of metrics.csv and lines of progress."""
    previews: int = 4
    """Validation images drawn after each validation."""
    non_finite: Literal["stop", "skip"] = "stop"
    """What a NaN or infinite loss or gradient does: stop the run, or leave the step out."""
    max_steps: int = -1
    """Pause after this many optimiser steps, to be continued with ``--resume``; -1 goes on to the end."""
    licence: str | None = None
    """Under what terms the trained weights may be used, written into them."""
    source: str | None = None
    """Where the trained weights come from, written into them."""

    def __post_init__(self) -> None:
        from langdepth.evaluation.metrics import METRICS

        protocols.get(self.protocol)
        for monitor in self.monitors:
            if monitor not in METRICS:
                raise UsageError(f"train.monitor: '{monitor}' is not a metric: {nearest(monitor, METRICS)}")
        _require_at_least(1, self, "epochs", "devices", "num_nodes", "checkpoint_every", "log_every")
        _require_at_least(1, self, "validate_every", "validate_every_steps", "save_every_steps")
        _require_at_least(0, self, "previews")
        _require(
            seed=(0 <= self.seed < 2**63, "from 0 to below 2^63"),
            ema=(0 <= self.ema < 1, "from 0 to below 1"),
            monitor=(0 < len(self.monitors) == len(set(self.monitors)), "one metric or several different ones"),
            max_steps=(self.max_steps >= 1 or self.max_steps == -1, "at least 1, or -1 for all"),
        )

    @property
    def monitors(self) -> tuple[str, ...]:
        """The metrics of ``monitor``, the one of best.safetensors first."""
        return (self.monitor,) if isinstance(self.monitor, str) else self.monitor
