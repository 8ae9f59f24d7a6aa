"""Make the ONNX files of the package from its weights.

    python benchmarks/embed_onnx.py

Writes src/langdepth/models/NAME.onnx, for wordepth-tiny also what imagines and draws, and tiny-words.onnx, the sentence
encoder of both; prints the sha256 of each for the card.yaml. These files hold the graphs; their tensors, float16, are
read from the ``.safetensors`` beside them, so that the package holds them once; files of ``langdepth export`` hold all.
The graphs are simplified before, as far as these tensors stay: each start of a program would do that again.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import TensorProto, helper, numpy_helper

from langdepth.runtimes.facts import GraphFacts
from langdepth.runtimes.trace import draw_graph, halve, imagine_graph, network_graph, state_facts, words_graph
from langdepth.systems.card import MODELS_FOLDER
from langdepth.utils.files import atomic_path
from langdepth.utils.reading import file_sha256
from langdepth.weights.checkpoint import load

WORDS = "tiny-words.onnx"
SMALL = 256  # bytes; shorter tensors stay in the graph


def main() -> None:
    """Trace, write, print."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    torch.manual_seed(0)  # of the image that is traced with
    tiny = load("tiny")
    write(words_graph(tiny.sentences), WORDS, "tiny")
    write(with_files(network_graph(tiny), words=WORDS), "tiny.onnx", "tiny")

    name = "wordepth-tiny"
    beside = {"words": WORDS, "imagine": f"{name}-imagine.onnx", "draw": f"{name}-draw.onnx"}
    system = load(name)
    write(imagine_graph(system), beside["imagine"], name)
    write(draw_graph(system), beside["draw"], name)
    write(with_files(network_graph(system), **beside), f"{name}.onnx", name)


def with_files(model: onnx.ModelProto, **beside: str) -> onnx.ModelProto:
    """The model, which now states the files beside it."""
    facts = GraphFacts.from_metadata({one.key: one.value for one in model.metadata_props}, "the new graph")
    state_facts(model, replace(facts, **beside))
    return model


def write(model: onnx.ModelProto, name: str, weights: str) -> None:
    """Write ``name`` into the package, with tensors in the weights file of ``weights``."""
    fold_norms(model)
    halve(model)
    if name != WORDS:  # whose mask, which is not finite, would be a tensor, and such files are refused
        model = simplified(model)
    file = f"{weights}.safetensors"
    places = tensor_places(MODELS_FOLDER / file)
    found = [tensor for tensor in model.graph.initializer if tensor.raw_data in places]
    for tensor in found:
        start, length = places[tensor.raw_data]
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in (("location", file), ("offset", start), ("length", length)):
            tensor.external_data.add(key=key, value=str(value))
    path = MODELS_FOLDER / name
    with atomic_path(path) as part:
        part.write_bytes(model.SerializeToString(deterministic=True))
    onnx.checker.check_model(str(path), full_check=True)
    print(f"{name}: {path.stat().st_size / 1e6:.2f} MB and {len(found)} tensors in {file}\nsha256 {file_sha256(path)}")


def fold_norms(model: onnx.ModelProto) -> None:
    """Let convolutions do what a BatchNorm after them does; their weights stay, a node multiplies them by its factors.

    A norm may also follow a sum of convolutions. What a session computes once when it is opened is that product.
    """
    graph = model.graph
    constants = {tensor.name: tensor for tensor in graph.initializer}
    users = Counter(name for node in graph.node for name in node.input)
    made_by = {name: node for node in graph.node for name in node.output}

    def convolutions(name: str) -> list[onnx.NodeProto]:
        """Those whose sum ``name`` is; empty where it is something else, or somebody else needs it."""
        node = made_by.get(name)
        if node is None or users[name] > 1 or node.op_type not in ("Conv", "Add"):
            return []
        if node.op_type == "Conv":
            return [node] if len(node.input) == 2 else []
        parts = [convolutions(one) for one in node.input]
        return [conv for part in parts for conv in part] if all(parts) else []

    for norm in [node for node in graph.node if node.op_type == "BatchNormalization"]:
        scale, shift, mean, variance = (numpy_helper.to_array(constants[name]) for name in norm.input[1:])
        epsilon = next((one.f for one in norm.attribute if one.name == "epsilon"), 1e-5)
        found = convolutions(norm.input[0])
        if not found:
            continue
        factors = scale.astype(np.float64) / np.sqrt(variance.astype(np.float64) + epsilon)
        names = [f"{norm.name}.factors", f"{norm.name}.bias"]
        for name, values in zip(names, (factors.reshape(-1, 1, 1, 1), shift - mean * factors), strict=True):
            graph.initializer.append(numpy_helper.from_array(values.astype(np.float32), name))
        for number, conv in enumerate(found):
            weight = f"{norm.name}.weight_{number}"
            graph.node.insert(
                list(graph.node).index(conv), helper.make_node("Mul", [conv.input[1], names[0]], [weight])
            )
            conv.input[:] = [conv.input[0], weight, *(names[1:] if number == 0 else [])]
        made_by[norm.input[0]].output[0] = norm.output[0]
        graph.node.remove(norm)
    used = {name for node in graph.node for name in node.input}
    tensors = [tensor for tensor in graph.initializer if tensor.name in used]
    del graph.initializer[:]
    graph.initializer.extend(tensors)


def simplified(model: onnx.ModelProto) -> onnx.ModelProto:
    """What ONNX Runtime makes of it on any machine, but for what it would make of float16 tensors."""
    names = {one.name for one in model.graph.input}
    half = [tensor for tensor in model.graph.initializer if tensor.data_type == TensorProto.FLOAT16]
    others = [tensor for tensor in model.graph.initializer if tensor.data_type != TensorProto.FLOAT16]
    del model.graph.initializer[:]
    model.graph.initializer.extend(others)
    for tensor in half:  # as inputs they have no numbers
        model.graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.log_severity_level = 3
    with tempfile.TemporaryDirectory() as folder:
        options.optimized_model_filepath = str(Path(folder, "simplified.onnx"))
        onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        found = onnx.load(options.optimized_model_filepath)
    inputs = [one for one in found.graph.input if one.name in names]
    del found.graph.input[:], found.graph.value_info[:]
    found.graph.input.extend(inputs)
    found.graph.initializer.extend(half)
    del found.opset_import[:]
    found.opset_import.extend(model.opset_import)
    return found


def tensor_places(path: Path) -> dict[bytes, tuple[int, int]]:
    """Of a ``.safetensors``, which holds tensors one after the other: bytes of each -> (offset, length)."""
    content = path.read_bytes()
    start = 8 + int.from_bytes(content[:8], "little")  # of the tensors, after the header
    header = json.loads(content[8:start])
    spans = [entry["data_offsets"] for name, entry in header.items() if name != "__metadata__"]
    return {
        content[start + first : start + last]: (start + first, last - first)
        for first, last in spans
        if last - first >= SMALL
    }


if __name__ == "__main__":
    main()
