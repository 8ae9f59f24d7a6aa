"""An exported file resizes images exactly as prediction does."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx import TensorProto, helper
from PIL import Image

from langdepth.prediction.arrays import resized_image
from langdepth.records import InputSpec
from langdepth.runtimes.facts import GraphFacts
from langdepth.runtimes.whole import whole_graph
from tests.runtimes.helpers import REPOSITORY, session


def levels_inside(pixels: npt.NDArray[np.uint8], spec: InputSpec) -> npt.NDArray[Any]:
    """The grey levels that a network gets from the graph around it; this one's depth is its image's first channel."""
    inside = ["batch", 3, *spec.size] if spec.size else ["batch", 3, "h", "w"]
    image, seen = (helper.make_tensor_value_info(name, TensorProto.FLOAT, inside) for name in ("image", "seen"))
    depth = helper.make_tensor_value_info("depth", TensorProto.FLOAT, ["batch", 1, *inside[2:]])
    ends = [helper.make_tensor(name, TensorProto.INT64, [1], [at]) for name, at in (("start", 0), ("end", 1))]
    nodes = [
        helper.make_node("Slice", ["image", "start", "end", "end"], ["depth"]),
        helper.make_node("Identity", ["image"], ["seen"]),
    ]
    graph = helper.make_graph(nodes, "network", [image], [depth, seen], ends)
    network = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    whole = whole_graph(network, GraphFacts(kind="whole", input_spec=spec))
    onnx.checker.check_model(whole, full_check=True)
    found: npt.NDArray[Any] = session(whole).run(["seen"], {"image": pixels[None]})[0]
    return found * 255


@pytest.mark.parametrize("shrink", ["antialiased", "bicubic"])
@pytest.mark.parametrize("size", [(224, 224), (416, 544), (500, 333)])
def test_bytes_are_resized_to_the_bit(size: tuple[int, int], shrink: Any) -> None:
    with Image.open(REPOSITORY / "examples/room.jpg") as opened:
        pixels = np.asarray(opened.convert("RGB"))
    expected = resized_image(np.ascontiguousarray(pixels.transpose(2, 0, 1)[None]), size, shrink)
    found = levels_inside(pixels, InputSpec(size=size, shrink=shrink))
    np.testing.assert_allclose(found, expected, atol=1e-3)
