"""What the framework asks of a system that torch computes: ``DepthSystem``, and the abilities that only some have.

A system has an ability by inheriting from its class. Framework code asks ``isinstance(system, Imagines)``, or
``require(system, Imagines)`` where it cannot go on without. Prediction needs no more than ``systems.contract``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from typing_extensions import Self

from langdepth.evaluation.protocols import ScaleKind
from langdepth.records import Batch, DepthOutput
from langdepth.systems.contract import (
    HasMembers,
    Imagines,
    Predicts,
    Scene,
    Text,
    require,
    require_text_for_each,
    systems_with,
)
from langdepth.utils.devices import move

__all__ = [
    "ConvertsOfficial",
    "DepthSystem",
    "HasFrozenTrunk",
    "HasMembers",
    "Imagines",
    "Predicts",
    "ReadsWithClip",
    "Scene",
    "StandsOnClip",
    "TakesPrompts",
    "Text",
    "Trainable",
    "require",
    "require_text_for_each",
    "systems_with",
]


class DepthSystem(nn.Module, Predicts):
    """A module that maps images (and words) to depth: what prediction, evaluation and weights files need of it.

    ``systems.base.System`` implements it; systems derive from that.
    """

    @property
    def device(self) -> torch.device:
        """Where the tensors are."""
        raise NotImplementedError

    def forward(self, image: Tensor, text: Text = None, scene: Scene = None) -> DepthOutput:
        """See ``Predicts.__call__``."""
        raise NotImplementedError

    def inference_copy(self) -> Self:
        """An equal system in eval mode that is faster and shares its tensors."""
        raise NotImplementedError

    def for_inference(self, device: Any = None, dtype: str = "float32") -> Self:
        """Its faster copy; the system itself is moved, too, and put in eval mode."""
        return move(self, device).eval().inference_copy()

    @contextmanager
    def inference(self, dtype: str | None = None) -> Iterator[None]:
        low = dtype not in (None, "float32")
        chosen = torch.autocast(self.device.type, getattr(torch, str(dtype))) if low else nullcontext()
        with torch.inference_mode(), chosen:
            yield

    @contextmanager
    def side_by_side(self, most: int) -> Iterator[tuple[int, Callable[[], None]]]:
        # On a CPU several networks side by side, each with its share of the threads and of the batch, do more than one
        # with all threads: there is less waiting for each other, also for the threads that decode and write.
        threads = torch.get_num_threads()
        lanes = min(threads, most) if self.device.type == "cpu" else 1
        try:
            yield lanes, partial(torch.set_num_threads, threads // lanes)
        finally:
            torch.set_num_threads(threads)  # setting it in a thread also set what later threads start with

    def as_input(self, array: npt.NDArray[Any]) -> Tensor:
        return torch.from_numpy(np.require(array, requirements="W")).to(self.device)  # torch has no read-only tensors


class Trainable(DepthSystem):
    """It can be trained."""

    lacking: ClassVar[str] = "has nothing to train"
    encoder_lr: float = 1.0
    """Learning rate of ``encoder`` as a share of the others'."""

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Training losses of a batch, scalars; "total" is the one to minimise."""
        raise NotImplementedError

    def draw_step(self, generator: torch.Generator) -> dict[str, Any]:
        """What an optimiser step decides at random as a whole: further arguments of ``loss``, by default none.

        All processes and all batches of the step get the same. Random numbers must come from ``generator``.
        """
        return {}

    def prepare_training(self) -> None:
        """Load what training starts from (ImageNet or CLIP weights). Called once by ``train``, never by ``load``.

        A parameter ``text_features`` gets the data's captions (``data.captions``) where the recipe names no others.
        Systems that were trained before keep their weights and need no files.
        """

    def parameter_groups(self, lr: float, weight_decay: float) -> Iterable[dict[str, Any]]:
        """Optimiser groups; by default no weight decay on vectors and scalars (norms, biases)."""
        trainable = [(name, p) for name, p in self.named_parameters() if p.requires_grad]
        groups = []
        for inside, share in ((True, self.encoder_lr), (False, 1.0)):
            chosen = [p for name, p in trainable if name.startswith("encoder.") == inside]
            for matrices, decay in ((True, weight_decay), (False, 0.0)):
                parameters = [p for p in chosen if (p.ndim > 1) == matrices]
                groups.append({"params": parameters, "lr": lr * share, "weight_decay": decay})
        return [group for group in groups if group["params"]]


class HasFrozenTrunk(DepthSystem):
    """A part of it, the trunk, never changes in training, so its features can be computed once."""

    lacking: ClassVar[str] = "has no frozen trunk"
    learns_from_mirror: ClassVar[bool] = False
    """Whether ``loss`` needs the features of every mirrored image, too."""

    def frozen_trunk(self) -> tuple[nn.Module, dict[str, Any]] | None:
        """The trunk and the options that ``frozen_features`` depends on beside it; None where options unfreeze it."""
        raise NotImplementedError

    def frozen_features(self, image: Tensor) -> dict[str, Tensor]:
        """The trunk's features of (B, 3, H, W) RGB images in [0, 1], by name, (B, C, ...).

        ``loss`` takes ``batch.features`` (and ``mirror_features``) instead of running the trunk.
        """
        raise NotImplementedError


class StandsOnClip(DepthSystem):
    """It is made of CLIP weights, wholly (``zero_shot``) or in part."""

    lacking: ClassVar[str] = "uses no CLIP weights; leave them out"
    zero_shot: ClassVar[bool] = False
    """Whether it predicts without any training, from CLIP weights alone."""

    def load_foundation(self, clip_weights: str | Path | None = None, prompts: Mapping[str, Any] | None = None) -> None:
        """Fill in the CLIP weights.

        Args:
            clip_weights: A file, None for open_clip's own download, or "random".
            prompts: Fields of ``text.prompts.PromptSet`` that replace the system's own.
        """
        raise NotImplementedError


class ReadsWithClip(DepthSystem):
    """Its sentences can be encoded by CLIP's own text tower instead of the encoder in its weights file."""

    lacking: ClassVar[str] = "holds all its weights; leave the CLIP weights out"

    def read_with_clip(self, clip_weights: str | Path) -> None:
        """Encode sentences with CLIP's text tower from now on. ``clip_weights``: a file, or "random"."""
        raise NotImplementedError


class TakesPrompts(DepthSystem):
    """It compares images with distance words, which may be replaced."""

    lacking: ClassVar[str] = "has no distance words or bins to set; leave them out"

    def use_prompts(self, prompts: Mapping[str, Any], clip_weights: str | Path | None = None) -> None:
        """Replace its words or bins (fields of ``text.prompts.PromptSet``); new sentences need CLIP weights."""
        raise NotImplementedError


class TakesBase(DepthSystem):
    """It gives metres to the relative maps of another system, its base, or to maps that come with the images."""

    lacking: ClassVar[str] = "makes its own depth maps; leave the base out"

    def use_base(self, base: DepthSystem | None, numbers: ScaleKind = "disparity") -> None:
        """Take relative maps from ``base``, or, with None, from files beside the images that hold ``numbers``."""
        raise NotImplementedError


class ConvertsOfficial(DepthSystem):
    """The authors' checkpoints can be converted."""

    lacking: ClassVar[str] = "has no official checkpoint to convert"
    unrecorded: ClassVar[dict[str, str]] = {}
    """Options that official checkpoints do not record -> their choices; ``convert`` reports which it took."""

    def convert_official(self, state_dict: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, list[str]]]:
        """The authors' tensors under our names, and a report with the lists "used", "ignored" and "missing".

        ``state_dict`` has no leading "module." any more.

        Raises:
            CheckpointError: For a checkpoint of another layout.
        """
        raise NotImplementedError
