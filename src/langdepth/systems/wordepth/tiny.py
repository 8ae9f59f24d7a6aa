"""`wordepth-tiny`: WorDepth small enough to be part of the package, for depth from words alone on any CPU.

Ours, after WorDepth (model.py beside this file has the data flow), with a latent of (B, 48, H/16, W/16). It is trained
on a thousand images instead of tens of thousands, and differs from WorDepth as follows.

* Encoder and sentence encoder are those of `tiny`, frozen and already trained.
* Words enter by their difference to the mean caption, enlarged: CLIP's features of captions differ little.
* A learned map is added to the latent: without an image, the decoder could not distinguish floor and ceiling.
* Both kinds of step give depth in the same way, without a metric head, so that each helps the other.
* To imagine, noise is drawn like that of training images with similar words (``noise_for``): a long hallway gets the
  layout of hallways. Independent cells, as published, give one blurred room.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from langdepth.errors import UsageError
from langdepth.parts.upsample import resize_aligned
from langdepth.records import Batch
from langdepth.systems.wordepth.blocks import Gaussian
from langdepth.systems.wordepth.config import WorDepthConfig
from langdepth.systems.wordepth.model import ImageFeatures, WorDepth
from langdepth.text.caption_features import Captions, read_caption_features
from langdepth.text.encoders import CaptionBank

CONTRAST = 32.0  # brings the captions' differences to a variance of about 1


@dataclass(frozen=True, kw_only=True)
class WorDepthTinyConfig(WorDepthConfig):
    """Options of `wordepth-tiny`."""

    RENAMED: ClassVar[dict[str, str]] = {"pictures": "images"}

    directions: int = 16
    """Main directions of images' noise that imagined noise lies along."""
    coarse: int = 2
    """Cells of the latent, along each side, that have one number of the stored noise; 1 keeps outlines."""
    images: int = 768
    """Training images whose noise and words are stored."""
    word_axes: int = 12
    """Main directions of the images' words in which words are compared."""
    near: int = 10
    """How many images with the nearest words imagined noise comes from, roughly."""
    variety: float = 0.3
    """How far imagined noise may lie from an image's, in standard deviations of images' noise."""
    wordless: float = 0.1
    """Share of training images whose words are left out."""
    general: float = 0.2
    """Share of training images that get a published caption of the same kind of scene instead of their own."""


class WorDepthTiny(WorDepth):
    """``text`` is sentences or CLIP RN50 text features of norm 1, (B, 1024)."""

    Config = WorDepthTinyConfig
    config: WorDepthTinyConfig
    noise_mean: Tensor
    noise_directions: Tensor
    noise_steps: Tensor
    noise_words: Tensor
    word_axes: Tensor

    def __init__(self, config: WorDepthTinyConfig) -> None:
        super().__init__(config)
        height, width = (side // 16 for side in config.resolution)
        self.metric = nn.Sequential()  # nothing
        self.place = nn.Parameter(torch.zeros(1, config.latent, height, width))
        cells = (config.latent, height // config.coarse, width // config.coarse)
        self.register_buffer("noise_mean", torch.zeros(cells))
        self.register_buffer("noise_directions", torch.zeros(config.directions, *cells))
        # Of the stored images: steps along these directions, and their words along the axes.
        self.register_buffer("noise_steps", torch.zeros(config.images, config.directions))
        self.register_buffer("noise_words", torch.zeros(config.images, config.word_axes))
        self.register_buffer("word_axes", torch.zeros(config.word_axes, config.latent))

    def scene_distribution(self, features: Tensor) -> Gaussian:
        """Text features (B, 1024) to the Gaussian over scenes, (B, 48)."""
        return super().scene_distribution((features - self.neutral_text) * CONTRAST)

    def decode(self, latent: Tensor, maps: ImageFeatures | None) -> Tensor:
        """Latent (B, 48, H/16, W/16) to depth (B, 1, H, W), metres."""
        return super().decode(latent + resize_aligned(self.place, latent.shape[-2:]), maps)

    def image_step(self, maps: ImageFeatures, scenes: Gaussian, noise: Tensor) -> Tensor:
        """Depth (B, 1, H, W) of the scene that ``noise`` (B, 48, H/16, W/16) picks."""
        return self.decode(scenes.at(noise), None if self.config.skip_mode == "never" else maps)

    def noise_for(self, scenes: Gaussian, noise: Tensor) -> Tensor:
        """The noise of a training image with words like these, somewhat changed; (B, 48, H/16, W/16).

        The nearer an image's words, the likelier it is. ``noise``, independent numbers, says which image and what
        change; before ``learn_noise`` it stays as it is.
        """
        config = self.config
        if not self.noise_directions.any():
            return noise
        numbers = noise.flatten(1)  # normal
        distances = torch.cdist(scenes.mean @ self.word_axes.T, self.noise_words).square()
        near = distances.topk(config.near, dim=1, largest=False).values[:, -1:].clamp_min(1e-6)
        shares = (-3 * distances / near).softmax(1).cumsum(1)
        at = (1 + torch.erf(numbers[:, :1] / 2**0.5)) / 2  # uniform between 0 and 1
        image = (shares < at).sum(1).clamp_max(config.images - 1)
        change = numbers[:, 1 : 1 + config.directions]
        steps = (1 - config.variety**2) ** 0.5 * self.noise_steps[image] + config.variety * change
        drawn = self.noise_mean + torch.einsum("bk,kdhw->bdhw", steps, self.noise_directions)
        return resize_aligned(drawn, noise.shape[-2:])

    @torch.inference_mode()
    def learn_noise(self, batches: Iterable[Batch]) -> float:
        """Store noise and words of images, along their main directions.

        Returns the share of the noise's variance that lies along these. Raises UsageError for too few images.
        """
        config, (height, width) = self.config, self.noise_mean.shape[-2:]
        found, means = [], []
        for batch in batches:
            maps, scenes = self.encode_image(batch.image), self.scene_distribution(self.batch_features(batch))
            found.append(F.adaptive_avg_pool2d(self.sampler(maps.x, scenes).float(), (height, width)).flatten(1))
            means.append(scenes.mean)
        noise, words = torch.cat(found), torch.cat(means)
        if len(noise) < config.images:
            raise UsageError(f"{len(noise)} images are too few; '{self.name}' stores {config.images}")
        directions, deviations, share = _main_directions(noise, config.directions)
        axes, lengths, _ = _main_directions(words, config.word_axes)
        kept = torch.linspace(0, len(noise) - 1, config.images).round().long()
        self.noise_mean.copy_(noise.mean(0).view_as(self.noise_mean))
        self.noise_directions.copy_((deviations[:, None] * directions).view_as(self.noise_directions))
        self.noise_steps.copy_(((noise - noise.mean(0)) @ directions.T / deviations)[kept])
        self.word_axes.copy_(axes / lengths[:, None])
        self.noise_words.copy_((words @ self.word_axes.T)[kept])
        return share

    # -- training --------------------------------------------------------------------------------------------------

    def batch_features(self, batch: Batch) -> Tensor:
        """The images' words as features (B, 1024); in training some are left out and some exchanged."""
        features = super().batch_features(batch)
        if not self.training:
            return features
        choice = torch.rand(len(features), 1, device=features.device)
        if self.captions is not None:
            others = self.captions.draw(self.label_to_scene[batch.scene])
            exchanged = (choice < self.config.general) & (others.norm(dim=1, keepdim=True) > 0)
            features = torch.where(exchanged, others, features)
        return torch.where(choice > 1 - self.config.wordless, self.neutral_text, features)

    def prepare_training(  # type: ignore[override]
        self, text_features: str | Captions | None = None, start: str = "tiny"
    ) -> None:
        """Take encoder, sentence encoder and mean caption from the weights ``start`` of `tiny`.

        Weights that were trained before keep their own. ``text_features``: published captions with their features, in
        any form of ``text.caption_features``; without them images have their own words alone. Raises LangdepthError.
        """
        if not self.provenance:
            from langdepth.systems.tiny.model import Tiny
            from langdepth.weights.checkpoint import load

            known = load(start)
            if not isinstance(known, Tiny):
                raise UsageError(f"system.prepare.start: '{start}' is not weights of tiny")
            self.encoder.load_state_dict(known.encoder.state_dict())
            self.sentences = known.sentences
            self.config = replace(self.config, vocabulary=known.config.vocabulary)
            self.neutral_text.copy_(F.normalize(known.text_mean, dim=0))
            self.provenance["encoder"] = f"encoder of {start}"
        if text_features is not None:
            self.captions = CaptionBank(read_caption_features(text_features, self.config.text_features))


def _main_directions(rows: Tensor, count: int) -> tuple[Tensor, Tensor, float]:
    """Of rows (N, D): unit directions (count, D), standard deviations along them, their share of the variance."""
    _, lengths, directions = torch.linalg.svd(rows - rows.mean(0), full_matrices=False)
    share = float(lengths[:count].square().sum() / lengths.square().sum())
    return directions[:count], lengths[:count] / len(rows) ** 0.5, share
