"""What WorDepth is made of: text-VAE and sampler (sections 3.1, 3.2 of the paper), the decoder's refinement blocks."""

from __future__ import annotations

from typing import NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Gaussian(NamedTuple):
    """Independent normal variables by mean and logarithm of variance, (B, D) each."""

    mean: Tensor
    logvar: Tensor

    @property
    def std(self) -> Tensor:
        """Standard deviation (B, D)."""
        return (self.logvar / 2).exp()

    def detach(self) -> Gaussian:
        """The same numbers, as constants."""
        return Gaussian(self.mean.detach(), self.logvar.detach())

    def at(self, noise: Tensor) -> Tensor:
        """mean + std * ``noise``, for a grid of standard normal noise (B, D, h, w)."""
        return self.mean[..., None, None] + self.std[..., None, None] * noise


class TextVae(nn.Module):
    """The scenes that words may mean: text features (B, inputs) to a Gaussian over (B, latent), two networks."""

    def __init__(self, inputs: int, latent: int) -> None:
        super().__init__()
        self.mean, self.logvar = (
            nn.Sequential(
                nn.Linear(inputs, 4 * latent),
                nn.LeakyReLU(),
                nn.Linear(4 * latent, 2 * latent),
                nn.LeakyReLU(),
                nn.Linear(2 * latent, latent),
            )
            for _ in range(2)
        )

    def forward(self, text: Tensor) -> Gaussian:
        return Gaussian(self.mean(text), self.logvar(text))


class ConditionalSampler(nn.Module):
    """The noise that picks an image's scene from the Gaussian, for every cell: (B, C, h, w) to (B, latent, h, w)."""

    def __init__(self, channels: int, latent: int) -> None:
        super().__init__()
        self.mix = nn.Conv2d(channels + 2 * latent, channels, 1)
        self.noise = nn.Conv2d(channels, latent, 3, padding=1)

    def forward(self, x: Tensor, scenes: Gaussian) -> Tensor:
        words = torch.cat([scenes.mean, scenes.std], 1)[..., None, None].expand(-1, -1, *x.shape[-2:])
        noise: Tensor = self.noise(self.mix(torch.cat([x, words.to(x.dtype)], 1)))
        return noise


def kl_of_text(scenes: Gaussian) -> Tensor:
    """Divergence of the words' Gaussian from the standard normal one: sum over variables, mean over the batch."""
    mean, logvar = scenes
    return -0.5 * (1 + logvar - mean.square() - logvar.exp()).sum(1).mean()


def kl_of_noise(noise: Tensor) -> Tensor:
    """Divergence of predicted noise (B, D, h, w) from the standard normal distribution, summed over variables.

    Mean and (unbiased) deviation are those of all cells of all images together; a single cell has none, it gives 0.
    """
    samples = noise.transpose(0, 1).flatten(1)
    if samples.shape[1] < 2:
        return 0 * noise.sum()
    mean, variance = samples.mean(1), samples.var(1)
    return -0.5 * (1 + variance.log() - mean.square() - variance).sum()


class DoubleConv(nn.Module):
    """Two 3x3 convolutions with InstanceNorm, the first one grouped after a channel shuffle; a 3x3 one beside them.

    (B, inputs, h, w) to (B, outputs, h, w); ``inputs`` is a multiple of ``groups``. An x of fewer channels
    is zero-padded on the left.
    """

    def __init__(self, inputs: int, outputs: int, groups: int = 4) -> None:
        super().__init__()
        self.groups = groups
        self.grouped = nn.Conv2d(inputs, inputs, 3, padding=1, groups=groups)
        self.conv = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.shortcut = nn.Conv2d(inputs, outputs, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        zeros = self.grouped.in_channels - x.shape[1]
        whole = F.pad(x, (0, 0, 0, 0, zeros, 0)) if zeros else x
        shuffled = whole.unflatten(1, (self.groups, -1)).transpose(1, 2).flatten(1, 2)
        y = F.leaky_relu(F.instance_norm(self.grouped(shuffled)))
        y = F.leaky_relu(F.instance_norm(self.conv(y)))
        output: Tensor = y + of_last_channels(self.shortcut, x)
        return output


class Up(nn.Module):
    """concat(skip, upsampled), skip None being zeros, through DoubleConv; upsampling is bilinear, corners aligned."""

    def __init__(self, coarse: int, skip: int, outputs: int) -> None:
        super().__init__()
        self.conv = DoubleConv(skip + coarse, outputs)

    def forward(self, coarse: Tensor, skip: Tensor | None) -> Tensor:
        """coarse (B, coarse, h, w), skip (B, skip, 2h, 2w) to (B, outputs, 2h, 2w)."""
        x = enlarged(coarse, 2)
        output: Tensor = self.conv(x if skip is None else torch.cat([skip, x], 1))
        return output


class Refine(nn.Module):
    """Feature (B, C, h, w; None: zeros) and depth feature (B, D, h, w), each renewed from both.

    The ``last`` one gives None for the feature, which nothing would use.
    """

    def __init__(self, channels: int, depth_channels: int, *, last: bool = False) -> None:
        super().__init__()
        both = channels + depth_channels
        self.feature = None if last else TwoConvs(both, channels)
        self.depth = TwoConvs(both, depth_channels)

    def forward(self, x: Tensor | None, depth: Tensor) -> tuple[Tensor | None, Tensor]:
        both = depth if x is None else torch.cat([x, depth], 1)
        return None if self.feature is None else self.feature(both), self.depth(both)


class TwoConvs(nn.Sequential):
    """Two 3x3 convolutions with LeakyReLU between; an input of fewer channels is zero-padded on the left."""

    def __init__(self, inputs: int, outputs: int) -> None:
        first = nn.Conv2d(inputs, inputs, 3, padding=1)
        super().__init__(first, nn.LeakyReLU(), nn.Conv2d(inputs, outputs, 3, padding=1))

    def forward(self, x: Tensor) -> Tensor:
        first, activation, second = self
        output: Tensor = second(activation(of_last_channels(cast(nn.Conv2d, first), x)))
        return output


def of_last_channels(conv: nn.Conv2d, x: Tensor) -> Tensor:
    """``conv`` of x (B, c, h, w) behind channels of zeros, which are left out of the sum."""
    return F.conv2d(x, conv.weight[:, -x.shape[1] :], conv.bias, padding=1)


def enlarged(x: Tensor, factor: int) -> Tensor:
    """``factor`` times the size, bilinear, aligned corners."""
    return F.interpolate(x, scale_factor=factor, mode="bilinear", align_corners=True)
