"""The zero-shot sets: what their files mean, and what is said about lists and files that are wrong."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest

from langdepth import protocols
from langdepth.data import hypersim
from langdepth.data.base import find_rows, open_dataset
from langdepth.data.check import check_dataset
from langdepth.errors import ImageError, LangdepthError
from langdepth.evaluate import evaluate
from langdepth.text.scenes import SCENES
from tests import miniatures
from tests.helpers import FakeSystem, save_picture
from tests.miniatures import MINIATURES, depth, ibims_edges, ibims_masks


def test_sunrgbd_turns_bits_and_knows_focal_lengths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = open_dataset("sunrgbd", miniatures.sun_listed(tmp_path, monkeypatch))
    assert [row.key.split("/")[1] for row in dataset.rows] == ["kv2", "realsense"]
    np.testing.assert_allclose(dataset[0].depth[0], depth(0), atol=0.00051)
    cameras = [dataset[i].camera for i in range(2)]
    assert [(c.fx, c.cx, c.cy) for c in cameras if c] == [(500.5, 365, 265), (501.5, 31.5, 23.5)]


def test_sunrgbd_scenes_and_split(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = find_rows("sunrgbd", miniatures.sun_official(tmp_path, monkeypatch))
    assert [row.split for row in rows] == ["train", "train", "test", "test"]
    assert {SCENES[row.scene] if row.scene >= 0 else None for row in rows} == {"classroom", None}
    assert rows[0].intrinsics == (529.5, 529.5, 365, 265)
    next(tmp_path.rglob("allsplit.mat")).unlink()
    with pytest.raises(LangdepthError, match=r"the split list is missing, SUNRGBD_val_splits\.txt or .*allsplit\.mat"):
        find_rows("sunrgbd", tmp_path, "test")


@pytest.mark.parametrize("kind", ["published", "raw", "converted"])
def test_ibims_masks_leave_depth_out(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = open_dataset("ibims1", MINIATURES["ibims1"][kind](tmp_path, monkeypatch))
    assert [row.scene_run for row in dataset.rows] == ["bathroom_02", "corridor_01"]
    right, solid = ibims_masks()
    np.testing.assert_allclose(dataset[1].depth[0], depth(0) * right * solid, atol=0.00051)


@pytest.mark.parametrize("kind", ["published", "raw"])
def test_ibims_edges_are_judged(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = open_dataset("ibims1", MINIATURES["ibims1"][kind](tmp_path, monkeypatch))
    assert dataset.stored(1).edges is None  # training has no use for them
    for place, seed in ((1, 0), (0, 1)):
        edges = dataset[place].edges
        assert edges is not None
        np.testing.assert_array_equal(edges[0].numpy(), ibims_edges(seed) > 0)
    report = evaluate(FakeSystem(), dataset, protocols.get("ibims1"), progress=False)
    # of two pictures one has a true edge; the smooth depth of a grey ramp has none
    assert report["boundaries"] == {"images": 1, "accuracy": 10.0, "completeness": 10.0}


def test_ibims_edges_of_another_size_or_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = miniatures.ibims_raw(tmp_path, monkeypatch)
    dataset = open_dataset("ibims1", root)
    save_picture(root / "edges" / "bathroom_02.png", np.zeros((40, 64), np.uint8))
    (root / "edges" / "corridor_01.png").unlink()
    with pytest.raises(ImageError, match=r"bathroom_02\.png: is 64x48, its edges are of shape \(40, 64\)"):
        dataset[0]
    with pytest.raises(ImageError, match=r"edges/corridor_01\.png: no such file"):
        dataset[1]
    assert len(check_dataset("ibims1", root).problems) == 2


def test_ibims_damaged_and_without_its_list(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = miniatures.ibims_published(tmp_path, monkeypatch)
    file = root / "ibims1_core_mat" / "corridor_01.mat"
    file.write_bytes(file.read_bytes()[:300])
    with pytest.raises(ImageError, match=r"corridor_01\.mat: damaged"):
        open_dataset("ibims1", root)[1]
    (root / "imagelist.txt").unlink()
    with pytest.raises(LangdepthError, match=r"imagelist\.txt: the split list is missing"):
        find_rows("ibims1", root)


def test_diode_masks_and_their_loss(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = open_dataset("diode-indoor", miniatures.diode_indoor(tmp_path, monkeypatch), "val")
    np.testing.assert_array_equal(dataset[0].depth[0], depth(19))
    mask = dataset.rows[0].path_depth.with_name(f"{dataset.rows[0].path_depth.stem}_mask.npy")
    np.save(mask, np.ones((4, 4)))
    with pytest.raises(ImageError, match=r"_mask\.npy: the mask is of shape \(4, 4\)"):
        dataset[0]
    mask.unlink()
    with pytest.raises(ImageError, match=r"_mask\.npy"):
        dataset[0]


def test_hypersim_distance_becomes_depth(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = open_dataset("hypersim", miniatures.hypersim_official(tmp_path, monkeypatch), "test")
    row = dataset.rows[0]
    with h5py.File(row.path_depth) as file:
        distance = file["dataset"][()].astype(np.float64)
    camera = hypersim.FOCAL * 64 / 1024
    y, x = np.mgrid[:48, :64] - np.array([23.5, 31.5])[:, None, None]
    points = np.stack([x, y, np.full((48, 64), camera)])
    expected = distance * (points / np.linalg.norm(points, axis=0))[2]
    np.testing.assert_allclose(dataset[0].depth[0], np.nan_to_num(expected), rtol=1e-5)
    (tmp_path / hypersim.SPLIT_FILE).write_text("scene_name,camera_name\nai_001_001,cam_00\n")
    with pytest.raises(LangdepthError, match="not readable as the split list"):
        find_rows("hypersim", tmp_path, "test")
    (tmp_path / hypersim.SPLIT_FILE).unlink()
    with pytest.raises(LangdepthError, match="the split list is missing"):
        find_rows("hypersim", tmp_path, "test")


def test_vkitti2_trains_on_what_its_list_leaves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = miniatures.vkitti2(tmp_path, monkeypatch)
    scenes = {split: [row.scene_run for row in find_rows("vkitti2", root, split)] for split in ("train", "test")}
    assert scenes == {"train": ["Scene01/sunset", "Scene02/sunset"], "test": ["Scene06/sunset"]}
    assert float(open_dataset("vkitti2", root, "test")[0].depth.max()) == pytest.approx(655.35)
    (root / "test.txt").unlink()
    assert len(find_rows("vkitti2", root, "train")) == 3
    with pytest.raises(LangdepthError, match=r"test\.txt: the split list is missing"):
        find_rows("vkitti2", root, "test")


@pytest.mark.parametrize("line", ["../secret.png d.png", "a.png /etc/passwd"])
def test_lists_do_not_lead_out_of_the_data_set(line: str, tmp_path: Path) -> None:
    (tmp_path / "camera01.txt").write_text(line)
    with pytest.raises(LangdepthError, match=r"camera01\.txt line 1: .* does not lie inside the data set"):
        find_rows("ddad", tmp_path)


@pytest.mark.parametrize(
    ("name", "kind"),
    [("sunrgbd", "listed"), ("diode-outdoor", "converted"), ("hypersim", "converted"), ("ddad", "converted"),
     ("diml-outdoor", "listed"), ("ibims1", "converted"), ("vkitti2", "listed")],
)  # fmt: skip
def test_files_that_a_list_names_are_missing(
    name: str, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = MINIATURES[name][kind](tmp_path, monkeypatch)
    rows = find_rows(name, root)
    rows[-1].path_depth.unlink()
    with pytest.raises(LangdepthError, match=r"1 of \d pairs are missing: .*\.png$"):
        find_rows(name, root, rows[-1].split)
