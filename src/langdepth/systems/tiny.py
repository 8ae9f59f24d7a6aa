"""`tiny`: the embedded default. Metric depth = scale (from words and picture) x relative depth (from bins).

Idea: ScaleDepth (arXiv 2407.08187) splits metric depth into a relative map and one scale per picture that is tied to
the scene's text embedding. `tiny` keeps the split with a small convolutional encoder that runs on any CPU.

Data flow (4:3 picture; network input 240 x 320)

    picture (B, 3, 240, 320) -> EfficientNet-Lite -> maps at strides 4, 8, 16, 32
    stride 32 -> pooled picture vector (B, P)
    picture vector -> reading in text space -> cosine with the scene table -> scene_probs (B, K)
    words:  none   -> scene_probs-weighted mean of the scene table   \\
            scene  -> that scene's row                                > text vector (B, D)
            text   -> the sentence's feature                         /
    text vector -> log scale of such scenes (what the words alone say) + correction from the picture -> scale (B,)
    maps -> feature pyramid -> (B, C, 60, 80) -> bins -> relative (B, 1, 60, 80) in (0, 1)
    depth = scale * relative, metres

The words are CLIP text features (D = 128 principal directions of the captions' 1024): at training time the published
features of real captions, at prediction time a sentence encoder distilled from them (text/encoders.py).
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from langdepth import losses
from langdepth.backbones.efficientnet_lite import EfficientNetLite
from langdepth.errors import LangdepthError, UsageError
from langdepth.parts.bins import RelativeBins
from langdepth.parts.upsample import FeaturePyramid
from langdepth.systems.base import System
from langdepth.text.encoders import CaptionFeatures, SentenceEncoder, distil, read_caption_features, words_of
from langdepth.text.scenes import CAPTION_SCENES, SCENE_TO_CAPTION_SCENE, SCENES, scene_index
from langdepth.types import Batch, DepthOutput, InputSpec

CLIP_FEATURES = 1024
TEXT_CACHE = 1000  # sentences whose features are kept


@dataclass(frozen=True, kw_only=True)
class TinyConfig:
    """Options of `tiny`."""

    encoder: int = 2
    """EfficientNet-Lite size: 0, 1 or 2."""
    frozen: int = 2
    """Encoder stages that keep their ImageNet weights."""
    area: int = 76800
    """Pixels inside the network; the picture's shape is kept."""
    widths: tuple[int, int, int, int] = (64, 96, 128, 192)
    """Decoder channels at strides 4, 8, 16, 32."""
    bins: int = 64
    text_features: int = 128
    """Principal directions of the caption features that are kept."""
    vocabulary: tuple[str, ...] = ()
    """Words that the sentence encoder knows; filled in by training."""
    word_rate: float = 0.5
    """How often training hands in a caption of the labelled scene instead of letting the picture speak."""
    gradient_weight: float = 0.5
    l1_weight: float = 5.0
    scene_weight: float = 0.3
    prior_weight: float = 0.5


class Tiny(System):
    """The embedded default system. ``text`` is sentences or a (B, 1024) matrix of CLIP RN50 text features."""

    Config = TinyConfig
    scenes = tuple(CAPTION_SCENES)
    text_mean: Tensor
    text_basis: Tensor
    scene_table: Tensor
    label_to_scene: Tensor

    def __init__(self, config: TinyConfig) -> None:
        half = (0.5, 0.5, 0.5)  # what these ImageNet weights were trained with
        super().__init__(config, InputSpec(mean=half, std=half, area=config.area, multiple_of=16))
        self.config: TinyConfig = config
        self.encoder = EfficientNetLite(config.encoder, config.frozen)
        channels = self.encoder.channels[1:]
        picture = 256
        self.picture = nn.Sequential(nn.Linear(channels[-1] * 2, picture), nn.ReLU(), nn.Dropout(0.2))
        self.decoder = FeaturePyramid(channels, config.widths)
        self.context = nn.Linear(picture, config.widths[-1])
        self.bins = RelativeBins(config.widths[0], picture, config.bins)

        self.reading = nn.Linear(picture, config.text_features)
        self.sharpness = nn.Parameter(torch.tensor(10.0))
        words_alone = nn.Linear(64, 1)
        nn.init.constant_(words_alone.bias, 2.0)  # exp(2) = 7 m: a room's far wall
        self.scale_of_words = nn.Sequential(nn.Linear(config.text_features, 64), nn.ReLU(), words_alone)
        self.scale_of_picture = nn.Sequential(
            nn.Linear(picture + config.text_features, 64), nn.ReLU(), nn.Linear(64, 1)
        )

        self.sentences = SentenceEncoder(config.vocabulary, CLIP_FEATURES)
        self.sentences.requires_grad_(False)
        self.register_buffer("text_mean", torch.zeros(CLIP_FEATURES))
        self.register_buffer("text_basis", torch.eye(CLIP_FEATURES)[: config.text_features])
        self.register_buffer("scene_table", torch.eye(len(self.scenes), config.text_features))
        # Published features of each scene's captions, projected; training only.
        self.caption_bank: Tensor | None = None
        self.caption_offsets: Tensor | None = None
        self._encoded: dict[str, Tensor] = {}
        self.register_load_state_dict_post_hook(lambda module, _: module._encoded.clear())
        label_to_scene = [scene_index(SCENE_TO_CAPTION_SCENE[label], self.scenes) for label in SCENES]
        self.register_buffer("label_to_scene", torch.tensor([*label_to_scene, -1]), persistent=False)

    # -- words -----------------------------------------------------------------------------------------------------

    def project(self, features: Tensor) -> Tensor:
        """CLIP text features (N, 1024) to unit vectors (N, D): mean removed, principal directions kept."""
        with torch.autocast(features.device.type, enabled=False):
            return F.normalize((features.float() - self.text_mean) @ self.text_basis.T, dim=-1)

    def encode_text(self, sentences: list[str]) -> Tensor:
        """Sentences to (B, 1024) features of CLIP's text space, by the distilled encoder; each distinct one once.

        Warns about words it does not know; raises UsageError for a sentence of which it knows none.
        """
        if len(self._encoded) > TEXT_CACHE:
            self._encoded.clear()
        for sentence in dict.fromkeys(sentences):
            if sentence not in self._encoded:
                self._encoded[sentence] = self._encode(sentence)
        return torch.stack([self._encoded[sentence] for sentence in sentences]).to(self.text_mean.device)

    def _encode(self, sentence: str) -> Tensor:
        unknown = self.sentences.unknown_words(sentence)
        if unknown and set(unknown) == set(words_of(sentence)):
            raise UsageError(
                f"text '{sentence}': none of its words is known; say it in plain words such as "
                "'a kitchen with a table', or name a scene"
            )
        if unknown:
            warnings.warn(f"text '{sentence}': not known and left out of account: {', '.join(unknown)}", stacklevel=2)
        with torch.autocast(self.text_mean.device.type, enabled=False):
            feature: Tensor = self.sentences(self.sentences.tokenize([sentence]).to(self.text_mean.device))[0]
        return feature.detach()

    def text_vector(self, scene_probs: Tensor, text: list[str] | Tensor | None, scene: list[str] | None) -> Tensor:
        """The (B, D) vector that sets the scale: the words' when there are any, else what the picture is read as."""
        if text is not None and scene is not None:
            raise UsageError("give a text or a scene, not both")
        words = text if scene is None else scene
        if words is not None and len(words) != len(scene_probs):
            raise UsageError(f"{len(words)} texts or scenes for {len(scene_probs)} pictures; give one for each")
        if scene is not None:
            return self.scene_table[[scene_index(name, self.scenes) for name in scene]]
        if text is None:
            return self._read(scene_probs)
        features = text if isinstance(text, Tensor) else self.encode_text(text)
        if features.shape != (len(scene_probs), CLIP_FEATURES):
            raise UsageError(
                f"text features have shape {tuple(features.shape)}; `tiny` takes one row per picture, "
                f"({len(scene_probs)}, {CLIP_FEATURES})"
            )
        return self.project(features.to(scene_probs))

    def _read(self, scene_probs: Tensor) -> Tensor:
        """The mean of the scene table under scene_probs, (B, D); a plain sum, which autocast leaves in float32."""
        return (scene_probs[..., None] * self.scene_table).sum(1)

    # -- depth -----------------------------------------------------------------------------------------------------

    def forward(
        self, image: Tensor, text: list[str] | Tensor | None = None, scene: list[str] | None = None
    ) -> DepthOutput:
        features, picture, logits = self._look(image)
        scene_probs = logits.softmax(-1)
        vector = self.text_vector(scene_probs, text, scene)
        return self._tell(features, picture, vector, scene_probs)

    def _look(self, image: Tensor) -> tuple[list[Tensor], Tensor, Tensor]:
        """Encoder maps, picture vector (B, P), scene logits (B, K)."""
        features = self.encoder(self.normalise(image))[1:]
        top = features[-1]
        pooled = torch.cat([top.mean((2, 3)), top.amax((2, 3))], dim=1).float()
        with torch.autocast(image.device.type, enabled=False):
            picture = self.picture(pooled)
            reading = F.normalize(self.reading(picture), dim=-1)
            logits = self.sharpness.clamp(1, 30) * reading @ self.scene_table.T
        return features, picture, logits

    def _tell(self, features: list[Tensor], picture: Tensor, vector: Tensor, scene_probs: Tensor) -> DepthOutput:
        relative, centers, probs = self.bins(self.decoder(features, self.context(picture)), picture)
        with torch.autocast(picture.device.type, enabled=False):  # bfloat16 would round the scale to 1 %
            log_scale = self.scale_of_words(vector) + self.scale_of_picture(torch.cat([picture, vector], dim=1))
            scale = torch.exp(log_scale.clamp(-3, 6)).squeeze(1)
        return DepthOutput(
            depth=relative * scale[:, None, None, None],
            relative=relative,
            scale=scale,
            bin_centers=centers,
            bin_probs=probs,
            scene_probs=scene_probs,
        )

    # -- training --------------------------------------------------------------------------------------------------

    def prepare_training(self, text_features: str | None = None, **unknown: Any) -> None:
        """ImageNet weights for the encoder; sentence encoder, scene table and caption bank from CLIP caption features.

        ``text_features``: the ``.npz`` of captions and their features (see ``text.encoders.read_caption_features``).
        Weights that were trained before keep what they know; only the caption bank is made.
        """
        if unknown or text_features is None:
            raise UsageError(
                "tiny needs exactly one preparation key, system.prepare.text_features: a file of caption features"
            )
        data = read_caption_features(text_features)
        if not self.config.vocabulary:
            self.provenance["encoder"] = self.encoder.load_imagenet_weights()
            vocabulary = sorted({word for caption in data.captions for word in words_of(caption)})
            self.config = replace(self.config, vocabulary=tuple(vocabulary))
            self.sentences = SentenceEncoder(vocabulary, CLIP_FEATURES)
            self.provenance["sentence_encoder"] = distil(self.sentences, data)._asdict()
            self.text_mean.copy_(data.features.mean(0))
            _, _, directions = torch.pca_lowrank(data.features - self.text_mean, q=self.config.text_features, niter=4)
            self.text_basis.copy_(directions.T)
        self._collect_captions(data)

    def _collect_captions(self, data: CaptionFeatures) -> None:
        """The scene table (mean over a scene's captions) and the caption bank."""
        vectors = self.project(data.features)
        words = [set(words_of(caption)) for caption in data.captions]
        bank, offsets = [], [0]
        for row, marks in enumerate(CAPTION_SCENES.values()):
            chosen = vectors[torch.tensor([not w.isdisjoint(marks) for w in words])]
            if not len(chosen):
                raise LangdepthError(
                    f"no caption has one of the words {', '.join(marks)} of the scene '{self.scenes[row]}'"
                )
            self.scene_table[row] = F.normalize(chosen.mean(0), dim=0)
            bank.append(chosen)
            offsets.append(offsets[-1] + len(chosen))
        self.caption_bank, self.caption_offsets = torch.cat(bank), torch.tensor(offsets)

    def _words_for_training(self, scene: Tensor, read: Tensor) -> Tensor:
        """For some pictures with a known scene, a random caption of it replaces what the picture is read as."""
        if self.caption_bank is None or self.caption_offsets is None:
            return read
        device = read.device
        first, last = (
            self.caption_offsets.to(device)[scene.clamp_min(0)],
            self.caption_offsets.to(device)[scene.clamp_min(0) + 1],
        )
        chosen = first + (torch.rand(len(scene), device=device) * (last - first)).long()
        told = self.caption_bank.to(device)[chosen]
        use = (scene >= 0) & (torch.rand(len(scene), device=device) < self.config.word_rate)
        return torch.where(use[:, None], told.to(read.dtype), read)

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        config = self.config
        features, picture, logits = self._look(batch.image)
        scene = self.label_to_scene[batch.scene]
        vector = self._words_for_training(scene, self._read(logits.softmax(-1)))
        output = self._tell(features, picture, vector, logits.softmax(-1))
        depth = F.interpolate(output.depth, size=batch.depth.shape[-2:], mode="bilinear", align_corners=False)
        # What the words alone say about the scale should already be right on average.
        assert output.relative is not None
        with torch.autocast(picture.device.type, enabled=False):
            prior_scale = torch.exp(self.scale_of_words(vector))[..., None, None]
        prior = prior_scale * F.interpolate(output.relative.detach(), size=batch.depth.shape[-2:], mode="bilinear")
        parts = {
            "silog": losses.silog(depth, batch.depth, batch.mask),
            "l1": config.l1_weight * losses.log_l1(depth, batch.depth, batch.mask),
            "gradient": config.gradient_weight * losses.gradient(depth, batch.depth, batch.mask),
            "scene": config.scene_weight * losses.scene_cross_entropy(logits, scene, label_smoothing=0.1),
            "prior": config.prior_weight * losses.log_l1(prior, batch.depth, batch.mask),
        }
        return {"total": torch.stack(list(parts.values())).sum(), **parts}

    def parameter_groups(self, lr: float, weight_decay: float) -> list[dict[str, Any]]:
        """The encoder learns at a third of the rate of what is new; no decay on vectors."""
        groups = []
        for factor, part in ((1 / 3, True), (1.0, False)):
            chosen = [
                (n, p) for n, p in self.named_parameters() if p.requires_grad and n.startswith("encoder.") == part
            ]
            for decay, matrices in ((weight_decay, True), (0.0, False)):
                parameters = [p for _, p in chosen if (p.ndim > 1) == matrices]
                groups.append({"params": parameters, "lr": lr * factor, "weight_decay": decay})
        return groups
