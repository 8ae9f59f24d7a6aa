"""How the CLIP adapters predict and train: from an image and its mirror image (pinying567, 2023).

A system writes ``network``. Its depth, limited to the range and enlarged, is the prediction; the loss (losses.py) takes
both views.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, NamedTuple

from torch import Tensor

from langdepth.errors import UsageError
from langdepth.parts.upsample import resize_aligned
from langdepth.records import Batch, DepthOutput
from langdepth.systems.base import System
from langdepth.systems.capabilities import HasFrozenTrunk, Scene, Text, Trainable
from langdepth.systems.clip_adapters.losses import AdapterLosses, SourceView, adapter_losses


@dataclass(frozen=True, kw_only=True)
class MirrorTrainingConfig:
    """Options of prediction and training."""

    QUIRKS: ClassVar[dict[str, Any]] = {"masked": False, "min_depth": 0.0}

    losses: AdapterLosses = field(default_factory=AdapterLosses)
    """Weights of the losses, and the largest depth."""
    masked: bool = True
    """Whether pixels without depth are left out; the official code trains them towards 0 m."""
    min_depth: float = 0.001
    """Metres; smaller depth is raised to it."""


class RawDepth(NamedTuple):
    """depth (B, 1, h, w) metres, not limited to its range; where words are trained, their logits and bins (K,)."""

    depth: Tensor
    logits: Tensor | None = None
    bin_centers: Tensor | None = None


Features = Mapping[str, Tensor]
TextAndScene = tuple[Text, Scene]


class MirrorTraining(System, Trainable):
    """Prediction and loss of a system that writes ``network``."""

    learns_from_mirror = True
    config: Any

    def network(self, image: Tensor, features: Features, words: TextAndScene, overlay: Tensor | None) -> RawDepth:
        """Depth of (B, 3, H, W) RGB images in [0, 1] at the size of the network's output.

        ``features``: their ``frozen_features``; empty for systems without a frozen trunk.
        """
        raise NotImplementedError

    def raw_depth(
        self,
        image: Tensor,
        words: TextAndScene = (None, None),
        overlay: Tensor | None = None,
        features: Features | None = None,
    ) -> RawDepth:
        """The result of ``network``; ``features`` are computed where they are not given."""
        if features is None:
            features = self.frozen_features(image) if isinstance(self, HasFrozenTrunk) else {}
        return self.network(image, features, words, overlay)

    def forward(
        self, image: Tensor, text: Text = None, scene: Scene = None, overlay: Tensor | None = None
    ) -> DepthOutput:
        """Depth of (B, 3, H, W) RGB images in [0, 1]; ``overlay`` only where ``takes_overlay`` is set."""
        depth = self.raw_depth(image, (text, scene), overlay).depth
        depth = depth.clamp(self.config.min_depth, self.config.losses.max_depth)
        return DepthOutput(depth=resize_aligned(depth, image.shape[-2:]))

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """See ``adapter_losses``."""
        config = self.config
        settings = replace(config.losses, reference_exact=config.reference_exact)
        source = None
        if settings.photometric > 0:
            if batch.source_image is None or batch.pose is None or batch.intrinsics is None:
                raise UsageError(
                    "losses.photometric: the images have no second view with pose and intrinsics; "
                    "data.pipeline: nyu-adapters-two-views makes one"
                )
            source = SourceView(
                image=self.normalise(batch.source_image), transform=batch.pose, intrinsics=batch.intrinsics
            )
        output = self.raw_depth(batch.image, overlay=batch.overlay, features=batch.features)
        if settings.bins > 0 and output.logits is None:
            raise UsageError(f"losses.bins: '{self.name}' does not train its words; set it to 0")
        overlay = None if batch.overlay is None else batch.overlay.flip(-1)
        mirrored = self.raw_depth(batch.image.flip(-1), overlay=overlay, features=batch.mirror_features)
        return adapter_losses(
            settings,
            depth=output.depth,
            mirrored=mirrored.depth.flip(-1),
            logits=output.logits if settings.bins > 0 else None,
            image=self.normalise(batch.image),
            target=batch.depth,
            mask=batch.mask if config.masked else None,
            bin_centers=output.bin_centers,
            source=source,
        )
