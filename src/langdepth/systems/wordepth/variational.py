"""A Gaussian over scenes that words set and an image picks from (WorDepth, arXiv 2404.03635, sections 3.1 and 3.2)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn


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
    """The noise that picks an image's scene out of the Gaussian, for every cell: (B, C, h, w) to (B, latent, h, w)."""

    def __init__(self, channels: int, latent: int) -> None:
        super().__init__()
        self.mix = nn.Conv2d(channels + 2 * latent, channels, 1)
        self.noise = nn.Conv2d(channels, latent, 3, padding=1)

    def forward(self, x: Tensor, scenes: Gaussian) -> Tensor:
        told = torch.cat([scenes.mean, scenes.std], 1)[..., None, None].expand(-1, -1, *x.shape[-2:])
        noise: Tensor = self.noise(self.mix(torch.cat([x, told.to(x.dtype)], 1)))
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
