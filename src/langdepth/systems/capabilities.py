"""What the framework asks of a system: ``DepthSystem``, which every system is, and the abilities that only some have.

A system has an ability by inheriting from its class. Framework code asks ``isinstance(system, Imagines)``, or
``require(system, Imagines)`` where it cannot go on without. Prediction and the data's tools need no more than this
module, so ``systems.base`` may import them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor, nn
from typing_extensions import Self

from langdepth.data.masks import MASKS, OverlayKind
from langdepth.errors import UsageError, first_few
from langdepth.evaluation.protocols import ScaleKind
from langdepth.records import Batch, DepthOutput, InputSpec

Text = list[str] | Tensor | None
"""One sentence per image, or a precomputed feature matrix, whose shape the system defines."""
Scene = list[str] | Tensor | None
"""One name of ``scenes`` per image, or their indices (B,), int64, -1 for none."""


class DepthSystem(nn.Module):
    """A module that maps images (and words) to depth: what prediction, evaluation and weights files need of it.

    ``systems.base.System`` implements it; systems derive from that.
    """

    name: str = ""
    about: str = ""
    """What the registry states of it, as Markdown for model cards."""
    package: str | None = None
    """What pip calls the package that adds it, None for langdepth."""
    scale_kind: str = "metric"
    scenes: tuple[str, ...] = ()
    """The scene vocabulary of systems that accept ``scene=``; empty for the others."""
    text_per_image: bool = True
    """Whether a feature matrix given as text has a row per image; False: its rows are words, for all images."""
    takes_overlay: bool = False
    """Whether ``forward`` needs ``overlay``, (B, C, H, W): by default the images with masks over them, in [0, 1]."""
    overlay_kind: OverlayKind = MASKS
    """What the overlays are, and how their files are read."""
    reads_sentences: bool = False
    """Whether captions reach it as sentences even where their features, which have norm 1, are known."""
    config: Any
    input_spec: InputSpec
    provenance: dict[str, Any]

    @property
    def device(self) -> torch.device:
        """Where the tensors are."""
        raise NotImplementedError

    def forward(self, image: Tensor, text: Text = None, scene: Scene = None) -> DepthOutput:
        """Depth of (B, 3, H, W) RGB images in [0, 1] at network size.

        Args:
            image: (B, 3, H, W).
            text: One sentence per image, or a precomputed feature matrix, whose shape the system defines.
            scene: One name of ``self.scenes`` per image, or their indices (B,), int64, -1 for none.

        Raises:
            UsageError: For unknown scene names, and for text that the system does not take.
        """
        raise NotImplementedError

    def inference_copy(self) -> Self:
        """An equal system in eval mode that is faster and shares its tensors."""
        raise NotImplementedError


class Trainable(DepthSystem):
    """It can be trained."""

    lacking: ClassVar[str] = "has nothing to train"
    encoder_rate: float = 1.0
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
        for inside, share in ((True, self.encoder_rate), (False, 1.0)):
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


class Imagines(DepthSystem):
    """It draws depth maps from noise and words, with an image or without."""

    lacking: ClassVar[str] = "draws no depth from words"

    def draw_noise(self, count: int, height: int, width: int, generator: torch.Generator | None = None) -> Tensor:
        """The noise of ``count`` depth maps of ``height`` x ``width`` pixels; the system defines its shape.

        Raises:
            UsageError: For a size that is not possible.
        """
        raise NotImplementedError

    def imagine(self, text: Text, noise: Tensor) -> DepthOutput:
        """Depth of scenes that words describe, without an image: a map for each row of noise."""
        raise NotImplementedError

    def draw(self, image: Tensor, text: Text, noise: Tensor, spread: float) -> DepthOutput:
        """Scenes near the one in the image: a map for each row of noise.

        ``spread``: from 0, all as ``forward`` gives it, to 1, the noise alone.
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


class HasMembers(DepthSystem):
    """It is made of several systems: each predicts on its own, and their depth is averaged at image size."""

    @property
    def members(self) -> tuple[DepthSystem, ...]:
        """The systems that are averaged."""
        raise NotImplementedError


Capability = TypeVar("Capability", bound=DepthSystem)

systems_with: list[Callable[[type[DepthSystem]], Sequence[str]]] = []
"""Functions that name the systems with a capability. The registry, which knows the systems, adds its own."""


def require(system: DepthSystem, capability: type[Capability]) -> Capability:
    """The system itself, typed as what it can do.

    Raises:
        UsageError: It does not have the capability. The message names systems that do.
    """
    if isinstance(system, capability):
        return system
    lacking: str = capability.lacking  # type: ignore[attr-defined]
    others = first_few([name for find in systems_with for name in find(capability)])
    advice = f"{', or' if ';' in lacking else ';'} choose another system: {others}" if others else ""
    raise UsageError(f"the system '{system.name}' {lacking}{advice}")
