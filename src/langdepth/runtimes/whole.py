"""A network's ONNX graph with everything around it: bytes of any size in, metres at that size out."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from langdepth.records import InputSpec
from langdepth.runtimes.facts import GraphFacts

_DOUBLE = TensorProto.DOUBLE
_INSIDE = "_at_network_size"


class _Nodes:
    """Nodes of a graph that are made one after the other, each named after its output."""

    def __init__(self, prefix: str) -> None:
        self.prefix = prefix
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []

    def constant(self, value: npt.ArrayLike, dtype: npt.DTypeLike) -> str:
        name = f"{self.prefix}_constant_{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.array(value, dtype), name))
        return name

    def add(self, kind: str, *inputs: str, name: str | None = None, **attributes: Any) -> str:
        name = name or f"{self.prefix}_{kind.lower()}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, inputs, [name], name=name, **attributes))
        return name

    def resize(self, image: str, size: str, *, aligned: bool) -> str:
        """(B, C, H, W) at ``size``, bilinear; runtimes want all four sides."""
        sides = self.add("Concat", self.add("Shape", image, start=0, end=2), size, axis=0)
        centers = "align_corners" if aligned else "half_pixel"
        return self.add("Resize", image, "", "", sides, mode="linear", coordinate_transformation_mode=centers)

    def averages(self, before: str, after: str, *, cubic: bool = False) -> str:
        """The weights (m, n) with which m pixels are means of n: triangles or cubics over the larger kind of pixel.

        Lengths n (``before``) and m (``after``) are (1,) int64. With centres at half numbers, pixel j of n lies
        |(2 j + 1) m - (2 i + 1) n| / (2 m) pixels from pixel i of m: whole numbers, which are exact in every runtime.
        """
        sides, places = [], []
        for length, other in ((after, before), (before, after)):
            odd = self.add("Add", self.add("Mul", self._range(length), self.whole(2)), self.whole(1))
            places.append(self.add("Mul", odd, other))
            sides.append(length)
        rows = self.add("Unsqueeze", places[0], self.whole([1]))
        apart = self.add("Abs", self.add("Sub", places[1], rows))
        reach = self.add("Mul", self.add("Max", *sides), self.whole(2))
        if cubic:
            share = self._cubic(self.add("Div", self.cast(apart, _DOUBLE), self.cast(reach, _DOUBLE)))
        else:
            share = self.add("Max", self.add("Sub", reach, apart), self.whole(0))
        total = self.add("ReduceSum", share, self.whole([1]), keepdims=1)
        weights = self.add("Div", self.cast(share, _DOUBLE), self.cast(total, _DOUBLE))
        unit = self.constant(2**22, np.float64)  # Pillow's fixed point; products with bytes are exact in doubles
        return self.add("Div", self.round_half_up(self.add("Mul", weights, unit)), unit)

    def _cubic(self, x: str) -> str:
        """Keys' kernel with a = -1/2 at distances x, as Pillow and torch have it: 0 from 2 on."""
        one, two = (self.constant(value, np.float64) for value in (1, 2))
        near = self._polynomial(x, 1.5, -2.5, 0, 1)
        far = self._polynomial(x, -0.5, 2.5, -4, 2)
        zero = self.constant(0, np.float64)
        outer = self.add("Where", self.add("Less", x, two), far, zero)
        return self.add("Where", self.add("Less", x, one), near, outer)

    def _polynomial(self, x: str, *factors: float) -> str:
        """The highest power first."""
        value = self.constant(factors[0], np.float64)
        for factor in factors[1:]:
            value = self.add("Add", self.add("Mul", value, x), self.constant(factor, np.float64))
        return value

    def cast(self, value: str, kind: int) -> str:
        return self.add("Cast", value, to=kind)

    def round_half_up(self, value: str) -> str:
        return self.add("Floor", self.add("Add", value, self.constant(0.5, np.float64)))

    def level(self, value: str) -> str:
        """Whole numbers from 0 to 255; cubics overshoot."""
        limits = (self.constant(limit, np.float64) for limit in (0, 255))
        return self.add("Clip", self.round_half_up(value), *limits)

    def whole(self, value: int | list[int]) -> str:
        return self.constant(value, np.int64)

    def _range(self, length: str) -> str:
        """0, 1, 2 ..."""
        return self.add("Range", self.whole(0), self.add("Squeeze", length, self.whole([0])), self.whole(1))


def whole_graph(network: onnx.ModelProto, facts: GraphFacts) -> onnx.ModelProto:
    """The graph kind "whole" of one of the kind "network", which ``facts`` describe; ``network`` is used up.

    ``image`` (and ``overlay``) are uint8 (B, H, W, 3), ``depth`` (and ``sigma``) are float32 (B, H, W) in metres. What
    lies between is what ``prediction.network.infer`` does, and the system's ``InputSpec`` states. Other inputs and
    outputs stay.
    """
    graph, spec = network.graph, facts.input_spec
    images = [one.name for one in graph.input if one.name in ("image", "overlay")]
    maps = [one.name for one in graph.output if one.name in ("depth", "sigma")]
    _rename(graph, {name: name + _INSIDE for name in (*images, *maps)})
    before, after = _Nodes("before"), _Nodes("after")
    shape = before.add("Shape", "image", start=1, end=3)
    size = _network_size(before, shape, spec)
    for name in images:
        _shrink(before, name, size, spec)
    for name in maps:
        enlarged = after.resize(name + _INSIDE, shape, aligned=spec.enlarge == "bilinear-aligned")
        after.add("Squeeze", enlarged, after.whole([1]), name=name)

    nodes = [*before.nodes, *graph.node, *after.nodes]
    del graph.node[:]
    graph.node.extend(nodes)
    graph.initializer.extend([*before.constants, *after.constants])
    inputs = [
        helper.make_tensor_value_info(name, TensorProto.UINT8, ["batch", "height", "width", 3]) for name in images
    ]
    _replace(graph.input, inputs, {name + _INSIDE for name in images})
    outputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", "height", "width"]) for name in maps]
    _replace(graph.output, outputs, {name + _INSIDE for name in maps})
    return network


def _rename(graph: onnx.GraphProto, names: dict[str, str]) -> None:
    for node in graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]
        node.output[:] = [names.get(name, name) for name in node.output]
    for stated in (*graph.input, *graph.output):
        stated.name = names.get(stated.name, stated.name)


def _replace(stated: Any, new: Iterable[onnx.ValueInfoProto], old: set[str]) -> None:
    """Of the graph's inputs or outputs, ``new`` ones at the front in place of the ``old``."""
    kept = [one for one in stated if one.name not in old]
    del stated[:]
    stated.extend([*new, *kept])


def _network_size(nodes: _Nodes, shape: str, spec: InputSpec) -> str:
    """``InputSpec.network_size`` of (height, width), as nodes; in double precision, as Python has it."""
    if spec.size is not None:
        return nodes.constant(spec.size, np.int64)
    goal = nodes.cast(shape, _DOUBLE)
    if spec.area is not None:
        height, width = (nodes.add("Gather", goal, nodes.whole([axis])) for axis in (0, 1))
        limits = [nodes.constant(limit, np.float64) for limit in (1 / spec.max_aspect, spec.max_aspect)]
        aspect = nodes.add("Clip", nodes.add("Div", width, height), *limits)
        area = nodes.constant([spec.area], np.float64)
        goal = nodes.add("Concat", nodes.add("Div", area, aspect), nodes.add("Mul", area, aspect), axis=0)
        goal = nodes.add("Sqrt", goal)
    steps = nodes.add("Round", nodes.add("Div", goal, nodes.constant(spec.multiple_of, np.float64)))
    step = nodes.whole(spec.multiple_of)
    return nodes.add("Max", nodes.add("Mul", nodes.cast(steps, TensorProto.INT64), step), step)


def _shrink(nodes: _Nodes, name: str, size: str, spec: InputSpec) -> None:
    """Bytes (B, H, W, 3) to float32 (B, 3, h, w) in [0, 1].

    Averaging follows Pillow's for bytes to the bit: columns, then rows, each rounded to whole numbers. It is a product
    with matrices, as the runtimes' own antialiased resizing gives other numbers, where they have one.
    """
    image = nodes.add("Transpose", name, perm=[0, 3, 1, 2])
    if spec.shrink == "bilinear-aligned":
        image = nodes.resize(nodes.cast(image, TensorProto.FLOAT), size, aligned=True)
    else:
        image = nodes.cast(image, _DOUBLE)
        cubic = spec.shrink == "bicubic"
        first, second = (nodes.whole([axis]) for axis in (0, 1))
        height, width = (nodes.add("Gather", nodes.add("Shape", image, start=2, end=4), at) for at in (first, second))
        rows, columns = (nodes.add("Gather", size, at) for at in (first, second))
        across = nodes.add("Transpose", nodes.averages(width, columns, cubic=cubic), perm=[1, 0])
        image = nodes.level(nodes.add("MatMul", image, across))
        image = nodes.level(nodes.add("MatMul", nodes.averages(height, rows, cubic=cubic), image))
        image = nodes.cast(image, TensorProto.FLOAT)
    nodes.add("Div", image, nodes.constant(255, np.float32), name=name + _INSIDE)
