"""`cabins`, `cabins-kitti`: the bins that an image predicts become CLIP's prompts.

CaBins (2024). Specification, what differs from the official code, numbers: docs/systems/cabins.md.

Data flow (B images of 480 x 640; RN101)

    image -> CLIP's ResNet -> F1 (B, 256, 120, 160), F2 (B, 512, 60, 80), F3 (B, 1024, 30, 40), F4 (B, 2048, 15, 20)
    F4 -> CLIP's attention pool -> visual tokens (B, 1 + 300, 512), the first for the image as a whole
    first token -> three layers -> widths of 256 bins from 0.001 to 10 m -> centres (B, 256)
    centres -> 8 groups of 32 neighbours, a mean of each, without gradient -> "0.6777" ... "9.3269" -> tokens (B, 8, 22)
    8 learned vectors before each number -> CLIP's text tower -> words (B, 8, 512)
    words + gamma x context decoder(words, visual tokens) -> words that know the image (B, 8, 512)
    cosine of cells and words -> score map (B, 8, 15, 20)
    F4 beside the score map, then F3, F2, F1 -> decoder -> (B, 256, 240, 320)
    1x1 convolution -> softmax over bins -> sum of probs x centres -> depth (B, 1, 240, 320)

Loss, d = ln(prediction / target) over the valid pixels of the batch: 10 sqrt(var d + 0.15 (mean d)^2) + 0.1 chamfer of
bin centres and depths. CLIP's image tower learns, at a tenth of the rate; its text tower does not.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from langdepth import losses
from langdepth.errors import CheckpointError, UsageError
from langdepth.parts.bins import bin_edges, expected_depth, width_regressor
from langdepth.parts.upsample import resize_aligned
from langdepth.records import Batch, DepthOutput, InputSpec
from langdepth.systems.cabins.blocks import ContextDecoder, DepthDecoder
from langdepth.systems.cabins.official import OFFICIAL_NAMES
from langdepth.systems.cabins.prompts import END, LENGTH, START, number_tokens, representatives
from langdepth.systems.capabilities import ConvertsOfficial, Scene, Text, Trainable
from langdepth.systems.clip_towers import ClipTowers
from langdepth.systems.official import rename, require_clip, set_quirks
from langdepth.text.clip_text import VOCABULARY


@dataclass(frozen=True, kw_only=True)
class CaBinsConfig:
    """Options of `cabins`. ``reference_exact`` sets all of ``QUIRKS``."""

    QUIRKS: ClassVar[dict[str, Any]] = {
        "frozen_contexts": True,
        "clip_lr": 1.0,
        "learn_token_embedding": True,
        "decay_vectors": True,
    }

    architecture: str = "RN101"
    """open_clip's name of a CLIP model with a ResNet, or "RN-small"."""
    quick_gelu: bool = True
    """Whether the weights were trained with QuickGELU (OpenAI's were); refused when the file disagrees."""
    max_depth: float = 10.0
    """Where the last bin ends, metres. Official checkpoints do not record it: 10 for NYU, 80 for KITTI."""
    min_depth: float = 0.001
    """Where the first bin starts, metres; the loss counts ground truth above it."""
    bins: int = 256
    groups: int = 8
    """Groups of neighbouring bins, each a prompt."""
    contexts: int = 8
    """Learned vectors between the start of a prompt and its number."""
    rim: int = 1
    """Padding of the decoder's first convolution, which is 1x1; 0 leaves the published rim of pure bias out."""
    limit_target: bool = False
    """Whether the loss leaves out ground truth beyond ``max_depth``; published losses have no upper limit."""
    chamfer: float = 0.1
    """Weight of the chamfer distance between bin centres and depths."""
    clip_lr: float = 0.1
    """Rate of CLIP's image tower as a share of the others'. The official schedule undoes its share: all rates are 1."""
    frozen_contexts: bool = False
    """Whether contexts and gamma stay as they are drawn; the official program leaves them out of its optimiser."""
    learn_token_embedding: bool = False
    """Whether CLIP's word embeddings are trained, 13 rows of 49408 by gradients and all by weight decay."""
    decay_vectors: bool = False
    """Whether weight decay is on biases and norms, too."""
    area: int = 480 * 640
    """Pixels inside the network; the image's shape is kept."""
    reference_exact: bool = False
    """The official code's numbers, its mistakes included."""

    def __post_init__(self) -> None:
        set_quirks(self)
        if not 0 < self.min_depth < self.max_depth < 1e6:
            raise ValueError(f"0 < min_depth < max_depth < 1e6 is needed, got {self.min_depth} and {self.max_depth}")
        if not 0 < self.groups <= self.bins or self.bins % self.groups:
            raise ValueError(f"bins must be groups of equally many, got {self.bins} bins and {self.groups} groups")
        if self.contexts < 1 or min(self.chamfer, self.clip_lr) < 0:
            raise ValueError(
                f"contexts must be 1 or more, chamfer and clip_lr 0 or more; got {self.contexts}, {self.chamfer} and "
                f"{self.clip_lr}"
            )
        if self.rim not in (0, 1):
            raise ValueError(f"rim must be 0 or 1, got {self.rim}")


class CaBins(ClipTowers, Trainable, ConvertsOfficial):
    """``text``: token ids (B, groups, up to 22) of other prompts than the bins' numbers (``prompts.number_tokens``)."""

    Config = CaBinsConfig
    unrecorded: ClassVar[dict[str, str]] = {"max_depth": "10 (NYU) or 80 (KITTI)"}

    def __init__(self, config: CaBinsConfig) -> None:
        super().__init__(config, InputSpec(area=config.area, enlarge="bilinear-aligned"), LENGTH + config.contexts)
        if "attnpool" not in self.tower.modes:
            raise UsageError(f"'{config.architecture}' has no attention pool; take a ResNet (RN101)")
        self.tower.batch_norm_trains = True
        self.text_tower.requires_grad_(False)
        self.text_tower.transformer.token_embedding.requires_grad_(config.learn_token_embedding)
        width, channels = self.tower.embed_dim, self.tower.channels[-4:]
        self.regressor = width_regressor(width, width, config.bins)
        self.contexts = nn.Parameter(torch.empty(config.contexts, self.text_tower.transformer.width))
        nn.init.trunc_normal_(self.contexts)
        self.context_decoder = ContextDecoder(width)
        self.gamma = nn.Parameter(torch.full((width,), 1e-4))
        self.decoder = DepthDecoder(channels, config.groups, config.rim)
        self.head = nn.Conv2d(channels[0], config.bins, 1)

    def forward(self, image: Tensor, text: Text = None, scene: Scene = None) -> DepthOutput:
        if scene is not None:
            raise UsageError(f"the system '{self.name}' takes no scene; leave it out")
        image = self.normalise(image)
        if self.training:  # a CPU sums BatchNorm's statistics of channels-last maps less exactly
            image = image.contiguous()
        maps = self.tower.pyramid(image)[-4:]
        visual = self.tower.pool(maps[-1], align_corners=False)
        _, centers = self.bins_of(visual[:, 0])
        words = self.encode(self.prompts(centers) if text is None else self._given(text, len(image)))
        words = words + self.gamma * self.context_decoder(words, visual)
        scores = F.normalize(words, dim=-1) @ F.normalize(visual[:, 1:], dim=-1).transpose(1, 2)
        features = self.decoder(maps, scores.unflatten(2, maps[-1].shape[-2:]))
        logits = self.head(features).float()
        with torch.autocast(image.device.type, enabled=False):
            probs = logits.softmax(1)
            return DepthOutput(depth=expected_depth(probs, centers), bin_centers=centers, bin_probs=probs)

    def bins_of(self, embedding: Tensor) -> tuple[Tensor, Tensor]:
        """Edges (B, bins + 1) and centres (B, bins), metres, of CLIP's embedding of the image (B, D)."""
        numbers = self.regressor(embedding).float()
        with torch.autocast(embedding.device.type, enabled=False):  # a bfloat16 sum would step by 0.4 %
            widths = numbers.relu() + 0.1
            spread = self.config.max_depth - self.config.min_depth
            return bin_edges(spread * widths / widths.sum(1, keepdim=True), nearest=self.config.min_depth)

    def prompts(self, centers: Tensor) -> Tensor:
        """Token ids (B, groups, LENGTH) of the numbers that stand for groups of bins with ``centers`` (B, bins)."""
        return number_tokens(representatives(centers, self.config.groups))

    def encode(self, tokens: Tensor) -> Tensor:
        """Prompts (B, G, L) as CLIP's features (B, G, D), not normalised; the contexts come after the start token."""
        rows = tokens.flatten(0, 1)
        contexts = torch.arange(VOCABULARY, VOCABULARY + len(self.contexts), device=tokens.device)
        each = contexts + 0 * rows[:, :1]  # not expanded, which a trace would keep at its own batch
        rows = torch.cat([rows[:, :1], each, rows[:, 1:]], dim=1)
        features: Tensor = self.text_tower(rows, self.contexts)
        return features.unflatten(0, (-1, tokens.shape[1]))

    def _given(self, text: Text, count: int) -> Tensor:
        """Token ids that the caller gives, checked."""
        if not isinstance(text, Tensor) or text.is_floating_point():
            raise UsageError(
                f"the system '{self.name}' writes its own prompts and takes no sentences or features; leave the text "
                "out (in Python, system(image, text=...) takes token ids)"
            )
        wanted = (count, self.config.groups)
        if text.ndim != 3 or tuple(text.shape[:2]) != wanted:
            raise UsageError(
                f"token ids have shape {tuple(text.shape)}; '{self.name}' takes {wanted[1]} prompts for each of "
                f"{wanted[0]} images, {(*wanted, LENGTH)}"
            )
        if text.shape[2] > LENGTH:
            raise UsageError(f"prompts of {text.shape[2]} tokens are too long: '{self.name}' takes {LENGTH}")
        text = text.long()
        inside = bool(((text >= 0) & (text < VOCABULARY)).all())
        if not (inside and bool((text[..., :1] == START).all()) and bool((text == END).any(-1).all())):
            raise UsageError(
                f"token ids must be from 0 to {END}, and each prompt begins with {START} and has its end token {END}"
            )
        return text

    # -- training --------------------------------------------------------------------------------------------------

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """silog, chamfer and "total", their weighted sum."""
        output, target, config = self(batch.image), batch.depth, self.config
        assert output.bin_centers is not None
        known = batch.mask & (target <= config.max_depth) if config.limit_target else batch.mask
        with torch.autocast(target.device.type, enabled=False):
            depth = resize_aligned(output.depth, target.shape[-2:])
            silog = losses.silog(depth, target, known & (target > config.min_depth), unbiased=True)
            chamfer = losses.bin_chamfer(output.bin_centers, target, known & (target >= config.min_depth))
        return {"silog": silog, "chamfer": chamfer, "total": silog + config.chamfer * chamfer}

    def parameter_groups(self, lr: float, weight_decay: float) -> Iterable[dict[str, Any]]:
        config = self.config
        still = ("contexts", "gamma") if config.frozen_contexts else ()
        groups: dict[tuple[float, float], list[nn.Parameter]] = defaultdict(list)
        for name, parameter in self.named_parameters():
            if parameter.requires_grad:
                # What stays still has a rate of 0: its gradient counts in the norm that is clipped, as published.
                of_clip = config.clip_lr if name.startswith(("tower.", "text_tower.")) else 1.0
                rate = 0.0 if name in still else lr * of_clip
                decay = weight_decay if parameter.ndim > 1 or config.decay_vectors else 0.0
                groups[rate, decay].append(parameter)
        return [{"params": found, "lr": rate, "weight_decay": decay} for (rate, decay), found in groups.items()]

    # -- files -----------------------------------------------------------------------------------------------------

    def convert_official(self, state_dict: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, list[str]]]:
        """Official names, see ``official.py``. Raises CheckpointError for other checkpoints and for another CLIP."""
        if "computeAdaptiveBin.regressor.0.weight" not in state_dict:
            raise CheckpointError(
                f"the checkpoint is not one of '{self.name}' (no tensor 'computeAdaptiveBin.regressor.0.weight')"
            )
        tensors, report = rename(state_dict, OFFICIAL_NAMES, self.state_dict())
        if "contexts" in tensors:  # with an axis of 1 before it
            found, own = tuple(tensors["contexts"].shape), tuple(self.contexts.shape)
            if found not in (own, (1, *own)):
                raise CheckpointError(
                    f"the checkpoint's 'contexts' are {found}, expected {own}; the option 'contexts' is their number"
                )
            tensors["contexts"] = tensors["contexts"].reshape(own)
        towers = {key: own for key, own in self.state_dict().items() if key.startswith(("tower.", "text_tower."))}
        require_clip(tensors, {key: tuple(own.shape) for key, own in towers.items()}, self.config.architecture)
        return tensors, report
