"""System names and what is known about each. Reading the table imports no system and no torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from langdepth.errors import UsageError, nearest

if TYPE_CHECKING:
    from langdepth.systems.base import System
    from langdepth.systems.capabilities import DepthSystem

MODELS_FOLDER = Path(__file__).parents[1] / "models"


@dataclass(frozen=True, kw_only=True)
class WeightRecord:
    """Where weights come from and what may be done with them.

    ``file`` is relative to the package's ``models`` folder; an empty ``sha256`` means not yet published.
    """

    file: str
    sha256: str
    licence: str
    source: str

    @property
    def path(self) -> Path:
        """Where the file lies in the installed package."""
        return MODELS_FOLDER / self.file


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One registry name. ``target`` is "module:class"; ``preset`` holds config values that differ from its defaults.

    ``paper_url`` and ``repository`` are addresses of the paper and of its authors' program, None where there is none.
    """

    name: str
    target: str
    summary: str
    paper: str
    paper_url: str | None = None
    repository: str | None = None
    preset: dict[str, Any] = field(default_factory=dict)
    weights: WeightRecord | None = None

    def system_class(self) -> type[System]:
        """Import and return the class."""
        module, _, attribute = self.target.partition(":")
        cls: type[System] = getattr(import_module(module), attribute)
        return cls


_ARXIV, _GITHUB = "https://arxiv.org/abs/", "https://github.com/"
_DEPTHCLIP: dict[str, Any] = {
    "paper": "Can Language Understand Depth? (DepthCLIP, arXiv 2207.01077, 2022)",
    "paper_url": f"{_ARXIV}2207.01077",
    "repository": f"{_GITHUB}Adonis-galaxy/DepthCLIP",
}
_ADAPTERS: dict[str, Any] = {
    "paper": "Unveiling the Efficacy of Foundation Models for Depth Estimation (pinying567, course project, June 2023)",
    "repository": f"{_GITHUB}pinying567/Unveiling-the-Efficacy-of-Foundation-Models-for-Depth-Estimation",
}
_CROSS_ATTENTION: dict[str, Any] = {
    "paper": "Harnessing Cross-Attention for Visual Perception with CLIP (MDE-CLIP, DME-CLIP, May 2024)",
    "repository": f"{_GITHUB}TranMinhThang123/DME_CLIP",
}

# What each variant of `prompt-clip` has; options left out are those of the published row, which comes first. "Object"
# and "context" are learned tokens, too.
_KITTI: dict[str, Any] = {"depth_range": (0.001, 80.0), "area": 352 * 1216}
_DECODED: dict[str, Any] = {"object_word": "learned"}
_PROMPT_CLIP: dict[str, tuple[str, dict[str, Any]]] = {
    "": ("7 learned distance words, 7 even bins up to 10 m (the published row; NYU)", {}),
    "-log": ("7 learned words, 7 log bins", {"bins": "log-7"}),
    "-20": ("20 learned words, 20 even bins", {"depth_words": "learned-20", "bins": "even-20"}),
    "-20-log": ("20 learned words, 20 log bins", {"depth_words": "learned-20", "bins": "log-20"}),
    "-256": ("256 learned words, 256 log bins (best on NYU)", {"depth_words": "learned-256", "bins": "log-256"}),
    "-1o1d": ("learned context around the object, words of distance", {"template": "1o1d", "depth_words": "depth"}),
    "-1o2d": ("one more context token before the distance", {"template": "1o2d", "depth_words": "depth"}),
    "-4o4d": ("four context tokens before object and distance", {"template": "4o4d", "depth_words": "depth"}),
    "-4o4d-7": ("learned context and 7 learned words", {"template": "4o4d"}),
    "-depth": ("words of distance: very close ... very distant; untrained", {"depth_words": "depth"}),
    "-size": ("words of size: very small ... very large; untrained", {"depth_words": "size"}),
    "-colour": ("words of colour: very red ... very green; untrained", {"depth_words": "colour"}),
    "-random-words": ("seven unrelated words; untrained", {"depth_words": "random"}),
    "-paper": (
        "its own words and bins at this system's scale; untrained",
        {"template": "paper", "depth_words": "paper", "bins": "paper"},
    ),
    "-object": ("a learned object beside 7 learned words and context", {"template": "4o4d", **_DECODED}),
    "-patch": ("each cell's own feature as the object of its sentences", {"object_word": "patch"}),
    "-image-dependent": ("learned words that the image's mean feature changes", {"image_dependent": True}),
    "-vit": ("7 learned words on ViT-B/32", {"architecture": "ViT-B-32"}),
    "-feature-half": ("cells enlarged to half of the image", {"feature_stage": "half"}),
    "-feature-full": ("cells enlarged to the whole image", {"feature_stage": "full"}),
    "-feature-decoder": (
        "a decoder of cells, 16 times finer; learned context and object",
        {"template": "4o4d", "feature_stage": "decoder-4", **_DECODED},
    ),
    "-logit-2x": ("logits enlarged twice", {"logit_stage": "upsample-2"}),
    "-logit-4x": ("logits enlarged four times", {"logit_stage": "upsample-4"}),
    "-logit-decoder": (
        "a decoder of logits up to the image's size; learned context and object",
        {"template": "1o1d", "logit_stage": "decoder-5", **_DECODED},
    ),
    "-kitti": ("7 learned words, 7 even bins up to 80 m (KITTI)", _KITTI),
    "-kitti-20": ("20 learned words, 20 even bins", _KITTI | {"depth_words": "learned-20", "bins": "even-20"}),
    "-kitti-20-log": ("20 learned words, 20 log bins", _KITTI | {"depth_words": "learned-20", "bins": "log-20"}),
    "-kitti-256": (
        "256 words, 256 log bins (best on KITTI)",
        _KITTI | {"depth_words": "learned-256", "bins": "log-256"},
    ),
    "-kitti-4o4d": ("learned context, words of distance", _KITTI | {"template": "4o4d", "depth_words": "depth"}),
    "-kitti-4o4d-7": ("learned context and 7 learned words", _KITTI | {"template": "4o4d"}),
    "-kitti-depth": ("words of distance; untrained", _KITTI | {"depth_words": "depth"}),
}
_FIXED = ("-depth", "-size", "-colour", "-random-words", "-paper", "-kitti-depth")  # nothing to learn

_IMAGENET = {"start": "imagenet", "mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
_NYU_ONLY: dict[str, Any] = {"scenes": 27, "loss_max_depth": 10.0}
_SCALEDEPTH: dict[str, tuple[str, dict[str, Any]]] = {
    "n": ("NYU, CLIP's ConvNeXt-L", _NYU_ONLY),
    "k": ("KITTI, without scenes", {"scenes": 0, "area": 352 * 1216}),
    "nk": ("NYU and KITTI together", {}),
    "n-convnext": (
        "NYU, ConvNeXt-L from ImageNet instead of CLIP",
        _NYU_ONLY | _IMAGENET | {"encoder": "convnext_large.fb_in22k", "drop_path": 0.4},
    ),
    "n-swin": ("NYU, Swin-L instead of CLIP", _NYU_ONLY | _IMAGENET | {"encoder": "swin-large", "drop_path": 0.3}),
    "s": (
        "EfficientNet-Lite and narrow decoders, rooms and streets",
        {"encoder": "efficientnet-lite0", "frozen": 2, "start": "imagenet", "clip": "RN50", "clip_tag": "openai"}
        | {"quick_gelu": True, "mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5), "area": 240 * 320, "channels": 128}
        | {"pixel_layers": 3, "pixel_hidden": 512, "decoder_layers": 6, "decoder_hidden": 512, "scale_queries": 8}
        | {"scene_similarity": "cosine", "scene_loss": "logits"},
    ),
}

_KITTI_SIZED: dict[str, Any] = {"resolution": (352, 1216), "max_depth": 80.0, "prior_mean": 2.54}
_LEGACY: dict[str, Any] = {"skip_mode": "image_only", "alter_prob": 0.01}
_WORDEPTH: dict[str, tuple[str, dict[str, Any]]] = {
    "nyu": ("NYU, Swin-L", {}),
    "nyu-legacy": ("NYU, the decoder sees the image's maps (paper)", _LEGACY),
    "kitti": ("KITTI, Swin-L", _KITTI_SIZED),
    "kitti-legacy": ("KITTI, the decoder sees the image's maps (paper)", _KITTI_SIZED | _LEGACY),
    "s": (
        "Swin-T and a narrow decoder",
        {"encoder": "swin-tiny", "resolution": (240, 320), "widths": (192, 96, 32), "latent": 64},
    ),
}

_ENTRIES = (
    Entry(
        name="tiny",
        target="langdepth.systems.tiny.model:Tiny",
        summary="embedded default: relative depth from bins, times a scale tied to scene text; runs offline on a CPU",
        paper="this project; scale-times-relative idea of ScaleDepth (arXiv 2407.08187)",
        paper_url=f"{_ARXIV}2407.08187",
        weights=WeightRecord(
            file="tiny.safetensors",
            sha256="22129291ac1a239b6a3d2521f335f5089a15f825c15cd7fe90212046a31f029a",
            licence="research and non-commercial use only (training data: NYU Depth V2, KITTI and others)",
            source="trained with recipes/tiny.yaml",
        ),
    ),
    Entry(
        name="depthclip",
        target="langdepth.systems.depthclip.model:DepthClip",
        summary="zero-shot: CLIP's cells (RN50) against seven distance words; needs CLIP weights, no training",
        **_DEPTHCLIP,
    ),
    Entry(
        name="depthclip-vit",
        target="langdepth.systems.depthclip.model:DepthClip",
        summary="depthclip with ViT-B/16: four times as many cells",
        **_DEPTHCLIP,
        preset={"architecture": "ViT-B-16"},
    ),
    *(
        Entry(
            name=f"prompt-clip{variant}",
            target=f"langdepth.systems.prompt_clip.model:{'PromptClipWords' if variant in _FIXED else 'PromptClip'}",
            summary=f"depthclip with {summary}",
            paper="Learning to Prompt CLIP for Monocular Depth Estimation (Auty & Mikolajczyk, OpenSUN3D at ICCV 2023)",
            repository=f"{_GITHUB}DylanAuty/PromptLearningCLIP-MDE",
            preset=preset,
        )
        for variant, (summary, preset) in _PROMPT_CLIP.items()
    ),
    Entry(
        name="few-shot-clip",
        target="langdepth.systems.few_shot_clip.model:FewShotClip",
        summary="depthclip with a codebook of bins per scene and learned context, from one image per scene",
        paper="after the abstract of Learning to Adapt CLIP for Few-Shot Monocular Depth Estimation (arXiv 2311.01034)",
        paper_url=f"{_ARXIV}2311.01034",
    ),
    Entry(
        name="clip-adapter",
        target="langdepth.systems.clip_adapters.model:ClipAdapter",
        summary="depthclip with a small trained bottleneck on cells and on words",
        **_ADAPTERS,
    ),
    Entry(
        name="clip-coarse-refined",
        target="langdepth.systems.clip_adapters.model:CoarseRefined",
        summary="depthclip's depth through linear layers, refined with edges of the photo",
        **_ADAPTERS,
    ),
    Entry(
        name="eigen",
        target="langdepth.systems.clip_adapters.model:Eigen",
        summary="baseline without language: coarse and fine network of Eigen et al. (2014)",
        **_ADAPTERS,
    ),
    Entry(
        name="msa",
        target="langdepth.systems.clip_adapters.msa:MultiScaleAdapter",
        summary="U-Net decoder over CLIP's frozen feature pyramid",
        **_ADAPTERS,
    ),
    Entry(
        name="msa-sam",
        target="langdepth.systems.clip_adapters.msa:MultiScaleAdapter",
        summary="msa with a second input: the image with SAM's masks drawn over it",
        **_ADAPTERS,
        preset={"overlay": True},
    ),
    Entry(
        name="mde-clip",
        target="langdepth.systems.mde_clip.model:MdeClip",
        summary="CLIP's pixels attend to distance words on four levels; a decoder, then bins that follow the image",
        **_CROSS_ATTENTION,
    ),
    Entry(
        name="mde-clip-unet",
        target="langdepth.systems.mde_clip.model:MdeClipUnet",
        summary="mde-clip with a regression head instead of bins",
        **_CROSS_ATTENTION,
    ),
    Entry(
        name="refine-clip",
        target="langdepth.systems.mde_clip.model:RefineClip",
        summary="similarity to distance words on four levels, refined by small convolutions; depth from 1 to 3 m",
        paper="RefineDepthCLIP (March 2024), the predecessor of MDE-CLIP",
        repository=f"{_GITHUB}TranMinhThang123/RefineDepthCLIP",
    ),
    *(
        Entry(
            name=f"scaledepth-{variant}",
            target="langdepth.systems.scaledepth.model:ScaleDepth",
            summary=f"relative depth from bin queries, times a scale that scene names taught; {summary}",
            paper="ScaleDepth: Decomposing Metric Depth Estimation (arXiv 2407.08187, 2024)",
            paper_url=f"{_ARXIV}2407.08187",
            repository=f"{_GITHUB}RuijieZhu94/mmdepth",
            preset=preset,
        )
        for variant, (summary, preset) in _SCALEDEPTH.items()
    ),
    *(
        Entry(
            name=f"wordepth-{variant}",
            target="langdepth.systems.wordepth.model:WorDepth",
            summary=f"a caption gives a distribution of scenes, the image picks one; {summary}",
            paper="WorDepth: Variational Language Prior for Monocular Depth Estimation (CVPR 2024, arXiv 2404.03635)",
            paper_url=f"{_ARXIV}2404.03635",
            preset=preset,
        )
        for variant, (summary, preset) in _WORDEPTH.items()
    ),
    Entry(
        name="wordepth-tiny",
        target="langdepth.systems.wordepth.tiny:WorDepthTiny",
        summary="small WorDepth on the encoder of tiny: depth from words alone, on any CPU",
        paper="this project; after WorDepth (CVPR 2024, arXiv 2404.03635)",
        paper_url=f"{_ARXIV}2404.03635",
        preset={"encoder": "efficientnet-lite2", "frozen": 7, "resolution": (240, 320), "widths": (48, 40, 32)}
        | {"latent": 48, "max_depth": 80.0, "alter_prob": 0.3, "variance_focus": 0.5},
        weights=WeightRecord(
            file="wordepth-tiny.safetensors",
            sha256="c0b211efbe4839d6137561673f3947120c16c09ad6d39fddb820e67b5106014f",
            licence="research and non-commercial use only (training data: NYU Depth V2, KITTI and others)",
            source="trained with recipes/wordepth-tiny.yaml",
        ),
    ),
)

REGISTRY: dict[str, Entry] = {entry.name: entry for entry in _ENTRIES}


def systems_with(capability: type[DepthSystem]) -> list[str]:
    """The names of the systems that have a capability (a class of ``systems.capabilities``). Imports every system."""
    return [name for name in list_systems() if issubclass(entry(name).system_class(), capability)]


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
    from langdepth.systems import capabilities

    if systems_with not in capabilities.systems_with:
        capabilities.systems_with.append(systems_with)
    found = entry(name)
    cls: Any = found.system_class()  # every system is made from its config alone
    system: System = cls(from_mapping(cls.Config, {**found.preset, **(options or {})}, where="system.options."))
    system.name = name
    return system
