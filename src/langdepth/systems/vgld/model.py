"""`vgld`, `vgld-t`, `vgld-i`: caption and image give scale and shift of a relative map (VGLD, 2025).

As RSA (systems/rsa), but CLIP's feature of the image steadies what a caption alone leaves open, and rooms and streets
have heads of their own. Specification and what is ours: docs/systems/vgld.md.

Data flow (published size; ``fusion`` tci)

    image (B, 3, H, W) -> base -> inverse depth, relative (B, 1, H, W), here brought to the range from 0 to 1
    image, 224 x 224 of its middle -> CLIP ViT-B/16 -> (B, 512);  caption -> CLIP's text tower -> (B, 512), neither
    brought to norm 1 -> concatenated, image first -> x (B, 1024);  vgld-t: the caption's, vgld-i: the image's alone
    x -> linear layers to 256-128-2, ReLU -> logits of indoor, outdoor (B, 2)
    x -> linear layers to 512-256-256, LeakyReLU -> scene (B, 256)
    scene -> the domain's linear layers 256-128-64-1, exp -> scale, and others of the same widths -> shift (B, 1, 1, 1)
    depth = 1 / (scale * relative + shift), metres

Loss: SILog + domain_weight x cross entropy of the domain + oracle_weight x mean |log difference| of scale and shift to
those that fit the ground truth best. In training the labelled domain's heads are taken.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.transforms.v2 import functional as TF

from langdepth import losses
from langdepth.backbones.clip import CLIP_MEAN, CLIP_STD, ClipImageTower
from langdepth.errors import UsageError
from langdepth.records import Batch
from langdepth.systems.capabilities import ConvertsOfficial, Scene, Text
from langdepth.systems.official import set_quirks
from langdepth.systems.relative_scale import UNRECORDED, RelativeScale, RelativeScaleConfig, layers
from langdepth.systems.vgld.blocks import DOMAINS, domains_of, fitted
from langdepth.systems.vgld.official import OFFICIAL_NAMES

CLIP_SIZE = 224


@dataclass(frozen=True, kw_only=True)
class VgldConfig(RelativeScaleConfig):
    """Options of `vgld`. ``reference_exact`` sets all of QUIRKS."""

    QUIRKS: ClassVar[dict[str, Any]] = {"routing": "batch"}

    architecture: str = "ViT-B-16"
    normalise: Literal["none", "range"] = "range"
    max_depth: float = 80.0
    fusion: Literal["tci", "t", "i"] = "tci"
    """What the head reads: image and caption, the caption, or the image."""
    routing: Literal["image", "batch"] = "image"
    """Whether every image takes its own domain, or the whole batch the one of its summed logits (the authors' code)."""
    domain_weight: float = 1.0
    oracle_weight: float = 0.1
    reference_exact: bool = False
    """The official code's numbers, its mistakes included."""

    def __post_init__(self) -> None:
        super().__post_init__()
        set_quirks(self)


class Vgld(RelativeScale, ConvertsOfficial):
    """A caption per image (but for ``fusion`` i), and a base."""

    Config = VgldConfig
    config: VgldConfig
    unrecorded: ClassVar[dict[str, str]] = {
        "fusion": "tci (image and caption, twice as wide), t (caption) or i (image); the file's name says it",
        **UNRECORDED,
    }

    def __init__(self, config: VgldConfig) -> None:
        super().__init__(config)
        self.reads_sentences = self.text_per_image = config.fusion != "i"
        width = self.features * (2 if config.fusion == "tci" else 1)
        self.classifier = layers((width, 256, 128, len(DOMAINS)), nn.ReLU)
        self.scene = layers((width, 512, 256, 256))
        self.scales, self.shifts = (
            nn.ModuleDict({domain: layers((256, 128, 64, 1)) for domain in DOMAINS}) for _ in range(2)
        )

    # -- CLIP's feature of the image -------------------------------------------------------------------------------

    def tower(self) -> ClipImageTower:
        """CLIP's image tower, of the same weights as its text tower; no part of the weights file either."""
        weights = self.clip().weights
        with self.outside.lock:
            if self.outside.tower is None:
                tower = ClipImageTower(weights.architecture, quick_gelu=weights.quick_gelu)
                tower.load_state_dict(weights.visual())
                self.outside.tower = tower.requires_grad_(False).eval()
        return self.outside.tower.to(self.device)

    @torch.no_grad()
    def image_feature(self, image: Tensor) -> Tensor:
        """(B, D) of (B, 3, H, W) RGB images in [0, 1]: CLIP's own, of the middle square at its own size."""
        height, width = image.shape[-2:]
        side = CLIP_SIZE / min(height, width)
        size = [max(CLIP_SIZE, round(height * side)), max(CLIP_SIZE, round(width * side))]
        small = F.interpolate(image.float(), size, mode="bicubic", antialias=True).clamp(0, 1)
        small = TF.center_crop(small, [CLIP_SIZE, CLIP_SIZE])
        return self.tower().dense_and_embedding(TF.normalize(small, list(CLIP_MEAN), list(CLIP_STD)))[1]

    def frozen_trunk(self) -> tuple[nn.Module, dict[str, Any]] | None:
        base = super().frozen_trunk()
        if base is None or self.config.fusion == "t":
            return base
        return nn.ModuleList([base[0], self.tower()]), base[1]

    def frozen_features(self, image: Tensor, overlay: Tensor | None = None) -> dict[str, Tensor]:
        """The relative map and, for the fusions with it, CLIP's feature of the image."""
        features = super().frozen_features(image, overlay)
        return features if self.config.fusion == "t" else {**features, "image": self.image_feature(image)}

    # -- depth -----------------------------------------------------------------------------------------------------

    def head_input(self, features: dict[str, Tensor], count: int, text: Text = None, scene: Scene = None) -> Tensor:
        if self.config.fusion == "i":
            if text is not None or scene is not None:
                raise UsageError(f"the system '{self.name}' takes neither words nor scene; leave them out")
            return features["image"]
        words = self.text_features(count, text, scene)
        return words if self.config.fusion == "t" else torch.cat([features["image"].to(words), words], 1)

    def both(self, inputs: Tensor, domains: Tensor) -> Tensor:
        """Logarithms of scale and shift (B, 2), of each row's domain (B,)."""
        scene = self.scene(inputs)
        each = torch.stack(
            [torch.cat([self.scales[domain](scene), self.shifts[domain](scene)], 1) for domain in DOMAINS], 1
        )
        return (each * F.one_hot(domains, len(DOMAINS))[..., None]).sum(1)

    def domains(self, logits: Tensor) -> Tensor:
        """The domain (B,) of logits (B, 2)."""
        if self.config.routing == "batch":
            return logits.sum(0).argmax().expand(len(logits))
        return logits.argmax(1)

    def scale_and_shift(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        scale, shift = self.both(inputs, self.domains(self.classifier(inputs))).exp()[..., None, None].split(1, 1)
        return scale, shift

    # -- training --------------------------------------------------------------------------------------------------

    def loss_of(self, batch: Batch, relative: Tensor, inputs: Tensor) -> dict[str, Tensor]:
        counted, domains = self.counted(batch, relative), domains_of(batch.scene, batch.depth * batch.mask)
        logs = self.both(inputs, domains)
        depth = self.metres(relative, *logs.exp()[..., None, None].split(1, 1))
        best = fitted(relative, batch.depth, counted)
        known = best.isfinite().all(1, keepdim=True)
        terms = {
            "silog": losses.silog(depth, batch.depth, counted),
            "domain": F.cross_entropy(self.classifier(inputs), domains),
            "oracle": torch.where(known, (logs - best).abs(), 0.0).sum() / known.sum().clamp_min(1) / 2,
        }
        weights = {"silog": 1.0, "domain": self.config.domain_weight, "oracle": self.config.oracle_weight}
        return terms | {"total": sum((weights[name] * term for name, term in terms.items()), torch.zeros(()))}

    def convert_official(self, state_dict: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, list[str]]]:
        """Official names, see official.py; these heads know no mean caption."""
        return self.converted(state_dict, OFFICIAL_NAMES)
