"""Stages that enlarge the cells or the logits of `prompt-clip` (Auty & Mikolajczyk 2023)."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

StageKind = Literal["none", "half", "full", "upsample-2", "upsample-4", "decoder-4", "decoder-5"]


class NearestDecoder(nn.Module):
    """``blocks`` times: twice the size (nearest), 3x3 convolution, ReLU; channels stay (Auty & Mikolajczyk 2023)."""

    def __init__(self, channels: int, blocks: int) -> None:
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(channels, channels, 3, padding=1) for _ in range(blocks))

    def forward(self, x: Tensor) -> Tensor:
        for conv in self.convs:
            x = F.relu(conv(F.interpolate(x, scale_factor=2, mode="nearest")))
        return x


class Enlargement(nn.Module):
    """Enlarges a map (B, C, h, w): bilinear without aligned corners, or a decoder."""

    def __init__(self, kind: StageKind, channels: int) -> None:
        super().__init__()
        self.kind = kind
        name, _, number = kind.partition("-")
        self.factor = int(number) if name == "upsample" else 1
        self.share = {"half": 0.5, "full": 1.0}.get(name)
        self.decoder = NearestDecoder(channels, int(number)) if name == "decoder" else None

    def forward(self, x: Tensor, image: torch.Size) -> Tensor:
        """``image``: its (H, W)."""
        if self.decoder is not None:
            decoded: Tensor = self.decoder(x)
            return decoded
        size = [int(s * self.share) for s in image] if self.share else [s * self.factor for s in x.shape[-2:]]
        if list(x.shape[-2:]) == size:
            return x
        return F.interpolate(x, size, mode="bilinear", align_corners=False)
