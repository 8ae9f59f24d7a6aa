"""From pictures to depth at the picture's own size."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms.v2 import functional as TF

from langdepth.types import DepthOutput

if TYPE_CHECKING:
    from langdepth.systems.base import System


@torch.inference_mode()
def infer(
    system: System,
    image: Tensor,
    text: list[str] | Tensor | None = None,
    scene: list[str] | None = None,
    *,
    flip: bool = False,
) -> DepthOutput:
    """Depth of a batch at its own size.

    ``image``: (B, 3, H, W), float32 in [0, 1] or uint8 in [0, 255], any size. It is resized (antialiased bilinear) to the size
    the system's InputSpec asks for; the depth is resized back (bilinear) to (B, 1, H, W). ``flip`` averages the depth with
    that of the mirrored picture.
    """
    height, width = image.shape[-2:]
    size = list(system.input_spec.network_size(height, width))
    image = TF.resize(image, size, antialias=True) if [height, width] != size else image
    image = TF.to_dtype(image, torch.float32, scale=True)
    output = system(image, text, scene)
    depth = output.depth.float()
    if flip:
        depth = (depth + system(image.flip(-1), text, scene).depth.float().flip(-1)) / 2
    if depth.shape[-2:] != (height, width):
        depth = F.interpolate(depth, size=(height, width), mode="bilinear", align_corners=False)
    return replace(output, depth=depth)
