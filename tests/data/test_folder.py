"""The indexed folder: what a right index gives, and every mistake in it as one line that says where."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from langdepth.data.base import open_dataset
from langdepth.data.sets.folder import read_index
from langdepth.errors import ImageError, LangdepthError, UsageError
from langdepth.text.scenes import SCENES
from langdepth.utils.images import read_image
from langdepth.utils.reading import file_sha256
from tests.helpers import Run, ramp, save_image, write_folder


def write_index(root: Path, text: str, encoding: str = "utf-8") -> None:
    (root / "index.csv").write_bytes(text.encode(encoding))


def complaint(root: Path) -> str:
    """The one line that reading the index fails with."""
    with pytest.raises(LangdepthError) as caught:
        read_index(root)
    text = str(caught.value)
    assert text.startswith(str(root))
    assert "\n" not in text
    return text.removeprefix(str(root))


# What comes back


def test_a_sample_holds_what_the_files_and_the_index_say(tmp_path: Path) -> None:
    columns = {"source": "s", "split": "train", "scene_type": "kitchen", "text": "a kitchen", "scene": "run 7"}
    intrinsics = {"fx": 50, "fy": 51.5, "cx": 31, "cy": 23}
    root = write_folder(tmp_path, [{}, {**columns, **intrinsics, "size": (40, 56)}])
    depth = np.full((40, 56), 2000, np.uint16)
    depth[0, :5] = 0
    Image.fromarray(depth).save(root / "1_depth.png")
    dataset = open_dataset("folder", root)
    assert len(dataset) == 2

    bare, full = dataset[0], dataset[1]
    assert (bare.scene, bare.text, bare.camera, bare.source) == (-1, None, None, "")
    assert full.image.shape == (3, 40, 56)
    assert full.image.dtype == torch.uint8
    np.testing.assert_array_equal(full.image.permute(1, 2, 0).numpy(), ramp(56, 40, seed=1))
    assert full.depth.shape == full.mask.shape == (1, 40, 56)
    assert full.depth.dtype == torch.float32
    assert full.depth[full.mask].unique().tolist() == [2.0]
    assert torch.equal(full.mask[0], torch.from_numpy(depth > 0))
    assert (full.depth[~full.mask] == 0).all()
    assert (SCENES[full.scene], full.text, full.source) == ("kitchen", "a kitchen", "s")
    assert full.camera is not None
    assert (full.camera.fx, full.camera.fy, full.camera.cx, full.camera.cy) == (50, 51.5, 31, 23)
    assert (full.camera.width, full.camera.height, full.camera.source) == (56, 40, "data set")
    assert full.path == str(root / "1.png")
    assert dataset.rows[1].scene_run == "run 7"


def test_split_and_source_keep_the_matching_rows_in_order(tmp_path: Path) -> None:
    kinds = [("a", "train"), ("b", "train"), ("a", "val"), ("a", "train")]
    root = write_folder(tmp_path, [{"source": source, "split": split} for source, split in kinds])
    dataset = open_dataset("folder", root, split="train", source="a")
    assert [float(dataset[i].depth.max()) for i in range(len(dataset))] == [1, 4]  # rows 0 and 3


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        ({"split": "trian"}, "no row has split 'trian': did you mean 'train'?"),
        ({"source": "kity"}, "no row has source 'kity': did you mean 'kitti'?"),
        ({"split": "val", "source": "kitti"}, "no row has source 'kitti': known: nyu"),
    ],
)
def test_a_choice_that_keeps_nothing_names_the_nearest(tmp_path: Path, choice: dict[str, Any], expected: str) -> None:
    root = write_folder(tmp_path, [{"split": "train", "source": "kitti"}, {"split": "val", "source": "nyu"}])
    with pytest.raises(UsageError) as caught:
        open_dataset("folder", root, **choice)
    assert str(caught.value) == f"{root}: {expected}"


def test_unknown_data_sets_name_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="unknown data set 'foldr': did you mean 'folder'"):
        open_dataset("foldr", tmp_path)


# The index


def test_no_folder_no_index_no_rows(tmp_path: Path) -> None:
    assert complaint(tmp_path / "none") == ": no such folder"
    assert complaint(tmp_path) == ": has no index.csv; make one with the columns path_rgb, path_depth, depth_scale"
    write_index(tmp_path, "path_rgb,path_depth,depth_scale\n")
    assert complaint(tmp_path) == "/index.csv: has no rows"


@pytest.mark.parametrize(
    ("header", "missing"),
    [
        ("path_rgb,depth_scale", "path_depth"),
        ("rgb,depth,scale", "path_rgb and no column path_depth and no column depth_scale"),
        ("", "path_rgb"),
    ],
)
def test_missing_columns_are_named(tmp_path: Path, header: str, missing: str) -> None:
    write_index(tmp_path, f"{header}\na,b,c\n")
    assert f"/index.csv: has no column {missing}" in complaint(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("path_rgb,path_depth,depth_scale,depth_scale\na,b,1,0.001\n", "two columns are called depth_scale"),
        ("path_rgb,path_depth,depth_scale,text\na,b,1,a desk, a lamp\n", "line 2 has 5 cells, its header 4"),
    ],
)
def test_no_cell_hides_another_one(tmp_path: Path, content: str, message: str) -> None:
    write_index(tmp_path, content)
    assert f"/index.csv: not readable as CSV ({message}" in complaint(tmp_path)


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        ({"depth_scale": "a millimetre"}, "depth_scale 'a millimetre' is not a number"),
        (
            {"fx": "5e6", "fy": "60", "cx": "20", "cy": "10"},
            "focal lengths fx 5e+06, fy 60 must be positive numbers of pixels below 1e+06",
        ),
        ({"depth_scale": ""}, "depth_scale '' is not a number"),
        ({"depth_scale": "nan"}, "depth_scale 'nan' is not finite"),
        ({"depth_scale": "0"}, "depth_scale 0.0 must be positive"),
        ({"depth_scale": "-0.001"}, "depth_scale -0.001 must be positive"),
        ({"path_rgb": "../a.png"}, "path_rgb '../a.png' does not lie inside the folder"),
        ({"path_depth": "/etc/passwd"}, "path_depth '/etc/passwd' does not lie inside the folder"),
        ({"path_rgb": "x/../../a.png"}, "path_rgb 'x/../../a.png' does not lie inside the folder"),
        ({"path_rgb": ""}, "path_rgb '' does not lie inside the folder"),
        ({"scene_type": "kichen"}, "unknown scene_type 'kichen': did you mean 'kitchen'?"),
        ({"fx": "wide", "fy": 1, "cx": 1, "cy": 1}, "fx 'wide' is not a number"),
        ({"fx": 50, "cx": 1, "cy": 1}, "fy '' is not a number"),
        ({"fx": 0, "fy": 1, "cx": 1, "cy": 1}, "focal lengths fx 0, fy 1 must be positive"),
        ({"fx": 1, "fy": 1, "cx": "inf", "cy": 1}, "cx 'inf' is not finite"),
    ],
)
def test_wrong_values_name_line_and_column(tmp_path: Path, columns: dict[str, Any], expected: str) -> None:
    root = write_folder(tmp_path, [{}, columns])
    assert complaint(root).startswith(f"/index.csv line 3: {expected}")


def test_a_short_row_names_what_it_lacks(tmp_path: Path) -> None:
    write_index(tmp_path, "path_rgb,path_depth,depth_scale\na.png,b.png\n")
    assert complaint(tmp_path) == "/index.csv line 2: depth_scale '' is not a number"


def test_a_link_out_of_the_folder_is_outside(tmp_path: Path) -> None:
    root = write_folder(tmp_path / "data", [{"path_rgb": "link/a.png"}])
    (tmp_path / "other").mkdir()
    (root / "link").symlink_to(tmp_path / "other")
    message = complaint(root)
    assert f"path_rgb 'link/a.png' is, or lies behind, a link that leads out of the folder, to {tmp_path}" in message
    assert "copy the files into the folder" in message
    write_index(root, "path_rgb,path_depth,depth_scale\n../other/a.png,0_depth.png,0.001\n")
    assert "path_rgb '../other/a.png' does not lie inside the folder" in complaint(root)


def in_hub_cache(root: Path, repository: Path) -> Path:
    """The folder ``root`` as the hub's cache keeps it: a snapshot of links to files named by their content."""
    snapshot = repository / "snapshots" / "0123abcd"
    (repository / "blobs").mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for file in root.iterdir():
        blob = repository / "blobs" / file_sha256(file)
        blob.write_bytes(file.read_bytes())
        (snapshot / file.name).symlink_to(Path("..", "..", "blobs", blob.name))
    return snapshot


def test_a_snapshot_of_the_hub_is_a_data_set(tmp_path: Path, command: Run) -> None:
    root = write_folder(tmp_path / "data", [{}, {}])
    for name in ("0_depth.png", "1_depth.png"):  # the same content, which is one file of the cache
        Image.fromarray(np.full((48, 64), 2000, np.uint16)).save(root / name)
    snapshot = in_hub_cache(root, tmp_path / "datasets--a--b")
    assert len(list((tmp_path / "datasets--a--b" / "blobs").iterdir())) == 4
    np.testing.assert_allclose(open_dataset("folder", snapshot)[1].depth, 2)
    code, out, _ = command("data", "check", snapshot)
    assert (code, "2 pairs checked, 0 problems" in out) == (0, True)


def test_a_snapshot_reaches_no_further_than_its_repository(tmp_path: Path) -> None:
    root = write_folder(tmp_path / "data", [{}])
    snapshot = in_hub_cache(root, tmp_path / "cache" / "datasets--a--b")
    secret = save_image(tmp_path / "cache" / "secret.png", ramp())
    (snapshot / "0.png").unlink()
    (snapshot / "0.png").symlink_to(secret)
    assert "a link that leads out of the folder" in complaint(snapshot)
    blobs = snapshot.parent.parent / "blobs"
    blobs.rename(tmp_path / "elsewhere")
    blobs.symlink_to(tmp_path / "elsewhere")  # whoever made the folder made this link
    assert "a link that leads out of the folder" in complaint(snapshot)


def test_a_link_in_a_circle_is_one_wrong_row(tmp_path: Path, command: Run) -> None:
    root = write_folder(tmp_path / "data", [{}, {"path_rgb": "loop.png"}])
    (root / "loop.png").symlink_to("loop.png")
    code, out, err = command("data", "check", root)
    assert code == 1
    assert "loop.png: " in out
    assert "2 pairs checked, 1 problem" in out
    assert err == ""


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b'path_rgb,path_depth,depth_scale\n"a.png,b.png,1\n', "not readable as CSV"),  # a quote never closed
        (b"path_rgb,path_depth,depth_scale\n\xff\xfe.png,b.png,1\n", "not readable as CSV"),
        (b"path_rgb,path_depth,depth_scale\na\0.png,b.png,1\n", "index.csv"),
        (b"\x89PNG\r\n\x1a\n\0\0", "index.csv"),
    ],
)
def test_what_is_no_csv_is_one_line(tmp_path: Path, content: bytes, expected: str) -> None:
    (tmp_path / "index.csv").write_bytes(content)
    assert expected in complaint(tmp_path)


def test_lines_are_those_of_an_editor(tmp_path: Path) -> None:
    head = "path_rgb,path_depth,depth_scale,text\n"
    write_index(tmp_path, head + '\na.png,b.png,1,"two\nlines"\n\na.png,b.png,none,\n')
    assert complaint(tmp_path) == "/index.csv line 6: depth_scale 'none' is not a number"


def test_an_index_from_a_spreadsheet_begins_with_a_mark(tmp_path: Path) -> None:
    root = write_folder(tmp_path, [{}])
    write_index(root, (root / "index.csv").read_text(), encoding="utf-8-sig")
    assert len(open_dataset("folder", root)) == 1


def test_all_mistakes_can_be_collected(tmp_path: Path) -> None:
    root = write_folder(tmp_path, [{"depth_scale": 0}, {}, {"scene_type": "moon"}])
    problems: list[LangdepthError] = []
    assert [row.line for row in read_index(root, problems)] == [3]
    assert ["line 2" in str(problems[0]), "line 4" in str(problems[1])] == [True, True]
    assert len(problems) == 2


# The files


def test_size_mismatch_names_both_files(tmp_path: Path) -> None:
    root = write_folder(tmp_path, [{}])
    Image.fromarray(np.full((48, 63), 1000, np.uint16)).save(root / "0_depth.png")
    with pytest.raises(ImageError) as caught:
        open_dataset("folder", root)[0]
    assert str(caught.value) == (
        f"{root / '0_depth.png'}: depth is 63x48, but its image 0.png is 64x48; both must have one size"
    )


@pytest.mark.parametrize("name", ["0.png", "0_depth.png"])
@pytest.mark.parametrize("damage", ["missing", "empty", "truncated", "text"])
def test_unusable_files_are_named(tmp_path: Path, name: str, damage: str) -> None:
    root = write_folder(tmp_path, [{}])
    path = root / name
    whole = path.read_bytes()
    path.write_bytes({"empty": b"", "truncated": whole[: len(whole) // 2], "text": b"no image"}.get(damage, whole))
    if damage == "missing":
        path.unlink()
    dataset = open_dataset("folder", root)
    with pytest.raises(ImageError) as caught:
        dataset[0]
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, -1.0, 0.0])
def test_depth_without_meaning_is_unknown(tmp_path: Path, bad: float) -> None:
    root = write_folder(tmp_path, [{"path_depth": "d.npy"}])
    depth = np.full((48, 64), 2.5, np.float32)
    depth[3, 4] = bad
    np.save(root / "d.npy", depth)
    sample = open_dataset("folder", root)[0]
    assert not sample.mask[0, 3, 4]
    assert sample.depth[0, 3, 4] == 0
    assert sample.mask.sum() == 48 * 64 - 1
    assert sample.depth[sample.mask].unique().tolist() == [2.5]


def test_a_depth_map_without_any_value_has_an_empty_mask(tmp_path: Path) -> None:
    root = write_folder(tmp_path, [{}])
    Image.fromarray(np.zeros((48, 64), np.uint16)).save(root / "0_depth.png")
    sample = open_dataset("folder", root)[0]
    assert not sample.mask.any()
    assert (sample.depth == 0).all()


def test_a_camera_that_only_the_photo_states_is_taken_as_in_prediction(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif.get_ifd(0x8769)[0xA405] = 85
    stated = {"fx": 60, "fy": 60, "cx": 31.5, "cy": 23.5}
    root = write_folder(tmp_path, [{"path_rgb": "tele.jpg"}, {"path_rgb": "tele.jpg", **stated}])
    save_image(root / "tele.jpg", ramp(64, 48), exif=exif)
    of_photo, of_index = (open_dataset("folder", root)[index].camera for index in range(2))
    assert of_photo == read_image(root / "tele.jpg").camera
    assert of_index is not None
    assert (of_index.fx, of_index.source) == (60, "data set")
