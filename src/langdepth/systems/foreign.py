"""Models from elsewhere as systems: depth models of ``transformers`` by name, and anything that predicts depth.

A foreign model is anything with ``predict_depth`` and ``scale_kind``; ``Foreign(model, name)`` is then a system:

    class Mine:
        scale_kind = "metric"
        def predict_depth(self, image): ...  # (B, 3, H, W) in [0, 1] -> (B, 1, h, w)

    evaluate(Foreign(Mine(), "mine"), dataset, protocol)

``scale_kind`` states what its numbers are: "metric" (depth in metres), "relative" (depth up to a factor, or a factor
and a shift), "disparity" (1 / depth up to a factor and a shift: MiDaS, Depth Anything). Disparity is not depth: the
larger the nearer, and only the alignment "disparity" makes depth of it.
"""

from __future__ import annotations

import inspect
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from langdepth.errors import LangdepthError, UsageError, first_line
from langdepth.evaluation.protocols import ScaleKind
from langdepth.records import DepthOutput, InputSpec
from langdepth.systems.base import System
from langdepth.systems.capabilities import Scene, Text
from langdepth.systems.registry import TRANSFORMERS
from langdepth.utils.network import hub_or_cache

METRIC_MODELS = ("depth_pro", "glpn", "tipsv2_dpt", "zoedepth")  # by transformers' model_type


class DepthModel(Protocol):
    """What a foreign model has to offer."""

    scale_kind: ScaleKind

    def predict_depth(self, image: Tensor) -> Tensor:
        """(B, 1, h, w) depth or disparity of (B, 3, H, W) RGB images in [0, 1]."""
        ...


class Foreign(System):
    """A foreign model as a system: images go in at their own size. Its ``config``, if it has one, is the system's."""

    exports = False
    text_per_image = False  # it reads no words

    def __init__(self, model: DepthModel, name: str) -> None:
        super().__init__(getattr(model, "config", None), InputSpec(multiple_of=1))
        self.model = model
        self.name, self.scale_kind = name, model.scale_kind

    def forward(self, image: Tensor, text: Text = None, scene: Scene = None) -> DepthOutput:
        if text is not None:
            raise UsageError(f"the system '{self.name}' takes no words; leave them out")
        return DepthOutput(depth=self.model.predict_depth(image))

    def inference_copy(self) -> Foreign:
        """Itself: nothing is known about what is inside."""
        return self


class TransformersModel(nn.Module):
    """A depth model of the library ``transformers``, between its own image processor and post-processing."""

    def __init__(self, network: nn.Module, processor: Any, scale_kind: ScaleKind) -> None:
        super().__init__()
        self.network, self.processor, self.scale_kind = network, processor, scale_kind
        self.config = {"network": network.config.to_dict(), "processor": processor.to_dict()}  # type: ignore[union-attr, operator]

    def predict_depth(self, image: Tensor) -> Tensor:
        """(B, 3, H, W) to (B, 1, H, W)."""
        pixels = image.mul(255).round().byte()
        inputs = self.processor(images=list(pixels), return_tensors="pt")
        outputs = self.network(inputs["pixel_values"].to(image.device))
        finish, sizes = self.processor.post_process_depth_estimation, [tuple(image.shape[-2:])] * len(image)
        # Processors that pad need the sizes to cut the padding off again.
        padded = {"source_sizes": sizes} if "source_sizes" in inspect.signature(finish).parameters else {}
        found = finish(outputs, target_sizes=sizes, **padded)
        return torch.stack([one["predicted_depth"] for one in found]).unsqueeze(1)


def load_transformers(source: str, scale_kind: ScaleKind | None = None) -> Foreign:
    """The depth model in a folder or under a hub name, saved by ``transformers`` as .safetensors.

    Args:
        source: The folder or the name.
        scale_kind: What its numbers are; None where its kind of model decides that.

    Raises:
        UsageError: The library is not installed, or ``scale_kind`` is needed.
        LangdepthError: The model cannot be loaded. Code that comes with a model is not run.
    """
    try:
        from transformers import AutoImageProcessor, AutoModelForDepthEstimation
    except ImportError:
        raise UsageError("models of 'transformers' need that library: pip install 'langdepth[hub]'") from None
    try:
        with nullcontext() if Path(source).exists() else hub_or_cache():
            network = AutoModelForDepthEstimation.from_pretrained(source, use_safetensors=True, trust_remote_code=False)
            processor = AutoImageProcessor.from_pretrained(source, trust_remote_code=False)
    except Exception as error:  # the library, its hub client and the weights' reader have exceptions of their own
        raise LangdepthError(
            f"{source}: no depth model of 'transformers' can be loaded here: {first_line(error)}"
        ) from None
    name = f"{TRANSFORMERS}{source}"
    kind = scale_kind or _known_kind(network.config)
    if kind is None:
        raise UsageError(f"'{name}': say what its numbers are: metric, relative or disparity (depth kind)")
    system = Foreign(TransformersModel(network.eval(), processor, kind), name)
    system.provenance |= {"weights": name, "source": source}
    return system


def _known_kind(config: Any) -> ScaleKind | None:
    """What the numbers of a kind of model are; None where models of one kind differ and the file does not say."""
    kind = getattr(config, "model_type", "")
    if kind == "depth_anything":
        return "metric" if getattr(config, "depth_estimation_type", "relative") == "metric" else "disparity"
    if kind == "dpt":  # MiDaS's; with DINOv2 inside they are DINOv2's own, which give metres of NYU, KITTI or SUN RGB-D
        backbone = getattr(getattr(config, "backbone_config", None), "model_type", "")
        return None if backbone.startswith("dinov2") else "disparity"
    return "metric" if kind in METRIC_MODELS else None
