"""What prediction asks of a system, whatever computes it: torch, ONNX Runtime or OpenVINO. Imports no torch.

Arrays are torch tensors for systems that torch computes and NumPy arrays for the others; ``prediction.arrays`` holds
the operations on both.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from langdepth.data.masks import MASKS, OverlayKind
from langdepth.errors import UsageError, first_few
from langdepth.records import DepthOutput, InputSpec

if TYPE_CHECKING:
    import numpy.typing as npt

Array = Any
"""A torch tensor or a NumPy array."""
Text = Any
"""One sentence per image (a list of str), or a precomputed feature matrix, whose shape the system defines, or None."""
Scene = Any
"""One name of ``scenes`` per image (a list of str), their indices (int64, -1 for none), or None."""


def require_text_for_each(text: Sequence[str], images: int) -> None:
    """Raises UsageError unless there are as many sentences as images."""
    if isinstance(text, str) or len(text) != images:
        given = "one str" if isinstance(text, str) else f"{len(text)} texts"
        raise UsageError(f"{given} for {images} images; give a list with a sentence for each")


class Predicts:
    """It maps images (and words) to depth."""

    kind_in_messages: ClassVar[str] = "a System"
    name: str = ""
    about: str = ""
    """What the registry states of it, as Markdown for model cards."""
    package: str | None = None
    """What pip calls the package that adds it, None for langdepth."""
    runtime: str = "torch"
    """What computes it: torch, onnx or openvino."""
    scale_kind: str = "metric"
    scenes: tuple[str, ...] = ()
    """The scene vocabulary of systems that accept ``scene=``; empty for the others."""
    text_per_image: bool = True
    """Whether a feature matrix given as text has a row per image; False: its rows are words, for all images."""
    takes_overlay: bool = False
    """Whether it needs ``overlay``, (B, C, H, W): by default the images with masks drawn over them, in [0, 1]."""
    overlay_kind: OverlayKind = MASKS
    """What the overlays are, and how their files are read."""
    reads_sentences: bool = False
    """Whether captions reach it as sentences even where their features, which have norm 1, are known."""
    takes_windows: bool = True
    """Whether a part of an image can be given as it is; False: whatever comes is resized inside, as a whole image."""
    config: Any
    input_spec: InputSpec
    provenance: dict[str, Any]

    def __call__(self, image: Array, text: Text = None, scene: Scene = None, **overlay: Array) -> DepthOutput:
        """Depth of (B, 3, H, W) RGB images in [0, 1] at network size.

        Args:
            image: (B, 3, H, W).
            text: One sentence per image, or a precomputed feature matrix, whose shape the system defines.
            scene: One name of ``self.scenes`` per image, or their indices.
            **overlay: ``overlay`` for the systems that take one.

        Raises:
            UsageError: For unknown scene names, and for text that the system does not take.
        """
        raise NotImplementedError

    def for_inference(self, device: Any = None, dtype: str = "float32") -> Predicts:
        """An equal system that is ready to predict.

        Args:
            device: Where: "auto", "cpu", "cuda" ...; None leaves it where it is.
            dtype: Precision of the network: "float32" or "bfloat16".

        Raises:
            UsageError: It cannot predict there, or not so.
        """
        raise NotImplementedError

    def inference(self, dtype: str | None = None) -> AbstractContextManager[None]:
        """Inside, calls keep nothing for gradients and, with a ``dtype``, compute in it."""
        raise NotImplementedError

    def side_by_side(self, most: int) -> AbstractContextManager[tuple[int, Callable[[], None]]]:
        """Inside, several threads may call it.

        Gives how many should, ``most`` at most, and what each of them calls once at its beginning.
        """
        raise NotImplementedError

    def as_input(self, array: npt.NDArray[Any]) -> Array:
        """A NumPy array as what it takes."""
        raise NotImplementedError


class Imagines(Predicts):
    """It draws depth maps from noise and words, with an image or without."""

    lacking: ClassVar[str] = "draws no depth from words"

    def draw_noise(self, count: int, height: int, width: int, generator: Any = None) -> Array:
        """The noise of ``count`` depth maps of ``height`` x ``width`` pixels; the system defines its shape.

        ``generator``: of NumPy, for the same noise in every runtime, or of torch.

        Raises:
            UsageError: For a size that is not possible.
        """
        raise NotImplementedError

    def imagine(self, text: Text, noise: Array) -> DepthOutput:
        """Depth of scenes that words describe, without an image: a map for each row of noise."""
        raise NotImplementedError

    def draw(self, image: Array, text: Text, noise: Array, spread: float) -> DepthOutput:
        """Scenes near the one in the image: a map for each row of noise.

        ``spread``: from 0, all as without noise, to 1, the noise alone.
        """
        raise NotImplementedError


class HasMembers(Predicts):
    """It is made of several systems: each predicts on its own, and their depth is averaged at image size."""

    @property
    def members(self) -> tuple[Predicts, ...]:
        """The systems that are averaged."""
        raise NotImplementedError


Capability = TypeVar("Capability")

systems_with: list[Callable[[type[Any]], Sequence[str]]] = []
"""Functions that name the systems with a capability. The registry, which knows the systems, adds its own."""


def require(system: Predicts, capability: type[Capability]) -> Capability:
    """The system itself, typed as what it can do.

    Raises:
        UsageError: It does not have the capability. The message names systems that do.
    """
    if isinstance(system, capability):
        return system
    lacking: str = capability.lacking  # type: ignore[attr-defined]
    able = [name for find in systems_with for name in find(capability)]
    if system.runtime != "torch" and (system.name in able or not able):
        raise UsageError(
            f"the system '{system.name}' {lacking} in the runtime '{system.runtime}'; what else it can do, its weights "
            "do with the runtime torch"
        )
    others = first_few(able)
    advice = f"{', or' if ';' in lacking else ';'} choose another system: {others}" if others else ""
    raise UsageError(f"the system '{system.name}' {lacking}{advice}")
