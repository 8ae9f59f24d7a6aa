"""Depth from words: every cell of a feature map is compared with sentences about distance (DepthCLIP)."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from langdepth.parts.upsample import resize_aligned
from langdepth.records import DepthOutput


class WordDepth(NamedTuple):
    """logits (B, K, h, w) after the scale; probs, their softmax over words; depth (B, 1, h, w) metres."""

    logits: Tensor
    probs: Tensor
    depth: Tensor


class WordBins(nn.Module):
    """Softmax over the similarities to K words; depth is the expectation of the words' distances.

    Features with more channels than the words' D keep every (C / D)-th channel: a nearest-neighbour resize, which is
    the published DepthCLIP. ``normalise``: features get length 1 "before" that (DepthCLIP; then they are shorter
    afterwards) or "after" it, and then the words too (the trained adapters). ``logit_scale`` is 100 / 0.1 in DepthCLIP.

    Buffer ``text`` (V, K, D): V sets of words, the first for every image, the others for scenes; zeros until filled.
    """

    text: Tensor
    bin_centers: Tensor

    def __init__(
        self,
        bin_centers: list[tuple[float, ...]],
        width: int,
        logit_scale: float = 1000.0,
        normalise: Literal["before", "after"] = "before",
    ) -> None:
        super().__init__()
        self.logit_scale = logit_scale
        self.normalise = normalise
        centers = torch.tensor(bin_centers)
        self.register_buffer("text", torch.zeros(*centers.shape, width))
        self.register_buffer("bin_centers", centers, persistent=False)

    def forward(self, features: Tensor, text: Tensor, bin_centers: Tensor) -> WordDepth:
        """features (B, C, h, w); text (N, K, D) and bin_centers (N, K), N = B or 1; always in float32."""
        return self.expect(self.logits(self.cells(features), text), bin_centers)

    def cells(self, features: Tensor) -> Tensor:
        """What is compared with words: (B, C, h, w) to (B, D, h, w)."""
        features = features.float()
        if self.normalise == "before":
            features = F.normalize(features, dim=1)
        features = thin_channels(features, self.text.shape[-1])
        return F.normalize(features, dim=1) if self.normalise == "after" else features

    def logits(self, cells: Tensor, text: Tensor) -> Tensor:
        """Scaled similarities (B, K, h, w) of cells (B, D, h, w) and words (N, K, D), or each cell's, (B, hw, K, D)."""
        with torch.autocast(cells.device.type, enabled=False):  # a scale of 1000 leaves bfloat16 no digits
            cells, text = cells.float(), text.float()
            if self.normalise == "after":
                text = F.normalize(text, dim=-1)
            flat = cells.flatten(2)
            similarity = (
                (text @ flat.transpose(1, 2)[..., None])[..., 0].transpose(1, 2) if text.ndim == 4 else text @ flat
            )
            return (self.logit_scale * similarity).unflatten(-1, cells.shape[-2:])

    def expect(self, logits: Tensor, bin_centers: Tensor) -> WordDepth:
        """Logits (B, K, h, w) and distances (N, K) to depth."""
        logits = logits.float()
        probs = logits.softmax(1)
        return WordDepth(logits, probs, (probs * bin_centers[..., None, None]).sum(1, keepdim=True))


def thin_channels(features: Tensor, width: int) -> Tensor:
    """``width`` of the channels (B, C, h, w), evenly spread: a nearest-neighbour resize of the channels."""
    channels = features.shape[1]
    if channels == width:
        return features
    return features[:, torch.arange(width, device=features.device) * channels // width]


def words_output(probs: Tensor, centers: Tensor, size: tuple[int, int] | torch.Size) -> DepthOutput:
    """Depth of ``size`` from the probabilities of words (B, K, h, w) and their distances ``centers`` (N, K), metres."""
    probs = resize_aligned(probs, size)  # of which the enlarged depth is the expectation
    return DepthOutput(
        depth=(probs * centers[..., None, None]).sum(1, keepdim=True),
        bin_centers=centers.expand(probs.shape[0], -1),
        bin_probs=probs,
    )
