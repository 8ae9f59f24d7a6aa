"""The ONNX files of the package: the numbers of torch, for images of every shape and all kinds of words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

import langdepth
from langdepth.prediction.network import to_network_size
from langdepth.runtimes.facts import GraphFacts
from langdepth.systems import registry
from langdepth.systems.base import System
from langdepth.systems.card import MODELS_FOLDER
from langdepth.utils.reading import file_sha256
from tests.helpers import Run
from tests.runtimes.helpers import ASPECTS, compare, difference, photo, session

TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def tiny() -> System:
    system = langdepth.load("tiny", runtime="torch")
    assert isinstance(system, System)
    return system


@pytest.fixture(scope="module")
def network() -> Any:
    return session(MODELS_FOLDER / "tiny.onnx")


@pytest.fixture(scope="module")
def imagining() -> Any:
    return langdepth.load("wordepth-tiny", runtime="torch")


@pytest.mark.parametrize("aspect", ASPECTS)
def test_tiny_in_every_shape_with_all_words(tiny: System, network: Any, aspect: str) -> None:
    image = to_network_size(tiny, photo(aspect))
    text = tiny.encode_text(["a small bathroom with a sink"])  # type: ignore[operator]
    depths = []
    for words in ({}, {"text": text}, {"scene": torch.tensor([tiny.scenes.index("street")])}):
        found, expected = compare(network, tiny, image, **words)
        assert found < TOLERANCE
        depths.append(expected.depth)
    assert not any(torch.equal(depths[0], other) for other in depths[1:])


def test_tiny_in_batches_with_other_words_for_each_image(tiny: System, network: Any) -> None:
    images = torch.cat([to_network_size(tiny, photo("4:3", name)) for name in ("desk", "room", "desk")])
    text = tiny.encode_text(["a kitchen with a table", "a street with cars", "a desk"])  # type: ignore[operator]
    text[2] = 0
    assert compare(network, tiny, images, text=text)[0] < TOLERANCE
    assert compare(network, tiny, images, text=text, scene=torch.tensor([-1, -1, 3]))[0] < TOLERANCE


def test_one_row_of_words_stands_for_the_whole_batch(tiny: System, network: Any) -> None:
    images = torch.cat([to_network_size(tiny, photo("4:3", name)) for name in ("desk", "room")])
    one, two = (network.run(["depth"], {"image": images.numpy(), "scene": np.array(rows)})[0] for rows in ([3], [3, 3]))
    assert np.array_equal(one, two)


def test_wordepth_tiny_in_every_shape_with_words(imagining: Any) -> None:
    run = session(MODELS_FOLDER / "wordepth-tiny.onnx")
    text = imagining.encode_text(["a small bathroom with a sink"])
    for aspect in ASPECTS:
        image = to_network_size(imagining, photo(aspect))
        assert compare(run, imagining, image)[0] < TOLERANCE
        assert compare(run, imagining, image, text=text)[0] < TOLERANCE


@torch.inference_mode()
def test_wordepth_tiny_imagines_the_same(imagining: Any) -> None:
    run, generator = session(MODELS_FOLDER / "wordepth-tiny-imagine.onnx"), torch.Generator().manual_seed(3)
    text = imagining.encode_text(["a kitchen with a table"])
    for count, height, width in ((1, 240, 320), (4, 320, 224), (2, 160, 512)):
        noise = imagining.draw_noise(count, height // 32 * 32, width, generator)
        found = run.run(None, {"text": text.numpy(), "noise": noise.numpy()})[0]
        assert difference(found, imagining.imagine(text.expand(count, -1), noise).depth) < TOLERANCE
        found = run.run(None, {"noise": noise.numpy()})[0]
        assert difference(found, imagining.imagine(None, noise).depth) < TOLERANCE


@torch.inference_mode()
def test_wordepth_tiny_draws_the_same(imagining: Any) -> None:
    run, generator = session(MODELS_FOLDER / "wordepth-tiny-draw.onnx"), torch.Generator().manual_seed(3)
    text = imagining.encode_text(["a kitchen with a table"])
    for aspect, count, spread in (("4:3", 1, 0.0), ("3.3:1", 3, 0.3), ("3:4", 2, 1.0)):
        image = to_network_size(imagining, photo(aspect, "room"))
        noise = imagining.draw_noise(count, *image.shape[-2:], generator)
        feeds = {"image": image, "text": text, "noise": noise, "spread": torch.tensor([spread])}
        found = run.run(None, {name: value.numpy() for name, value in feeds.items()})[0]
        assert difference(found, imagining.draw(image, text, noise, spread).depth) < TOLERANCE


@pytest.mark.parametrize("name", ["tiny", "wordepth-tiny"])
def test_the_sentence_encoder_is_that_of_both_weights(name: str) -> None:
    run = session(MODELS_FOLDER / "tiny-words.onnx")
    encoder: Any = langdepth.load(name, runtime="torch")
    for sentence in ("street", "a kitchen with a table", " ".join(["a long room with books and chairs"] * 4)):
        found = run.run(["features"], {"tokens": encoder.sentences.tokenize([sentence]).numpy()})[0]
        assert np.abs(found - encoder.sentences.encode([sentence]).numpy()).max() < 1e-5
    facts = GraphFacts.from_metadata(run.get_modelmeta().custom_metadata_map, "tiny-words.onnx")
    assert (facts.kind, facts.vocabulary, facts.max_words) == ("words", encoder.sentences.vocabulary, 24)


@pytest.mark.parametrize("name", ["tiny", "wordepth-tiny"])
def test_what_need_not_be_done_at_each_start_is_done(name: str) -> None:
    """Norms and the pads of even sizes are parts of convolutions, and nothing is computed of constants alone."""
    graph = onnx.load(MODELS_FOLDER / f"{name}.onnx", load_external_data=False).graph
    kinds = [node.op_type for node in graph.node]
    assert "BatchNormalization" not in kinds
    assert "Constant" not in kinds
    pads = [one.ints for node in graph.node for one in node.attribute if node.op_type == "Conv" and one.name == "pads"]
    assert sum(before != behind for before, _, behind, _ in pads) == 4


@pytest.mark.parametrize("name", ["tiny", "wordepth-tiny"])
def test_the_card_knows_the_files_and_they_are_of_its_weights(command: Run, name: str) -> None:
    record = registry.entry(name).weights
    assert record is not None
    assert record.onnx is not None
    assert file_sha256(record.onnx.path) == record.onnx.sha256
    facts = facts_in(record.onnx.path)
    assert (facts.system, facts.kind, facts.words) == (name, "network", "tiny-words.onnx")
    beside = [facts_in(MODELS_FOLDER / file) for file in (facts.imagine, facts.draw) if file]
    assert [one.kind for one in beside] == (["imagine", "draw"] if name == "wordepth-tiny" else [])
    for one in (facts, *beside):
        assert one.provenance["sha256"] == record.sha256, "make it again: python benchmarks/embed_onnx.py"
    _, shown, _ = command("systems", "show", name)
    for stated in (record.sha256, record.onnx.sha256, record.file, record.onnx.file):
        assert stated in shown


def facts_in(path: Path) -> GraphFacts:
    model = onnx.load(path, load_external_data=False)
    return GraphFacts.from_metadata({one.key: one.value for one in model.metadata_props}, path.name)
