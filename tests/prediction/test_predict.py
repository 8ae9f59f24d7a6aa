"""From images to DepthResults: what comes back, batches, bounded memory, and every guard."""

from __future__ import annotations

import gc
import io
import multiprocessing
import os
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from langdepth import api
from langdepth.api import predict
from langdepth.camera import Camera
from langdepth.errors import ImageError, LangdepthError, ShortMemoryError, UsageError
from langdepth.prediction import network, pipeline
from langdepth.prediction.network import infer
from langdepth.prediction.predictor import predict_images, predict_stream
from langdepth.prediction.results import DepthResult
from langdepth.records import DepthOutput, InputSpec
from langdepth.utils.devices import move
from langdepth.weights.checkpoint import load
from tests.helpers import FakeSystem, grey, ramp, save_image


class Broken(FakeSystem):
    """Depth that is not finite for dark images."""

    def forward(self, image, text=None, scene=None):  # type: ignore[no-untyped-def]
        output = super().forward(image, text, scene)
        dark = image.mean((1, 2, 3)) < 0.5
        return DepthOutput(depth=torch.where(dark[:, None, None, None], torch.nan, output.depth))


@pytest.fixture
def system() -> FakeSystem:
    return FakeSystem()


@pytest.fixture
def cpu_threads() -> Iterator[Callable[[int], None]]:
    """Sets how many threads torch has, for one test."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def threads() -> set[str]:
    return {t.name for t in threading.enumerate() if t.name.startswith("langdepth")}


# One image


@pytest.mark.parametrize("kind", ["path", "text path", "bytes", "file", "pil", "array", "tensor", "float tensor"])
def test_every_kind_of_image_gives_the_same_depth(system: FakeSystem, tmp_path: Path, kind: str) -> None:
    pixels = ramp(70, 50)
    path = save_image(tmp_path / "a.png", pixels)
    tensor = torch.from_numpy(pixels.copy()).permute(2, 0, 1)
    source = {
        "path": path,
        "text path": str(path),
        "bytes": path.read_bytes(),
        "file": io.BytesIO(path.read_bytes()),
        "pil": Image.fromarray(pixels),
        "array": pixels,
        "tensor": tensor,
        "float tensor": tensor.float() / 255,
    }[kind]
    result = predict_images(system, source)
    expected = infer(system, tensor[None])
    assert isinstance(result, DepthResult)
    assert result.depth.shape == (50, 70)
    assert result.depth.dtype == np.float32
    np.testing.assert_allclose(result.depth, expected.depth[0, 0].numpy(), atol=1e-5)
    assert result.image is not None
    assert np.array_equal(result.image, pixels)


def test_result_says_what_it_is(system: FakeSystem, tmp_path: Path) -> None:
    path = save_image(tmp_path / "a.png", grey(0.6))
    result = predict_images(system, path, text="a kitchen")
    assert isinstance(result, DepthResult)
    np.testing.assert_allclose(result.depth, 2 * (1 + 9 * 0.6), atol=1e-4)  # words double the scale
    assert result.valid.all()
    assert (result.system, result.unit, result.scale_kind) == ("fake", "metre", "metric")
    assert result.scene_probs == pytest.approx({"kitchen": 0.6, "street": 0.4}, abs=1e-5)
    provenance = result.provenance
    assert provenance["weights"]["licence"] == "none"
    assert provenance["path"] == str(path)
    assert provenance["text"] == "a kitchen"
    assert provenance["network_size"] == [48, 80]


def test_depth_that_is_not_positive_is_not_valid(system: FakeSystem) -> None:
    with torch.no_grad():
        system.scale.fill_(-1.0)
    result = predict_images(system, grey(0.5))
    assert isinstance(result, DepthResult)
    assert not result.valid.any()


@pytest.mark.parametrize("size", [(32, 32), (33, 47), (32, 640), (640, 32), (301, 199)])
def test_any_size_comes_back_at_its_own_size(system: FakeSystem, size: tuple[int, int]) -> None:
    width, height = size
    result = predict_images(system, ramp(width, height))
    assert isinstance(result, DepthResult)
    assert result.depth.shape == result.valid.shape == (height, width)
    assert np.isfinite(result.depth).all()


@pytest.mark.slow
def test_fifty_megapixels_never_become_float(system: FakeSystem, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[torch.dtype, int]] = []
    as_float = network.as_float

    def watch(image: torch.Tensor) -> torch.Tensor:
        seen.append((image.dtype, image.numel()))
        return as_float(image)

    monkeypatch.setattr(network, "as_float", watch)
    result = predict_images(system, np.full((6250, 8000, 3), 51, np.uint8))
    assert isinstance(result, DepthResult)
    assert result.depth.shape == (6250, 8000)
    assert abs(float(result.depth[::500, ::500].mean()) - (1 + 9 * 0.2)) < 1e-3
    assert seen
    assert max(count for _, count in seen) < 100_000


def test_flip_averages_with_the_mirrored_image(system: FakeSystem) -> None:
    class Lopsided(FakeSystem):
        def forward(self, image, text=None, scene=None):  # type: ignore[no-untyped-def]
            output = super().forward(image, text, scene)
            return DepthOutput(depth=output.depth * torch.linspace(1, 3, output.depth.shape[-1]))

    plain, flipped = (predict_images(Lopsided(), grey(0.5), flip=flip) for flip in (False, True))
    assert isinstance(plain, DepthResult)
    assert isinstance(flipped, DepthResult)
    assert np.ptp(plain.depth) > 5
    np.testing.assert_allclose(flipped.depth, 2 * (1 + 9 * 0.5), rtol=0.01)


def test_bfloat16_is_close_and_float32_by_default(system: FakeSystem) -> None:
    exact, coarse = (predict_images(system, ramp(), dtype=dtype) for dtype in (None, "bfloat16"))
    assert isinstance(exact, DepthResult)
    assert isinstance(coarse, DepthResult)
    assert coarse.depth.dtype == np.float32
    np.testing.assert_allclose(coarse.depth, exact.depth, rtol=0.02)
    assert coarse.provenance["dtype"] == "bfloat16"


def test_prediction_leaves_training_mode(system: FakeSystem) -> None:
    system.train()
    predict_images(system, grey(0.5))
    assert not system.training


# The camera


def test_camera_given_goes_before_exif_and_is_scaled(system: FakeSystem, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif.get_ifd(0x8769)[0xA405] = 28  # focal length for 35 mm film
    path = save_image(tmp_path / "a.jpg", grey(0.5), exif=exif)
    stated = predict_images(system, path)
    assert isinstance(stated, DepthResult)
    assert stated.camera is not None
    assert stated.camera.source == "exif"
    given = predict_images(system, path, camera=Camera.from_focal(100.0, 128, 96))
    assert isinstance(given, DepthResult)
    assert given.camera == Camera.from_focal(50.0, 64, 48)
    made = predict_images(system, grey(0.5), camera=lambda width, height: Camera.from_fov(90, width, height))
    assert isinstance(made, DepthResult)
    assert made.camera is not None
    assert made.camera.fx == pytest.approx(32)
    none = predict_images(system, grey(0.5))
    assert isinstance(none, DepthResult)
    assert none.camera == Camera.guess(64, 48)
    assert none.camera.source == "guess"


def test_camera_of_another_shape_is_refused(system: FakeSystem) -> None:
    with pytest.raises(UsageError, match="camera is for 160x90"):
        predict_images(system, grey(0.5), camera=Camera.from_focal(100.0, 160, 90))


# Several


@pytest.mark.parametrize(("cores", "largest"), [(1, 3), (2, 2), (8, 1)])
def test_batch_equals_singles_in_the_order_given(
    system: FakeSystem, cpu_threads: Callable[[int], None], cores: int, largest: int
) -> None:
    cpu_threads(cores)
    images = [ramp(64 + 40 * (i % 3), 48 + 24 * (i % 2), seed=i) for i in range(11)]
    together = predict_images(system, images, batch_size=3)
    assert max(shape[0] for shape in system.batches) == largest  # the batch is shared between the threads
    assert torch.get_num_threads() == cores
    assert isinstance(together, list)
    assert len(together) == len(images)
    for image, result in zip(images, together, strict=True):
        single = predict_images(system, image)
        assert isinstance(single, DepthResult)
        np.testing.assert_allclose(result.depth, single.depth, atol=1e-5)
        assert result.scene_probs == pytest.approx(single.scene_probs)
        assert result.image is not None
        assert np.array_equal(result.image, image)


def test_four_dimensional_tensor_is_many_and_a_list_of_one_a_list(system: FakeSystem) -> None:
    many = predict_images(system, torch.stack([torch.full((3, 48, 64), v) for v in (0.2, 0.8)]))
    assert isinstance(many, list)
    assert [round(float(r.depth.mean()), 2) for r in many] == [2.8, 8.2]
    one = predict_images(system, [grey(0.5)])
    assert isinstance(one, list)
    assert len(one) == 1
    assert predict_images(system, []) == []


def test_words_for_each_image(system: FakeSystem) -> None:
    results = predict_images(system, [grey(0.5)] * 2, text=["a kitchen", "a road"], scene=["kitchen", "Street"])
    assert isinstance(results, list)
    assert [r.provenance["text"] for r in results] == ["a kitchen", "a road"]
    assert [r.provenance["scene"] for r in results] == ["kitchen", "street"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"text": ["one"]}, "text: 1 given for 2 images"),
        ({"text": ["one", None]}, r"text: give it for all images or for none"),
        ({"scene": "kitchn"}, "did you mean 'kitchen'"),
        ({"dtype": "float23"}, "did you mean 'float32'"),
        ({"device": "warp"}, "device 'warp' cannot be used"),
        ({"device": "meta"}, "device 'meta' cannot be used here; there is cpu"),
        ({"device": "hpu"}, "device 'hpu' cannot be used here; there is cpu"),
        ({"batch_size": 0}, "batch size must be at least 1, got 0"),
        ({"batchsize": 2}, "unknown option 'batchsize': did you mean 'batch_size'"),
        ({"seed": 3}, "seed is of samples"),
        ({"samples": 2}, "draws no depth from words"),
    ],
)
def test_wrong_options_are_usage_errors(system: FakeSystem, options: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        predict_images(system, [grey(0.5)] * 2, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("device", ["meta", "hpu", "cuda:7", "warp"])
def test_a_wrong_device_leaves_the_model_as_it_was(device: str) -> None:
    model = load("tiny")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(UsageError, match=f"^device '{device}' cannot be used here"):
        model.predict(ramp(), device=device)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_a_device_whose_memory_is_short_leaves_the_model_where_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    module = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2))

    def half_way(device: object) -> None:
        module[0].to(torch.float64)
        if device != torch.device("cpu"):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
        asked.append(device)

    asked: list[object] = []
    monkeypatch.setattr(module, "to", half_way)
    with pytest.raises(ShortMemoryError, match=r"^device 'cpu:0': not enough memory for the network$"):
        move(module, "cpu:0")
    assert asked == [torch.device("cpu")]


@pytest.mark.parametrize(
    ("camera", "message"),
    [
        (lambda width, height: None, r"camera: expected a Camera, or a function \(width, height\) that gives one"),
        ("60", "camera: expected a Camera, a function, None or a list, got '60'"),
    ],
)
def test_what_is_no_camera(system: FakeSystem, camera: object, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        predict_images(system, grey(0.5), camera=camera)  # type: ignore[arg-type]


def test_scene_for_a_system_without_scenes_is_refused(system: FakeSystem) -> None:
    system.scenes = ()
    with pytest.raises(UsageError, match="takes no scene"):
        predict_images(system, grey(0.5), scene="kitchen")


def test_unusable_image_is_named(system: FakeSystem, tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"gone\.jpg"):
        predict_images(system, [grey(0.5), tmp_path / "gone.jpg"])
    assert not threads()


def test_depth_that_is_not_finite_is_never_passed_on(tmp_path: Path) -> None:
    dark = save_image(tmp_path / "dark.png", grey(0.1))
    with pytest.raises(LangdepthError, match=r"dark\.png.*not finite"):
        predict_images(Broken(), dark)
    bright = save_image(tmp_path / "bright.png", grey(0.9))
    outcomes = dict(predict_stream(Broken(), [bright, dark], batch_size=2))  # one batch
    assert isinstance(outcomes[bright], DepthResult)
    assert isinstance(outcomes[dark], LangdepthError)


def test_module_level_predict_loads_once(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: list[str] = []

    def load(names: tuple[str, ...], **options: object) -> FakeSystem:
        loaded.extend(names)
        return FakeSystem()

    monkeypatch.setattr(api, "load", load)
    api._loaded.cache_clear()
    for _ in range(2):
        assert isinstance(predict(grey(0.5), "anything"), DepthResult)
    api._loaded.cache_clear()
    assert loaded == ["anything"]
    assert isinstance(predict(grey(0.5), FakeSystem()), DepthResult)


def test_another_file_under_the_same_name_is_loaded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As after os.chdir, or when a file of equal size and age replaces another."""
    loaded: list[str] = []
    monkeypatch.setattr(api, "load", lambda names, **options: loaded.extend(names) or FakeSystem())
    api._loaded.cache_clear()
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        monkeypatch.chdir(tmp_path / folder)
        Path("m.safetensors").write_bytes(b"weights")
        os.utime("m.safetensors", (1e9, 1e9))
        for _ in range(2):
            predict(grey(0.5), "m.safetensors")
    api._loaded.cache_clear()
    assert len(loaded) == 2


@pytest.mark.parametrize(
    "name", ["folder", "module_of_ones_own:Net@folder", "module_of_ones_own:Net@folder/w.safetensors"]
)
def test_a_folder_or_own_class_that_changed_is_loaded_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str
) -> None:
    loaded: list[str] = []
    monkeypatch.setattr(api, "load", lambda names, **options: loaded.extend(names) or FakeSystem())
    monkeypatch.setattr(sys, "path", [*sys.path])
    api._loaded.cache_clear()
    for place in ("a", "b"):
        (tmp_path / place / "folder").mkdir(parents=True)
        (tmp_path / place / "folder" / "w.safetensors").write_bytes(b"weights")
        (tmp_path / place / "module_of_ones_own.py").write_text("")
    expected = 0
    for change in ("a/folder/w.safetensors", "a/module_of_ones_own.py", "b/folder/w.safetensors"):
        monkeypatch.chdir(tmp_path / change[0])
        (tmp_path / change).write_text(f"# {change}")
        expected += name != "folder" or not change.endswith(".py")
        for _ in range(2):
            predict(grey(0.5), name)
        assert len(loaded) == expected
    api._loaded.cache_clear()


# Inference at the image's size, as evaluation uses it


def test_infer_takes_uint8_and_float_alike(system: FakeSystem) -> None:
    pixels = torch.from_numpy(ramp(130, 90)).permute(2, 0, 1)[None]
    whole, fine = infer(system, pixels), infer(system, pixels.float() / 255)
    assert whole.depth.shape == (1, 1, 90, 130)
    torch.testing.assert_close(whole.depth, fine.depth, atol=9 * 0.6 / 255, rtol=0)


# The stream


def test_stream_reports_bad_files_and_goes_on(system: FakeSystem, tmp_path: Path) -> None:
    good = [save_image(tmp_path / f"{i}.png", ramp(seed=i)) for i in range(5)]
    bad = tmp_path / "bad.jpg"
    bad.write_text("no image")
    outcomes = dict(predict_stream(system, [*good[:2], bad, *good[2:]], batch_size=2))
    assert isinstance(outcomes.pop(bad), ImageError)
    assert set(outcomes) == set(good)
    for path, result in outcomes.items():
        single = predict_images(system, path)
        assert isinstance(result, DepthResult)
        assert isinstance(single, DepthResult)
        np.testing.assert_allclose(result.depth, single.depth, atol=1e-5)
        assert result.image is None
    assert not threads()


def test_images_of_one_shape_share_a_batch(system: FakeSystem, cpu_threads: Callable[[int], None]) -> None:
    cpu_threads(1)
    sizes = [(64, 48), (48, 64)] * 8
    list(predict_stream(system, range(16), read=lambda i: ramp(*sizes[i]), batch_size=4))
    assert [shape[0] for shape in system.batches] == [4, 4, 4, 4]


@pytest.mark.parametrize("shapes", [1, 12, 60])
def test_memory_does_not_grow_with_the_number_of_images(
    system: FakeSystem, monkeypatch: pytest.MonkeyPatch, cpu_threads: Callable[[int], None], shapes: int
) -> None:
    cpu_threads(1)  # so that a batch of a shape is two images: each shape could hold one back
    system.input_spec = InputSpec(multiple_of=16)  # every shape of an image is one of the network
    alive, most = 0, 0
    lock = threading.Lock()
    read_image = pipeline.read_image

    def gone() -> None:
        nonlocal alive
        with lock:
            alive -= 1

    def counted(source: object) -> object:
        nonlocal alive, most
        image = read_image(source)
        weakref.finalize(image.pixels, gone)
        with lock:
            alive += 1
            most = max(most, alive)
        return image

    monkeypatch.setattr(pipeline, "read_image", counted)
    images = predict_stream(
        system, range(150), read=lambda i: ramp(64 + 16 * (i % shapes), 64), batch_size=2, workers=2, keep_image=True
    )
    count = sum(isinstance(result, DepthResult) for _, result in images)
    assert count == 150
    gc.collect()
    assert most <= 4 * 2 + 2 + 2 + 4 + 3  # waiting, decoded ahead, in the network, in hands


def test_stream_pulls_paths_only_as_it_needs_them(system: FakeSystem) -> None:
    pulled = 0

    def endless():  # type: ignore[no-untyped-def]
        nonlocal pulled
        while True:
            pulled += 1
            yield pulled

    stream = predict_stream(system, endless(), read=lambda _: grey(0.5), batch_size=2, workers=2)
    for _ in range(5):
        next(stream)
    assert pulled < 20
    stream.close()
    assert not threads()


def test_threads_end_when_the_system_fails(tmp_path: Path) -> None:
    class Failing(FakeSystem):
        def forward(self, image, text=None, scene=None):  # type: ignore[no-untyped-def]
            raise RuntimeError("broken inside")

    with pytest.raises(RuntimeError, match="broken inside"):
        list(predict_stream(Failing(), range(20), read=lambda _: grey(0.5)))
    assert not threads()


def test_stream_refuses_wrong_options_before_any_work(system: FakeSystem) -> None:
    with pytest.raises(UsageError):
        predict_stream(system, [], scene="castle in the air")
    with pytest.raises(UsageError):
        predict_stream(system, [], batch_size=-1)


class Hungry(FakeSystem):
    """Lacks memory for more than ``most`` pixels at once."""

    def __init__(self, most: int, error: type[Exception] = RuntimeError) -> None:
        super().__init__()
        self.most, self.error = most, error

    def forward(self, image, text=None, scene=None):  # type: ignore[no-untyped-def]
        if image[:, 0].numel() > self.most:
            raise self.error("DefaultCPUAllocator: not enough memory: you tried to allocate 8 bytes")
        return super().forward(image, text, scene)


@pytest.mark.parametrize("error", [RuntimeError, MemoryError, torch.OutOfMemoryError])
def test_memory_that_is_short_costs_its_own_image(tmp_path: Path, error: type[Exception]) -> None:
    paths = [save_image(tmp_path / f"{n}.png", ramp(64, 64 if n else 200)) for n in range(4)]
    options = {"window": (64, 200), "batch_size": 4}
    found = dict(predict_stream(Hungry(64 * 64, error), paths, **options))  # type: ignore[arg-type]
    assert isinstance(found[paths[0]], ShortMemoryError)
    assert str(found[paths[0]]).startswith(f"{paths[0]}: not enough memory")
    assert all(isinstance(found[path], DepthResult) for path in paths[1:])  # of which a batch of three was too much
    with pytest.raises(MemoryError, match="not enough memory"):
        predict_images(Hungry(10, error), paths[1])


def test_memory_that_is_short_while_decoding_is_no_damage(
    system: FakeSystem, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def short(*_: object, **__: object) -> None:
        raise MemoryError

    path = save_image(tmp_path / "a.png", ramp(64, 64))
    monkeypatch.setattr("PIL.Image.Image.load", short)
    with pytest.raises(ImageError, match=r"a.png: not enough memory to decode it"):
        predict_images(system, path)


def test_what_came_before_an_error_of_the_source_is_predicted() -> None:
    """Images are read ahead, in a clip, too, of which a later frame may be damaged."""

    def frames() -> Iterator[int]:
        yield from range(3)
        raise ImageError("the fourth is damaged")

    stream = predict_stream(FakeSystem(), frames(), read=lambda _: ramp(64, 48))
    assert sorted(next(stream)[0] for _ in range(3)) == [0, 1, 2]
    with pytest.raises(ImageError, match="the fourth is damaged"):
        next(stream)


def test_a_stream_does_not_go_on_in_a_forked_process(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = predict_stream(FakeSystem(), range(3), read=lambda _: ramp(64, 48))
    next(stream)
    monkeypatch.setattr(os, "getpid", lambda: -1)  # a child would wait for ever for threads that it has not
    with pytest.raises(UsageError, match="cannot go on in the child"):
        next(stream)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork")
def test_a_child_of_a_process_that_has_predicted_can_predict(cpu_threads: Callable[[int], None]) -> None:
    """torch's threads are not inherited, and whoever counts on them waits for ever."""
    system = load("tiny")
    cpu_threads(2)
    predict_images(system, ramp(240, 320))
    child = multiprocessing.get_context("fork").Process(target=predict_images, args=(system, ramp(240, 320)))
    child.start()
    child.join(60)
    ended = child.exitcode
    child.kill()
    assert ended == 0


def test_a_camera_that_cannot_be_is_refused_in_python_too(system: FakeSystem) -> None:
    camera = Camera.from_focal(4.2, 64, 48)  # millimetres
    with pytest.raises(UsageError, match="field of view of 165 degrees"):
        predict_images(system, grey(0.5), camera=camera)
