"""Graphs beside torch: what a graph gives with ONNX Runtime, and how far it is from the system itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from PIL import Image
from torch import Tensor

from langdepth.records import DepthOutput
from langdepth.systems.base import System

REPOSITORY = Path(__file__).parents[2]
ASPECTS = {"4:3": (4, 3), "3:4": (3, 4), "16:9": (16, 9), "3.3:1": (33, 10), "1:1": (1, 1)}  # width to height


def session(model: onnx.ModelProto | Path) -> Any:
    """Of ONNX Runtime, with one thread and without warnings."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 4
    source = str(model) if isinstance(model, Path) else model.SerializeToString()
    return onnxruntime.InferenceSession(source, options)


def photo(aspect: str, name: str = "desk") -> Tensor:
    """(1, 3, H, W) in [0, 1]: the middle of an example, in that shape."""
    with Image.open(REPOSITORY / f"examples/{name}.jpg") as image:
        width, height = ASPECTS[aspect]
        side = min(image.width / width, image.height / height)
        left, top = (image.width - side * width) / 2, (image.height - side * height) / 2
        cropped = image.convert("RGB").crop((int(left), int(top), int(left + side * width), int(top + side * height)))
    return torch.from_numpy(np.array(cropped)).permute(2, 0, 1)[None] / 255


def difference(found: np.ndarray[Any, Any], expected: Tensor) -> float:
    """Largest relative difference."""
    assert found.shape == tuple(expected.shape)
    return float((np.abs(found - expected.numpy()) / expected.numpy()).max())


@torch.inference_mode()
def compare(run: Any, system: System, images: Tensor, **words: Tensor) -> tuple[float, DepthOutput]:
    """Largest relative difference of a session's depth from the system's; and the system's output."""
    feeds = {"image": images.numpy(), **{name: value.numpy() for name, value in words.items()}}
    found = dict(zip([one.name for one in run.get_outputs()], run.run(None, feeds), strict=True))
    expected = system(images, **words)
    if expected.scene_probs is not None:
        assert np.abs(found["scene_probs"] - expected.scene_probs.numpy()).max() < 1e-5
    assert ("sigma" in found) == (expected.sigma is not None)
    if expected.sigma is not None:
        assert difference(found["sigma"], expected.sigma) < 1e-4
    return difference(found["depth"], expected.depth), expected
