"""The zero-shot sets: what their files mean, and what is said about lists and files that are wrong."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import h5py
import numpy as np
import pytest
import scipy.io

from langdepth.data.base import find_rows, open_dataset
from langdepth.data.rows import Row
from langdepth.data.sets import ddad, hypersim
from langdepth.data.tools.check import check_dataset
from langdepth.errors import ImageError, LangdepthError
from langdepth.evaluation import protocols
from langdepth.evaluation.evaluate import evaluate
from langdepth.text.scenes import SCENES
from tests import miniatures
from tests.helpers import FakeSystem, save_image
from tests.miniatures import LENSES, MINIATURES, Builder, depth, ibims_edges, ibims_masks, write_lenses


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
def test_ibims_edges_are_evaluated(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = open_dataset("ibims1", MINIATURES["ibims1"][kind](tmp_path, monkeypatch))
    assert dataset.stored(1).edges is None  # training has no use for them
    for place, seed in ((1, 0), (0, 1)):
        edges = dataset[place].edges
        assert edges is not None
        np.testing.assert_array_equal(edges[0].numpy(), ibims_edges(seed) > 0)
    report = evaluate(FakeSystem(), dataset, protocols.get("ibims1"), progress=False)
    # of two images one has a true edge; the smooth depth of a grey ramp has none
    assert report["boundaries"] == {"images": 1, "accuracy": 10.0, "completeness": 10.0}


def test_ibims_cameras_are_in_the_published_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = miniatures.ibims_published(tmp_path, monkeypatch)
    dataset = open_dataset("ibims1", root)
    cameras = [dataset[i].camera for i in range(2)]
    assert [(c.fx, c.fy, c.cx, c.cy) for c in cameras if c] == [(61, 61, 31.5, 23.5), (60, 61, 31.5, 23.5)]
    file = dataset.rows[0].path_rgb
    fields = {name: np.ones((48, 64)) for name in ("depth", "mask_invalid", "mask_transp", "edges")}
    for calib in (np.eye(2), np.zeros((3, 3))):
        content = {"rgb": np.zeros((48, 64, 3), np.uint8), **fields, "calib": calib}
        scipy.io.savemat(file, {"data": content})
        with pytest.raises(ImageError, match=f"{file}: "):
            dataset[0]
        assert len(check_dataset("ibims1", root).problems) == 1


def test_ibims_edges_of_another_size_or_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = miniatures.ibims_raw(tmp_path, monkeypatch)
    dataset = open_dataset("ibims1", root)
    save_image(root / "edges" / "bathroom_02.png", np.zeros((40, 64), np.uint8))
    (root / "edges" / "corridor_01.png").unlink()
    with pytest.raises(ImageError, match=r"bathroom_02\.png: is 64x48, its edges are of shape \(40, 64\)"):
        dataset[0]
    with pytest.raises(ImageError, match=r"edges/corridor_01\.png: no such file"):
        dataset[1]
    lost, _, wrong = check_dataset("ibims1", root).problems
    assert "1 of 2 pairs are missing" in lost
    assert "its edges are of shape (40, 64)" in wrong


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


def test_hypersim_lenses_of_each_scene(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = miniatures.hypersim_official(tmp_path, monkeypatch)
    usual = [open_dataset("hypersim", root, split)[0] for split in ("train", "val", "test")]
    write_lenses(root, LENSES)
    for split, scene, plain in zip(("train", "val", "test"), LENSES, usual, strict=True):
        dataset = open_dataset("hypersim", root, split)
        with h5py.File(dataset.rows[0].path_depth) as file:
            distance = file["dataset"][()].astype(np.float64)
        rows, columns = np.mgrid[:48, :64]
        place = np.stack([(columns - 31.5) / 32, (23.5 - rows) / 24, np.ones((48, 64))])  # u, v, 1
        rays = np.einsum("ij,jhw->ihw", np.reshape(LENSES[scene], (3, 3)), place)
        expected = np.nan_to_num(distance * -rays[2] / np.linalg.norm(rays, axis=0))
        np.testing.assert_allclose(dataset[0].depth[0], expected, rtol=1e-5)
        assert np.allclose(plain.depth[0], expected, rtol=1e-4) == (split == "train")
    cameras = [open_dataset("hypersim", root, split).rows[0].intrinsics for split in ("train", "val", "test")]
    assert cameras[0] == pytest.approx((886.81, 886.81, 511.5, 383.5), abs=0.01)
    assert cameras[2] is None
    # the pixel on the axis of the shifted lens, and one a focal length to its right, seen through the matrix
    assert cameras[1] is not None
    fx, _, cx, cy = cameras[1]
    lens = np.reshape(LENSES["ai_003_010"], (3, 3))
    for right, expected_x in ((0.0, 0.0), (fx, 1.0)):
        ray = lens @ [(2 * (cx + right) + 1) / 1024 - 1, 1 - (2 * cy + 1) / 768, 1]
        assert ray / -ray[2] == pytest.approx([expected_x, 0, -1])


def test_hypersim_tables_that_are_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = miniatures.hypersim_official(tmp_path, monkeypatch)
    (root / hypersim.CAMERA_FILE).write_text("scene_name,M_cam_from_uv_00\nai_001_010,0.5\n")
    with pytest.raises(LangdepthError, match=r"metadata_camera_parameters\.csv: not readable as the table of cameras"):
        find_rows("hypersim", root)
    (root / hypersim.CAMERA_FILE).unlink()
    table = root / hypersim.SPLIT_FILE
    table.write_text(table.read_text().replace("ai_001_010,cam_00", "../ai_001_010,cam_00"))
    with pytest.raises(LangdepthError, match=r"'\.\./ai_001_010/images/scene_cam_00' does not lie inside the data set"):
        find_rows("hypersim", root, "test")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("ai_001_001,0.57,0,0", "line 5 ends too early"),
        ("ai_001_001" + ",0" * 9, "the numbers of ai_001_001 are no lens"),
        ("ai_001_001" + ",nan" * 9, "the numbers of ai_001_001 are no lens"),
        ("ai_001_001,wide" + ",0" * 8, "could not convert string to float: 'wide'"),
    ],
)
def test_hypersim_lenses_that_are_none(
    line: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = miniatures.hypersim_with_lenses(tmp_path, monkeypatch)
    with (root / hypersim.CAMERA_FILE).open("a") as file:
        file.write(line)
    with pytest.raises(LangdepthError) as caught:
        find_rows("hypersim", root, "test")
    expected = f"{root / hypersim.CAMERA_FILE}: not readable as the table of cameras ({message})"
    assert str(caught.value) == expected


def test_hypersim_split_list_that_is_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = miniatures.hypersim_official(tmp_path, monkeypatch)
    table = root / hypersim.SPLIT_FILE
    content = table.read_text()
    table.write_text(content[: content.index("ai_001_010")])
    assert check_dataset("hypersim", root).problems == [f"{table}: names no image of split test; get it again"]
    table.write_text(content[: content.index("ai_001_010,cam_00,1")])
    assert check_dataset("hypersim", root).problems == ["hypersim: 1 of 2 pairs of split test are there (50.00%)"]
    table.write_text(content[: content.index("ai_001_010") + 18])
    with pytest.raises(LangdepthError, match=r"not readable as the split list \(line 8 ends too early\)"):
        find_rows("hypersim", root, "test")


def test_ddad_points_are_moved_into_the_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = open_dataset("ddad", miniatures.ddad_published(tmp_path, monkeypatch), "val")
    assert [row.key for row in dataset.rows] == [f"000001/rgb/CAMERA_01/{i:017d}.png" for i in (2, 3)]
    assert dataset.rows[0].intrinsics == tuple(miniatures.DGP_CAMERA.values())
    for i in range(2):
        np.testing.assert_allclose(dataset[i].depth[0], miniatures.street(2 + i), rtol=1e-5)


def test_ddad_poses_agree_with_the_extrinsics_of_a_published_scene() -> None:
    """Numbers of the format's own test scene: what its sensors' poses say, its calibration says, too."""

    def pose(qw: float, qx: float, qy: float, qz: float, *place: float) -> dict[str, dict[str, float]]:
        rotation = {"qw": qw, "qx": qx, "qy": qy, "qz": qz}
        return {"rotation": rotation, "translation": dict(zip("xyz", place, strict=True))}

    laser = pose(0.2854539, -0.0045405, -0.0075921, 0.9583516, 400.859369, -259.611171, 12.499)
    camera = pose(0.6131109, -0.6216371, -0.3486726, 0.3407193, 399.324935, -258.928477, 13.842218)
    extrinsics = pose(0.5070133, -0.5062291, 0.4993248, -0.487180, 1.652009, 0.245043, 1.354847)
    car = pose(1, 0, 0, 0, 0, 0, 0)
    np.testing.assert_allclose(ddad._motion(laser, camera), ddad._motion(car, extrinsics), atol=1e-3)
    ahead = ddad._motion(laser, camera) @ [20, 0, 1, 1]  # 20 m before the rear axle and 1 m above the ground
    assert ahead == pytest.approx([0.74, 0.14, 18.34], abs=0.01)


def test_ddad_keeps_the_nearest_point_and_only_those_in_front(tmp_path: Path) -> None:
    path = tmp_path / "cloud.npz"
    points = [
        (0, 0, 8),  # on the axis: pixel (3, 2)
        (0, 0, 5),  # nearer, on the same pixel
        (0, 0, 9),
        (0, 0, -2),  # behind the camera
        (0.8, 0, 2),  # 1.6 pixels further right, so 2
        (-30, 0, 2),  # outside
        (np.nan, 0, 2),
    ]
    np.savez(path, data=np.array(points))
    row = Row(key="a", path_rgb=tmp_path / "a.png", path_depth=path)

    def seen(motion: np.ndarray) -> np.ndarray:
        return ddad._projected(row, [0, 1, 2], motion, (4.0, 4.0, 3.0, 2.0), (4, 6))

    expected = np.zeros((4, 6))
    expected[2, 3], expected[2, 5] = 5, 2
    motion = np.eye(3, 4)
    np.testing.assert_array_equal(seen(motion), expected)
    motion[1, 3] = -2.5  # the camera stands lower: all points are 2.5 m further up
    expected = np.zeros((4, 6))
    expected[0, 3], expected[1, 3] = 5, 8
    np.testing.assert_array_equal(seen(motion)[:, 3], expected[:, 3])


@pytest.mark.parametrize(
    ("file", "old", "new", "message"),
    [
        ("ddad.json", "000001/scene", "../000001/scene", r"ddad\.json: '\.\./000001/scene_\w+\.json' does not lie"),
        ("ddad.json", "scene_splits", "splits", r"ddad\.json: is not understood .* \(KeyError: 'scene_splits'\)"),
        ("ddad.json", "000001/scene", "000007/scene", r"000007/scene_a8dc5e\.json: is missing"),
        ("000001/scene_a8dc5e.json", "rgb/CAMERA_01", "../../x", r"\.json: '000001/\.\./\.\./x/.*' does not lie"),
        ("000001/scene_a8dc5e.json", "c0e1a6", "../../key", r"'calibration/\.\./\.\./key\.json' does not lie inside"),
        ("000001/scene_a8dc5e.json", '["LIDAR0"', '["LIDAR9"', r"scene_a8dc5e\.json: .* \(KeyError: 'LIDAR9'\)"),
        ("000001/scene_a8dc5e.json", '"qw"', '"w"', r"scene_a8dc5e\.json: is not understood .* \(KeyError: 'qw'\)"),
        ("000001/scene_a8dc5e.json", '"height": 60', '"height": 6000000', r"an image of 200x6000000 pixels"),
        ("000001/scene_a8dc5e.json", "{", "", r"scene_a8dc5e\.json: is not understood .*JSONDecodeError"),
        ("000001/calibration/c0e1a6.json", "CAMERA_01", "CAMERA_05", r"c0e1a6\.json: is not understood"),
    ],
)  # fmt: skip
def test_ddad_files_that_are_wrong(
    file: str, old: str, new: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = miniatures.ddad_published(tmp_path, monkeypatch)
    content = (root / file).read_text()
    (root / file).write_text(content.replace(old, new) if new else content[1:])
    with pytest.raises(LangdepthError, match=message):
        find_rows("ddad", root, "val")


def test_ddad_clouds_that_are_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = open_dataset("ddad", miniatures.ddad_published(tmp_path, monkeypatch), "val")
    path = dataset.rows[0].path_depth
    np.savez(path, data=np.ones((4, 2, 2)))
    with pytest.raises(ImageError, match=r"2\.npz: a cloud is \(points, columns\), found shape \(4, 2, 2\)"):
        dataset[0]
    np.savez(path, data=np.array([{"x": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(ImageError, match=r"2\.npz: it holds Python objects"):
        dataset[0]
    monkeypatch.setattr(ddad, "_MAX_CLOUD_BYTES", 100)
    with pytest.raises(ImageError, match="more than a cloud of points needs"):
        dataset[1]
    path.write_bytes(b"PK")
    with pytest.raises(ImageError, match=r"2\.npz: damaged or truncated"):
        dataset[0]


def test_vkitti2_trains_on_what_its_list_leaves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = miniatures.vkitti2(tmp_path, monkeypatch)
    scenes = {split: [row.scene_run for row in find_rows("vkitti2", root, split)] for split in ("train", "test")}
    assert scenes == {"train": ["Scene01/sunset", "Scene02/sunset"], "test": ["Scene06/sunset"]}
    street = open_dataset("vkitti2", root, "test")[0]
    assert not street.mask[0, :4].any()  # the sky
    assert float(street.depth.max()) == pytest.approx(60)
    assert street.mask[0, 12:].all()
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
    split = Counter(row.split for row in rows).most_common(1)[0][0]
    [row for row in rows if row.split == split][-1].path_depth.unlink()
    with pytest.warns(UserWarning, match=r"1 of \d (pairs are missing: .*\.png; \d+\.00% are|pairs of split)"):
        assert len(open_dataset(name, root, split)) == sum(row.split == split for row in rows) - 1
    for row in rows:
        row.path_depth.unlink(missing_ok=True)
    with pytest.raises(LangdepthError, match=r"(\d) of \1 pairs are missing: .*\.png$"):
        find_rows(name, root, split)


@pytest.mark.parametrize(
    ("name", "build", "lost"),
    [
        ("diode-indoor", miniatures.diode_indoor, "val/indoors/*/*/*_010_depth_mask.npy"),
        ("ibims1", miniatures.ibims_raw, "mask_transp/corridor_01.png"),
    ],
)
def test_a_lost_mask_makes_a_pair_incomplete(
    name: str, build: Builder, lost: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = build(tmp_path, monkeypatch)
    (file,) = root.glob(lost)
    file.unlink()
    with pytest.warns(UserWarning, match="1 of 2 pairs of split"):
        assert file not in {path for row in open_dataset(name, root).rows for path in row.files}
    assert f"1 of 2 pairs are missing: {file}" in check_dataset(name, root).problems[0]
