"""`rsa`, `rsa-short`: a caption gives scale and shift of a relative map (RSA, NeurIPS 2024, arXiv 2410.02924).

How large a scene is, its description says better than its image; so words alone bring the map of a frozen model, the
base, to metres. Specification and what is ours: docs/systems/rsa.md.

Data flow (published size)

    image (B, 3, H, W) -> base -> inverse depth up to factor and shift, relative (B, 1, H, W)
    caption -> CLIP RN50's text tower, not brought to norm 1 -> (B, 1024)
    -> linear layers 1024-512-512-512-256-256, LeakyReLU between -> scene (B, 256)
    scene -> linear layers 256-256-128-128-64-1, exp -> scale, and others of the same widths -> shift (B, 1, 1, 1)
    depth = 1 / (scale * relative + shift), metres

`rsa-short` has layers 1024-512-256-256 and 256-128-64-1: the 804,354 parameters of the heads that the authors publish.

Loss, over the pixels with truth between 1 mm and 10 m: sum over the images of (sum of errors / all pixels); the error
is |d|, Huber's with 1 m, or d^2 of the difference d in metres.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from torch import Tensor
from torch.nn import functional as F

from langdepth.errors import CheckpointError
from langdepth.records import Batch
from langdepth.systems.capabilities import ConvertsOfficial
from langdepth.systems.relative_scale import UNRECORDED, RelativeScale, RelativeScaleConfig, layers
from langdepth.systems.rsa.official import OFFICIAL_NAMES

ERRORS: dict[str, Any] = {"l1": F.l1_loss, "huber": F.huber_loss, "l2": F.mse_loss}


@dataclass(frozen=True, kw_only=True)
class RsaConfig(RelativeScaleConfig):
    """Options of `rsa`."""

    error: Literal["l1", "huber", "l2"] = "l1"
    scene_widths: tuple[int, ...] = (512, 512, 512, 256, 256)
    """Outputs of the linear layers from the caption's feature to the scene."""
    head_widths: tuple[int, ...] = (256, 128, 128, 64)
    """Outputs of those from the scene to scale and shift, before the last."""


class Rsa(RelativeScale, ConvertsOfficial):
    """A caption per image, and a base."""

    Config = RsaConfig
    unrecorded: ClassVar[dict[str, str]] = UNRECORDED

    def __init__(self, config: RsaConfig) -> None:
        super().__init__(config)
        self.scene = layers((self.features, *config.scene_widths))
        self.scale, self.shift = (layers((config.scene_widths[-1], *config.head_widths, 1)) for _ in range(2))

    def scale_and_shift(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        scene = self.scene(inputs)
        return self.scale(scene).exp()[..., None, None], self.shift(scene).exp()[..., None, None]

    def loss_of(self, batch: Batch, relative: Tensor, inputs: Tensor) -> dict[str, Tensor]:
        depth, counted = self.metres(relative, *self.scale_and_shift(inputs)), self.counted(batch, relative)
        errors = ERRORS[self.config.error](depth, batch.depth, reduction="none")
        return {"total": (errors * counted).flatten(1).mean(1).sum()}

    def convert_official(self, state_dict: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, list[str]]]:
        """Official names, see official.py. Raises CheckpointError for a head of other layers."""
        found, own = (
            sum(key.endswith(".weight") for key in keys) for keys in (state_dict, dict(self.named_parameters()))
        )
        if found != own:
            raise CheckpointError(
                f"the head has {found} linear layers, '{self.name}' has {own}; rsa has 15, rsa-short has 9"
            )
        return self.converted(state_dict, OFFICIAL_NAMES)
