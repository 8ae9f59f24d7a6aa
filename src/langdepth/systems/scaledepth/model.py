"""`scaledepth-n`, `-k`, `-nk`: metric depth = scale of the scene x relative depth, both from queries.

"ScaleDepth: Decomposing Metric Depth Estimation into Scale Prediction and Relative Depth Estimation" (arXiv 2407.08187,
2024). Specification and numbers: docs/systems/scaledepth.md.

Data flow (published size; 64 bin queries, 3 scale queries)

    image (B, 3, 480, 640) -> CLIP's ConvNeXt-L -> maps (B, 192, 120, 160), (B, 384, 60, 80), (B, 768, 30, 40),
    (B, 1536, 15, 20)
    -> pixel decoder (parts/pixel_decoder.py) -> mask features (B, 256, 120, 160), memories (B, 256, h, w) at strides
    32, 16, 8
    67 queries read the memories in nine layers (parts/query_decoder.py) -> contents (B, 67, 256)

    relative depth (ARDE): bin queries -> logits (B, 64) -> softmax -> widths of the bins, from 0.001 to 1.001
                           bin queries x mask features -> softmax over queries (B, 64, 120, 160)
                           expected centre of the bins -> relative (B, 1, 120, 160)
    scale (SASP):          scale queries in a row (B, 768) -> linear layer, ReLU, + 0.1 m -> scale (B,)
                           the same x CLIP's features of 28 scene names (28, 768) -> scene_probs (B, 28)
    depth = scale x relative (B, 1, 120, 160), metres

In training three layers predict, a third, two thirds and all of the way; prediction needs the last one alone. Scene
names teach the scale in training. A scene that is named in prediction is our addition, see ``ScaleDepth.forward``.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from langdepth import losses
from langdepth.backbones.convnext import ConvNeXt
from langdepth.backbones.encoders import make_encoder, start_encoder
from langdepth.backbones.swin import Swin
from langdepth.errors import CheckpointError, UsageError
from langdepth.records import Batch, DepthOutput, InputSpec
from langdepth.systems.base import System
from langdepth.systems.capabilities import ConvertsOfficial, StandsOnClip, Trainable
from langdepth.systems.official import rename, set_quirks
from langdepth.systems.scaledepth.pixel_decoder import PixelDecoder, PixelFeatures
from langdepth.systems.scaledepth.query_decoder import QueryDecoder
from langdepth.text.caption_features import read_caption_features
from langdepth.text.encoders import CaptionBank, caption_scene_of_label
from langdepth.text.scene_table import check_same_clip, encode_scenes, read_scene_table
from langdepth.text.scenes import CAPTION_SCENES, SCENES, scene_index

CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
SMALLEST = 32  # pixels: one cell of the coarsest map


@dataclass(frozen=True, kw_only=True)
class ScaleDepthConfig:
    """Options of all variants. ``reference_exact`` sets what QUIRKS lists."""

    QUIRKS: ClassVar[dict[str, Any]] = {"scale_bias": 0.0, "scene_mean_over_all": True}

    encoder: str = "convnext_large"
    """Name of the trunk: timm's of a ConvNeXt, swin-large, efficientnet-lite0 ..."""
    frozen: int = 0
    """Stages of an EfficientNet-Lite that keep their ImageNet weights."""
    start: Literal["clip", "imagenet"] = "clip"
    """Where the encoder's weights come from when training starts."""
    clip: str = "convnext_large_d_320"
    """open_clip's name of the model that encodes the scenes, with embeddings as wide as the scale queries in a row."""
    clip_tag: str = "laion2b_s29b_b131k_ft_soup"
    """open_clip's name of its weights."""
    quick_gelu: bool = False
    """Whether these were trained with QuickGELU (OpenAI's were)."""
    drop_path: float = 0.1
    """Share of dropped branches in the encoder's last block in training."""
    mean: tuple[float, float, float] = CLIP_MEAN
    std: tuple[float, float, float] = CLIP_STD
    area: int | None = 480 * 640
    """Pixels inside the network, in the image's shape; null: the image's own size."""
    channels: int = 256
    """Of memories, mask features and queries; a multiple of 32."""
    pixel_layers: int = 6
    pixel_hidden: int = 1024
    decoder_layers: int = 9
    """A multiple of 3."""
    decoder_hidden: int = 2048
    bins: int = 64
    scale_queries: int = 3
    scenes: int = len(SCENES)
    """Rows of the scene table, the first of text.scenes.SCENES; 0: no scenes (published for KITTI alone)."""
    scene_similarity: Literal["product", "cosine"] = "product"
    """100 x scale queries x scenes' features (published), or that of vectors of length 1."""
    scene_loss: Literal["probabilities", "logits"] = "probabilities"
    """What the scenes' cross-entropy gets; probabilities (softmax twice, tiny gradients) are published."""
    scene_loss_weight: float = 0.01
    scene_mean_over_all: bool = False
    """Whether images of unknown scene count in the mean of the scene loss, as 0."""
    chamfer_weight: float = 0.0
    """Of the distance between bins, in metres, and depths; 0.1 in the official code, which does not use it."""
    loss_max_depth: float | None = None
    """Metres; what is farther is no ground truth."""
    scale_bias: float = 2.0
    """Start of the scale layer's bias; from 0, as published, half of the starts have scale 0.1 m and no gradient."""
    scene_share: float = 0.5
    """How far a named scene moves the scale in logs, from what the image is read as (0) to what it says (1)."""
    gradient_checkpointing: bool = False
    """Training in less memory and more time: only the inputs of the layers of decoders, ConvNeXt and Swin are kept."""
    reference_exact: bool = False
    """The official code's numbers in training, its mistakes included."""

    def __post_init__(self) -> None:
        set_quirks(self)
        if not 0 <= self.scenes <= len(SCENES):
            raise ValueError(f"scenes must be between 0 and {len(SCENES)}, got {self.scenes}")
        if self.channels < 32 or self.channels % 32:
            raise ValueError(f"channels must be a multiple of 32, got {self.channels}")
        if self.decoder_layers < 3 or self.decoder_layers % 3:
            raise ValueError(f"decoder_layers must be a multiple of 3, got {self.decoder_layers}")


class Reading(NamedTuple):
    """What one decoder layer's queries say.

    bin_logits (B, N); edges (B, N + 1); mask_logits (B, N, h, w); relative (B, 1, h, w) at stride 4; scale (B,) metres;
    similarity (B, K), before the softmax, None without scenes.
    """

    bin_logits: Tensor
    edges: Tensor
    mask_logits: Tensor
    relative: Tensor
    scale: Tensor
    similarity: Tensor | None

    @property
    def centers(self) -> Tensor:
        """Of the bins, (B, N), rising."""
        return (self.edges[:, 1:] + self.edges[:, :-1]) / 2


class ScaleDepth(System, Trainable, StandsOnClip, ConvertsOfficial):
    """All variants. ``text``: a (K, D) matrix instead of the scene table, one row per scene."""

    Config = ScaleDepthConfig
    text_per_image = False
    config: ScaleDepthConfig
    scene_table: Tensor
    scene_counts: Tensor
    scene_log_sums: Tensor

    def __init__(self, config: ScaleDepthConfig) -> None:
        multiple = 1 if config.area is None else SMALLEST
        spec = InputSpec(mean=config.mean, std=config.std, area=config.area, multiple_of=multiple)
        super().__init__(config, spec)
        self.scenes = SCENES[: config.scenes]
        self.encoder = make_encoder(config.encoder, config.drop_path, config.frozen)
        self.pixel_decoder = PixelDecoder(
            self.encoder.channels[-4:], config.channels, config.pixel_layers, config.pixel_hidden
        )
        self.query_decoder = QueryDecoder(
            config.bins, config.scale_queries, config.channels, config.decoder_layers, config.decoder_hidden
        )
        width = config.scale_queries * config.channels
        self.scale = nn.Linear(width, 1)
        nn.init.constant_(self.scale.bias, config.scale_bias)
        self.register_buffer("scene_table", torch.zeros(config.scenes, width))
        # Of the training images of each scene: how many, and the sum of their log median depths. A moving average
        # weights both alike, so their ratio stays a mean.
        self.register_buffer("scene_counts", torch.zeros(config.scenes))
        self.register_buffer("scene_log_sums", torch.zeros(config.scenes))
        self.pixel_decoder.gradient_checkpointing = config.gradient_checkpointing
        self.query_decoder.gradient_checkpointing = config.gradient_checkpointing
        if isinstance(self.encoder, ConvNeXt | Swin):
            self.encoder.set_gradient_checkpointing(config.gradient_checkpointing)

    # -- depth -----------------------------------------------------------------------------------------------------

    def forward(
        self, image: Tensor, text: list[str] | Tensor | None = None, scene: list[str] | None = None
    ) -> DepthOutput:
        """Depth of (B, 3, H, W) images in [0, 1], H and W at least 32, at a quarter of their size.

        ``scene``: names of ``scenes``. The paper predicts without; here a name moves the scale half of the way (option
        ``scene_share``), in log scale, from the usual depth of the scenes that the image is read as to that of the
        named one. The usual depth of a scene is the median depth of its training images.

        ``text``: a (K, D) matrix in the place of the scene table. Raises UsageError for sentences, for a matrix of
        another shape, for unknown scenes and those that training never saw, and for too small images.
        """
        table = self._table(text)
        found = self.read(self.maps(image), [-1], table)[-1]
        with torch.autocast(image.device.type, enabled=False):
            probs = None if found.similarity is None else found.similarity.softmax(-1)
            scale = found.scale if scene is None else found.scale * self._scene_factor(scene, found.similarity)
            depth = found.relative * scale[:, None, None, None]
        return DepthOutput(
            depth=depth, relative=found.relative, scale=scale, bin_centers=found.centers, scene_probs=probs
        )

    def maps(self, image: Tensor) -> list[Tensor]:
        """The encoder's maps of (B, 3, H, W) RGB in [0, 1], finest first. Raises UsageError for too small images."""
        if min(image.shape[-2:]) < SMALLEST:
            raise UsageError(
                f"'{self.name}' takes images of at least {SMALLEST}x{SMALLEST} pixels, not "
                f"{image.shape[-1]}x{image.shape[-2]}; enlarge the image"
            )
        maps: list[Tensor] = self.encoder(self.normalise(image))[-4:]
        return maps

    def read(self, maps: Sequence[Tensor], layers: Sequence[int], table: Tensor | None = None) -> list[Reading]:
        """What the queries say after the decoder ``layers`` (indices), for the encoder's maps, finest first.

        ``table``: (K, D) in the place of the scene table.
        """
        pixels: PixelFeatures = self.pixel_decoder(maps)
        contents = self.query_decoder(pixels.memories, pixels.masks)
        return [self._read_layer(contents[layer], pixels.masks, table) for layer in layers]

    def _read_layer(self, contents: Tensor, mask_features: Tensor, table: Tensor | None) -> Reading:
        decoder, config = self.query_decoder, self.config
        bin_logits, mask_logits = decoder.class_logits(contents).float(), decoder.mask_logits(contents, mask_features)
        with torch.autocast(contents.device.type, enabled=False):  # a bfloat16 sum would step by 0.4 %
            edges = F.pad(bin_logits.softmax(-1), (1, 0), value=0.001).cumsum(-1)
            centers = (edges[:, 1:] + edges[:, :-1]) / 2
            relative = torch.einsum("bnhw,bn->bhw", mask_logits.softmax(1), centers).unsqueeze(1)
            queries = contents[:, config.bins :].flatten(1).float()
            scale = self.scale(queries).squeeze(-1).relu() + 0.1
            similarity = None
            if self.scenes:
                rows = self.scene_table if table is None else table
                if config.scene_similarity == "cosine":
                    queries, rows = F.normalize(queries, dim=-1), F.normalize(rows, dim=-1)
                similarity = 100 * queries @ rows.T
        return Reading(bin_logits, edges, mask_logits, relative, scale, similarity)

    # -- words -----------------------------------------------------------------------------------------------------

    def _table(self, text: list[str] | Tensor | None) -> Tensor | None:
        if text is None:
            return None
        if not isinstance(text, Tensor):
            raise UsageError(f"the system '{self.name}' takes no sentence about the image; name its scene")
        if not self.scenes or text.shape != self.scene_table.shape:
            raise UsageError(
                f"text features have shape {tuple(text.shape)}; '{self.name}' takes one row per scene, "
                f"{tuple(self.scene_table.shape)}"
            )
        return text.to(self.scene_table)

    def _scene_factor(self, scene: list[str], similarity: Tensor | None) -> Tensor:
        """What the named scenes (B) multiply the scales by, for images with ``similarity`` to all scenes (B, K)."""
        if similarity is None:
            raise UsageError(f"the system '{self.name}' takes no scene; leave it out")
        if len(scene) != len(similarity):
            raise UsageError(f"{len(scene)} scenes for {len(similarity)} images; give one for each")
        named = torch.tensor([scene_index(name, self.scenes) for name in scene], device=similarity.device)
        seen = self.scene_counts > 0
        unseen = [name for name, known in zip(scene, seen[named].tolist(), strict=True) if not known]
        if unseen:
            known_scenes = [name for name, known in zip(self.scenes, seen.tolist(), strict=True) if known]
            raise UsageError(
                f"these weights were trained without images of the scene '{unseen[0]}' and do not know its depth; "
                f"they know {', '.join(known_scenes) or 'that of no scene'}"
            )
        usual = self.scene_log_sums / self.scene_counts.where(seen, 1.0)
        read = similarity.masked_fill(~seen, -torch.inf).softmax(-1) @ usual
        return torch.exp(self.config.scene_share * (usual[named] - read))

    def load_foundation(self, clip_weights: str | Path | None = None, prompts: Mapping[str, Any] | None = None) -> None:
        """Fill in the scene table and, where it starts from CLIP, the encoder from CLIP weights.

        ``clip_weights``: a file, None for open_clip's download, or "random". Raises UsageError and CheckpointError.
        """
        from langdepth.backbones.clip_weights import find_clip_weights

        if prompts:
            raise UsageError(f"the system '{self.name}' has no distance words or bins to set; leave them out")
        config = self.config
        weights = find_clip_weights(clip_weights or config.clip_tag, config.clip, config.quick_gelu)
        if self.scenes:
            self._set_table(encode_scenes(weights, self.scenes), f"CLIP {config.clip}")
        if config.start == "clip":
            visual = weights.visual()
            own = self.encoder.state_dict()
            self.encoder.load_state_dict({name: visual[f"trunk.{name}"] for name in own})
        self.provenance |= {"source": f"CLIP {config.clip}: {weights.source}", "clip_sha256": weights.sha256}

    def _set_table(self, features: Tensor, source: str) -> None:
        if features.shape != self.scene_table.shape:
            queries, channels = self.config.scale_queries, self.config.channels
            raise UsageError(
                f"{source}: features of scenes have {features.shape[1]} numbers, the scale queries "
                f"{queries * channels} ({queries} x {channels}); they must be the same"
            )
        self.scene_table.copy_(features)

    # -- training --------------------------------------------------------------------------------------------------

    def prepare_training(
        self,
        clip_weights: str | None = None,
        encoder_weights: str | None = None,
        scene_table: str | None = None,
        text_features: str | None = None,
    ) -> None:
        """Start weights of encoder and scene table, unless the system has trained weights already.

        Args:
            clip_weights: See ``load_foundation``. They also check a ``scene_table``.
            encoder_weights: Of an encoder that starts from ImageNet, see ``backbones.encoders.start_encoder``.
            scene_table: A file of ``langdepth scenes encode``, or a published table, see
                ``text.scene_table.read_scene_table``; instead of CLIP's text tower.
            text_features: Captions with their features, in any form of ``text.caption_features``; a scene's row is then
                their mean over captions of such scenes. Instead of CLIP's text tower.

        Raises:
            UsageError: Options contradict each other or the system.
            CheckpointError: A file is missing or damaged or does not fit; a scene table is of another CLIP.
        """
        if "weights" in self.provenance:
            if scene_table is not None and self.scenes and Path(scene_table).exists():  # theirs goes first
                found = read_scene_table(scene_table, self.scenes, self.scene_table.shape[1])
                check_same_clip(found.rows, self.scene_table, self.scenes, scene_table, "these weights")
            return
        if scene_table is not None and text_features is not None:
            raise UsageError("system.prepare: give a scene_table or text_features, not both")
        from_file = scene_table is not None or text_features is not None
        if from_file and not self.scenes:
            raise UsageError(f"'{self.name}' has no scenes; leave scene_table and text_features out of system.prepare")
        if self.config.start == "clip" or (self.scenes and not from_file):
            self.load_foundation(clip_weights)
        if scene_table is not None:
            self.scene_table.copy_(self._read_table(scene_table, self._known_rows(clip_weights)))
        if text_features is not None:
            self._scenes_of_captions(text_features)
        if self.config.start == "imagenet":
            self.provenance["encoder"] = start_encoder(self.encoder, encoder_weights)

    def _known_rows(self, clip_weights: str | None) -> Tensor | None:
        """The scenes' features by CLIP's text tower, where its weights are at hand and not random."""
        if clip_weights == "random" or (self.config.start != "clip" and clip_weights is None):
            return None
        if self.config.start != "clip":
            from langdepth.backbones.clip_weights import find_clip_weights

            return encode_scenes(find_clip_weights(clip_weights, self.config.clip, self.config.quick_gelu), self.scenes)
        return self.scene_table  # load_foundation has filled it

    def _read_table(self, path: str, known: Tensor | None) -> Tensor:
        """The scene table of a file, compared with CLIP's own rows where those are ``known``; says what was found."""
        config, found = self.config, read_scene_table(path, self.scenes, self.scene_table.shape[1])
        if found.architecture not in (None, config.clip):
            raise CheckpointError(
                f"{path}: is of CLIP {found.architecture}, '{self.name}' takes that of {config.clip}; encode the "
                "scenes with it, or set system.options.clip"
            )
        checked = "whether this CLIP made them could not be checked, for lack of system.prepare.clip_weights"
        if known is not None:
            check_same_clip(found.rows, known, self.scenes, path, f"CLIP {config.clip}")
            checked = f"they agree with those of CLIP {config.clip}"
        if found.taken_for is not None:
            warnings.warn(
                f"{path}: names no scenes; its {len(found.taken_for)} rows are taken for {found.taken_for[0]}, "
                f"{found.taken_for[1]} ... {found.taken_for[-1]}, as 'langdepth scenes' lists them; {checked}",
                stacklevel=2,
            )
        self.provenance["scene_table"] = f"{Path(path).name}; {checked}"
        return found.rows

    def _scenes_of_captions(self, path: str) -> None:
        """Scene table from published features of captions: mean of those of the nearest scene that captions name."""
        captions = CaptionBank(read_caption_features(path)).by_scene
        absent = [name for name, features in zip(CAPTION_SCENES, captions, strict=True) if not len(features)]
        if absent:
            raise UsageError(f"{path}: no caption is about the scene '{absent[0]}'; give a file of more captions")
        rows = F.normalize(torch.stack([features.mean(0) for features in captions]), dim=-1)
        self._set_table(rows[caption_scene_of_label()[: len(self.scenes)]], path)

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Depth and scene losses of three layers, see ``losses_of``."""
        layers = self.config.decoder_layers
        if self.training and self.scenes:
            self._remember_depths(batch)
        return self.losses_of(self.read(self.maps(batch.image), range(layers)[layers // 3 - 1 :: layers // 3]), batch)

    def losses_of(self, readings: Sequence[Reading], batch: Batch) -> dict[str, Tensor]:
        """Losses of three layers' ``readings``, weighted: "depth", "scene", "chamfer"; "total", their sum.

        Those of the earlier layers have the layer's index behind their name. Their depth losses count 1/4 and 1/2,
        their scene losses as much as the last.
        """
        config, third = self.config, self.config.decoder_layers // 3
        names, terms = (f"_{third - 1}", f"_{2 * third - 1}", ""), dict[str, Tensor]()
        for name, reading, weight in zip(names, readings, (0.25, 0.5, 1.0), strict=True):
            with torch.autocast(batch.depth.device.type, enabled=False):
                relative = F.interpolate(
                    reading.relative, size=batch.depth.shape[-2:], mode="bilinear", align_corners=False
                )
                terms[f"depth{name}"] = weight * losses.sig_plus(
                    relative, reading.scale, batch.depth, batch.mask, max_depth=config.loss_max_depth
                )
                if reading.similarity is not None:
                    terms[f"scene{name}"] = config.scene_loss_weight * losses.scene_cross_entropy(
                        reading.similarity,
                        self._labels(batch),
                        form=config.scene_loss,
                        mean_over_all=config.scene_mean_over_all,
                    )
                if config.chamfer_weight:
                    centers = reading.centers * reading.scale[:, None]
                    terms[f"chamfer{name}"] = config.chamfer_weight * losses.bin_chamfer(
                        centers, batch.depth, batch.mask
                    )
        return terms | {"total": torch.stack(list(terms.values())).sum()}

    def _labels(self, batch: Batch) -> Tensor:
        """(B,): scenes beyond the table are unknown, too."""
        return torch.where(batch.scene < len(self.scenes), batch.scene, -1)

    @torch.no_grad()
    def _remember_depths(self, batch: Batch) -> None:
        """Count the images' median depths for their scenes."""
        label = self._labels(batch)
        median = torch.where(batch.mask, batch.depth, torch.nan).flatten(1).nanmedian(1).values
        known = (label >= 0) & median.isfinite()
        label, logs = label.clamp_min(0), torch.where(known, median, 1.0).log()
        self.scene_counts.index_add_(0, label, known.to(self.scene_counts))
        self.scene_log_sums.index_add_(0, label, logs.to(self.scene_log_sums))

    def parameter_groups(self, lr: float, weight_decay: float) -> list[dict[str, Any]]:
        """As published: the encoder at a tenth of the rate, all with decay; elsewhere none on norms and queries."""
        trunk = [parameter for parameter in self.encoder.parameters() if parameter.requires_grad]
        plain = [self.query_decoder.contents, self.query_decoder.positions, self.query_decoder.levels]
        for module in (*self.pixel_decoder.modules(), *self.query_decoder.modules()):
            if isinstance(module, nn.LayerNorm | nn.GroupNorm):
                plain += module.parameters()
        others = {id(parameter) for parameter in (*self.encoder.parameters(), *plain)}
        rest = [parameter for parameter in self.parameters() if id(parameter) not in others]
        return [
            {"params": trunk, "lr": lr / 10, "weight_decay": weight_decay},
            {"params": rest, "lr": lr, "weight_decay": weight_decay},
            {"params": plain, "lr": lr, "weight_decay": 0.0},
        ]

    # -- files -----------------------------------------------------------------------------------------------------

    def convert_official(self, state_dict: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, list[str]]]:
        """Official names: the trunk under ``backbone.``, everything else under ``decode_head.``.

        CLIP's text tower and projection head, which nothing uses, may be there or not. Raises CheckpointError for a
        checkpoint of another variant.
        """
        table = state_dict.get("decode_head.class_embeddings")
        rows = 0 if table is None else len(table)
        if "decode_head.query_feat.weight" not in state_dict:
            raise CheckpointError(
                f"the checkpoint is not one of '{self.name}' (no tensor 'decode_head.query_feat.weight')"
            )
        if rows != len(self.scenes):
            raise CheckpointError(
                f"the checkpoint knows {rows or 'no'} scenes, '{self.name}' {len(self.scenes) or 'none'}; choose "
                "another variant of ScaleDepth, or set the option scenes"
            )
        tensors, report = rename(state_dict, self.official_names(), self.state_dict())
        for name in ("scene_counts", "scene_log_sums"):  # ours; the authors' programs keep no such numbers
            tensors[name] = torch.zeros_like(self.get_buffer(name))
        tensors.setdefault("scene_table", torch.zeros_like(self.scene_table[:0]))  # without scenes there is none
        report["missing"] = [key for key in report["missing"] if key not in tensors]
        return tensors, report

    def official_names(self) -> dict[str, str]:
        """Prefixes of the authors' tensors -> ours."""
        pixels, queries, head = "pixel_decoder.", "query_decoder.", "decode_head."
        names = {
            "backbone.clip_model.visual.trunk.": "encoder.",
            f"{head}class_embeddings": "scene_table",
            f"{head}scale_predictor.fc.": "scale.",
            f"{head}query_feat.weight": f"{queries}contents",
            f"{head}query_embed.weight": f"{queries}positions",
            f"{head}level_embed.weight": f"{queries}levels",
            f"{head}cls_embed.": f"{queries}logit.",
            f"{head}mask_embed.": f"{queries}mask_embedding.",
            f"{head}transformer_decoder.post_norm.": f"{queries}norm.",
            f"{head}pixel_decoder.level_encoding.weight": f"{pixels}levels",
            f"{head}pixel_decoder.mask_feature.": f"{pixels}masks.",
        }
        convs = {f"input_convs.{level}": f"inputs.{level}" for level in range(3)}
        for theirs, ours in (convs | {"lateral_convs.0": "lateral", "output_convs.0": "output"}).items():
            for index, part in enumerate(("conv", "gn")):
                names[f"{head}pixel_decoder.{theirs}.{part}."] = f"{pixels}{ours}.{index}."
        linear = {"ffn.layers.0.0.": "feed_forward.0.", "ffn.layers.1.": "feed_forward.2."}
        linear |= {f"norms.{index}.": f"norm{index + 1}." for index in range(3)}
        deformable = {"sampling_offsets": "offsets", "attention_weights": "weights"}
        deformable |= {"value_proj": "value", "output_proj": "output"}
        usual = {"in_proj_": "inputs.", "out_proj.": "output."}
        encoder = linear | {f"self_attn.{theirs}.": f"attention.{ours}." for theirs, ours in deformable.items()}
        decoder = linear | {
            f"{kind}_attn.attn.{theirs}": f"{kind}_attention.{ours}"
            for kind in ("cross", "self")
            for theirs, ours in usual.items()
        }
        for old, new, count, parts in (
            (f"{head}pixel_decoder.encoder.layers.", f"{pixels}layers.", self.config.pixel_layers, encoder),
            (f"{head}transformer_decoder.layers.", f"{queries}layers.", self.config.decoder_layers, decoder),
        ):
            for layer in range(count):
                names |= {f"{old}{layer}.{theirs}": f"{new}{layer}.{ours}" for theirs, ours in parts.items()}
        return names
