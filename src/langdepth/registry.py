"""System names and what is known about each. Reading the table imports no system and no torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from langdepth.errors import UsageError, nearest

if TYPE_CHECKING:
    from langdepth.systems.base import System

WEIGHTS_FOLDER = Path(__file__).parent / "weights"


@dataclass(frozen=True, kw_only=True)
class WeightRecord:
    """Where weights come from and what may be done with them.

    ``file`` is relative to the package's ``weights`` folder; an empty ``sha256`` means not yet published.
    """

    file: str
    sha256: str
    licence: str
    source: str

    @property
    def path(self) -> Path:
        """Where the file lies in the installed package."""
        return WEIGHTS_FOLDER / self.file


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One registry name. ``target`` is "module:class"; ``preset`` holds config values that differ from its defaults."""

    name: str
    target: str
    summary: str
    paper: str
    preset: dict[str, Any] = field(default_factory=dict)
    weights: WeightRecord | None = None

    def system_class(self) -> type[System]:
        """Import and return the class."""
        module, _, attribute = self.target.partition(":")
        cls: type[System] = getattr(import_module(module), attribute)
        return cls


_ADAPTERS = "Unveiling the Efficacy of Foundation Models for Depth Estimation (pinying567, course project, June 2023)"
_CROSS_ATTENTION = "Harnessing Cross-Attention for Visual Perception with CLIP (MDE-CLIP, DME-CLIP, May 2024)"

_ENTRIES = (
    Entry(
        name="tiny",
        target="langdepth.systems.tiny:Tiny",
        summary="embedded default: relative depth from bins, times a scale tied to scene text; runs offline on a CPU",
        paper="this project; scale-times-relative idea of ScaleDepth (arXiv 2407.08187)",
        weights=WeightRecord(
            file="tiny.safetensors",
            sha256="5c10fd1dda0958c3119ecc1de039e3c161e7d1ee92adb4244bea291936f8982e",
            licence="research and non-commercial use only (training data: NYU Depth V2, KITTI and others)",
            source="trained with recipes/tiny.yaml",
        ),
    ),
    Entry(
        name="depthclip",
        target="langdepth.systems.depthclip:DepthClip",
        summary="zero-shot: CLIP's cells (RN50) against seven distance words; needs CLIP weights, no training",
        paper="Can Language Understand Depth? (DepthCLIP, arXiv 2207.01077, 2022)",
    ),
    Entry(
        name="depthclip-vit",
        target="langdepth.systems.depthclip:DepthClip",
        summary="depthclip with ViT-B/16: four times as many cells",
        paper="Can Language Understand Depth? (DepthCLIP, arXiv 2207.01077, 2022)",
        preset={"architecture": "ViT-B-16"},
    ),
    Entry(
        name="clip-adapter",
        target="langdepth.systems.clip_adapters:ClipAdapter",
        summary="depthclip with a small trained bottleneck on cells and on words",
        paper=_ADAPTERS,
    ),
    Entry(
        name="clip-coarse-refined",
        target="langdepth.systems.clip_adapters:CoarseRefined",
        summary="depthclip's depth through linear layers, refined with edges of the photo",
        paper=_ADAPTERS,
    ),
    Entry(
        name="eigen",
        target="langdepth.systems.clip_adapters:Eigen",
        summary="baseline without language: coarse and fine network of Eigen et al. (2014)",
        paper=_ADAPTERS,
    ),
    Entry(
        name="msa",
        target="langdepth.systems.msa:MultiScaleAdapter",
        summary="U-Net decoder over CLIP's frozen feature pyramid",
        paper=_ADAPTERS,
    ),
    Entry(
        name="msa-sam",
        target="langdepth.systems.msa:MultiScaleAdapter",
        summary="msa with a second input: the picture with SAM's masks drawn over it",
        paper=_ADAPTERS,
        preset={"overlay": True},
    ),
    Entry(
        name="mde-clip",
        target="langdepth.systems.mde_clip:MdeClip",
        summary="CLIP's pixels attend to distance words on four levels; a decoder, then bins that follow the picture",
        paper=_CROSS_ATTENTION,
    ),
    Entry(
        name="mde-clip-unet",
        target="langdepth.systems.mde_clip:MdeClipUnet",
        summary="mde-clip with a regression head instead of bins",
        paper=_CROSS_ATTENTION,
    ),
    Entry(
        name="refine-clip",
        target="langdepth.systems.mde_clip:RefineClip",
        summary="similarity to distance words on four levels, refined by small convolutions; depth from 1 to 3 m",
        paper="RefineDepthCLIP (March 2024), the predecessor of MDE-CLIP",
    ),
)

REGISTRY: dict[str, Entry] = {entry.name: entry for entry in _ENTRIES}


def list_systems() -> list[str]:
    """All registry names, sorted."""
    return sorted(REGISTRY)


def entry(name: str) -> Entry:
    """The entry called ``name``. Raises UsageError naming the nearest known name."""
    try:
        return REGISTRY[name]
    except KeyError:
        raise UsageError(f"unknown system '{name}': {nearest(name, REGISTRY)}") from None


def build(name: str, options: dict[str, Any] | None = None) -> System:
    """A system with its preset and ``options`` over it; parameters freshly initialised, no weights loaded."""
    from langdepth.config import from_mapping

    found = entry(name)
    cls: Any = found.system_class()  # every system is made from its config alone
    system: System = cls(from_mapping(cls.Config, {**found.preset, **(options or {})}, where="system.options."))
    system.name = name
    return system
