"""A system that torch computes as an ONNX graph, for images of every size and batches of every length.

It is traced (torch's TorchScript exporter): that takes seconds where the exporter of ``torch.export`` takes minutes,
needs no further package, and what depends on the image's size stays part of the graph. A branch that a system takes by
size would not; so what is traced is compared with torch at other sizes, see ``comparison.Difference``.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn
from torch.nn import functional as F

from langdepth.config import to_mapping
from langdepth.errors import UsageError, first_line
from langdepth.records import DepthOutput, InputSpec
from langdepth.runtimes.facts import GraphFacts
from langdepth.systems.base import System
from langdepth.systems.capabilities import Imagines, require
from langdepth.text.encoders import PADDING, SentenceEncoder
from langdepth.utils.onnx_files import KEY

OPSET = 18
_IMAGE_AXES = {0: "batch", 2: "height", 3: "width"}
_DEPTH_AXES = {0: "batch", 2: "depth_height", 3: "depth_width"}
_SMALL = 64  # numbers; shorter tensors are not worth a node that converts them


class _Network(nn.Module):
    """``system`` with its inputs in order, and the outputs that a graph has."""

    def __init__(self, system: System, names: Sequence[str]) -> None:
        super().__init__()
        self.system, self.names = system, names

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        return tuple(_outputs(self.system(**dict(zip(self.names, inputs, strict=True)))).values())


def _outputs(output: DepthOutput) -> dict[str, Tensor]:
    """Those that a graph gives."""
    return {name: one for name in ("depth", "scene_probs", "sigma") if (one := getattr(output, name)) is not None}


class _Function(nn.Module):
    """What a system does beside ``forward``."""

    def __init__(self, system: System, function: Callable[..., Tensor]) -> None:
        super().__init__()
        self.system, self.function = system, function

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.function(*inputs)


class _Words(nn.Module):
    """``encoder`` with padding up to its longest sentence: a trace holds the length that attention has."""

    def __init__(self, encoder: SentenceEncoder) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, tokens: Tensor) -> Tensor:
        features: Tensor = self.encoder(F.pad(tokens, (0, len(self.encoder.position) - tokens.shape[1]), value=PADDING))
        return features


def network_graph(system: System, size: tuple[int, int] | None = None) -> onnx.ModelProto:
    """What ``system.forward`` does, as the graph kind "network" of ``GraphFacts``; the system is in eval mode.

    ``size``: the one (height, width) that images then have inside the network; None: any. Some systems are right for
    one size only, which a comparison shows.

    Inputs are ``image`` and, for systems that take one, ``overlay``, float32 (B, 3, h, w) in [0, 1] at network size;
    then those of ``System.graph_inputs``, which may be left out, and whose single row stands for all images. Outputs
    are ``depth`` (B, 1, h', w') and, for systems that have them, ``scene_probs`` (B, K) and
    ``sigma`` (B, 1, h', w').
    """
    if not system.exports:
        raise UsageError(f"'{system.name}' cannot be exported: a part of it is a program of another library")
    words = system.graph_inputs()
    per_image = {name for name in words if name != "text" or system.text_per_image}
    spec = system.input_spec if size is None else replace(system.input_spec, size=size)
    height, width = _trace_size(spec)
    images = {name: torch.rand(2, 3, height, width) for name in ("image", "overlay")[: 1 + system.takes_overlay]}
    inputs = images | {name: torch.cat([row, row]) if name in per_image else row for name, row in words.items()}
    inputs = {name: value.to(system.device) for name, value in inputs.items()}
    with torch.no_grad():
        outputs = tuple(_outputs(system(**inputs)))
    axes = {name: {0: "batch"} for name in (*per_image, *outputs)}
    axes |= {name: _IMAGE_AXES if spec.size is None else {0: "batch"} for name in images}
    axes |= dict.fromkeys({"depth", "sigma"}.intersection(outputs), _DEPTH_AXES)
    model = traced(_Network(system, list(inputs)), inputs, outputs, axes)
    for name, default in words.items():
        set_default(model, name, default, rows_of="image" if name in per_image else None)
    state_facts(model, replace(facts_of(system, "network", tuple(words)), input_spec=spec))
    return model


def imagine_graph(system: System) -> onnx.ModelProto:
    """``Imagines.imagine`` as the graph kind "imagine": text (1 or N, D) and noise (N, C, h / 16, w / 16) to depth."""
    imagining, words = require(system, Imagines), system.graph_inputs()

    def imagined(text: Tensor, noise: Tensor) -> Tensor:
        return imagining.imagine(text, noise).depth

    height, width = _trace_size(system.input_spec)
    inputs = {"text": words["text"].expand(3, -1), "noise": imagining.draw_noise(3, height, width)}
    axes = {"text": {0: "batch"}, "noise": _IMAGE_AXES, "depth": _DEPTH_AXES}
    model = traced(_Function(system, imagined), inputs, ["depth"], axes)
    set_default(model, "text", words["text"], rows_of="noise")
    state_facts(model, facts_of(system, "imagine", ("text", "noise")))
    return model


def draw_graph(system: System) -> onnx.ModelProto:
    """``Imagines.draw`` as the graph kind "draw": an image (1, 3, h, w), noise as above, spread (1,), text (1, D)."""
    imagining, words = require(system, Imagines), system.graph_inputs()

    def drawn(image: Tensor, noise: Tensor, spread: Any, text: Tensor) -> Tensor:
        return imagining.draw(image, text, noise, spread).depth

    height, width = _trace_size(system.input_spec)
    inputs = {
        "image": torch.rand(1, 3, height, width),
        "noise": imagining.draw_noise(3, height, width),
        "spread": torch.tensor([0.5]),
        "text": words["text"],
    }
    axes = {"image": {2: "height", 3: "width"}, "noise": _IMAGE_AXES, "depth": _DEPTH_AXES}
    model = traced(_Function(system, drawn), inputs, ["depth"], axes)
    set_default(model, "text", words["text"])
    state_facts(model, facts_of(system, "draw", ("noise", "spread", "text")))
    return model


def words_graph(encoder: SentenceEncoder) -> onnx.ModelProto:
    """A sentence encoder as the graph kind "words": ``tokens`` int64 (1, n) to ``features`` (1, D)."""
    tokens = torch.ones(1, 5, dtype=torch.int64, device=encoder.position.device)
    model = traced(_Words(encoder), {"tokens": tokens}, ["features"], {"tokens": {1: "words"}})
    facts = GraphFacts(kind="words", vocabulary=encoder.vocabulary, max_words=len(encoder.position))
    state_facts(model, facts)
    return model


def facts_of(system: System, kind: Any, inputs: tuple[str, ...]) -> GraphFacts:
    """What a graph of the system states about it."""
    return GraphFacts(
        kind=kind,
        system=system.name,
        about=system.about,
        config=to_mapping(system.config),
        scale_kind=system.scale_kind,
        scenes=tuple(system.scenes),
        text_per_image=system.text_per_image,
        takes_overlay=system.takes_overlay,
        input_spec=system.input_spec,
        provenance=system.provenance,
        inputs=inputs,
    )


def state_facts(model: onnx.ModelProto, facts: GraphFacts) -> None:
    """Write the facts into the model's metadata."""
    del model.metadata_props[:]
    helper.set_model_props(model, {KEY: facts.to_json()})


def traced(
    module: nn.Module, inputs: Mapping[str, Tensor], outputs: Sequence[str], axes: Mapping[str, dict[int, str]]
) -> onnx.ModelProto:
    """The graph of a module in eval mode; ``axes`` names the axes of any length, by input and output."""
    file = io.BytesIO()
    with warnings.catch_warnings(), _plain_attention(module), torch.no_grad(), redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")  # about checks of shapes, and that this exporter is the older one
        _export(
            module,
            tuple(inputs.values()),
            file,
            input_names=list(inputs),
            output_names=list(outputs),
            dynamic_axes={name: axes[name] for name in (*inputs, *outputs) if name in axes},
            opset_version=OPSET,
            dynamo=False,
            do_constant_folding=False,
            training=torch.onnx.TrainingMode.PRESERVE,  # in eval mode, with BatchNorm and its numbers as they are
        )
    model = onnx.load_from_string(file.getvalue())
    model.producer_name, model.doc_string = "langdepth", ""
    for node in model.graph.node:
        node.doc_string = ""
        while node.input and not node.input[-1]:  # left out; for ONNX Runtime such a Pad is no part of a convolution
            del node.input[-1]
    return model


def _export(*arguments: Any, **options: Any) -> None:
    """``torch.onnx.export``. Raises UsageError where ONNX has no operator for what the module does."""
    try:
        torch.onnx.export(*arguments, **options)
    except (torch.onnx.errors.OnnxExporterError, TypeError, RuntimeError) as error:
        raise UsageError(f"it cannot be exported: {first_line(error)}") from error


@contextmanager
def _plain_attention(module: nn.Module) -> Iterator[None]:
    """Attention of torch's modules as a few products: its own code is traced for one number of tokens only."""
    attending = [part for part in module.modules() if isinstance(part, nn.MultiheadAttention)]
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    for part in attending:
        part.forward = partial(_attend, part)  # type: ignore[method-assign]
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)
        for part in attending:
            del part.forward


def _attend(
    module: nn.MultiheadAttention,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    key_padding_mask: Tensor | None = None,
    need_weights: bool = False,
    attn_mask: Tensor | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """``module``'s attention, whose masks are added to the logits; tokens (B, N, C), or (N, B, C) as it takes them."""
    if not module.batch_first:
        query, key, value = (tokens.transpose(0, 1) for tokens in (query, key, value))
    weights, biases = module.in_proj_weight.chunk(3), module.in_proj_bias.chunk(3)
    query, key, value = (
        F.linear(tokens, weight, bias).unflatten(-1, (module.num_heads, -1)).transpose(1, 2)
        for tokens, weight, bias in zip((query, key, value), weights, biases, strict=True)
    )
    mask = attn_mask
    if key_padding_mask is not None:
        padding = key_padding_mask[:, None, None]
        mask = padding if mask is None else mask + padding
    mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=mask).transpose(1, 2).flatten(2)
    output = module.out_proj(mixed)
    return (output if module.batch_first else output.transpose(0, 1)), None


def _trace_size(spec: InputSpec) -> tuple[int, int]:
    """Small, and unlike anything that a system might compare it with."""
    return spec.size or (3 * spec.multiple_of, 5 * spec.multiple_of)


def set_default(model: onnx.ModelProto, name: str, default: Tensor, rows_of: str | None = None) -> None:
    """Let an input be left out, and let its only row stand for all rows of the input ``rows_of``."""
    graph = model.graph
    if rows_of is not None:
        rows = f"{name}_of_each"
        for node in graph.node:
            node.input[:] = [rows if one == name else one for one in node.input]
        shape = numpy_helper.from_array(np.array(default.shape[1:], np.int64), f"{name}_columns")
        graph.initializer.append(shape)
        nodes = [
            helper.make_node("Shape", [rows_of], [f"{name}_batch"], start=0, end=1),
            helper.make_node("Concat", [f"{name}_batch", shape.name], [f"{name}_shape"], axis=0),
            helper.make_node("Expand", [name, f"{name}_shape"], [rows]),
        ]
        for node in reversed(nodes):
            graph.node.insert(0, node)
        stated = next(one for one in graph.input if one.name == name)
        stated.type.tensor_type.shape.dim[0].dim_param = f"{name}_rows"
    graph.initializer.append(numpy_helper.from_array(default.cpu().numpy(), name))


def halve(model: onnx.ModelProto) -> None:
    """Store as float16 what float16 holds exactly, as in weights files that are half precision; the numbers stay."""
    graph, inputs = model.graph, {one.name for one in model.graph.input}
    for tensor in graph.initializer:
        if tensor.data_type != TensorProto.FLOAT or tensor.name in inputs:
            continue
        values = numpy_helper.to_array(tensor)
        with np.errstate(over="ignore"):
            half = values.astype(np.float16)
        if values.size < _SMALL or not np.array_equal(half, values):
            continue
        name = tensor.name
        tensor.CopyFrom(numpy_helper.from_array(half, f"{name}.half"))
        graph.node.insert(0, helper.make_node("Cast", [tensor.name], [name], to=TensorProto.FLOAT))
