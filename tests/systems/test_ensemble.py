"""Several systems as one: the mean of what each of them gives alone, whatever is done around the networks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import langdepth
from langdepth.data.base import open_dataset
from langdepth.errors import LangdepthError, UsageError
from langdepth.evaluation import protocols
from langdepth.evaluation.evaluate import evaluate
from langdepth.evaluation.predictions import Predictions
from langdepth.evaluation.saved import SaveMaps
from langdepth.prediction.results import DepthResult
from langdepth.records import DepthOutput, InputSpec
from langdepth.systems import registry
from langdepth.systems.base import System
from langdepth.systems.ensemble import Ensemble, combine
from langdepth.utils.images import read_image
from langdepth.weights import files
from tests.helpers import LEARNER, FakeConfig, FakeSystem, Learner, Run, ramp, save_image, write_folder


def fake(scale: float, area: int, licence: str = "none") -> FakeSystem:
    """Depth that is told apart by its scale and by the size of its network."""
    system = FakeSystem(FakeConfig(area=area)).eval()
    system.scale.data.fill_(scale)
    system.provenance |= {"licence": licence, "weights": f"fake {scale:g}"}
    return system


@pytest.fixture
def two() -> list[System]:
    return [fake(1.0, 64 * 64, "MIT"), fake(1.5, 32 * 32, "CC BY 4.0")]


def result(found: DepthResult | list[DepthResult]) -> DepthResult:
    assert isinstance(found, DepthResult)
    return found


@pytest.mark.parametrize(
    "options",
    [{}, {"flip": True}, {"window": (40, 48), "stride": (24, 32)}, {"text": "a kitchen"}, {"scene": "kitchen"}],
)
def test_each_member_predicts_at_its_own_size_and_the_maps_are_averaged(
    two: list[System], options: dict[str, Any]
) -> None:
    image = ramp(150, 90)
    alone = [result(system.predict(image, sky="keep", **options)) for system in two]
    together = result(Ensemble(two).predict(image, sky="keep", **options))
    np.testing.assert_allclose(together.depth, (alone[0].depth + alone[1].depth) / 2, rtol=1e-6)
    assert np.abs(alone[0].depth - alone[1].depth).max() > 0.5
    assert together.valid.all()
    if "window" not in options:  # windows are seen at their own size by both
        sizes = [{batch[-2:] for batch in system.batches} for system in two if isinstance(system, FakeSystem)]
        assert not sizes[0] & sizes[1]
    assert together.scene_probs is not None
    for name, probability in together.scene_probs.items():
        expected = np.mean([one.scene_probs[name] for one in alone if one.scene_probs])
        assert probability == pytest.approx(expected, abs=1e-6)


def test_many_images_of_many_sizes(two: list[System]) -> None:
    images = [ramp(64, 48), ramp(100, 50, seed=1), ramp(64, 48, seed=2)]
    for image, found in zip(images, Ensemble(two).predict(images), strict=True):
        expected = (result(two[0].predict(image)).depth + result(two[1].predict(image)).depth) / 2
        np.testing.assert_allclose(found.depth, expected, rtol=1e-6)


@pytest.mark.parametrize("name", ["full", "nyu-eigen", "clip-adapters-reference", "scaledepth-k-reference"])
def test_protocols_reach_every_member(two: list[System], tmp_path: Path, name: str) -> None:
    """Clamped views, aligned corners and second resizes are the members' own, before the mean."""
    root = write_folder(tmp_path / "data", [{"size": (120, 160)}, {"size": (120, 160)}])
    dataset, protocol = open_dataset("folder", root), protocols.get(name).override(max_depth=7.0, min_depth=0.5)
    maps = []
    for number, system in enumerate([*two, Ensemble(two)]):
        folder = tmp_path / str(number)
        evaluate(system, dataset, protocol, save=SaveMaps(folder=folder, formats=("npy",)), progress=False)
        maps.append(np.load(folder / "0.npy"))
    np.testing.assert_allclose(maps[2], (maps[0] + maps[1]) / 2, rtol=1e-5)


def test_provenance_lists_members_and_licences(two: list[System]) -> None:
    provenance = result(Ensemble(two).predict(ramp())).provenance
    assert provenance["weights"]["licence"] == "MIT; CC BY 4.0"
    assert [(one["system"], one["weights"], one["licence"]) for one in provenance["members"]] == [
        ("fake", "fake 1", "MIT"),
        ("fake", "fake 1.5", "CC BY 4.0"),
    ]


def test_only_metres_are_averaged(two: list[System]) -> None:
    two[1].scale_kind = "relative"
    with pytest.raises(UsageError, match="'fake' gives relative depth, and only depth in metres can be averaged"):
        Ensemble(two)
    with pytest.raises(UsageError, match="at least one system"):
        combine([])
    assert combine(two[:1]) is two[0]


def test_depth_that_one_member_does_not_know_is_no_depth(two: list[System]) -> None:
    two[1].get_parameter("scale").data.fill_(torch.nan)
    with pytest.raises(LangdepthError, match=r"mean of fake .* gave depth that is not finite"):
        Ensemble(two).predict(ramp())


def test_an_overlay_goes_to_those_that_take_one(two: list[System]) -> None:
    class Second(FakeSystem):
        takes_overlay = True

        def forward(self, image: Tensor, *words: Any, overlay: Tensor) -> DepthOutput:  # type: ignore[override]
            return super().forward(overlay)

    ensemble = Ensemble([two[0], Second().eval()])
    image, overlay = ramp(), ramp(seed=5)
    expected = (result(two[0].predict(image)).depth + result(FakeSystem().eval().predict(overlay)).depth) / 2
    np.testing.assert_allclose(result(ensemble.predict(image, overlay=overlay)).depth, expected, rtol=1e-6)


def test_scenes_are_those_that_all_members_know(two: list[System]) -> None:
    two[1].scenes = ("office",)
    ensemble = Ensemble(two)
    with pytest.raises(UsageError, match="takes no scene"):
        ensemble.predict(ramp(), scene="kitchen")
    assert result(ensemble.predict(ramp())).scene_probs is None


def test_loaded_by_a_list_of_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where a file's name has a comma; the ensemble itself is no weights file."""
    monkeypatch.setitem(registry.REGISTRY, "learner", LEARNER)
    paths = []
    for seed, name in enumerate(("a,b.safetensors", "c.safetensors")):
        torch.manual_seed(seed)
        system = registry.build("learner")
        paths.append(files.save(system, tmp_path / name, extra={"licence": f"L{seed}"}))
    ensemble = langdepth.load(paths)
    alone = [result(langdepth.load(path).predict(ramp())).depth for path in paths]
    np.testing.assert_allclose(result(ensemble.predict(ramp())).depth, (alone[0] + alone[1]) / 2, rtol=1e-6)
    np.testing.assert_array_equal(
        result(langdepth.predict(ramp(), system=paths, device="cpu")).depth, result(ensemble.predict(ramp())).depth
    )
    assert ensemble.provenance["licence"] == "L0; L1"
    assert isinstance(langdepth.load([paths[0]]), Learner)
    with pytest.raises(LangdepthError, match="could not be loaded again"):
        ensemble.save(tmp_path / "both.safetensors")


def test_commands_take_several_systems(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: Run, two: list[System]
) -> None:
    monkeypatch.chdir(tmp_path)
    root = write_folder(Path("data"), [{}, {}])
    save_image(Path("a.png"), ramp())
    systems = {"one": two[0], "two": two[1]}

    def load(name: Any, **options: Any) -> System:
        return systems[name] if isinstance(name, str) else combine([systems[one] for one in name])

    monkeypatch.setattr("langdepth.weights.checkpoint.load", load)
    code, _, err = command("predict", "a.png", "--system", "one", "--system", "two", "--save", "npz")
    guessed = "camera: unknown, taken as 60 degrees across the longer side, for 1 image; give --camera, --intrinsics or"
    assert (code, err) == (0, f"langdepth predict: {guessed} --fov for the shape of things as they are\n")
    with np.load("depth/a.npz") as content:
        members = json.loads(str(content["metadata"]))["provenance"]["members"]
        expected = (result(two[0].predict("a.png")).depth + result(two[1].predict("a.png")).depth) / 2
        np.testing.assert_allclose(content["depth"], expected, rtol=1e-6)
    assert [member["licence"] for member in members] == ["MIT", "CC BY 4.0"]
    options = ("--root", root, "--protocol", "full", "--out", "r.json", "--save", "npy", "--device", "cpu")
    assert command("evaluate", "--system", "one", "--system", "two", *options)[0] == 0
    report = json.loads(Path("r.json").read_text())
    assert report["system"] == "mean of fake (fake 1), fake (fake 1.5)"
    assert [member["weights"] for member in report["members"]] == ["fake 1", "fake 1.5"]
    again = evaluate(Predictions("r_maps", root), open_dataset("folder", root), protocols.get("full"), progress=False)
    assert again["image_mean"] == report["image_mean"]
    code, _, err = command("predict", "a.png", "--system", "one,two")
    assert code == 2
    assert "'one,two' is no file; of several systems give each its own --system" in err


def test_bytes_are_what_members_see() -> None:
    """A member shrinks the bytes of the file, as it does alone, not floats."""

    class Sees(System):
        def __init__(self) -> None:
            super().__init__({}, InputSpec(size=(32, 48)))
            self.name = "sees"

        def inference_copy(self) -> Sees:
            return self

        def forward(self, image: Tensor, *words: Any) -> DepthOutput:
            assert torch.equal(image.mul(255).round().div(255), image)
            return DepthOutput(depth=image.mean(1, keepdim=True) + 1)

    image = read_image(ramp(131, 77)).pixels
    together = result(Ensemble([Sees(), Sees()]).predict(image))
    np.testing.assert_allclose(together.depth, result(Sees().predict(image)).depth, rtol=1e-6)
