"""Evaluation: what is evaluated, what is skipped, what is reported and written."""

from __future__ import annotations

import base64
import csv
import gc
import io
import json
import math
import re
import tracemalloc
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from langdepth.errors import ImageError, LangdepthError, UsageError
from langdepth.evaluation import protocols
from langdepth.evaluation.batch import evaluate_batch
from langdepth.evaluation.evaluate import evaluate
from langdepth.evaluation.metrics import METRICS
from langdepth.evaluation.plots import plot_medians
from langdepth.evaluation.protocols import Protocol
from langdepth.evaluation.sheet import Sheet, chosen_images, sheet_row
from langdepth.evaluation.tally import Tally
from langdepth.prediction.predictor import predict_images
from langdepth.records import DepthOutput, Sample
from langdepth.text.scenes import SCENES
from tests.helpers import FakeConfig, FakeSystem, grey, save_image

pytestmark = pytest.mark.usefixtures("drawn_plots")

FULL = protocols.get("full")
KEYS = [
    "system",
    "dataset",
    "split",
    "images",
    "skipped",
    "protocol",
    "image_mean",
    "pixel_mean",
    "by_scene",
    "by_depth",
    "edges",
    "boundaries",
    "seconds",
]


class Images:
    """Even grey images for which FakeSystem's depth is ``factor`` times the target; None is a broken file."""

    name = "grey"

    def __init__(self, *factors: float | None, size: tuple[int, int] = (48, 64)) -> None:
        self.factors, self.size = factors, size
        self.split: str | None = None
        self.part: dict[str, str] = {}

    def __len__(self) -> int:
        return len(self.factors)

    def __getitem__(self, index: int) -> Sample:
        factor = self.factors[index]
        if factor is None:
            raise ImageError(f"{index}.png: is not an image")
        brightness = 0.1 * (1 + index % 9)
        depth = torch.full((1, *self.size), (1 + 9 * brightness) / factor)
        return Sample(
            image=torch.full((3, *self.size), brightness), depth=depth, mask=depth > 0, path=f"grey/{index}.png"
        )


def run(dataset: Any, protocol: Protocol = FULL, system: FakeSystem | None = None, **options: Any) -> dict[str, Any]:
    return evaluate(system or FakeSystem(), dataset, protocol, progress=False, **options)


def test_the_ground_truth_scores_perfectly() -> None:
    report = run(Images(1, 1, 1))
    for mean in ("image_mean", "pixel_mean"):
        assert report[mean]["abs_rel"] == pytest.approx(0, abs=1e-6)
        assert [report[mean][f"delta{k}"] for k in (1, 2, 3)] == [1, 1, 1]
        assert [*report[mean]] == [*METRICS]


def test_report_has_exactly_the_stated_keys(tmp_path: Path) -> None:
    dataset = Images(1.1, 1.1)
    dataset.split = "val"
    report = run(dataset, out=tmp_path / "deep" / "result.json")
    assert list(report) == [*KEYS, "per_image"]
    assert list(report.pop("per_image")) == ["index", *METRICS]
    assert report == json.loads((tmp_path / "deep" / "result.json").read_text())
    assert report["protocol"] == {"name": "full", "hash": FULL.hash, **FULL.switches()}
    assert (report["system"], report["dataset"], report["split"]) == ("fake", "grey", "val")
    assert (report["images"], report["skipped"]) == (2, 0)
    assert report["image_mean"]["abs_rel"] == pytest.approx(0.1, rel=1e-5)
    assert report["seconds"] > 0


def test_part_of_a_data_set_is_named() -> None:
    dataset = Images(1, 1, 2)
    dataset.part = {"source": "lab"}
    assert run(dataset)["dataset"] == "grey (source lab)"
    report = run(dataset, limit=2)
    assert (report["dataset"], report["images"]) == ("grey (source lab, first 2)", 2)
    assert report["image_mean"]["abs_rel"] == pytest.approx(0, abs=1e-6)
    assert run(dataset, limit=99)["images"] == 3


def test_weights_from_elsewhere_are_named() -> None:
    system = FakeSystem()
    system.provenance["weights"] = "run/best.safetensors"
    assert run(Images(1), system=system)["system"] == "fake (run/best.safetensors)"


def test_broken_and_empty_images_are_skipped_with_a_line_each(capsys: pytest.CaptureFixture[str]) -> None:
    report = run(Images(1.1, None, 1.1, math.inf, None))
    assert (report["images"], report["skipped"]) == (2, 3)
    assert report["image_mean"]["abs_rel"] == pytest.approx(0.1, rel=1e-5)
    assert sorted(capsys.readouterr().err.splitlines()) == [
        "skipped: 1.png: is not an image",
        "skipped: 4.png: is not an image",
        "skipped: grey/3.png: no known depth inside the window and range of full",
    ]


@pytest.mark.parametrize("factors", [(None, None), (math.inf,)])
def test_nothing_usable_is_an_error(factors: tuple[float | None, ...], tmp_path: Path) -> None:
    with pytest.raises(LangdepthError, match=f"none of the {len(factors)} images of 'grey' is usable"):
        run(Images(*factors), out=tmp_path / "result.json")
    assert list(tmp_path.iterdir()) == []


def test_an_empty_data_set_is_an_error() -> None:
    with pytest.raises(LangdepthError, match="'grey' has no images"):
        run(Images())


class Broken(FakeSystem):
    """Gives NaN for images brighter than one half."""

    def forward(self, image: Tensor, text: Any = None, scene: Any = None) -> DepthOutput:
        depth = super().forward(image).depth
        return DepthOutput(depth=torch.where(depth > 5.6, torch.nan, depth))


def test_depth_that_is_not_finite_stops_with_the_image(tmp_path: Path) -> None:
    with pytest.raises(
        LangdepthError, match=r"grey/5.png: 'fake' gave depth that is not finite .*; its training diverged"
    ):
        run(Images(*[1] * 9), system=Broken(), batch_size=3, out=tmp_path / "result.json")
    assert list(tmp_path.iterdir()) == []


def test_an_old_result_survives_a_failed_run(tmp_path: Path) -> None:
    result = tmp_path / "result.json"
    run(Images(1), out=result)
    old = result.read_text()
    with pytest.raises(LangdepthError, match="not finite"):
        run(Images(*[1] * 9), system=Broken(), out=result)
    assert result.read_text() == old


@pytest.mark.parametrize("name", ["r.json", "r_sheet.png", "r_error_by_range.png", "r_images.csv", "r.html"])
def test_a_file_that_is_no_report_is_not_replaced(tmp_path: Path, name: str) -> None:
    places: dict[str, Any] = {"out": tmp_path / "r.json", "html": tmp_path / "r.html"}
    (tmp_path / name).touch()
    for _ in range(2):  # an empty file, then our own
        run(Images(1, 1.1), **places)
    content = {"r.json": b'{"mine": 1}', "r.html": b"<!doctype html><p>mine", "r_images.csv": b"a,b"}.get(name)
    if content is None:
        save_image(tmp_path / name, grey(0.5))
    else:
        (tmp_path / name).write_bytes(content)
    before = (tmp_path / name).read_bytes()
    system = FakeSystem()
    with pytest.raises(LangdepthError, match=rf"{name} exists and was not written by langdepth"):
        run(Images(1, 1.1), system=system, **places)
    assert (tmp_path / name).read_bytes() == before
    assert not system.batches


class Mixed(Images):
    """Two sizes in turns of three, error growing with the index."""

    def __getitem__(self, index: int) -> Sample:
        return Images(*self.factors, size=(48, 64) if index // 3 % 2 else (64, 48))[index]


def test_batching_changes_no_number() -> None:
    factors = [1 + 0.02 * i for i in range(11)]
    single, batched = run(Mixed(*factors)), run(Mixed(*factors), batch_size=4)
    for mean in ("image_mean", "pixel_mean"):
        assert single[mean] == pytest.approx(batched[mean], rel=1e-6)


def test_batches_hold_one_size() -> None:
    system = FakeSystem()
    run(Mixed(*[1.0] * 9), system=system, batch_size=2)
    assert [shape[0] for shape in system.batches] == [2, 1, 1, 2, 2, 1]


class Sloped(FakeSystem):
    """Depth grows by 2 m from the left edge to the right edge, whatever the image."""

    def forward(self, image: Tensor, text: Any = None, scene: Any = None) -> DepthOutput:
        depth = torch.linspace(4, 6, image.shape[-1]).expand(image.shape[0], 1, image.shape[-2], -1)
        return DepthOutput(depth=depth)


class FiveMetres(Images):
    """Target 5 m everywhere."""

    def __getitem__(self, index: int) -> Sample:
        sample = super().__getitem__(index)
        sample.depth.fill_(5)
        return sample


@pytest.mark.parametrize("area", [48 * 64, 32 * 48])
@pytest.mark.parametrize("rules", [{}, {"window": (32, 48)}])
def test_depth_is_evaluated_that_predict_gives(area: int, rules: dict[str, Any]) -> None:
    random = torch.Generator().manual_seed(0)
    stored = Images(1)[0]
    stored.image = torch.randint(256, (3, 48, 64), generator=random, dtype=torch.uint8)
    system = FakeSystem(FakeConfig(area=area))  # sees the image at its own size, or a smaller one
    evaluated = evaluate_batch(system, [stored], FULL.override(flip=True, **rules))
    predicted = predict_images(system, stored.image, flip=True, **rules)
    np.testing.assert_allclose(evaluated.prediction[0, 0].numpy(), predicted.depth, rtol=1e-6)
    assert evaluated.prediction.std() > 0.1


def test_bytes_are_evaluated_as_floats_are() -> None:
    random = torch.Generator().manual_seed(0)
    stored = Images(1)[0]
    stored.image = torch.randint(256, (3, 48, 64), generator=random, dtype=torch.uint8)
    system = FakeSystem(FakeConfig(area=48 * 64))
    evaluated, same = (
        evaluate_batch(system, [replace(stored, image=i)], FULL) for i in (stored.image, stored.image / 255)
    )
    assert torch.equal(evaluated.prediction, same.prediction)
    assert np.array_equal(sheet_row(evaluated, 0, "").image, sheet_row(same, 0, "").image)


def test_flip_averages_with_the_mirrored_image() -> None:
    assert run(FiveMetres(1), system=Sloped())["image_mean"]["rmse"] > 0.5
    flipped = run(FiveMetres(1), FULL.override(flip=True), Sloped())
    assert flipped["image_mean"]["rmse"] == pytest.approx(0, abs=1e-5)


def test_alignment_forgives_the_scale_only_when_asked() -> None:
    dataset = Images(2, 2)
    assert run(dataset)["image_mean"]["abs_rel"] == pytest.approx(1, rel=1e-5)
    for kind in ("median", "least_squares"):
        report = run(dataset, FULL.override(alignment=kind))
        assert report["image_mean"]["abs_rel"] == pytest.approx(0, abs=1e-6)
        assert report["protocol"]["name"] == f"full+alignment={kind}"
        assert report["protocol"]["hash"] != FULL.hash


def test_a_fit_to_a_handful_of_pixels_is_no_number(capsys: pytest.CaptureFixture[str]) -> None:
    """Any two pixels are fitted perfectly by a factor and a shift."""
    sample, other = Images(1)[0], Images(1)[0]
    for one, known in ((sample, 9), (other, 10)):
        one.depth[:] = 0
        one.depth.view(-1)[:known] = torch.linspace(1, 5, known)
        one.mask = one.depth > 0
    evaluated = evaluate_batch(FakeSystem(), [sample, other], FULL.override(alignment="least_squares"))
    assert evaluated.valid.flatten(1).sum(1).tolist() == [0, 10]
    assert (
        int(evaluate_batch(FakeSystem(), [sample], FULL).valid.sum()) == 9
    )  # metric depth: every pixel, as in the literature
    stated = FULL.override(alignment="least_squares", min_pixels=9)
    assert int(evaluate_batch(FakeSystem(), [sample], stated).valid.sum()) == 9
    assert int(evaluate_batch(FakeSystem(), [other], FULL.override(min_pixels=11)).valid.sum()) == 0
    assert stated.hash != FULL.override(alignment="least_squares").hash

    class Few(Images):
        def __getitem__(self, index: int) -> Sample:
            return (sample, other)[index]

    assert run(Few(1, 1), FULL.override(alignment="median"))["skipped"] == 1
    assert "fewer than 10 known depths inside the window and range of full+alignment=median" in capsys.readouterr().err


def test_relative_depth_needs_an_alignment() -> None:
    system = FakeSystem()
    system.scale_kind = "relative"
    with pytest.raises(UsageError, match="add an alignment: median or least_squares"):
        run(Images(1), system=system)
    assert run(Images(3), FULL.override(alignment="median"), system)["image_mean"]["delta1"] == 1


class Nothing(FakeSystem):
    """0 m in most places."""

    def forward(self, image: Tensor, text: Any = None, scene: Any = None) -> DepthOutput:
        return DepthOutput(depth=torch.arange(-40.0, 24).clamp(min=0).expand(len(image), 1, 48, 64))


@pytest.mark.parametrize("clamp", [True, False])
def test_a_median_of_nothing_cannot_be_aligned(clamp: bool) -> None:
    with pytest.raises(LangdepthError, match=r"grey/0.png: 'fake': no alignment by median, since .* not above 0"):
        run(Images(1), FULL.override(alignment="median", clamp_prediction=clamp), Nothing())


def test_clamp_limits_the_prediction_not_the_target() -> None:
    dataset = Images(0.5)  # predicts 1.9 m for 3.8 m
    report = run(dataset, FULL.override(min_depth=3.0, max_depth=10.0))
    assert report["image_mean"]["rmse"] == pytest.approx(0.8, rel=1e-5)
    report = run(dataset, FULL.override(min_depth=3.0, max_depth=10.0, clamp_prediction=False))
    assert report["image_mean"]["rmse"] == pytest.approx(1.9, rel=1e-5)


def test_unclamped_depth_must_be_positive() -> None:
    system = FakeSystem()
    system.scale.data.fill_(-1)
    with pytest.raises(LangdepthError, match=r"grey/0.png: .* use a protocol with clamp_prediction"):
        run(Images(1), FULL.override(clamp_prediction=False), system)


def test_crop_and_range_decide_what_counts() -> None:
    sample = Images(1, size=(480, 640))[0]
    sample.depth[:, :45] = 9.5  # wrong everywhere outside the window, and beyond the range inside
    sample.depth[:, 100:200] = 10.0
    evaluated = evaluate_batch(FakeSystem(), [sample], protocols.get("nyu-eigen"))
    assert int(evaluated.valid.sum()) == (426 - 100) * 560
    assert torch.allclose(evaluated.prediction[evaluated.valid], evaluated.target[evaluated.valid])


def test_kb_frame_cuts_what_the_system_sees() -> None:
    sample = Images(1, size=(375, 1242))[0]
    sample.image[:, :23] = 1.0  # would change the depth if the system saw it
    evaluated = evaluate_batch(FakeSystem(), [sample], protocols.get("kitti-eigen-garg"))
    assert evaluated.image.shape == (1, 3, 352, 1216)
    assert evaluated.prediction.shape == evaluated.target.shape == evaluated.valid.shape == (1, 1, 352, 1216)
    assert torch.allclose(evaluated.prediction, evaluated.target)


def test_a_resized_frame_is_what_the_system_gets_and_what_is_evaluated() -> None:
    sample = Images(1, size=(4, 9))[0]
    sample.image = (255 * torch.rand(3, 4, 9)).byte()
    sample.depth = torch.arange(1.0, 37).view(1, 4, 9)
    sample.mask = sample.depth % 4 > 0
    evaluated = evaluate_batch(FakeSystem(), [sample], FULL.override(frame_size=(2, 6)))
    rows, columns = [1, 3], [0, 2, 3, 5, 6, 8]  # floor((i + 0.5) * old / new)
    assert torch.equal(evaluated.target[0, 0], sample.depth[0][rows][:, columns])
    assert torch.equal(evaluated.valid[0, 0], sample.mask[0][rows][:, columns])
    pixels = Image.fromarray(sample.image.permute(1, 2, 0).numpy()).resize((6, 2), Image.Resampling.BICUBIC)
    assert torch.equal(evaluated.image[0].permute(1, 2, 0), torch.from_numpy(np.array(pixels)))
    assert evaluated.prediction.shape == (1, 1, 2, 6)


class Edges(FakeSystem):
    """3 m at the left edge of what it sees and 13 m at the right one, stated in two columns."""

    def forward(self, image: Tensor, text: Any = None, scene: Any = None) -> DepthOutput:
        return DepthOutput(depth=torch.tensor([3.0, 13.0]).expand(len(image), 1, 2, 2))


def test_views_are_limited_before_they_are_averaged() -> None:
    flipped = replace(FULL.override(flip=True, max_depth=10.0), extra_metrics=("abs_diff",))
    assert run(FiveMetres(1), flipped, Edges())["image_mean"]["abs_diff"] == pytest.approx(3)
    limited = run(FiveMetres(1), flipped.override(clamp_views=True), Edges())
    assert limited["image_mean"]["abs_diff"] == pytest.approx((3 + 10) / 2 - 5)


def test_aligned_corners_stay_where_they_are() -> None:
    rules = FULL.override(resize="bilinear-aligned")
    aligned, plain = (evaluate_batch(Edges(), [FiveMetres(1)[0]], rule).prediction[0, 0, 0] for rule in (rules, FULL))
    assert torch.allclose(aligned, torch.linspace(3, 13, 64), atol=1e-5)
    assert torch.equal(plain[:16], torch.full((16,), 3.0))  # constant up to the first pixel centre


def test_a_prediction_of_nothing_leaves_the_average_only_when_asked() -> None:
    class Holes(FakeSystem):
        def forward(self, image: Tensor, text: Any = None, scene: Any = None) -> DepthOutput:
            return DepthOutput(depth=torch.tensor([0.0, 5.0]).repeat_interleave(32).expand(len(image), 1, 48, 64))

    assert run(FiveMetres(1), FULL, Holes())["image_mean"]["delta3"] == pytest.approx(0.5)
    assert run(FiveMetres(1), FULL.override(mask_prediction=True), Holes())["image_mean"]["delta3"] == 1


@pytest.mark.parametrize("name", ["depthclip-reference", "clip-adapters-reference"])
def test_the_inner_frame_cuts_what_the_system_sees(name: str) -> None:
    sample = Images(1, size=(480, 640))[0]
    sample.image[:, :56] = sample.image[:, :, 604:] = 1.0  # would change the depth if the system saw it
    evaluated = evaluate_batch(FakeSystem(), [sample], protocols.get(name))
    assert evaluated.image.shape == (1, 3, 416, 544)
    assert torch.allclose(evaluated.prediction, evaluated.target)


def test_wrong_options_are_refused() -> None:
    for options, message in (
        ({"dtype": "float61"}, "dtype: unknown value 'float61'"),
        ({"batch_size": 0}, "batch size must be at least 1"),
        ({"batch_size": 1.5}, "batch_size: expected a whole number, got 1.5"),
        ({"limit": 0}, "limit must be at least 1"),
        ({"device": "abacus"}, "device 'abacus'"),
    ):
        with pytest.raises(UsageError, match=message):
            run(Images(1), **options)


def test_images_beside_the_report(tmp_path: Path) -> None:
    report = run(Images(*[1 + 0.1 * i for i in range(7)]), out=tmp_path / "r.json")
    with (tmp_path / "r_images.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["index"] for row in rows] == [str(i) for i in range(7)]
    mean = sum(float(row["abs_rel"]) for row in rows) / 7
    assert mean == pytest.approx(report["image_mean"]["abs_rel"], rel=1e-9)
    assert len({row["abs_rel"] for row in rows}) > 1
    assert "per_image" not in json.loads((tmp_path / "r.json").read_text())
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "r.json",
        "r_error_by_range.png",
        "r_images.csv",
        "r_sheet.png",
    ]
    for name in ("r_error_by_range.png", "r_sheet.png"):
        with Image.open(tmp_path / name) as image:
            assert np.asarray(image.convert("L")).std() > 5


@pytest.mark.parametrize("medians", [(8, 20), (2, 2.1), (0.5, 60)])
def test_axes_have_a_few_labels(medians: tuple[float, float]) -> None:
    axes = plot_medians(np.array([medians, medians[::-1]])).axes[0]
    assert 3 <= len(axes.get_xticks()) <= 8


@pytest.mark.parametrize(
    ("count", "places"),
    [
        (1, "best:0"),
        (2, "best:0 worst:1"),
        (3, "best:0 median:1 worst:2"),
        (5, "best:0 median:2 worst:4"),
        (10, "best:0 2nd best:1 median:4 median:5 2nd worst:8 worst:9"),
    ],
)
def test_sheet_shows_best_median_and_worst_once(count: int, places: str) -> None:
    assert " ".join(f"{place}:{index}" for place, index in chosen_images(range(count), range(count))) == places


def test_a_sheet_runs_no_image_again_and_keeps_few(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[int] = []
    titles: list[str] = []
    gather, add = Sheet.gather, Sheet.add

    def added(self: Sheet, *arguments: Any) -> None:
        add(self, *arguments)
        kept.append(len(self._rows))

    def gathered(self: Sheet, table: Any) -> Any:
        rows = gather(self, table)
        titles.extend(row.title for row in rows)
        return rows

    monkeypatch.setattr(Sheet, "add", added)
    monkeypatch.setattr(Sheet, "gather", gathered)
    random = np.random.default_rng(0)
    factors = 1 + random.permutation(100) / 100
    system = FakeSystem()
    run(Images(*factors), system=system, batch_size=4, out=tmp_path / "r.json")
    assert sum(shape[0] for shape in system.batches) == 100
    assert max(kept) <= 20
    names, errors = zip(*(re.findall(r"^([\w ]+):  abs_rel ([\d.]+)", title)[0] for title in titles), strict=True)
    assert names == ("best", "2nd best", "median", "median", "2nd worst", "worst")
    assert [float(error) for error in errors[:2] + errors[-2:]] == [0, 0.01, 0.98, 0.99]
    assert all(0.35 < float(error) < 0.65 for error in errors[2:4])


class Watched(Images):
    """Notes how many bytes Python, NumPy and torch hold when some of its images are asked for."""

    def __init__(self, count: int, at: tuple[int, ...]) -> None:
        super().__init__(*[1.0] * count)
        self.held = dict.fromkeys(at, 0)

    def __getitem__(self, index: int) -> Sample:
        if index in self.held:
            gc.collect()
            tensors = (thing for thing in gc.get_objects() if issubclass(type(thing), Tensor))
            bytes_held = sum(thing.nbytes for thing in tensors if thing.layout == torch.strided)
            self.held[index] = bytes_held + tracemalloc.get_traced_memory()[0]
        return super().__getitem__(index)


def test_memory_does_not_grow_with_the_data_set() -> None:
    """A kept mask would be 3072 bytes an image, a map or sample more; the number of those read ahead differs a bit."""
    dataset = Watched(500, at=(100, 499))
    tracemalloc.start()
    try:
        assert run(dataset, batch_size=2)["images"] == 500
    finally:
        tracemalloc.stop()
    assert (dataset.held[499] - dataset.held[100]) / 399 < 2000


def test_no_sum_depends_on_the_order_of_images() -> None:
    random = torch.Generator().manual_seed(0)
    dataset = Images(*[1.0] * 20)
    evaluated = [evaluate_batch(FakeSystem(), [dataset[index]], FULL) for index in range(20)]
    evaluated = [replace(one, prediction=one.prediction + torch.rand(48, 64, generator=random)) for one in evaluated]
    reports = []
    for order in (range(20), reversed(range(20))):
        tally = Tally()
        for index in order:
            tally.add([index], [dataset[index]], evaluated[index])
        tally.gather(20)
        reports.append(tally.report())
    assert reports[0] == reports[1]


def test_progress_is_plain_lines_without_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    evaluate(FakeSystem(), Images(*[1.0] * 20), FULL)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 10
    assert lines[-1] == "20 of 20 images"


class Places(Images):
    """The first two images show a kitchen, the others an unknown scene."""

    def __getitem__(self, index: int) -> Sample:
        return replace(super().__getitem__(index), scene=SCENES.index("kitchen") if index < 2 else -1)


def test_scenes_and_depths_are_distinguished() -> None:
    report = run(Places(1.0, 1.2, 2.0))  # truths: 1.9 m, 2.33 m, 1.85 m
    assert {name: scene["images"] for name, scene in report["by_scene"].items()} == {"(unknown)": 1, "kitchen": 2}
    assert report["by_scene"]["kitchen"]["abs_rel"] == pytest.approx(0.1, rel=1e-5)
    assert [(part["from"], part["to"], part["pixels"]) for part in report["by_depth"]] == [
        (1.0, 2.0, 2 * 48 * 64),
        (2.0, 3.0, 48 * 64),
    ]
    assert [part["abs_rel"] for part in report["by_depth"]] == pytest.approx([0.5, 0.2], rel=1e-5)
    assert report["edges"] is None


def test_every_image_is_counted_once() -> None:
    tally = Tally()
    for index in (0, 2):
        tally.skip(index)
    with pytest.raises(LangdepthError, match="2 images were evaluated for 3 of the data set"):
        tally.gather(3)


class Hostile(Places):
    """Paths and names that would be mark-up."""

    name = "<script>alert(1)</script>"

    def __getitem__(self, index: int) -> Sample:
        return replace(super().__getitem__(index), path=f"x/<img src=x onerror=a>{index}.png")


def test_the_page_holds_everything_and_loads_nothing(tmp_path: Path) -> None:
    run(Hostile(*[1 + 0.1 * i for i in range(7)]), html=tmp_path / "report.html")
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]
    page = (tmp_path / "report.html").read_text()
    assert "<script" not in page
    assert "<img src" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert FULL.hash in page
    assert re.findall(r"(?:src|href)=[\"'](?!data:image/(?:png|jpeg);base64,)", page) == []
    images = re.findall(r"base64,([^\"]+)", page)
    assert len(images) == 2 + 6  # error by range, scale; best, median and worst
    for content in images:
        with Image.open(io.BytesIO(base64.b64decode(content))) as image:
            assert np.asarray(image.convert("L")).std() > 5
