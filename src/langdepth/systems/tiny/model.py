"""`tiny`: the embedded default. Metric depth = scale (from words and image) x relative depth (from bins).

Idea: ScaleDepth (arXiv 2407.08187) splits metric depth into a relative map and one scale per image that is tied to
the scene's text embedding. `tiny` keeps the split with a small convolutional encoder that runs on any CPU.

Data flow (4:3 image; network input 288 x 384)

    image (B, 3, 288, 384) -> EfficientNet-Lite -> maps at strides 2, 4, 8, 16, 32
    stride 32 -> mean and maximum -> image vector (B, P)
                                  -> point in text space -> cosine with the scene table -> scene_probs (B, K)
                                  -> scale (B,)
    words:  scene  -> that scene's row                                |-> text vector (B, D)
            text   -> the sentence's feature                         |
    text vector -> usual median depth of such scenes, metres, times a factor from the image; the farther that lies
    from the scale, the more it moves it, up to half of the way in log scale
    maps -> feature pyramid -> (B, C, 72, 96) -> bins -> relative (B, 1, 72, 96) in (0, 1), in steps at edges
    image, map of stride 2, pyramid -> weights of the 3x3 cells around each pixel -> relative (B, 1, 288, 384)
    depth = scale * relative, metres

Loss: silog + log l1 + log-depth gradients and edges + cross-entropy of the scene + log errors of the usual depth and of
the scale from it, each but the first times its weight in the options.

The words are CLIP text features (D = 128 principal directions of the captions' 1024): at training time the published
features of real captions, at prediction time a sentence encoder distilled from them (text/encoders.py).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from langdepth import losses
from langdepth.backbones.efficientnet_lite import EfficientNetLite
from langdepth.errors import LangdepthError, UsageError
from langdepth.records import Batch, DepthOutput, InputSpec
from langdepth.systems.base import System
from langdepth.systems.capabilities import Scene, Text, Trainable, require_text_for_each
from langdepth.systems.tiny.blocks import ConvexUpsampling, FeaturePyramid, RelativeBins, depth_steps
from langdepth.text.caption_features import NO_CAPTIONS, Captions, checked_features, read_caption_features
from langdepth.text.encoders import CaptionBank, SentenceEncoder, caption_scene_of_label, distilled_encoder
from langdepth.text.scenes import CAPTION_SCENES

CLIP_FEATURES = 1024


class Encoded(NamedTuple):
    """What the encoder makes of an image."""

    features: list[Tensor]
    """Maps at strides 2 to 32."""
    vector: Tensor
    """The image vector (B, P)."""
    logits: Tensor
    """Of the scenes (B, K)."""
    direct: Tensor | None
    """Log of the scale that is read directly (B, 1); None for weights that do not."""


@dataclass(frozen=True, kw_only=True)
class TinyConfig:
    """Options of `tiny`."""

    encoder: int = 2
    """EfficientNet-Lite size: 0, 1 or 2."""
    frozen: int = 2
    """Encoder stages that keep their ImageNet weights."""
    area: int = 76800
    """Pixels inside the network; the image's shape is kept."""
    widths: tuple[int, int, int, int] = (64, 96, 128, 192)
    """Decoder channels at strides 4, 8, 16, 32."""
    bins: int = 64
    sharp: int = 0
    """Channels of what enlarges depth to the network's own size with the image's edges; 0: depth ends at a quarter."""
    steps: bool = False
    """Depth changes at edges in one step, not over several cells (``depth_steps``)."""
    sigma: float | None = None
    """What depth may be off by (``DepthOutput.sigma``), as a share of the spread of its bins; benchmarks/calibrate.py
    finds it. None, as for weights that were not calibrated: not known."""
    focal: float | None = None
    """Relative focal length (``Camera.relative_focal``) of the camera that depth is learned for; that of an image,
    where it is known, scales its depth. None: cameras are not considered."""
    text_features: int = 128
    """Principal directions of the caption features that are kept."""
    vocabulary: tuple[str, ...] = ()
    """Of the sentence encoder; filled in by training."""
    direct: int = 0
    """Hidden units of what reads the scale from the image directly. 0, as in older weights: without words, too, it is
    the usual depth, then of the image's scenes, times the factor; a scene that is misread moves it."""
    word_weight: float = 0.5
    """How far words move the scale in log scale: from the image's own (0) to that of the words (1)."""
    word_spread: float = 0.0
    """How far scenes of one kind usually lie apart in log scale: words that agree with the image so far hardly move it,
    those that contradict it do. 0: they always do."""
    gradient_weight: float = 0.5
    edge_weight: float = 0.0
    l1_weight: float = 5.0
    scene_weight: float = 0.5
    usual_weight: float = 0.5
    factor_weight: float = 0.5


class Tiny(System, Trainable):
    """The embedded default system.

    ``text`` is sentences or a (B, 1024) matrix of CLIP RN50 text features, where a row of zeros means no words.
    """

    Config = TinyConfig
    encoder_lr = 1 / 5  # so that it keeps what it learned from ImageNet
    scenes = tuple(CAPTION_SCENES)
    text_mean: Tensor
    text_basis: Tensor
    scene_table: Tensor
    label_to_scene: Tensor

    def __init__(self, config: TinyConfig) -> None:
        half = (0.5, 0.5, 0.5)  # what these ImageNet weights were trained with
        super().__init__(config, InputSpec(mean=half, std=half, area=config.area, multiple_of=16, focal=config.focal))
        self.config: TinyConfig = config
        self.encoder = EfficientNetLite(config.encoder, config.frozen)
        finest, *channels = self.encoder.channels
        image = 256
        # The maxima of raw features are large: without the norm every unit behind them dies.
        self.pooled = nn.Sequential(nn.LayerNorm(channels[-1] * 2), nn.Dropout(0.2))
        self.picture = nn.Sequential(nn.Linear(channels[-1] * 2, image), nn.GELU())
        self.decoder = FeaturePyramid(channels, config.widths)
        self.context = nn.Linear(image, config.widths[-1])
        self.bins = RelativeBins(config.widths[0], image, config.bins)
        self.upsampling = ConvexUpsampling(config.widths[0], finest, config.sharp) if config.sharp else None

        self.reading = nn.Linear(channels[-1] * 2, config.text_features)
        self.sharpness = nn.Parameter(torch.tensor(10.0))
        # Words and image add up in log scale: other words shift the scale by what their scenes differ in size.
        self.usual = _log_head(config.text_features, math.log(2.5))  # 2.5 m: the middle of a room
        self.correction = _log_head(image, math.log(3.0))  # and its far wall
        self.direct = _log_head(channels[-1] * 2, math.log(7.5), config.direct, 0.5) if config.direct else None

        self.sentences = SentenceEncoder(config.vocabulary, CLIP_FEATURES)
        self.sentences.requires_grad_(False)
        self.register_buffer("text_mean", torch.zeros(CLIP_FEATURES))
        self.register_buffer("text_basis", torch.eye(CLIP_FEATURES)[: config.text_features])
        self.register_buffer("scene_table", torch.eye(len(self.scenes), config.text_features))
        self.captions: CaptionBank | None = None  # training only
        self.register_buffer("label_to_scene", caption_scene_of_label(), persistent=False)

    # -- words -----------------------------------------------------------------------------------------------------

    def project(self, features: Tensor) -> Tensor:
        """CLIP text features (N, 1024) to unit vectors (N, D): mean removed, principal directions kept."""
        with torch.autocast(features.device.type, enabled=False):
            return F.normalize((features.float() - self.text_mean) @ self.text_basis.T, dim=-1)

    def graph_inputs(self) -> dict[str, Tensor]:
        return {"text": torch.zeros(1, CLIP_FEATURES), "scene": torch.tensor([-1])}

    def encode_text(self, sentences: list[str]) -> Tensor:
        """Sentences to (B, 1024) features of CLIP's text space, see ``SentenceEncoder.encode``."""
        return self.sentences.encode(sentences)

    def text_vectors(self, count: int, text: Text, scene: Scene) -> tuple[Tensor, Tensor]:
        """The words for ``count`` images as (B, D) vectors, and where there are any, (B, 1). Raises UsageError."""
        table, vectors = self.scene_table, self.scene_table.new_zeros(count, self.scene_table.shape[1])
        said = torch.zeros(count, 1, dtype=torch.bool, device=table.device)
        if text is not None:
            if not isinstance(text, Tensor):
                require_text_for_each(text, count)
            features = text if isinstance(text, Tensor) else self.encode_text(text)
            vectors = self.project(checked_features(features, (count, CLIP_FEATURES), self.name).to(table))
            said = (features != 0).any(1, keepdim=True).to(table.device)  # a row of zeros means no words
        if scene is not None:
            rows = self.scene_indices(scene, count)[:, None]
            named = rows >= 0
            if not torch.compiler.is_compiling() and bool((named & said).any()):
                raise UsageError("give a text or a scene, not both")
            vectors = torch.where(named, table[rows.squeeze(1).clamp_min(0)], vectors)
            said = named | said
        return vectors, said

    # -- depth -----------------------------------------------------------------------------------------------------

    def forward(self, image: Tensor, text: Text = None, scene: Scene = None) -> DepthOutput:
        encoded = self._encode(image := self.normalise(image))
        return self._decode(image, encoded, self._log_scale(encoded, text, scene))

    def _log_scale(self, encoded: Encoded, text: Text = None, scene: Scene = None) -> Tensor:
        """Log of the scale (B, 1), from the image and, where there are any, from words."""
        with torch.autocast(encoded.vector.device.type, enabled=False):  # bfloat16 would round the scale to 1 %
            own = self._of_scenes(encoded) if encoded.direct is None else encoded.direct
            if text is None and scene is None:
                return own
            vectors, said = self.text_vectors(len(own), text, scene)
            apart = self.usual(vectors) + self.correction(encoded.vector) - own
            contradicts = apart.square() / (apart.square() + self.config.word_spread**2).clamp_min(1e-12)
            return own + torch.where(said, self.config.word_weight * contradicts * apart, 0)

    def _of_scenes(self, encoded: Encoded) -> Tensor:
        """Log of the scale (B, 1): usual depth of the image's scenes times the factor."""
        scenes = encoded.logits.softmax(-1)[..., None] * self.scene_table
        return self.usual(scenes.sum(1)).detach() + self.correction(encoded.vector)

    def _encode(self, image: Tensor) -> Encoded:
        """Of a normalised image."""
        features = self.encoder(image)
        top = features[-1]
        pooled = torch.cat([top.mean((2, 3)), top.amax((2, 3))], dim=1).float()
        with torch.autocast(image.device.type, enabled=False):
            pooled = self.pooled(pooled)
            vector = self.picture(pooled)
            in_text_space = F.normalize(self.reading(pooled), dim=-1)
            logits = self.sharpness.clamp(1, 30) * in_text_space @ self.scene_table.T
            return Encoded(features, vector, logits, None if self.direct is None else self.direct(pooled))

    def _decode(self, image: Tensor, encoded: Encoded, log_scale: Tensor) -> DepthOutput:
        """``image``: normalised; ``log_scale``: (B, 1)."""
        features, vector, logits, _ = encoded
        pixels = self.decoder(features[1:], self.context(vector))
        relative, spread, centers, probs = self.bins(pixels, vector)
        if self.upsampling is not None:
            edge = None
            if self.config.steps:
                relative, edge = depth_steps(relative)
            weights = self.upsampling(image, features[0], pixels, edge)
            relative = self.upsampling.enlarge(relative, weights)
            spread = spread if self.config.sigma is None else self.upsampling.enlarge(spread, weights)
        scale = torch.exp(log_scale.clamp(-3, 6)).squeeze(1)
        metres = scale[:, None, None, None]
        return DepthOutput(
            depth=relative * metres,
            relative=relative,
            scale=scale,
            bin_centers=centers,
            bin_probs=probs if self.upsampling is None else None,  # those of a quarter of the size
            scene_probs=logits.softmax(-1),
            sigma=None if self.config.sigma is None else self.config.sigma * spread * metres,
        )

    # -- training --------------------------------------------------------------------------------------------------

    def prepare_training(self, text_features: str | Captions | None = None) -> None:
        """ImageNet weights for the encoder; sentence encoder, scene table and caption bank from CLIP caption features.

        Weights that were trained before keep all of these. For them ``text_features`` is optional and gives only the
        captions of the scenes in training; without it the scene table does.

        Args:
            text_features: Captions with their features, in any form of ``text.caption_features``.

        Raises:
            UsageError: A fresh system got no captions, or features of another width.
            LangdepthError: The captions cannot be read, or none is about one of the scenes.
        """
        fresh = not self.config.vocabulary
        self.config = replace(self.config, sigma=None)  # other weights are off by something else
        if text_features is None:
            if fresh:
                raise UsageError(NO_CAPTIONS.format(self.name))
            return
        data = read_caption_features(text_features, CLIP_FEATURES)
        if fresh and len(data.captions) < self.config.text_features:
            raise LangdepthError(
                f"{len(data.captions)} distinct captions are too few to start {self.name} from; give at least "
                f"{self.config.text_features}"
            )
        if fresh:
            self.provenance["encoder"] = self.encoder.load_imagenet_weights()
            self.sentences, fit = distilled_encoder(data)
            self.config = replace(self.config, vocabulary=self.sentences.vocabulary)
            self.provenance["sentence_encoder"] = fit._asdict()
            self.text_mean.copy_(data.features.mean(0))
            _, _, directions = torch.pca_lowrank(data.features - self.text_mean, q=self.config.text_features, niter=4)
            self.text_basis.copy_(directions.T)
        self.captions = CaptionBank(data)
        for (scene, marks), features in zip(CAPTION_SCENES.items(), self.captions.by_scene, strict=True):
            if not len(features):
                raise LangdepthError(f"no caption has one of the words {', '.join(marks)} of the scene '{scene}'")
        if fresh:
            scenes = [self.project(features).mean(0) for features in self.captions.by_scene]
            self.scene_table.copy_(F.normalize(torch.stack(scenes), dim=-1))

    def _caption_of(self, scene: Tensor) -> Tensor:
        """A random caption of each scene (B,), as text vectors (B, D); without captions the scene's name."""
        return self.scene_table[scene] if self.captions is None else self.project(self.captions.draw(scene))

    def _usual_loss(self, batch: Batch, scene: Tensor) -> Tensor:
        """Mean absolute log error of the median depth that is usual for a caption of the labelled scene."""
        with torch.autocast(batch.depth.device.type, enabled=False):
            expected = self.usual(self._caption_of(scene.clamp_min(0))).squeeze(1)
            median = torch.where(batch.mask, batch.depth, torch.nan).flatten(1).nanmedian(1).values
            known = (scene >= 0) & median.isfinite()
            error = torch.where(known, expected - median.log(), 0.0).abs()
            return error.sum() / known.sum().clamp_min(1)

    def _factor_loss(self, batch: Batch, encoded: Encoded, log_scale: Tensor, depth: Tensor) -> Tensor:
        """Mean absolute log error of the scale from the image's scenes; right is the one that ``depth`` would need."""
        with torch.autocast(depth.device.type, enabled=False):
            needed = needed_scale(batch, log_scale.detach().squeeze(1), depth.detach())
            known = needed.isfinite()
            error = torch.where(known, self._of_scenes(encoded).squeeze(1) - needed, 0.0).abs()
            return error.sum() / known.sum().clamp_min(1)

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Weighted: silog, l1, gradient, edges, scene, usual, factor (see the module); "total": their sum."""
        config = self.config
        image = self.normalise(batch.image)
        encoded = self._encode(image)
        scene = self.label_to_scene[batch.scene]
        log_scale = self._log_scale(encoded)
        output = self._decode(image, encoded, log_scale)
        depth = F.interpolate(output.depth, size=batch.depth.shape[-2:], mode="bilinear", align_corners=False)
        parts = {
            "silog": losses.silog(depth, batch.depth, batch.mask),
            "l1": config.l1_weight * losses.log_l1(depth, batch.depth, batch.mask),
            "gradient": config.gradient_weight * losses.gradient(depth, batch.depth, batch.mask),
            "edges": config.edge_weight * losses.edges(depth, batch.depth, batch.mask),
            "scene": config.scene_weight * losses.scene_cross_entropy(encoded.logits, scene, label_smoothing=0.1),
            "usual": config.usual_weight * self._usual_loss(batch, scene),
        }
        if self.direct is not None:
            parts["factor"] = config.factor_weight * self._factor_loss(batch, encoded, log_scale, depth)
        return {"total": torch.stack(list(parts.values())).sum(), **parts}


def needed_scale(batch: Batch, log_scale: Tensor, depth: Tensor) -> Tensor:
    """Log of the scale (B,) with which ``depth``, of ``log_scale`` (B,), would have the true median; nan: not known."""
    apart = torch.where(batch.mask, (batch.depth / depth.clamp_min(1e-3)).log(), torch.nan)
    return log_scale + apart.flatten(1).nanmedian(1).values


def _log_head(inputs: int, start: float, units: int = 64, dropped: float = 0.0) -> nn.Sequential:
    """(B, inputs) to (B, 1), beginning near ``start``. ``dropped``: share of the inputs; half as much of the units."""
    last = nn.Linear(units, 1)
    nn.init.constant_(last.bias, start)
    layers = [nn.Linear(inputs, units), nn.GELU(), last]
    if dropped:
        layers = [nn.Dropout(dropped), *layers[:2], nn.Dropout(dropped / 2), last]
    return nn.Sequential(*layers)
