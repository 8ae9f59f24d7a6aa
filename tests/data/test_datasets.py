"""Every data set in every layout: found, checked, shown, learned from, evaluated; and what each says about bad data."""

from __future__ import annotations

import json
import multiprocessing
import re
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import scipy.io
import torch
from PIL import Image

from langdepth.data import lists
from langdepth.data.base import DATASETS, INCOMPLETE, find_rows, layout, open_dataset
from langdepth.data.sets import kitti, nyu
from langdepth.errors import ImageError, LangdepthError, UsageError
from langdepth.evaluation.protocols import PROTOCOLS
from langdepth.records import Sample
from langdepth.systems import registry
from langdepth.text.scenes import SCENES
from langdepth.training.recipe import read_recipe
from langdepth.training.run import train
from tests import miniatures
from tests.helpers import LEARNER, FakeSystem, Run, ramp, save_image
from tests.miniatures import MINIATURES, Builder, depth, each, save_depth


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, command: Run) -> Run:
    """Run a command line; returns exit code, stdout, stderr."""
    monkeypatch.setattr("langdepth.weights.checkpoint.load", lambda name, **options: FakeSystem())
    return command


def evaluated_split(name: str, root: Path) -> str | None:
    """The split that the card says, or where the layout lacks it, another that it has."""
    found = list(dict.fromkeys(row.split for row in find_rows(name, root)))
    card = layout(name).CARD
    return card.split if card.split in found or not card.splits else found[-1]


# What holds for all


def test_every_data_set_has_a_miniature_and_a_card_that_makes_sense() -> None:
    assert set(MINIATURES) == set(DATASETS)
    for name in DATASETS:
        card = layout(name).CARD
        assert card.name == name
        assert card.protocol in PROTOCOLS
        assert card.split is None or card.split in card.splits
        assert 0 <= card.depth_range[0] < card.depth_range[1]
        assert 0 < card.median_range[0] < card.median_range[1]
        assert all((card.title, card.unit, card.invalid, card.intrinsics, card.scenes, card.licence, card.where))
        assert card.layouts


@pytest.mark.parametrize(("name", "build"), each())
def test_it_is_listed_checked_and_shown(
    name: str, build: Builder, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = build(tmp_path / "sets" / name, monkeypatch)
    rows = find_rows(name, root)
    code, out, _ = run("data", "list", "--root", tmp_path / "sets")
    line = next(line for line in out.splitlines() if line.startswith(f"{name} "))
    assert code == 0
    assert f"{root}: " in line
    code, out, err = run("data", "check", name, "--root", root)
    assert (code, err) == (0, ""), out
    assert f"{len(rows)} pairs checked, 0 problems" in out
    code, out, _ = run("data", "check", name, "--root", root, "--json")
    report = json.loads(out)
    assert (code, report["dataset"], report["pairs"], report["problems"]) == (0, name, len(rows), [])
    assert sum(split["good"] for split in report["splits"].values()) == len(rows)
    assert run("data", "show", name, "--root", root, "--out", tmp_path / "sheet.png", "--count", "2")[0] == 0
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.width > 2 * 320


@pytest.mark.parametrize(("name", "build"), each())
def test_it_is_evaluated(name: str, build: Builder, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = build(tmp_path / name, monkeypatch)
    split = evaluated_split(name, root)
    choice = ("--split", split) if split else ()
    out = tmp_path / "result.json"
    code, _, err = run("evaluate", "--data", name, "--root", root, *choice, "--out", out, "--device", "cpu")
    assert code == 0, err
    report = json.loads(out.read_text())
    assert report["images"] == len(find_rows(name, root, split))
    assert (report["dataset"], report["split"], report["skipped"]) == (name, split, 0)
    assert report["protocol"]["name"] == layout(name).CARD.protocol
    assert np.isfinite(report["image_mean"]["abs_rel"])


@pytest.mark.parametrize("name", sorted(MINIATURES))
def test_a_step_is_learned_from_it(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(registry.REGISTRY, LEARNER.name, LEARNER)
    root = next(iter(MINIATURES[name].values()))(tmp_path / name, monkeypatch)
    found = [row.split for row in find_rows(name, root)]
    learned = next((split for split in layout(name).CARD.training if split in found), found[0])
    content = {
        "system": {"name": "learner"},
        "data": {
            "name": name,
            "root": str(root),
            "train_split": learned,
            "val_split": evaluated_split(name, root) or "val",
            "batch_size": 2,
            "workers": 0,
        },
        "train": {
            "out": str(tmp_path / "run"), "epochs": 1, "max_steps": 1, "accelerator": "cpu", "previews": 0,
        },
    }  # fmt: skip
    run_folder = train(read_recipe(content))
    assert (run_folder / "best.safetensors").is_file()


@pytest.mark.parametrize(("name", "build"), each())
def test_samples_are_in_metres_and_called_by_their_place(
    name: str, build: Builder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = build(tmp_path / name, monkeypatch)
    dataset = open_dataset(name, root)
    paths = set()
    for i, row in enumerate(dataset.rows):
        sample = dataset[i]
        assert sample.image.shape[1:] == sample.depth.shape[1:]
        low, high = layout(name).CARD.depth_range
        assert low <= float(sample.depth[sample.mask].median()) <= high
        assert not row.key.startswith("/")
        paths.add(sample.path)
    assert len(paths) == len(dataset)


@pytest.mark.parametrize("name", sorted(set(MINIATURES) - {"folder"}))
def test_an_empty_folder_names_the_layouts(name: str, run: Run, tmp_path: Path) -> None:
    for command in (("data", "check", name), ("evaluate", "--data", name, "--out", tmp_path / "r.json")):
        code, out, err = run(*command, "--root", tmp_path)
        said = out.splitlines()[0] if command[0] == "data" else err
        assert code == 1
        assert f"{tmp_path}: holds no" in said
        assert layout(name).CARD.layouts[0] in said
    assert run("evaluate", "--data", name, "--out", tmp_path / "r.json", "--root", tmp_path / "none")[0] == 1


def test_unknown_names_and_splits(run: Run, tmp_path: Path) -> None:
    assert "did you mean 'nyu'" in run("data", "check", "nyuu", "--root", tmp_path)[2]
    assert "did you mean 'nyu'" in run("data", "check", "nyuu")[2]
    assert "say where nyu is: --root DIR" in run("data", "check", "nyu")[2]
    code, _, err = run("data", "check", "nyu", "--root", tmp_path, "--split", "tets")
    assert (code, err) == (2, "langdepth data: nyu has no split 'tets': did you mean 'test'?\n")


# A wrong unit, missing files, shared images


def test_a_wrong_unit_is_refused_unless_trusted(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = miniatures.nyu_exported(tmp_path / "nyu", monkeypatch)
    for file in root.rglob("sync_depth_*.png"):
        save_depth(file, depth(0), 0.0001)  # tenths of millimetres
    arguments = ("evaluate", "--data", "nyu", "--root", root, "--out", tmp_path / "r.json", "--device", "cpu")
    code, _, err = run(*arguments)
    assert code == 1
    assert err.count("\n") == 1
    assert re.search(r"the median depth of 2 maps is 2\d\.\d+ m, for nyu it should lie between 0\.8 and 8 m", err)
    assert "--trust-unit" in err
    assert not (tmp_path / "r.json").exists()
    assert run(*arguments, "--trust-unit", "--protocol", "full")[0] == 0
    code, out, _ = run("data", "check", "nyu", "--root", root)
    assert code == 1
    assert "the unit seems wrong" in out
    with pytest.raises(LangdepthError, match="unit seems wrong"):
        open_dataset("nyu", root, "train")
    assert len(open_dataset("nyu", root, "train", trust_unit=True)) == 3


def test_missing_images_are_counted_and_five_named(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = miniatures.nyu_exported(tmp_path / "nyu", monkeypatch)
    names = [*miniatures.NYU_TEST, *(f"study/rgb_{i:05d}.jpg" for i in range(7))]
    monkeypatch.setattr(nyu, "shipped", lambda _: names)
    code, out, _ = run("data", "check", "nyu", "--root", root)
    assert code == 1
    message = next(line for line in out.splitlines() if "split test: 7 of 9 pairs are missing: " in line)
    assert message.count("study/rgb_") == 5
    assert message.endswith("study/rgb_00004.jpg, ...")
    assert "5 pairs checked, 1 problem" in out
    monkeypatch.setattr(nyu, "shipped", lambda _: names[2:])
    with pytest.raises(LangdepthError, match="split test: 7 of 7 pairs are missing: "):
        open_dataset("nyu", root, "test")


def test_a_depth_map_alone_may_be_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = miniatures.kitti_raw(tmp_path / "kitti", monkeypatch)
    lost = find_rows("kitti", root, "test")[1].path_depth
    lost.unlink()
    with pytest.warns(UserWarning, match=r"kitti: 1 of 2 pairs of split test are there \(50\.00%\); figures of a part"):
        assert [row.key for row in open_dataset("kitti", root, "test").rows] == [miniatures.KITTI_TEST[0]]
    assert len(open_dataset("kitti", root, "train")) == 2


def test_too_few_images_are_a_problem(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = miniatures.nyu_annotated(tmp_path / "nyu", monkeypatch)
    monkeypatch.setattr(nyu, "CARD", replace(nyu.CARD, splits={"train": 795, "sync": 24231, "test": 2}))
    code, out, _ = run("data", "check", "nyu", "--root", root)
    assert code == 1
    assert "nyu: 3 of 795 pairs of split train are there" in out
    assert "sync" not in out.splitlines()[0]  # nobody asked for a split that is not there at all
    assert run("data", "check", "nyu", "--root", root, "--split", "test")[0] == 0


def test_too_few_images_are_reported_where_they_are_used(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = miniatures.nyu_annotated(tmp_path / "nyu", monkeypatch)
    monkeypatch.setattr(nyu, "CARD", replace(nyu.CARD, splits={"train": 795, "sync": 24231, "test": 654}))
    arguments = ("--root", root, "--out", tmp_path / "r.json", "--device", "cpu")
    code, _, err = run("evaluate", "--data", "nyu", *arguments)
    assert code == 0
    assert (
        f"langdepth evaluate: warning: {root}: nyu: 2 of 654 pairs of split test are there (0.31%); figures of a part"
        in err
    )
    assert "split train" not in err
    with pytest.warns(UserWarning, match="3 of 795 pairs of split train are there"):
        open_dataset("nyu", root, "train")
    monkeypatch.setenv("RANK", "1")
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # of several processes the first one tells
        open_dataset("nyu", root, "train")


def test_a_half_extracted_set_is_not_evaluated(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "prepared"
    root = miniatures.diode_indoor(out / "diode", monkeypatch)  # as in an archive with a folder of its own
    (out / INCOMPLETE).touch()
    code, _, err = run("evaluate", "--data", "diode-indoor", "--root", root, "--out", tmp_path / "r.json")
    message = f"{out}: 'langdepth data prepare' was interrupted here; run it again\n"
    assert (code, err) == (1, f"langdepth evaluate: {message}")
    code, text, _ = run("data", "check", "diode-indoor", "--root", root)
    assert (code, text.count(message)) == (1, 1)


def test_damaged_images_are_named(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = miniatures.kitti_raw(tmp_path / "kitti", monkeypatch)
    image = find_rows("kitti", root, "test")[0].path_rgb
    image.write_bytes(image.read_bytes()[:200])
    code, out, _ = run("data", "check", "kitti", "--root", root)
    assert code == 1
    assert f"test {miniatures.KITTI_TEST[0]}: {image}: damaged or truncated" in out


def test_shared_scenes_and_images_are_reported(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = miniatures.kitti_raw(tmp_path / "kitti", monkeypatch)
    stolen = miniatures.KITTI_TRAIN[0].replace("0000000007", "0000000012")
    monkeypatch.setattr(kitti, "shipped", {"kitti_eigen_train": KITTI[:1], "kitti_eigen_test": [stolen]}.__getitem__)
    monkeypatch.setattr(kitti, "CARD", replace(kitti.CARD, splits={"train": 1, "test": 1}))
    Image.open(root / KITTI[0]).save(root / stolen, compress_level=9)  # the same image in another file
    code, out, _ = run("data", "check", "kitti", "--root", root)
    assert code == 0
    assert "train and test share 1 scenes: kitti/2011_09_30_drive_0028_sync" in out
    assert f"train and test share 1 images: {stolen}" in out
    assert len(json.loads(run("data", "check", "kitti", "--root", root, "--json")[1])["overlaps"]) == 2


def test_splits_to_evaluate_are_compared_with_each_other(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = miniatures.kitti_selection(miniatures.kitti_raw(tmp_path / "kitti", monkeypatch), monkeypatch)
    code, out, _ = run("data", "check", "kitti", "--root", root)
    assert code == 0
    assert "val and test share 1 scenes: kitti/2011_09_26_drive_0002_sync" in out


KITTI = list(miniatures.KITTI_TRAIN)


# Lists


# The drives of the depth selection, KITTI's official ones for validation
KITTI_SELECTION = [
    "2011_09_26_drive_0002", "2011_09_26_drive_0005", "2011_09_26_drive_0013", "2011_09_26_drive_0020",
    "2011_09_26_drive_0023", "2011_09_26_drive_0036", "2011_09_26_drive_0079", "2011_09_26_drive_0095",
    "2011_09_26_drive_0113", "2011_09_28_drive_0037", "2011_09_29_drive_0026", "2011_09_30_drive_0016",
    "2011_10_03_drive_0047",
]  # fmt: skip


def test_the_shipped_lists_are_the_official_ones(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    counts = {"kitti_eigen_train": 23158, "kitti_eigen_test": 652, "nyu_sync": 24231, "nyu_test": 654}
    found = {name: lists.shipped(name) for name in lists.SHIPPED}
    assert {name: len(rows) for name, rows in found.items()} == counts
    drives = {name: {row.split("/")[1] for row in found[f"kitti_eigen_{name}"]} for name in ("train", "test")}
    assert (len(drives["train"]), len(drives["test"])) == (33, 28)
    assert not drives["train"] & drives["test"]
    selection = {f"{drive}_sync" for drive in KITTI_SELECTION}
    assert [len(selection & drives[name]) for name in ("train", "test")] == [5, 7]
    monkeypatch.setattr(lists, "_FOLDER", tmp_path)
    with pytest.raises(LangdepthError, match="install the package again"):
        lists.shipped("nyu_test")


def test_list_files(tmp_path: Path) -> None:
    path = tmp_path / "list.txt"
    with pytest.raises(LangdepthError, match=r"list\.txt: the split list is missing"):
        lists.read_list(path)
    assert lists.listed(path) == []
    path.write_text("c.png e.png 518.8\n\nb.png None 518.8\na.png d.png 518.8\n")
    assert lists.listed(path) == [("a.png", "d.png"), ("c.png", "e.png")]
    assert lists.read_list(path, 2) == [("a.png", "d.png", "518.8"), ("c.png", "e.png", "518.8")]
    path.write_text("a.png d.png\nb.png\n")
    with pytest.raises(LangdepthError, match="line 2: has 1 columns, 2 are needed"):
        lists.read_list(path, 2)
    path.write_text("\n")
    with pytest.raises(LangdepthError, match="empty"):
        lists.read_list(path)


# NYU Depth v2


@pytest.mark.parametrize("kind", ["exported", "annotated", "labelled", "labelled hdf5", "hdf5"])
def test_nyu_is_the_same_in_every_layout(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = open_dataset("nyu", MINIATURES["nyu"][kind](tmp_path, monkeypatch), "test")
    assert [SCENES[row.scene] for row in dataset.rows] == ["bathroom", "kitchen"]
    for i in range(2):
        sample = dataset[i]
        np.testing.assert_allclose(sample.depth[0].numpy(), depth(i), atol=0.00051)
        tolerance = 0 if "hdf5" in kind or kind == "labelled" else 24  # JPEG
        pixels = sample.image.permute(1, 2, 0).numpy().astype(int)
        np.testing.assert_allclose(pixels, ramp(seed=i), atol=tolerance)
        assert sample.camera is not None
        assert sample.camera.fx == pytest.approx(518.8579)


def test_nyu_sync_comes_in_the_order_of_its_list(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = open_dataset("nyu", miniatures.nyu_sync(tmp_path, monkeypatch), "sync")
    assert [row.key for row in dataset.rows] == list(miniatures.NYU_SYNC)
    assert [row.scene_run for row in dataset.rows] == ["kitchen_0028b", "living_room_0019"]
    with pytest.raises(LangdepthError, match="holds no split train of NYU Depth v2"):
        open_dataset("nyu", tmp_path, "train")


@pytest.mark.parametrize(
    ("name", "scene"),
    [
        ("kitchen_0028b", "kitchen"), ("study_room_0004", "study_room"), ("nyu_office_1", "office"),
        ("living_room", "living_room"), ("bathroom_00045.jpg", "bathroom"), ("excercise_room_0001", "excercise_room"),
        ("roof_0001", None), ("0001", None),
    ],
)  # fmt: skip
def test_nyu_scene_labels(name: str, scene: str | None) -> None:
    assert nyu.scene_label(name) == (-1 if scene is None else SCENES.index(scene))


def test_nyu_labelled_file_without_its_splits(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = miniatures.nyu_labelled(tmp_path, monkeypatch)
    (root / "splits.mat").unlink()
    code, _, err = run("evaluate", "--data", "nyu", "--root", root, "--out", tmp_path / "r.json")
    assert code == 1
    assert err.count("\n") == 1
    assert "splits.mat: the official split list is missing; put it beside the labelled file" in err
    code, out, _ = run("data", "check", "nyu", "--root", root)
    assert (code, out.count("split list is missing")) == (1, 1)


def test_nyu_splits_may_be_in_the_new_format(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = miniatures.nyu_labelled(tmp_path, monkeypatch)
    with h5py.File(root / "splits.mat", "w") as file:
        file["testNdxs"], file["trainNdxs"] = np.array([[1.0, 2.0]]), np.array([[3.0, 9.0]])
    assert [row.item for row in find_rows("nyu", root, "test")] == [0, 1]
    with pytest.raises(LangdepthError, match=r"splits\.mat: names image 9; there are 1 to 5"):
        find_rows("nyu", root, "train")


def test_nyu_splits_that_count_from_zero_or_lack_a_list(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = miniatures.nyu_labelled(tmp_path, monkeypatch)
    scipy.io.savemat(root / "splits.mat", {"trainNdxs": np.array([[4.0], [0.0]])})
    with pytest.raises(LangdepthError, match=r"splits\.mat: names image 0; there are 1 to 5$"):
        find_rows("nyu", root, "train")
    with pytest.raises(LangdepthError, match=r"splits\.mat: has no array testNdxs$"):
        find_rows("nyu", root, "test")


@pytest.mark.parametrize("matlab", [True, False])
def test_nyu_labelled_file_is_read_by_its_arrays_not_by_its_name(
    matlab: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = miniatures.nyu_labelled(tmp_path, monkeypatch)
    file = miniatures.write_labelled(root / "nyu_depth_v2_labeled.mat", matlab)
    if matlab:
        file.rename(file.with_suffix(".h5"))
    sample = open_dataset("nyu", root, "test")[0]
    np.testing.assert_array_equal(sample.depth[0].numpy(), depth(0))
    np.testing.assert_array_equal(sample.image.numpy().transpose(1, 2, 0), ramp(64, 48, seed=0))


@pytest.mark.parametrize("damage", ["truncated", "no HDF5", "no depth"])
def test_nyu_labelled_file_damaged(damage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = miniatures.nyu_labelled(tmp_path, monkeypatch)
    file = root / "nyu_depth_v2_labeled.mat"
    if damage == "no depth":
        with h5py.File(file, "r+") as content:
            del content["rawDepths"], content["depths"]
    else:
        file.write_bytes(file.read_bytes()[:5000] if damage == "truncated" else b"no such thing" * 100)
    with pytest.raises(ImageError) as caught:
        open_dataset("nyu", root, "test")[0]
    assert str(caught.value).startswith(f"{file}: ")
    assert "\n" not in str(caught.value)


def _first(dataset: Any) -> Sample:
    return dataset[0]


def test_nyu_labelled_file_is_opened_again_in_each_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = open_dataset("nyu", miniatures.nyu_labelled(tmp_path, monkeypatch), "test")
    here = dataset[0]
    # One thread, as in a loader's worker: OpenMP's threads do not live on in a forked process.
    with multiprocessing.get_context("fork").Pool(2, torch.set_num_threads, (1,)) as pool:
        for sample in pool.map(_first, [dataset] * 4):
            assert torch.equal(sample.depth, here.depth)


# KITTI


def test_kitti_cameras_follow_the_date_and_labels_are_outdoors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = find_rows("kitti", miniatures.kitti_raw(tmp_path, monkeypatch))
    focal = {row.key.split("/")[0]: row.intrinsics[0] for row in rows if row.intrinsics}
    assert focal == {"2011_09_30": 707.0912, "2011_09_26": 721.5377, "2011_10_03": 718.856}
    assert {SCENES[row.scene] for row in rows} == {"outdoor_scene"}
    assert {row.split: row.path_depth.relative_to(tmp_path).parts[0] for row in rows if "0002" in row.key} == {
        "test": "val"
    }
    sample = open_dataset("kitti", tmp_path, "test")[0]
    assert 5 < float(sample.depth[sample.mask].median()) < 40
    assert float(sample.mask.float().mean()) < 0.3


def test_kitti_selection_has_a_camera_for_each_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = miniatures.kitti_selection(tmp_path, monkeypatch)
    rows = find_rows("kitti", root, "val")
    assert [row.intrinsics for row in rows] == [(721.5, 721.5, 596.5, 149.8), (722.5, 721.5, 596.5, 149.8)]
    next(root.rglob("intrinsics/*.txt")).write_text("721.5 wide")
    with pytest.raises(LangdepthError, match="nine numbers"):
        find_rows("kitti", root, "val")


def test_an_index_and_its_folder_are_a_data_set_too(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = miniatures.folder(tmp_path / "images", monkeypatch)
    by_name, by_place = (run("data", "check", *place) for place in (("folder", "--root", root), (root,)))
    assert by_name == by_place
    assert by_place[0] == 0
    save_image(root / "3.png", ramp(seed=2))
    with (root / "index.csv").open("a") as file:
        file.write("3.png,0_depth.png,0.001,train,place 2\n")
    out = run("data", "check", root)[1]
    assert "train and val share 1 scenes: place 2" in out
    assert "train and val share 1 images: 2.png" in out
    with pytest.raises(UsageError, match="no row has split 'test'"):
        open_dataset("folder", root, "test")
