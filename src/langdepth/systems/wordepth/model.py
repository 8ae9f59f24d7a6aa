"""WorDepth: a caption gives a distribution of scenes, the image picks one of them (CVPR 2024, arXiv 2404.03635).

A caption fixes kind and scale of a scene but not its layout, an image the layout but not the scale. Specification and
numbers: docs/systems/wordepth.md.

Data flow (published size)

    image (B, 3, 480, 640) -> Swin-L -> x2 (B, 192, 120, 160), x3 (B, 384, 60, 80), x4 (B, 768, 30, 40),
    x5 (B, 1536, 15, 20);  x5 enlarged, concatenated to x4 -> x (B, 512, 30, 40);  maximum of x5 -> m0, m1
    words, CLIP text feature (B, 1024) -> text-VAE -> Gaussian over scenes: mean, std (B, 128)
    noise (B, 128, 30, 40): image step - the conditional sampler's, from x, mean and std
                            text step  - standard normal
    latent = mean + std * noise -> refine with x -> enlarge with x3, refine -> enlarge with x2, refine
    depth features of the three levels, enlarged and added -> convolution, + prior_mean, exp -> o (B, 1, 480, 640)
    image step: depth = sigmoid(m0) * (o + exp(m1)), metres;  text step: depth = o

Loss, d the log difference of an image's valid pixels: sum over images of valid share x (mean d^2 - 0.85 (mean d)^2)
+ 0.001 KL (of text, or of the sampler's noise).

Training alternates between the two steps; a step draws its kind (``draw_step``), ``forward`` is the image step and
nothing in it is random. ``skip_mode`` says when the decoder gets x, x3 and x2: ``always``, in image steps alone
(``image_only``, the paper), ``never`` (the authors since July 2024); otherwise it gets zeros, and text alone gives
depth (``imagine``).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from langdepth import losses
from langdepth.backbones.encoders import make_encoder, start_encoder
from langdepth.backbones.swin import SIZES, Swin
from langdepth.errors import CheckpointError, UsageError
from langdepth.records import Batch, DepthOutput, InputSpec
from langdepth.systems.base import System
from langdepth.systems.capabilities import (
    ConvertsOfficial,
    Imagines,
    ReadsWithClip,
    Scene,
    Text,
    Trainable,
    require_text_for_each,
)
from langdepth.systems.official import rename
from langdepth.systems.wordepth.blocks import (
    ConditionalSampler,
    Gaussian,
    Refine,
    TextVae,
    Up,
    enlarged,
    kl_of_noise,
    kl_of_text,
)
from langdepth.systems.wordepth.config import LEAST_DEPTH, MULTIPLE, WorDepthConfig
from langdepth.systems.wordepth.official import OFFICIAL_NAMES
from langdepth.text.caption_features import NO_CAPTIONS, Captions, checked_features, read_caption_features
from langdepth.text.captions import ClipSentences
from langdepth.text.encoders import (
    CaptionBank,
    SentenceEncoder,
    caption_scene_of_label,
    distilled_encoder,
)

Step = Literal["image", "text"]
PACKAGED = "tiny"  # whose weights, part of the package, hold a sentence encoder


class ImageFeatures(NamedTuple):
    """Of an image: x (B, C, H/16, W/16), x3 at H/8, x2 at H/4 for the decoder; m0 and m1 in ``metric`` (B, 2)."""

    x: Tensor
    x3: Tensor
    x2: Tensor
    metric: Tensor


class WorDepth(System, Trainable, Imagines, ReadsWithClip, ConvertsOfficial):
    """``text``: sentences (for systems with a sentence encoder) or CLIP RN50 text features of norm 1, (B, 1024).

    Without words, or for a row of zeros, the neutral feature stands in: the mean of the captions that training started
    from, or zeros where there were none (the authors' checkpoints hold none).
    """

    Config = WorDepthConfig
    unrecorded: ClassVar[dict[str, str]] = {
        "skip_mode": "never (July 2024 and later), image_only (paper, older checkpoints) or always (--legacy)"
    }
    neutral_text: Tensor
    label_to_scene: Tensor

    def __init__(self, config: WorDepthConfig) -> None:
        height, width = config.resolution
        half = (0.5, 0.5, 0.5)  # what EfficientNet-Lite's ImageNet weights were trained with
        statistics = {} if config.encoder in SIZES else {"mean": half, "std": half}
        super().__init__(config, InputSpec(area=height * width, multiple_of=MULTIPLE, **statistics))  # type: ignore[arg-type]
        self.config: WorDepthConfig = config
        self.encoder = make_encoder(config.encoder, config.drop_path, config.frozen, config.resolution)
        self.encoder_lr = config.encoder_lr
        c2, c3, c4, c5 = self.encoder.channels[-4:]
        wide, middle, narrow = config.widths
        self.metric = nn.Sequential(nn.Linear(c5, c5 // 4), nn.LeakyReLU(), nn.Linear(c5 // 4, 2))
        self.text_vae = TextVae(config.text_features, config.latent)
        self.up_4 = Up(c5, c4, wide)
        self.sampler = ConditionalSampler(wide, config.latent)
        self.refine_4 = Refine(wide, config.latent)
        self.up_3 = Up(wide, c3, middle)
        self.refine_3 = Refine(middle, config.latent)
        self.up_2 = Up(middle, c2, narrow)
        self.refine_2 = Refine(narrow, config.latent, last=True)
        self.head = nn.Conv2d(config.latent, 1, 3, padding=1)
        if isinstance(self.encoder, Swin) and config.skip_mode == "never":
            for unused in (self.encoder.norm0, self.encoder.norm1):
                unused.requires_grad_(False)

        self.sentences: SentenceEncoder | None = None
        if config.vocabulary:
            self.sentences = SentenceEncoder(config.vocabulary, config.text_features).requires_grad_(False)
        self.register_buffer("neutral_text", torch.zeros(config.text_features))
        self.register_buffer("label_to_scene", caption_scene_of_label(), persistent=False)
        self.captions: CaptionBank | None = None  # training only
        self.encode_words: Callable[[Sequence[str]], Tensor] | None = None  # instead of the weights' own encoder

    # -- words -----------------------------------------------------------------------------------------------------

    def graph_inputs(self) -> dict[str, Tensor]:
        return {"text": torch.zeros(1, self.config.text_features)}

    def features_of_text(self, count: int, text: Text = None, scene: Scene = None) -> Tensor:
        """Features (B, 1024) of the words about ``count`` images. Raises UsageError."""
        if scene is not None:
            raise UsageError(f"the system '{self.name}' takes no scene; name it in a sentence, as text")
        if text is None:
            return self.neutral_text.expand(count, -1)
        if not isinstance(text, Tensor):
            require_text_for_each(text, count)
            return self.encode_text(text).to(self.neutral_text)
        text = checked_features(text, (count, self.config.text_features), self.name).to(self.neutral_text)
        return torch.where(text.norm(dim=1, keepdim=True) > 0, text, self.neutral_text)

    def encode_text(self, sentences: Sequence[str]) -> Tensor:
        """Sentences to (B, 1024) features: by CLIP where it was given, else by the small encoder of these weights."""
        if self.encode_words is not None:
            return self.encode_words(sentences)
        if self.sentences is not None:
            return self.sentences.encode(sentences)
        warnings.warn(
            f"these weights of '{self.name}' hold no sentence encoder: the small one of the package encodes the text "
            "instead; CLIP's own text tower, as published, does so with --clip-weights RN50.pt",
            stacklevel=2,
        )
        from langdepth.weights.checkpoint import load

        packaged: Any = load(PACKAGED).get_submodule("sentences")
        self.encode_words = packaged.encode
        return packaged.encode(sentences)

    def read_with_clip(self, clip_weights: str | Path) -> None:
        self.encode_words = ClipSentences(clip_weights).encode

    def scene_distribution(self, features: Tensor) -> Gaussian:
        """Text features (B, 1024) to the Gaussian over scenes, (B, 128)."""
        with torch.autocast(features.device.type, enabled=False):
            found: Gaussian = self.text_vae(features.float())
        return found

    # -- depth -----------------------------------------------------------------------------------------------------

    def encode_image(self, image: Tensor) -> ImageFeatures:
        """Features of (B, 3, H, W) RGB images in [0, 1]. Raises UsageError where H or W is no multiple of 32."""
        height, width = image.shape[-2:]
        if height % MULTIPLE or width % MULTIPLE:
            raise UsageError(f"images are {width} x {height}; '{self.name}' takes multiples of {MULTIPLE}: resize them")
        x2, x3, x4, x5 = self.encoder(self.normalise(image))[-4:]
        return ImageFeatures(self.up_4(x5, x4), x3, x2, self.metric(x5.amax((2, 3))).float())

    def decode(self, latent: Tensor, maps: ImageFeatures | None) -> Tensor:
        """Latent (B, 128, H/16, W/16) to o (B, 1, H, W); ``maps`` None: without the encoder's maps."""
        x, x3, x2 = (None, None, None) if maps is None else maps[:3]
        x, d4 = self.refine_4(x, latent)
        x, d3 = self.refine_3(self.up_3(x, x3), enlarged(d4, 2))
        _, d2 = self.refine_2(self.up_2(x, x2), enlarged(d3, 2))
        with torch.autocast(latent.device.type, enabled=False):
            return (self._project(d2.float(), d3.float(), d4.float()) + self.config.prior_mean).exp()

    def _project(self, d2: Tensor, d3: Tensor, d4: Tensor) -> Tensor:
        """The head's convolution of the depth features, enlarged 4, 8 and 16 times and added; (B, 1, H, W).

        Its nine taps are sums over channels, which commute with enlarging: they come first, so that 9 and not 128
        channels are enlarged; then each tap is moved to its place.
        """
        taps = self.head.weight[0].flatten(1).T[..., None, None]  # (9, 128, 1, 1)
        levels = ((d2, 4), (d3, 8), (d4, 16))
        summed = torch.stack([enlarged(F.conv2d(d, taps), factor) for d, factor in levels]).sum(0)
        moves = torch.eye(9, dtype=taps.dtype, device=taps.device).view(1, 9, 3, 3)
        return F.conv2d(summed, moves, self.head.bias, padding=1)

    def image_step(self, maps: ImageFeatures, scenes: Gaussian, noise: Tensor) -> Tensor:
        """Depth (B, 1, H, W) of the scene that ``noise`` (B, 128, H/16, W/16) picks, at the image's own scale."""
        o = self.decode(scenes.at(noise), None if self.config.skip_mode == "never" else maps)
        scale, offset = maps.metric[..., None, None].split(1, 1)
        return scale.sigmoid() * (o + offset.exp())

    def forward(self, image: Tensor, text: Text = None, scene: Scene = None) -> DepthOutput:
        scenes = self.scene_distribution(self.features_of_text(image.shape[0], text, scene))
        maps = self.encode_image(image)
        return DepthOutput(depth=self.image_step(maps, scenes, self.sampler(maps.x, scenes).float()))

    def draw_noise(self, count: int, height: int, width: int, generator: Any = None) -> Tensor:
        """Standard normal noise (count, 128, H/16, W/16) for depth maps of ``height`` x ``width`` pixels.

        Raises UsageError for sides that are no multiples of 32.
        """
        if min(height, width) < MULTIPLE or height % MULTIPLE or width % MULTIPLE:
            raise UsageError(f"a depth map of {width} x {height} is not possible; take multiples of {MULTIPLE}")
        grid = (height // 16, width // 16)
        shape = (count, self.config.latent, *(grid if self.config.noise == "cell" else (1, 1)))
        if isinstance(generator, np.random.Generator):
            noise = torch.from_numpy(generator.standard_normal(shape, np.float32))
        else:
            noise = torch.randn(shape, generator=generator, device=generator.device if generator else None)
        return noise.to(self.neutral_text).expand(-1, -1, *grid)

    def imagine(self, text: Text, noise: Tensor) -> DepthOutput:
        """Depth of scenes that words describe, without an image: (B, 1, H, W) for noise (B, 128, H/16, W/16).

        Raises UsageError for systems that were not trained to predict without an image.
        """
        if self.config.skip_mode == "always":
            raise UsageError(
                f"these weights of '{self.name}' have skip_mode always: their text steps were given the image, "
                "so they give no depth without one"
            )
        scenes = self.scene_distribution(self.features_of_text(noise.shape[0], text))
        return DepthOutput(depth=self.decode(scenes.at(self.noise_for(scenes, noise)), None))

    def noise_for(self, scenes: Gaussian, noise: Tensor) -> Tensor:
        """Noise (B, 128, H/16, W/16) for words, which are one or B ``scenes``: unchanged, as published."""
        return noise

    def draw(self, image: Tensor, text: Text, noise: Tensor, spread: float) -> DepthOutput:
        """Other scenes near the one that the image picks: its noise mixed with ``noise`` (B, 128, H/16, W/16).

        ``spread`` from 0 (``forward``) to 1 (the noise alone); sqrt(1 - spread^2) and spread are the shares, so that
        the variance stays. This mix is ours, not the paper's. One image may have many rows of noise.
        """
        if not 0 <= spread <= 1:
            raise UsageError(f"spread must lie between 0 and 1, got {spread}")
        scenes = self.scene_distribution(self.features_of_text(image.shape[0], text))
        maps = self.encode_image(image)
        picked = self.sampler(maps.x, scenes).float()
        mixed = (1 - spread**2) ** 0.5 * picked + spread * self.noise_for(scenes, noise)
        count = mixed.shape[0]
        maps = ImageFeatures(*(part.expand(count, *part.shape[1:]) for part in maps))
        return DepthOutput(depth=self.image_step(maps, scenes, mixed))

    # -- training --------------------------------------------------------------------------------------------------

    def draw_step(self, generator: torch.Generator) -> dict[str, Any]:
        kind: Step = "text" if float(torch.rand((), generator=generator)) < self.config.alter_prob else "image"
        return {"kind": kind}

    def loss(self, batch: Batch, kind: Step = "image") -> dict[str, Tensor]:
        """silog and kl of the step's kind, and "total", their weighted sum.

        A text step trains text-VAE and decoder, an image step all but the text-VAE; what a step does not train gets no
        gradient at all, so Adam leaves it and its moments alone.
        """
        config = self.config
        scenes = self.scene_distribution(self.batch_features(batch))
        if kind == "text":
            maps = self.encode_image(batch.image) if config.skip_mode == "always" else None
            depth = self.decode(scenes.at(self.draw_noise(*batch.image[:, 0].shape)), maps)
            kl = kl_of_text(scenes)
        else:
            scenes, maps = scenes.detach(), self.encode_image(batch.image)
            noise = self.sampler(maps.x, scenes).float()
            depth = self.image_step(maps, scenes, noise)
            kl = kl_of_noise(noise)
        mask = batch.mask & (batch.depth > LEAST_DEPTH) & (batch.depth < config.max_depth)
        silog = losses.silog_by_image(depth, batch.depth, mask, config.variance_focus)
        parts = {"silog": silog.sum() if config.silog == "sum" else silog.mean(), "kl": kl}
        return {"total": parts["silog"] + config.weight_kld * kl, **parts}

    def batch_features(self, batch: Batch) -> Tensor:
        """Features (B, 1024) of a batch's words: those of the data; else of its sentences, and for images without one
        of a random caption of the labelled scene, or else the neutral ones.
        """
        known = torch.zeros_like(self.neutral_text).expand(len(batch.image), -1)
        if batch.text_features is not None:
            known = batch.text_features
        else:
            if self.captions is not None:
                known = self.captions.draw(self.label_to_scene[batch.scene])
            given = {index: sentence for index, sentence in enumerate(batch.text) if sentence}
            if given:
                known = known.clone()
                known[list(given)] = self.encode_text(list(given.values())).to(known)
        return self.features_of_text(len(batch.image), known)

    def prepare_training(self, text_features: str | Captions | None = None, encoder_weights: str | None = None) -> None:
        """Start weights of the encoder; sentence encoder, neutral feature and captions from CLIP caption features.

        Weights that were trained before keep all of these. For them ``text_features`` is optional and gives only the
        captions that stand in for images without one, and a sentence encoder to weights that hold none.

        Args:
            text_features: Captions with their features, in any form of ``text.caption_features``.
            encoder_weights: A classifier of the Swin release (swin_large_patch4_window12_384_22k.pth) or the same as
                ``.safetensors``; an EfficientNet-Lite brings its own.

        Raises:
            UsageError: A fresh system got no captions, or features of another width.
            LangdepthError: A file cannot be read.
        """
        fresh = not self.provenance
        if fresh and text_features is None:
            raise UsageError(NO_CAPTIONS.format(self.name))
        if fresh:
            self.provenance["encoder"] = start_encoder(self.encoder, encoder_weights)
        if text_features is None:
            return
        data = read_caption_features(text_features, self.config.text_features)
        self.captions = CaptionBank(data)
        if self.sentences is None:
            self.sentences, fit = distilled_encoder(data)
            self.config = replace(self.config, vocabulary=self.sentences.vocabulary)
            self.provenance["sentence_encoder"] = fit._asdict()
            self.neutral_text.copy_(F.normalize(data.features.mean(0), dim=0))

    # -- the authors' checkpoints ----------------------------------------------------------------------------------

    def convert_official(self, state_dict: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, list[str]]]:
        """Official names, see official.py; a position table of another resolution is resized."""
        if not isinstance(self.encoder, Swin) or self.sentences is not None:
            raise CheckpointError(
                f"official checkpoints have a Swin and no sentences; '{self.name}' is another network"
            )
        tensors, report = rename(state_dict, OFFICIAL_NAMES, self.state_dict())
        inside = {key.removeprefix("encoder."): v for key, v in tensors.items() if key.startswith("encoder.")}
        tensors |= {f"encoder.{key}": value for key, value in self.encoder.fitted(inside).items()}
        tensors["neutral_text"] = self.neutral_text.clone()
        report["missing"].remove("neutral_text")
        return tensors, report
