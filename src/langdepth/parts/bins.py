"""Adaptive bins (AdaBins, arXiv 2011.14141): their edges from widths, and depth as an expectation over them."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def width_regressor(channels: int, hidden: int, bins: int) -> nn.Sequential:
    """The layers that make a number for each bin, which its width follows from, of an image's vector."""
    return nn.Sequential(
        nn.Linear(channels, hidden), nn.LeakyReLU(), nn.Linear(hidden, 256), nn.LeakyReLU(), nn.Linear(256, bins)
    )


def bin_edges(widths: Tensor, nearest: float) -> tuple[Tensor, Tensor]:
    """Edges (B, N + 1), the first at ``nearest``, and centres (B, N) of bins of ``widths`` (B, N)."""
    edges = F.pad(widths, (1, 0), value=nearest).cumsum(-1)
    return edges, (edges[:, 1:] + edges[:, :-1]) / 2


def expected_depth(probs: Tensor, centers: Tensor) -> Tensor:
    """(B, 1, h, w) from the probabilities (B, N, h, w) of bins with ``centers`` (B, N)."""
    return torch.einsum("bnhw,bn->bhw", probs, centers).unsqueeze(1)
