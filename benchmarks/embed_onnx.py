"""Make the ONNX files of the package from its weights.

    python benchmarks/embed_onnx.py

Writes src/langdepth/models/NAME.onnx, for wordepth-tiny also what imagines and draws, and tiny-words.onnx, the sentence
encoder of both; prints the sha256 of each for the card.yaml. These files hold the graphs; their tensors, float16, are
read from the ``.safetensors`` beside them, so that the package holds them once; files of ``langdepth export`` hold all.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path

import onnx
import torch
from onnx import TensorProto

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
    halve(model)
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
