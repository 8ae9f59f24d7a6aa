"""``langdepth data cache``: frames as they were, resumed, and refused when damaged, outdated or of something else."""

from __future__ import annotations

import json
import os
import zlib
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from langdepth.data.base import find_rows, open_dataset
from langdepth.data.sets import frame_cache
from langdepth.data.sets.frame_cache import DEPTHS, EDGES, IMAGES, INDEX, PARTIAL
from langdepth.data.tools import cache
from langdepth.data.tools.cache import as_numbers, write_cache
from langdepth.errors import ImageError, LangdepthError, UsageError
from tests import miniatures
from tests.helpers import Run, write_folder
from tests.miniatures import MINIATURES, Builder, depth, each
from tests.prediction.test_orientation import INTRINSICS, write_pair


@pytest.fixture
def run(command: Run) -> Run:
    """Run ``langdepth data``; returns exit code, stdout, stderr."""
    return partial(command, "data")


@pytest.mark.parametrize(("name", "build"), each())
def test_frames_are_those_of_the_data_set(
    name: str, build: Builder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = build(tmp_path / name, monkeypatch)
    original = open_dataset(name, root)
    assert write_cache(name, root, tmp_path / "frames") == (len(original), [], len(original))
    cached = open_dataset("cache", tmp_path / "frames")
    assert len(cached) == len(original)
    for i, row in enumerate(original.rows):
        here, there = cached[i], original[i]
        assert torch.equal(here.image, there.image)
        assert torch.equal(here.mask, there.mask)
        torch.testing.assert_close(here.depth, there.depth, rtol=1e-6, atol=float(there.depth.max()) / 65535)
        assert (here.edges is None) == (there.edges is None)
        assert here.edges is None or torch.equal(here.edges, there.edges)
        assert (here.scene, here.source, here.camera) == (there.scene, there.source, there.camera)
        assert (cached.rows[i].key, cached.rows[i].split) == (row.key, row.split)


def test_a_split_and_a_frame(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = miniatures.kitti_raw(tmp_path / "kitti", monkeypatch)
    out = tmp_path / "frames"
    code, text, _ = run("cache", "kitti", "--root", root, "--out", out, "--split", "test", "--frame", "kb")
    assert (code, "2 frames" in text) == (0, True)
    assert {row.split for row in find_rows("cache", out)} == {"test"}
    with pytest.raises(UsageError, match="no row has split 'train'"):
        find_rows("cache", out, "train")
    code, _, err = run("cache", "kitti", "--root", root, "--out", out, "--split", "train", "--frame", "kb")
    assert code == 2
    assert "holds a cache with split test, not train; choose another folder" in err


def test_a_stopped_run_goes_on_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root, out = miniatures.nyu_exported(tmp_path / "nyu", monkeypatch), tmp_path / "frames"

    def stop(done: int, total: int) -> None:
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_cache("nyu", root, out, progress=stop)
    with pytest.raises(LangdepthError, match="the cache is not complete"):
        find_rows("cache", out)
    with (out / PARTIAL).open("a") as file:
        file.write('{"origin": {"key"')  # a line that the kill cut short
    assert write_cache("nyu", root, out) == (5, [], 2)
    assert write_cache("nyu", root, out) == (5, [], 0)
    assert sorted(path.name for path in out.iterdir()) == [DEPTHS, EDGES, IMAGES, INDEX]


def test_a_cache_shrinks_with_its_data_set(tmp_path: Path) -> None:
    root, out = write_folder(tmp_path / "images", [{}] * 5), tmp_path / "frames"
    write_cache("folder", root, out)
    lines = (root / "index.csv").read_text().splitlines(keepends=True)
    (root / "index.csv").write_text("".join(lines[:4]))
    assert write_cache("folder", root, out) == (3, [], 0)
    assert [row.key for row in find_rows("cache", out)] == ["0.png", "1.png", "2.png"]


def test_true_edges_are_cached_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root, out = miniatures.ibims_raw(tmp_path / "ibims1", monkeypatch), tmp_path / "frames"
    write_cache("ibims1", root, out)
    found = [sample.edges for sample in map(open_dataset("cache", out).__getitem__, range(2))]
    assert sorted(int(edges.sum()) for edges in found if edges is not None) == [0, 48]
    content = bytearray((out / EDGES).read_bytes())
    content[5] ^= 1
    (out / EDGES).write_bytes(content)
    with pytest.raises(ImageError, match=r"frame 0 .* is damaged"):
        open_dataset("cache", out)[0]


def test_caches_of_another_version_are_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root, out = write_pair(tmp_path / "data", 6, name="0.png"), tmp_path / "cache"
    for module in (frame_cache, cache):
        monkeypatch.setattr(module, "FORMAT", module.FORMAT - 1)
    assert write_cache("folder", root, out).added == 1
    monkeypatch.undo()
    with pytest.raises(LangdepthError, match="cache: the cache was written by another version of langdepth; run"):
        open_dataset("cache", out)
    assert write_cache("folder", root, out).added == 1
    assert len(open_dataset("cache", out)) == 1


def test_frames_that_come_out_otherwise_have_another_format(tmp_path: Path) -> None:
    """Where this fails because decoding has changed, raise FORMAT and state the new checksum."""
    checksum = 0
    for orientation in range(1, 9):
        out = tmp_path / f"cache{orientation}"
        write_cache("folder", write_pair(tmp_path / f"{orientation}", orientation, name="0.png", **INTRINSICS), out)
        for name in frame_cache.PARTS:
            checksum = zlib.crc32((out / name).read_bytes(), checksum)
        line = json.loads((out / "index.jsonl").read_text().splitlines()[1])
        checksum = zlib.crc32(json.dumps([line[key] for key in ("size", "scale", "intrinsics")]).encode(), checksum)
    assert (frame_cache.FORMAT, f"{checksum:08x}") == (3, "40da9f10")


@pytest.mark.parametrize("name", [IMAGES, DEPTHS])
def test_damage_is_reported_and_mended(name: str, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root, out = miniatures.nyu_exported(tmp_path / "nyu", monkeypatch), tmp_path / "frames"
    write_cache("nyu", root, out)
    content = bytearray((out / name).read_bytes())
    content[-9] ^= 1
    (out / name).write_bytes(content)
    cached = open_dataset("cache", out)
    assert cached[3].image.shape == (3, 48, 64)
    with pytest.raises(ImageError, match=r"frame 4 .* is damaged; run 'langdepth data cache' again"):
        cached[4]
    assert run("check", "cache", "--root", out)[0] == 1
    assert write_cache("nyu", root, out) == (5, [], 1)
    (out / name).write_bytes(content[:-5])
    code, text, _ = run("check", "cache", "--root", out)
    assert (code, f"has {len(content) - 5} bytes instead of {len(content)}" in text) == (1, True)
    (out / INDEX).write_text((out / INDEX).read_text()[:-20])
    with pytest.raises(LangdepthError, match=r"index\.jsonl: is damaged"):
        find_rows("cache", out)
    assert write_cache("nyu", root, out) == (5, [], 1)


def test_changed_images_make_it_outdated_lost_ones_do_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root, out = miniatures.nyu_exported(tmp_path / "nyu", monkeypatch), tmp_path / "frames"
    write_cache("nyu", root, out)
    rows = find_rows("nyu", root)
    miniatures.save_depth(rows[3].path_depth, depth(9), 0.001)
    with pytest.raises(LangdepthError, match=r"outdated: 1 of its original files have changed since, first .*\.png"):
        find_rows("cache", out)
    assert write_cache("nyu", root, out) == (5, [], 2)
    np.testing.assert_allclose(open_dataset("cache", out)[3].depth[0], depth(9), atol=0.00051)
    (tmp_path / "nyu").rename(tmp_path / "elsewhere")
    assert len(find_rows("cache", out)) == 5


@pytest.mark.parametrize(
    ("name", "build", "changed", "frames"),
    [
        ("diode-indoor", miniatures.diode_indoor, "val/indoors/*/*/*_010_depth_mask.npy", 1),
        ("ibims1", miniatures.ibims_raw, "mask_invalid/corridor_01.png", 1),
        ("ibims1", miniatures.ibims_raw, "edges/corridor_01.png", 1),
        ("ddad", miniatures.ddad_published, "000001/scene_*.json", 2),
        ("hypersim", miniatures.hypersim_with_lenses, "metadata_camera_parameters.csv", 6),
    ],
)
def test_frames_depend_on_masks_poses_and_lenses(
    name: str, build: Builder, changed: str, frames: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, out = build(tmp_path / name, monkeypatch), tmp_path / "frames"
    write_cache(name, root, out)
    (file,) = root.glob(changed)
    os.utime(file, (0, 0))
    with pytest.raises(LangdepthError, match=f"outdated: 1 of its original files .* first {file}"):
        find_rows("cache", out)
    assert write_cache(name, root, out).added == frames  # the last ones


def test_a_check_knows_the_splits_of_the_data_set(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root, out = miniatures.nyu_sync(tmp_path / "nyu", monkeypatch), tmp_path / "frames"
    learned, _, evaluated, _ = find_rows("nyu", root)
    evaluated.path_rgb.write_bytes(learned.path_rgb.read_bytes())
    write_cache("nyu", root, out)
    code, text, _ = run("check", "cache", "--root", out)
    assert code == 0, text
    assert f"sync and test share 1 images: {evaluated.key}\n" in text
    assert "train/val/test/sync" in text
    assert "0/0/2/2" in text
    (out / INDEX).write_text("[]")
    assert run("check", "cache", "--root", out)[0] == 1


def test_unusable_pairs_are_left_out_and_reported(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root, out = miniatures.nyu_exported(tmp_path / "nyu", monkeypatch), tmp_path / "frames"
    image = find_rows("nyu", root)[1].path_rgb
    image.write_bytes(image.read_bytes()[:200])
    code, text, _ = run("cache", "nyu", "--root", root, "--out", out)
    assert code == 1
    assert f"left out: {image}: " in text
    assert len(open_dataset("cache", out)) == 4
    assert open_dataset("cache", out)[3].mask.any()


def test_a_place_that_cannot_be_written(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = MINIATURES["folder"]["index"](tmp_path / "images", monkeypatch)
    (tmp_path / "file").touch()
    code, _, err = run("cache", "folder", "--root", root, "--out", tmp_path / "file" / "frames")
    assert (code, err.count("\n")) == (1, 1)
    assert "cannot be written" in err


def test_depth_as_numbers_loses_nothing_that_16_bits_hold() -> None:
    millimetres = np.array([[0, 1, 65535]], np.float32) * np.float32(0.001)
    numbers, scale = as_numbers(millimetres, 0.001)
    assert (numbers.tolist(), scale) == ([[0, 1, 65535]], 0.001)
    metres = np.array([[0, 1e-6, 1 / 3, 7.0]], np.float32)
    numbers, scale = as_numbers(metres, 1.0)
    assert numbers.tolist()[0][:2] == [0, 1]  # what is known stays known
    assert scale == pytest.approx(7 / 65535)
    assert as_numbers(np.zeros((1, 2), np.float32), 0.001)[0].tolist() == [[0, 0]]


@pytest.mark.parametrize(
    "change",
    [
        {"size": ["a", 1]}, {"size": [1.5, 2]}, {"size": [4]}, {"edges": "yes"}, {"scale": "x"}, {"scale": None},
        {"origin": []}, {"origin": {"files": []}}, {"checksums": [1]}, {"checksums": ["1", "2", "3"]},
        {"intrinsics": [1, 2]}, {"intrinsics": ["a"] * 4}, {"error": 3}, {"more": 1},
    ],
)  # fmt: skip
def test_an_index_of_other_types_is_damaged(tmp_path: Path, sample_folder: Path, change: dict[str, Any]) -> None:
    out = tmp_path / "frames"
    write_cache("folder", sample_folder, out)
    head, first, *rest = (out / INDEX).read_text().splitlines()
    (out / INDEX).write_text("\n".join([head, json.dumps({**json.loads(first), **change}), *rest]) + "\n")
    with pytest.raises(LangdepthError, match=r"index.jsonl: is damaged"):
        find_rows("cache", out)
    origin = json.loads(first)["origin"]
    for fact in ({"source": [[1]]}, {"text": 3}, {"line": "1"}, {"scene": 10**9}):
        line = {**json.loads(first), "origin": {**origin, **fact}}
        (out / INDEX).write_text("\n".join([head, json.dumps(line), *rest]) + "\n")
        with pytest.raises(LangdepthError, match=r"index.jsonl: is damaged"):
            find_rows("cache", out)
    for content in ("[" * 90_000, "[1]", '{"dataset": ["a"]}'):
        (out / INDEX).write_text(content)
        with pytest.raises(LangdepthError, match=r"index.jsonl: is damaged"):
            find_rows("cache", out)


def test_frames_of_a_folder_depend_on_its_index(tmp_path: Path) -> None:
    root, out = write_folder(tmp_path / "pairs", [{}, {}]), tmp_path / "frames"
    write_cache("folder", root, out)
    index = root / "index.csv"
    index.write_text(index.read_text("utf-8").replace("0.001", "0.002"), "utf-8")
    os.utime(index, (0, 0))
    with pytest.raises(
        LangdepthError, match=r"outdated: 1 of its original files have changed since, first .*index\.csv"
    ):
        find_rows("cache", out)
    assert write_cache("folder", root, out).added == 2
    os.utime(index)
    assert write_cache("folder", root, out).added == 0  # the same pairs as before
    assert len(find_rows("cache", out)) == 2
