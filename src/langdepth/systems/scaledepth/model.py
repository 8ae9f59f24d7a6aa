"""`scaledepth-n`, `-k`, `-nk`: metric depth = scale of the scene x relative depth, both from queries.

"ScaleDepth: Decomposing Metric Depth Estimation into Scale Prediction and Relative Depth Estimation" (arXiv 2407.08187,
2024). Specification and numbers: docs/systems/scaledepth.md.

Data flow (published size; 64 bin queries, 3 scale queries)

    image (B, 3, 480, 640) -> CLIP's ConvNeXt-L -> maps (B, 192, 120, 160), (B, 384, 60, 80), (B, 768, 30, 40),
    (B, 1536, 15, 20)
    -> pixel decoder -> mask features (B, 256, 120, 160), memories (B, 256, h, w) at strides 32, 16, 8
    67 queries attend to the memories in nine layers -> contents (B, 67, 256)            (both decoders: blocks.py)

    relative depth (ARDE): bin queries -> logits (B, 64) -> softmax -> widths of the bins, from 0.001 to 1.001
                           bin queries x mask features -> softmax over queries (B, 64, 120, 160)
                           expected centre of the bins -> relative (B, 1, 120, 160)
    scale (SASP):          scale queries in a row (B, 768) -> linear layer, ReLU, + 0.1 m -> scale (B,)
                           the same x CLIP's features of 28 scene names (28, 768) -> scene_probs (B, 28)
    depth = scale x relative (B, 1, 120, 160), metres

In training three layers predict, after a third, two thirds and all of them; prediction needs the last one alone. Scene
labels supervise the scale queries. A scene that is named in prediction is our addition, see ``ScaleDepth.forward``.

Loss, over these layers i with w = 1/4, 1/2, 1 and g the log difference: the sum of
w_i 10 sqrt(var g + 0.15 (mean g)^2) + 0.01 cross-entropy of the scene.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from langdepth import losses
from langdepth.backbones.clip_weights import find_clip_weights
from langdepth.backbones.convnext import ConvNeXt
from langdepth.backbones.encoders import make_encoder, start_encoder
from langdepth.backbones.swin import Swin
from langdepth.errors import CheckpointError, UsageError
from langdepth.parts.bins import bin_edges, expected_depth
from langdepth.records import Batch, DepthOutput, InputSpec
from langdepth.systems.base import System
from langdepth.systems.capabilities import ConvertsOfficial, Scene, StandsOnClip, Text, Trainable
from langdepth.systems.official import rename
from langdepth.systems.scaledepth.blocks import PixelDecoder, PixelFeatures, QueryDecoder
from langdepth.systems.scaledepth.config import ScaleDepthConfig
from langdepth.systems.scaledepth.official import QUERY_FEATURES, SCENE_TABLE, official_names
from langdepth.systems.scaledepth.scenes import table_of_captions, table_of_file
from langdepth.text.scene_table import check_same_clip, encode_scenes, read_scene_table
from langdepth.text.scenes import SCENES

SMALLEST = 32  # pixels: one cell of the coarsest map


class LayerPrediction(NamedTuple):
    """What follows from the queries after one decoder layer.

    bin_logits (B, N); edges (B, N + 1) and centers (B, N) of the bins, rising; mask_logits (B, N, h, w); relative
    (B, 1, h, w) at stride 4; scale (B,) metres; similarity (B, K), before the softmax, None without scenes.
    """

    bin_logits: Tensor
    edges: Tensor
    centers: Tensor
    mask_logits: Tensor
    relative: Tensor
    scale: Tensor
    similarity: Tensor | None


class ScaleDepth(System, Trainable, StandsOnClip, ConvertsOfficial):
    """All variants. ``text``: a (K, D) matrix instead of the scene table, one row per scene."""

    Config = ScaleDepthConfig
    text_per_image = False
    encoder_lr = 1 / 10
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

    def forward(self, image: Tensor, text: Text = None, scene: Scene = None) -> DepthOutput:
        """Depth of (B, 3, H, W) images in [0, 1], H and W at least 32, at a quarter of their size.

        Args:
            image: RGB.
            text: A (K, D) matrix instead of the scene table.
            scene: Names of ``scenes``, or their indices. The paper predicts without; here a name moves the scale half
                of the way (option ``scene_share``), in log scale, from the usual depth of the scenes that the image
                resembles to that of the named one. The usual depth of a scene is the mean log median depth of its
                training images.

        Raises:
            UsageError: For sentences, a matrix of another shape, unknown scenes and those without training images, and
                images that are too small.
        """
        table = self._table(text)
        last = self.decode(self.encode(image), [-1], table)[0]
        with torch.autocast(image.device.type, enabled=False):
            probs = None if last.similarity is None else last.similarity.softmax(-1)
            scale = last.scale if scene is None else last.scale * self._scene_factor(scene, last.similarity)
            depth = last.relative * scale[:, None, None, None]
        return DepthOutput(
            depth=depth, relative=last.relative, scale=scale, bin_centers=last.centers, scene_probs=probs
        )

    def encode(self, image: Tensor) -> list[Tensor]:
        """The encoder's four maps of (B, 3, H, W) RGB in [0, 1], finest first. Raises UsageError for small images."""
        if min(image.shape[-2:]) < SMALLEST:
            raise UsageError(
                f"'{self.name}' takes images of at least {SMALLEST}x{SMALLEST} pixels, not "
                f"{image.shape[-1]}x{image.shape[-2]}; enlarge the image"
            )
        maps: list[Tensor] = self.encoder(self.normalise(image))[-4:]
        return maps

    def decode(
        self, maps: Sequence[Tensor], layers: Sequence[int], table: Tensor | None = None
    ) -> list[LayerPrediction]:
        """Predictions after the query decoder's ``layers`` (indices) from the encoder's maps, finest first.

        ``table``: (K, D) instead of the scene table.
        """
        pixels: PixelFeatures = self.pixel_decoder(maps)
        contents = self.query_decoder(pixels.memories, pixels.masks)
        return [self._predict(contents[layer], pixels.masks, table) for layer in layers]

    def _predict(self, contents: Tensor, mask_features: Tensor, table: Tensor | None) -> LayerPrediction:
        decoder, config = self.query_decoder, self.config
        bin_logits, mask_logits = decoder.class_logits(contents).float(), decoder.mask_logits(contents, mask_features)
        with torch.autocast(contents.device.type, enabled=False):  # a bfloat16 sum would step by 0.4 %
            # Relative depth: bins from their queries, and at every pixel a mixture of them
            edges, centers = bin_edges(bin_logits.softmax(-1), nearest=0.001)
            relative = expected_depth(mask_logits.softmax(1), centers)
            # Scale and scene from the scale queries
            queries = contents[:, config.bins :].flatten(1).float()
            scale = self.scale(queries).squeeze(-1).relu() + 0.1
            similarity = None
            if self.scenes:
                rows = self.scene_table if table is None else table
                if config.scene_similarity == "cosine":
                    queries, rows = F.normalize(queries, dim=-1), F.normalize(rows, dim=-1)
                similarity = 100 * queries @ rows.T
        return LayerPrediction(bin_logits, edges, centers, mask_logits, relative, scale, similarity)

    # -- scenes ----------------------------------------------------------------------------------------------------

    def _table(self, text: Text) -> Tensor | None:
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

    def graph_inputs(self) -> dict[str, Tensor]:
        scene = {"scene": torch.tensor([-1])} if bool((self.scene_counts > 0).any()) else {}
        return {"text": self.scene_table, **scene} if self.scenes else {}

    def _scene_factor(self, scene: list[str] | Tensor, similarity: Tensor | None) -> Tensor:
        """Factors (B,) on the scales from the named scenes, for images with ``similarity`` (B, K) to all scenes."""
        if similarity is None:
            raise UsageError(f"the system '{self.name}' takes no scene; leave it out")
        named = self.scene_indices(scene, similarity.shape[0])
        trained = self.scene_counts > 0
        if not torch.compiler.is_compiling() and not torch.jit.is_tracing():
            self._require_trained(named, trained)
        # An exported graph cannot refuse a scene: NaN says that nothing is known of it.
        usual = (self.scene_log_sums / self.scene_counts).where(trained, torch.nan)
        shares = similarity.masked_fill(~trained, -torch.inf).softmax(-1)
        expected = shares @ usual.nan_to_num(0.0)
        factor = torch.exp(self.config.scene_share * (usual[named.clamp_min(0)] - expected))
        return torch.where(named >= 0, factor, 1.0)

    def _require_trained(self, named: Tensor, trained: Tensor) -> None:
        """Raises UsageError where a scene had no training images."""
        for row in named[named >= 0].tolist():
            if not trained[row]:
                others = [other for other, has in zip(self.scenes, trained.tolist(), strict=True) if has]
                raise UsageError(
                    f"these weights were trained without images of the scene '{self.scenes[row]}' and do not know its "
                    f"depth; they know {', '.join(others) or 'that of no scene'}"
                )

    # -- training --------------------------------------------------------------------------------------------------

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Depth and scene losses of three layers, see ``losses_of``."""
        layers = self.config.decoder_layers
        if self.training and self.scenes:
            self._count_depths(batch)
        return self.losses_of(
            self.decode(self.encode(batch.image), range(layers)[layers // 3 - 1 :: layers // 3]), batch
        )

    def losses_of(self, predictions: Sequence[LayerPrediction], batch: Batch) -> dict[str, Tensor]:
        """Losses of three layers' ``predictions``, weighted: "depth", "scene", "chamfer"; "total", their sum.

        Those of the earlier layers have the layer's index behind their name. Their depth losses count 1/4 and 1/2,
        their scene losses as much as the last.
        """
        config, third = self.config, self.config.decoder_layers // 3
        names, terms = (f"_{third - 1}", f"_{2 * third - 1}", ""), dict[str, Tensor]()
        for name, layer, weight in zip(names, predictions, (0.25, 0.5, 1.0), strict=True):
            with torch.autocast(batch.depth.device.type, enabled=False):
                relative = F.interpolate(
                    layer.relative, size=batch.depth.shape[-2:], mode="bilinear", align_corners=False
                )
                terms[f"depth{name}"] = weight * losses.sig_plus(
                    relative, layer.scale, batch.depth, batch.mask, max_depth=config.loss_max_depth
                )
                if layer.similarity is not None:
                    terms[f"scene{name}"] = config.scene_loss_weight * losses.scene_cross_entropy(
                        layer.similarity,
                        self._labels(batch),
                        form=config.scene_loss,
                        mean_over_all=config.scene_mean_over_all,
                    )
                if config.chamfer_weight:
                    centers = layer.centers * layer.scale[:, None]
                    terms[f"chamfer{name}"] = config.chamfer_weight * losses.bin_chamfer(
                        centers, batch.depth, batch.mask
                    )
        return terms | {"total": torch.stack(list(terms.values())).sum()}

    def _labels(self, batch: Batch) -> Tensor:
        """(B,): scenes beyond the table are unknown, too."""
        return torch.where(batch.scene < len(self.scenes), batch.scene, -1)

    @torch.no_grad()
    def _count_depths(self, batch: Batch) -> None:
        """Add the images' median depths to the numbers of their scenes."""
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
            {"params": trunk, "lr": lr * self.encoder_lr, "weight_decay": weight_decay},
            {"params": rest, "lr": lr, "weight_decay": weight_decay},
            {"params": plain, "lr": lr, "weight_decay": 0.0},
        ]

    # -- start weights and files -----------------------------------------------------------------------------------

    def load_foundation(self, clip_weights: str | Path | None = None, prompts: Mapping[str, Any] | None = None) -> None:
        """Fill in the scene table and, where it starts from CLIP, the encoder from CLIP weights.

        ``clip_weights``: a file, None for open_clip's download, or "random". Raises UsageError and CheckpointError.
        """
        if prompts:
            raise UsageError(f"the system '{self.name}' has no distance words or bins to set; leave them out")
        config = self.config
        weights = find_clip_weights(clip_weights or config.clip_tag, config.clip, config.quick_gelu)
        if self.scenes:
            self._set_table(encode_scenes(weights, self.scenes), f"CLIP {config.clip}")
        if config.start == "clip":
            visual = weights.visual()
            self.encoder.load_state_dict({name: visual[f"trunk.{name}"] for name in self.encoder.state_dict()})
        self.provenance |= {"source": f"CLIP {config.clip}: {weights.source}", "clip_sha256": weights.sha256}

    def _set_table(self, features: Tensor, source: str) -> None:
        if features.shape != self.scene_table.shape:
            queries, channels = self.config.scale_queries, self.config.channels
            raise UsageError(
                f"{source}: features of scenes have {features.shape[1]} numbers, the scale queries "
                f"{queries * channels} ({queries} x {channels}); they must be the same"
            )
        self.scene_table.copy_(features)

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
        width = self.scene_table.shape[1]
        if self.was_loaded:
            if scene_table is not None and self.scenes and Path(scene_table).exists():  # theirs goes first
                found = read_scene_table(scene_table, self.scenes, width)
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
            known = self._known_rows(clip_weights)
            rows, line = table_of_file(scene_table, self.scenes, width, self.config.clip, known)
            self.scene_table.copy_(rows)
            self.provenance["scene_table"] = line
        if text_features is not None:
            self._set_table(table_of_captions(text_features, len(self.scenes)), str(text_features))
        if self.config.start == "imagenet":
            self.provenance["encoder"] = start_encoder(self.encoder, encoder_weights)

    def _known_rows(self, clip_weights: str | None) -> Tensor | None:
        """The scenes' features by CLIP's text tower, where its weights are given and not random."""
        if clip_weights == "random" or (self.config.start != "clip" and clip_weights is None):
            return None
        if self.config.start == "clip":
            return self.scene_table  # load_foundation has filled it
        return encode_scenes(find_clip_weights(clip_weights, self.config.clip, self.config.quick_gelu), self.scenes)

    def convert_official(self, state_dict: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, list[str]]]:
        """Official names, see official.py. CLIP's text tower and projection head, which nothing uses, are ignored.

        Raises CheckpointError for a checkpoint of another variant.
        """
        if QUERY_FEATURES not in state_dict:
            raise CheckpointError(f"the checkpoint is not one of '{self.name}' (no tensor '{QUERY_FEATURES}')")
        rows = len(state_dict.get(SCENE_TABLE, ()))
        if rows != len(self.scenes):
            raise CheckpointError(
                f"the checkpoint knows {rows or 'no'} scenes, '{self.name}' {len(self.scenes) or 'none'}; choose "
                "another variant of ScaleDepth, or set the option scenes"
            )
        names = official_names(self.config.pixel_layers, self.config.decoder_layers)
        tensors, report = rename(state_dict, names, self.state_dict())
        for name in ("scene_counts", "scene_log_sums"):  # ours; the authors' programs keep no such numbers
            tensors[name] = torch.zeros_like(self.get_buffer(name))
        tensors.setdefault("scene_table", torch.zeros_like(self.scene_table[:0]))  # without scenes there is none
        report["missing"] = [key for key in report["missing"] if key not in tensors]
        return tensors, report
