"""The record of results: which are whole, what they are made of, and names that changed."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from langdepth.prediction.done import RECORD, Done, stamp

ENDS = [".png", "_depth.png", ".npz", ".ply"]


def write(folder: Path, image: str, *names: str, content: bytes = b"depth") -> None:
    """Results of an image, recorded."""
    done = Done(folder)
    done.start()
    for name in names:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(content)
    done.add([folder / name for name in names], "how", image)


def follow(folder: Path, **names: str) -> dict[str, str]:
    """What is renamed for images "/p/NAME.jpg" whose results are to have these names."""
    images = [(f"/p/{name}.jpg", Path(f"{name}.jpg"), folder / now) for name, now in names.items()]
    return {old.name: new.name for old, new in Done(folder).follow(images, ENDS)}


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name != RECORD)


def test_results_follow_the_name_of_their_image_there_and_back(tmp_path: Path) -> None:
    write(tmp_path, "/p/a.jpg", "a_depth.png", "a.png", "a.ply")
    assert follow(tmp_path, a="a_jpg") == {
        "a_depth.png": "a_jpg_depth.png",
        "a.png": "a_jpg.png",
        "a.ply": "a_jpg.ply",
    }
    assert names(tmp_path) == ["a_jpg.ply", "a_jpg.png", "a_jpg_depth.png"]
    assert Done(tmp_path).has([tmp_path / "a_jpg_depth.png", tmp_path / "a_jpg.ply"], "how")
    assert follow(tmp_path, a="a_jpg") == {}
    assert len(follow(tmp_path, a="a")) == 3
    assert names(tmp_path) == ["a.ply", "a.png", "a_depth.png"]


def test_of_two_results_of_one_image_the_one_with_the_earlier_name_goes(tmp_path: Path) -> None:
    write(tmp_path, "/p/a.jpg", "a_depth.png", content=b"old")
    write(tmp_path, "/p/a.jpg", "a_jpg_depth.png", content=b"new")
    follow(tmp_path, a="a_jpg")
    assert names(tmp_path) == ["a_jpg_depth.png"]
    assert (tmp_path / "a_jpg_depth.png").read_bytes() == b"new"


@pytest.mark.parametrize("whose", ["another image's", "changed", "not recorded", "of another folder", "in the way"])
def test_only_unchanged_results_of_the_image_are_touched(tmp_path: Path, whose: str) -> None:
    file = tmp_path / "a_depth.png"
    write(tmp_path, "/q/a.jpg" if whose == "another image's" else "/p/a.jpg", "a_depth.png")
    if whose == "changed":
        file.write_bytes(b"notes of somebody")
    if whose == "not recorded":
        (tmp_path / RECORD).unlink()
    if whose == "of another folder":
        write(tmp_path, "/p/a.jpg", "sub/a_depth.png")
        assert follow(tmp_path, a="a") == {}
        assert (tmp_path / "sub/a_depth.png").is_file()
    if whose == "in the way":
        (tmp_path / "a_jpg_depth.png").write_bytes(b"of somebody")
    before = file.read_bytes()
    moved = follow(tmp_path, a="a_jpg")
    assert bool(moved) == (whose == "of another folder")
    assert whose == "of another folder" or file.read_bytes() == before
    if whose == "in the way":
        assert (tmp_path / "a_jpg_depth.png").read_bytes() == b"of somebody"


def test_names_that_only_begin_alike_are_left(tmp_path: Path) -> None:
    write(tmp_path, "/p/a.jpg", "a_far.csv", "ab_depth.png", "a_jpg_2_depth.png")
    assert follow(tmp_path, a="a") == {"a_jpg_2_depth.png": "a_depth.png"}
    assert names(tmp_path) == ["a_depth.png", "a_far.csv", "ab_depth.png"]


def test_a_line_that_was_cut_off_costs_its_own_result_alone(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        write(tmp_path, f"/p/{name}.jpg", f"{name}.npz")
    record = tmp_path / RECORD
    lines = record.read_bytes().splitlines(keepends=True)
    record.write_bytes(lines[0] + b"\xff{[\n[1]\n" + lines[1] + lines[2][:-9])
    has = [Done(tmp_path).has([tmp_path / f"{name}.npz"], "how") for name in ("a", "b", "c")]
    assert has == [True, True, False]
    follow(tmp_path, b="b_jpg")  # what is added now is no part of the cut line
    assert Done(tmp_path).has([tmp_path / "b_jpg.npz"], "how")


def test_what_is_left_of_an_npz_file_is_known_by_the_record(tmp_path: Path) -> None:
    file = tmp_path / "a.npz"
    write(tmp_path, "/p/a.jpg", "a.npz")
    np.savez(file, depth=np.ones((8, 8), np.float32))
    assert not Done(tmp_path).is_damaged(file)
    whole = file.read_bytes()
    for content, damaged in ((whole[:200], True), (b"notes", False), (b"", False)):
        file.write_bytes(content)
        assert Done(tmp_path).is_damaged(file) == damaged
    file.write_bytes(whole[:200])
    (tmp_path / RECORD).unlink()
    assert not Done(tmp_path).is_damaged(file)


def test_an_image_is_known_by_place_size_and_time(tmp_path: Path) -> None:
    file = tmp_path / "a.jpg"
    file.write_bytes(b"1234")
    os.utime(file, (5, 5))
    before = stamp(file)
    file.unlink()
    file.write_bytes(b"4321")  # as from a copy of the folder: the number of the file is another one
    os.utime(file, (5, 5))
    assert stamp(file) == before
    os.utime(file, (6, 6))
    assert stamp(file) != before
    assert stamp(tmp_path / "b.jpg") == tmp_path / "b.jpg"
