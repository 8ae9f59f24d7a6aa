"""What every system is: a module that maps images (and words) to depth."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor
from typing_extensions import Self

from langdepth.errors import UsageError
from langdepth.parts.folding import folded, tensor_versions
from langdepth.prediction.results import DepthResult
from langdepth.records import InputSpec
from langdepth.systems.capabilities import DepthSystem
from langdepth.text.scenes import scene_rows
from langdepth.utils.plugins import load_target
from langdepth.weights.files import save
from langdepth.weights.hub import push_to_hub, save_pretrained


def require_fractions(image: Tensor) -> None:
    """Raises UsageError for an image of bytes, which would pass for one that is 255 times as bright."""
    if not image.is_floating_point():
        raise UsageError(f"the network takes images as numbers in [0, 1], not {image.dtype}; divide bytes by 255")


class System(DepthSystem):
    """Base class of all systems.

    A subclass sets ``Config`` (a frozen keyword-only dataclass), passes ``input_spec`` and writes ``forward``. What
    else it can do, it inherits from the classes of ``systems.capabilities`` (``Trainable``, ``Imagines`` and so on).
    """

    Config: ClassVar[type]
    exports: ClassVar[bool] = True
    """Whether it can be written as a graph for runtimes without torch."""

    def __init__(self, config: Any, input_spec: InputSpec) -> None:
        super().__init__()
        self.config = config
        self.input_spec = input_spec
        self.provenance = {}
        self._inference_copy: tuple[Any, Self] | None = None  # in a tuple, or it would be a part of the module
        self.register_buffer("_mean", torch.tensor(input_spec.mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("_std", torch.tensor(input_spec.std).view(1, 3, 1, 1), persistent=False)

    @property
    def device(self) -> torch.device:
        return self.get_buffer("_mean").device

    @property
    def was_loaded(self) -> bool:
        """Whether its tensors are those of a weights file, from which training goes on."""
        return "weights" in self.provenance

    def normalise(self, image: Tensor) -> Tensor:
        """(B, 3, H, W) RGB in [0, 1] to the trunk's own range. Raises UsageError for bytes."""
        require_fractions(image)
        mean, std = self.get_buffer("_mean"), self.get_buffer("_std")
        return ((image - mean) / std).contiguous(memory_format=torch.channels_last)

    def graph_inputs(self) -> dict[str, Tensor]:
        """Inputs for words of an exported graph, by the names of ``forward``: the value that stands for no words.

        What has a row per image has one row here.
        """
        return {}

    def scene_indices(self, scene: list[str] | Tensor, count: int) -> Tensor:
        """Indices into ``scenes`` for ``count`` images, (B,) int64, -1 for none; of names or of such indices.

        Raises:
            UsageError: For unknown scenes, and for another number of them.
        """
        if not isinstance(scene, Tensor):
            return torch.tensor(scene_rows(scene, count, self.scenes), device=self.device)
        if scene.shape != (count,) or scene.dtype != torch.int64:
            given = f"{tuple(scene.shape)} {scene.dtype}"
            raise UsageError(f"scenes of shape {given} for {count} images; give ({count},) torch.int64")
        if not torch.compiler.is_compiling() and bool(((scene < -1) | (scene >= len(self.scenes))).any()):
            raise UsageError(f"the system '{self.name}' has the scenes 0 to {len(self.scenes) - 1}, and -1 for none")
        return scene.to(self.device)

    def inference_copy(self) -> Self:
        """An equal system in eval mode that is faster and shares its tensors; made again once a tensor has changed."""
        now, kept = tensor_versions(self), self._inference_copy  # other threads may replace it at any time
        if kept is None or kept[0] != now:
            self._inference_copy = None  # not copied with the rest
            self._inference_copy = kept = (now, folded(self))
        return kept[1]

    def predict(self, images: Any, **options: Any) -> DepthResult | list[DepthResult]:
        """Depth of one image or many; see ``langdepth.prediction.predictor.predict_images`` for the options."""
        from langdepth.prediction.predictor import predict_images

        return predict_images(self, images, **options)

    def save(self, path: str | Path) -> Path:
        """Write a self-describing ``.safetensors`` and, beside it, a model card."""
        return save(self, path)

    @classmethod
    def from_pretrained(cls, name: str | Path, *, revision: str | None = None, **options: Any) -> Self:
        """The system in a folder or repository of the hub that ``save_pretrained`` or ``push_to_hub`` wrote.

        Args:
            name: Whatever ``langdepth.load`` takes.
            revision: Branch, tag or commit of a repository of the hub.
            **options: Of ``weights.checkpoint.load``.

        Raises:
            UsageError: It is of another class.
            CheckpointError: For a file that is missing, damaged or does not fit.
        """
        if revision is not None and os.path.exists(name):
            raise UsageError(f"{name}: is here, and a revision is one of a repository on the hub; leave it out")
        load = load_target("langdepth.weights.checkpoint:load", "the reader of weights")  # which knows all systems
        system = load(f"{name}@{revision}" if revision else name, **options)
        if not isinstance(system, cls):
            raise UsageError(f"{name}: holds a {type(system).__name__}, no {cls.__name__}")
        return system

    def save_pretrained(self, folder: str | Path, **options: Any) -> Path:
        """Write a folder as repositories of the hub have them, see ``langdepth.weights.hub.save_pretrained``."""
        return save_pretrained(self, folder, **options)

    def push_to_hub(self, repo_id: str, **options: Any) -> str:
        """Upload it to the Hugging Face hub, see ``langdepth.weights.hub.push_to_hub``; returns the address."""
        return push_to_hub(self, repo_id, **options)
