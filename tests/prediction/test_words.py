"""Features in the place of sentences, for one image and for many, and what is said when they do not fit."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import langdepth
from langdepth.errors import UsageError
from langdepth.prediction.predictor import predict_images, predict_stream
from langdepth.prediction.results import DepthResult
from langdepth.prediction.words import Words
from langdepth.systems import registry
from langdepth.systems.base import System
from tests.helpers import FakeSystem, grey, ramp

WIDTH = 1024
TINY: dict[str, Any] = {
    "encoder": 0,
    "area": 48 * 64,
    "widths": (8, 8, 12, 16),
    "bins": 8,
    "text_features": 16,
    "vocabulary": ("a", "bed"),
}
WORDEPTH: dict[str, Any] = {"encoder": "swin-mini", "resolution": (32, 64), "widths": (8, 8, 8), "latent": 8}
IMAGES = [ramp(64, 48, seed=i) for i in range(3)]


@pytest.fixture(scope="module")
def systems() -> dict[str, System]:
    """The systems that read features per image, small, with words that matter."""
    torch.manual_seed(0)
    options = {"tiny": TINY, "wordepth-s": WORDEPTH, "wordepth-nyu": WORDEPTH, "wordepth-tiny": {}}
    return {name: registry.build(name, values).eval() for name, values in options.items()}


def features(count: int) -> Tensor:
    return F.normalize(torch.randn(count, WIDTH, generator=torch.Generator().manual_seed(1)), dim=1)


def depths(results: Any) -> list[np.ndarray]:
    return [result.depth for result in ([results] if isinstance(results, DepthResult) else results)]


NAMES = ["tiny", "wordepth-s", "wordepth-nyu", "wordepth-tiny"]


@pytest.mark.parametrize("name", NAMES)
def test_a_feature_is_what_forward_makes_of_it(name: str, systems: dict[str, System]) -> None:
    system, feature = systems[name], features(1)[0]
    one, same = system.predict(IMAGES[0], text=feature), system.predict(IMAGES[0], text=feature[None].numpy())
    assert isinstance(one, DepthResult)
    assert one.provenance["text"] == f"features of shape ({WIDTH},)"
    np.testing.assert_array_equal(one.depth, depths(same)[0])
    assert not np.array_equal(one.depth, depths(langdepth.predict(IMAGES[0], system))[0])
    spoken = langdepth.predict(IMAGES[0], system, text=[feature], device="cpu")  # a list of one for one image
    np.testing.assert_array_equal(one.depth, depths(spoken)[0])


@pytest.mark.parametrize("name", NAMES)
def test_each_image_gets_its_row_and_one_row_serves_all(name: str, systems: dict[str, System]) -> None:
    system, rows = systems[name], features(3)
    each = depths(system.predict(IMAGES, text=rows))
    for i, image in enumerate(IMAGES):
        np.testing.assert_allclose(each[i], depths(system.predict(image, text=rows[i]))[0], rtol=1e-4)
    shared = depths(system.predict(IMAGES, text=rows[0]))
    np.testing.assert_allclose(shared[0], each[0], rtol=1e-4)
    np.testing.assert_allclose(shared[1], depths(system.predict(IMAGES[1], text=rows[0]))[0], rtol=1e-4)
    mirrored = depths(system.predict(IMAGES, text=rows, flip=True))
    np.testing.assert_allclose(mirrored[2], depths(system.predict(IMAGES[2], text=rows[2], flip=True))[0], rtol=1e-4)


def test_features_go_with_samples(systems: dict[str, System]) -> None:
    rows = features(2)
    both = systems["wordepth-s"].predict(IMAGES[:2], text=rows, samples=2)
    one = systems["wordepth-s"].predict(IMAGES[1], text=rows[1], samples=2)
    np.testing.assert_allclose(depths(both)[1], depths(one)[0], rtol=1e-4)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            torch.zeros(2, WIDTH),
            r"features of shape \(2, 1024\) for 3 images; give \(D,\) for all of them, or \(3, D\)",
        ),
        (torch.zeros(1, 3, WIDTH), "for 3 images"),
        (torch.tensor(1.0), "for 3 images"),
        (features(3)[:, :8], r"have shape \(1, 8\)|have shape \(2, 8\)|have shape \(3, 8\)"),
        (features(3) * 5, "norms from 5 to 5, not 1; divide each by its norm"),
        (features(3).index_fill(0, torch.tensor(1), torch.nan), "some features are not finite"),
        (np.array(["a"]), "holds no features"),
        (b"7", "give a sentence or CLIP features, not bytes"),
        ([features(3)[0]], "text: 1 given for 3 images"),
        ([torch.zeros(8), torch.zeros(1, 8), torch.zeros(9)], r"different shapes, \(8,\) and \(9,\)"),
    ],
)
def test_features_that_do_not_fit(name: str, text: Any, message: str, systems: dict[str, System]) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        systems[name].predict(IMAGES, text=text)
    assert "\n" not in str(caught.value)


def test_systems_that_read_no_features_of_images_say_what_they_read() -> None:
    scale: dict[str, Any] = {"encoder": "test_convnext", "channels": 32, "pixel_layers": 1, "pixel_hidden": 32}
    scale |= {"decoder_layers": 3, "decoder_hidden": 32, "bins": 8, "area": 64 * 64}
    for name, message in (("scaledepth-n", "takes one row per scene"), ("scaledepth-k", "takes one row per scene")):
        with pytest.raises(UsageError, match=message):
            registry.build(name, scale).predict(grey(0.5, 64, 64), text=features(1)[0])
    few = registry.build("scaledepth-n", scale)
    table = F.normalize(torch.randn(27, 96), dim=1)
    with torch.inference_mode():
        few.scene_table.copy_(table)
    described, plain = (
        few.predict(IMAGES[:2], text=table),
        few.predict(IMAGES[:2]),
    )  # rows of scenes hold for all images
    for one, other in zip(depths(described), depths(plain), strict=True):
        np.testing.assert_array_equal(one, other)


class Reader(FakeSystem):
    """Its depth is as many times larger as the sentence has words, or as the feature's first number says."""

    def forward(self, image, text=None, scene=None):  # type: ignore[no-untyped-def]
        output = super().forward(image)
        if text is None:
            return output
        if isinstance(text, Tensor):
            scale = text[:, 0]
        else:
            if "xyzzy" in text:
                raise UsageError("text 'xyzzy': none of its words is known")
            scale = torch.tensor([float(len(sentence.split())) for sentence in text])
        output.depth *= scale[:, None, None, None]
        return output


def test_a_stream_mixes_sentences_features_and_none_and_one_refused_sentence_costs_one_image() -> None:
    words = {
        "a": Words(sentence="one two three"),
        "b": None,
        "c": Words(sentence="xyzzy"),
        "d": Words(sentence="a bed", feature=torch.tensor([5.0, 0])),
        "e": Words(sentence="one"),
    }
    found = dict(predict_stream(Reader(), words, read=lambda _: grey(0.5), text=words.get, batch_size=4))
    scales = {key: float(r.depth.mean()) / 5.5 for key, r in found.items() if isinstance(r, DepthResult)}
    assert scales == pytest.approx({"a": 3, "b": 1, "d": 5, "e": 1}, rel=1e-2)
    assert str(found["c"]) == "image in memory: text 'xyzzy': none of its words is known"
    described = found["d"]
    assert isinstance(described, DepthResult)
    assert described.provenance["text"] == "a bed"
    with pytest.raises(UsageError, match="xyzzy"):  # one sentence for all is a mistake of the request
        list(predict_stream(Reader(), "ab", read=lambda _: grey(0.5), text="xyzzy"))


def test_words_of_single_images_need_a_system_that_reads_them() -> None:
    system = Reader()
    system.text_per_image = False  # type: ignore[misc]
    with pytest.raises(UsageError, match="'fake' takes no captions of images"):
        predict_stream(system, "a", text=lambda _: None)
    results = predict_images(system, [grey(0.5)] * 2, text=torch.full((2, 1), 2.0))
    assert isinstance(results, list)
