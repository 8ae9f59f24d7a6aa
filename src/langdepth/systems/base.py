"""What every system is: a module that maps images (and words) to depth."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from langdepth.errors import LangdepthError, UsageError
from langdepth.parts.folding import fingerprint, folded
from langdepth.records import Batch, DepthOutput, DepthResult, InputSpec
from langdepth.utils.devices import move

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from typing_extensions import Self


class System(nn.Module):
    """Base class of all systems.

    A subclass sets ``Config`` (a frozen keyword-only dataclass), ``input_spec``, and writes ``forward`` and ``loss``.
    ``scenes`` names the scene vocabulary of systems that accept ``scene=``; it stays empty for the others.
    """

    Config: ClassVar[type]
    name: str = ""
    scale_kind: str = "metric"
    scenes: tuple[str, ...] = ()
    text_per_image: bool = True
    """Whether a feature matrix given as text has a row per image; False: its rows are words, for all images."""
    unrecorded: ClassVar[dict[str, str]] = {}
    """Options that official checkpoints do not record -> what there is; ``convert`` says which it took."""
    zero_shot: ClassVar[bool] = False
    """Whether it predicts without any training, from foundation weights alone."""
    takes_overlay: bool = False
    """Whether ``forward`` needs ``overlay``: (B, 3, H, W) in [0, 1], the images with masks drawn over them."""
    learns_from_mirror: ClassVar[bool] = False
    """Whether ``loss`` looks at the mirror image of every image, too."""
    imagines: ClassVar[bool] = False
    """Whether noise takes the place of an image, or of a part of what it says: see ``draw_noise``, ``imagine``."""
    encoder_rate: float = 1.0
    """Learning rate of ``encoder`` as a share of the others'."""
    provenance: dict[str, Any]

    def __init__(self, config: Any, input_spec: InputSpec) -> None:
        super().__init__()
        self.config = config
        self.input_spec = input_spec
        self.provenance = {}
        self._inference_copy: tuple[Any, Self] | None = None  # in a tuple, or it would be a part of the module
        self.register_buffer("_mean", torch.tensor(input_spec.mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("_std", torch.tensor(input_spec.std).view(1, 3, 1, 1), persistent=False)

    @property
    def members(self) -> tuple[System, ...]:
        """Of a system made of several, those: each predicts as if alone, and their depth is averaged at image size."""
        return ()

    def normalise(self, image: Tensor) -> Tensor:
        """(B, 3, H, W) RGB in [0, 1] to the trunk's own range."""
        mean, std = self.get_buffer("_mean"), self.get_buffer("_std")
        return ((image - mean) / std).contiguous(memory_format=torch.channels_last)

    def forward(
        self, image: Tensor, text: list[str] | Tensor | None = None, scene: list[str] | None = None
    ) -> DepthOutput:
        """Depth of (B, 3, H, W) RGB images in [0, 1] at network size.

        ``text``: one sentence per image, or a precomputed feature matrix (its shape is the system's to say).
        ``scene``: one name of ``self.scenes`` per image; UsageError for unknown names.
        """
        raise NotImplementedError

    def draw_noise(self, count: int, height: int, width: int, generator: torch.Generator | None = None) -> Tensor:
        """The noise of ``count`` depth maps of ``height`` x ``width`` pixels; its shape is the system's to say.

        Raises UsageError for a size that is not possible, and for systems that cannot imagine.
        """
        from langdepth.systems import registry

        able = [name for name in registry.list_systems() if registry.entry(name).system_class().imagines]
        raise UsageError(f"the system '{self.name}' draws no depth from words; these do: {', '.join(able) or 'none'}")

    def imagine(self, text: list[str] | Tensor | None, noise: Tensor) -> DepthOutput:
        """Depth of scenes that words describe, without an image: a map for each row of noise."""
        raise NotImplementedError

    def draw(self, image: Tensor, text: list[str] | Tensor | None, noise: Tensor, spread: float) -> DepthOutput:
        """Scenes near the one that the image shows: a map for each row of noise.

        ``spread``: from 0, all as ``forward`` gives it, to 1, the noise alone.
        """
        raise NotImplementedError

    def read_with_clip(self, clip_weights: str | Path) -> None:
        """From here on let CLIP's own text tower read sentences. Raises UsageError for systems that have no use for it.

        ``clip_weights``: a file, or "random".
        """
        raise UsageError(f"holds all weights of '{self.name}'; leave the CLIP weights out")

    def draw_step(self, generator: torch.Generator) -> dict[str, Any]:
        """What an optimiser step decides at random as a whole: further arguments of ``loss``, by default none.

        All processes and all batches of the step get the same. Random numbers must come from ``generator``.
        """
        return {}

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Training losses of a batch, scalars; "total" is the one to minimise."""
        raise NotImplementedError

    def frozen_trunk(self) -> tuple[nn.Module, dict[str, Any]] | None:
        """The network that no training changes, and the options that ``frozen_features`` follows from beside it.

        None for systems without, and where an option makes training change it.
        """
        return None

    def frozen_features(self, image: Tensor) -> dict[str, Tensor]:
        """What the frozen trunk gives for (B, 3, H, W) RGB images in [0, 1], by name, (B, C, ...).

        ``loss`` takes ``batch.features`` (and ``mirror_features``) in the place of running the trunk.
        """
        raise NotImplementedError

    def prepare_training(self) -> None:
        """Load what training starts from (ImageNet or CLIP weights). Called once by ``train``, never by ``load``.

        A parameter ``text_features`` gets the data's captions (``data.captions``) where the recipe names no others.
        Systems that were trained before keep what they know and need no files.
        """

    def parameter_groups(self, lr: float, weight_decay: float) -> Iterable[dict[str, Any]]:
        """Optimiser groups; by default no weight decay on vectors and scalars (norms, biases).

        ``self.encoder_rate``: what the parameters of ``encoder`` multiply the learning rate by.
        """
        trainable = [(name, p) for name, p in self.named_parameters() if p.requires_grad]
        groups = []
        for inside, share in ((True, self.encoder_rate), (False, 1.0)):
            chosen = [p for name, p in trainable if name.startswith("encoder.") == inside]
            for matrices, decay in ((True, weight_decay), (False, 0.0)):
                parameters = [p for p in chosen if (p.ndim > 1) == matrices]
                groups.append({"params": parameters, "lr": lr * share, "weight_decay": decay})
        return [group for group in groups if group["params"]]

    def load_foundation(self, clip_weights: str | Path | None = None, prompts: Mapping[str, Any] | None = None) -> None:
        """Fill in the CLIP weights that the system stands on; ``prompts``: fields of ``text.prompts.PromptSet``.

        ``clip_weights``: a file, None for open_clip's own download, or "random". Raises UsageError for systems without.
        """
        raise UsageError(f"the system '{self.name}' uses no CLIP weights; leave them out")

    def use_prompts(self, prompts: Mapping[str, Any], clip_weights: str | Path | None = None) -> None:
        """Put other words or bins (fields of ``text.prompts.PromptSet``) in the place of the system's own.

        Raises UsageError for systems without any.
        """
        raise UsageError(f"the system '{self.name}' has no distance words or bins to set; leave them out")

    def convert_official(self, state_dict: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, list[str]]]:
        """The authors' tensors under our names, and a report with the lists "used", "ignored" and "missing".

        A leading "module." is gone already. Raises CheckpointError for a checkpoint of another layout.
        """
        raise LangdepthError(f"'{self.name}' has no official checkpoint to convert")

    def inference_copy(self) -> Self:
        """An equal system in eval mode that is quicker and shares its tensors; made again once a tensor has changed."""
        now = fingerprint(self)
        if self._inference_copy is None or self._inference_copy[0] != now:
            self._inference_copy = None  # not copied with the rest
            self._inference_copy = (now, folded(self))
        return self._inference_copy[1]

    def move(self, device: str | torch.device | None) -> Self:
        """The system on ``device``, see ``langdepth.utils.devices.move``."""
        return move(self, device)

    def predict(self, images: Any, **options: Any) -> DepthResult | list[DepthResult]:
        """Depth of one image or many; see ``langdepth.prediction.predictor.predict_images`` for the options."""
        from langdepth.prediction.predictor import predict_images

        return predict_images(self, images, **options)

    def save(self, path: str | Path) -> Path:
        """Write a self-describing ``.safetensors`` and, beside it, a model card."""
        from langdepth.weights.checkpoint import save

        return save(self, path)

    def push_to_hub(self, repo_id: str, **options: Any) -> str:
        """Upload weights and model card to the Hugging Face hub; returns the address."""
        from langdepth.weights.checkpoint import push_to_hub

        return push_to_hub(self, repo_id, **options)
