"""``langdepth data``: a sample that checks clean, and every kind of damage found and named in one line."""

from __future__ import annotations

import csv
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from langdepth.cli import main
from langdepth.data.base import open_dataset
from langdepth.data.tools import sample
from langdepth.data.tools.scenes import room
from tests.helpers import Run, grey, save_image, write_folder

Row = dict[str, str]


@pytest.fixture
def folder(sample_folder: Path, tmp_path: Path) -> Path:
    """A copy of the sample that may be damaged."""
    return Path(shutil.copytree(sample_folder, tmp_path / "folder"))


def read_rows(folder: Path) -> list[Row]:
    with (folder / "index.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def write_rows(folder: Path, rows: list[Row]) -> None:
    with (folder / "index.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)


def change(folder: Path, line: int, **values: str) -> None:
    """Overwrite values of one line of the index (line 2 is the first pair)."""
    rows = read_rows(folder)
    rows[line - 2] |= values
    write_rows(folder, rows)


# sample


def test_sample_is_in_the_layout_that_the_data_set_reads(sample_folder: Path) -> None:
    rows = read_rows(sample_folder)
    assert tuple(rows[0]) == sample.COLUMNS
    assert [row["split"] for row in rows].count("val") == 2
    assert {row["scene_type"] for row in rows} > {"outdoor_scene"}
    rendering = room(0, height=48, width=64)
    first = open_dataset("folder", sample_folder)[0]
    np.testing.assert_allclose(first.depth[0].numpy(), rendering.depth, atol=0.0005 + 1e-6)  # half a millimetre
    assert first.camera is not None
    assert first.camera.fx == pytest.approx(rendering.camera.fx, abs=1e-4)
    street = open_dataset("folder", sample_folder, source="synthetic_street")[0]
    assert 50 < street.depth.max() < 150
    assert not street.mask.all()


def test_sample_command_writes_the_same_folder_twice(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--count", "2", "--height", "32", "--width", "40", "--seed", "5"]
    for name in ("a", "b"):
        assert main(["data", "sample", str(tmp_path / name), *options]) == 0
    assert "2 synthetic images with exact depth" in capsys.readouterr().out
    files = sorted(p.relative_to(tmp_path / "a") for p in (tmp_path / "a").rglob("*.*"))
    assert len(files) == 5
    for file in files:
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        (["--count", "1"], 2, "at least 2"),
        (["--height", "8"], 2, "between 32 and 2048"),
        (["--count", "few"], 2, "--count"),
        (["--sede", "1"], 2, "--seed"),
    ],
)
def test_sample_refuses_bad_options(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], code: int, words: str
) -> None:
    assert main(["data", "sample", str(tmp_path / "new"), *options]) == code
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_sample_never_touches_what_is_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "photo.jpg").write_text("precious")
    assert main(["data", "sample", str(tmp_path / "mine")]) == 1
    assert "not an empty folder" in capsys.readouterr().err
    assert [p.name for p in (tmp_path / "mine").iterdir()] == ["photo.jpg"]


def test_interrupted_sample_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(index: int, **size: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setitem(sample.SOURCES, "synthetic_room", (interrupt, 0.001))
    assert main(["data", "sample", str(tmp_path / "new")]) == 130
    assert list(tmp_path.iterdir()) == []


# check


def test_clean_folder(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "check", str(folder)]) == 0
    out = capsys.readouterr().out
    assert "8 pairs checked, 0 problems" in out
    lines = [line.split() for line in out.splitlines()]
    assert ["synthetic_room", "6", "6", "4/2/0", "64x48"] in [line[:5] for line in lines]
    assert ["synthetic_street", "2", "2", "2/0/0", "64x48"] in [line[:5] for line in lines]


def image(folder: Path) -> Path:
    return folder / "synthetic_room" / "scene0001" / "0.jpg"  # line 3 of the index, split val


def depth(folder: Path) -> Path:
    return image(folder).with_suffix(".png")


def cut(path: Path, keep: int) -> None:
    path.write_bytes(path.read_bytes()[:keep])


def as_numpy(folder: Path, value: float) -> None:
    metres = np.full((48, 64), 2.0, np.float32)
    metres[0, :3] = value
    np.save(depth(folder).with_suffix(".npy"), metres)
    change(folder, 3, path_depth="synthetic_room/scene0001/0.npy", min_m="2", max_m="2", valid_fraction="0.999")


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "image missing": (lambda f: image(f).unlink(), "0.jpg: no such file"),
    "depth missing": (lambda f: depth(f).unlink(), "0.png: no such file"),
    "image truncated": (lambda f: cut(image(f), 700), "0.jpg: damaged or truncated"),
    "depth truncated": (lambda f: cut(depth(f), 200), "0.png: damaged or truncated"),
    "image empty": (lambda f: cut(image(f), 0), "0.jpg: empty"),
    "text named .jpg": (lambda f: image(f).write_text("no image at all\n" * 9), "0.jpg: not an image"),
    "sizes differ": (
        lambda f: Image.open(image(f)).resize((80, 60)).save(image(f)),
        "depth is 64x48, but its image 0.jpg is 80x60",
    ),
    "8-bit depth": (lambda f: Image.open(image(f)).convert("L").save(depth(f)), "16-bit"),
    "NaN": (lambda f: as_numpy(f, np.nan), "3 NaN depth values"),
    "infinite": (lambda f: as_numpy(f, np.inf), "3 infinite depth values"),
    "negative": (lambda f: as_numpy(f, -1.0), "3 negative depth values"),
    "nothing valid": (
        lambda f: Image.fromarray(np.zeros((48, 64), np.uint16)).save(depth(f)),
        "no pixel has depth",
    ),
    "stated width": (lambda f: change(f, 3, width="640"), "width is '640' in the index, but 64 in the file"),
    "stated minimum": (lambda f: change(f, 3, min_m="0.1"), "min_m is '0.1'"),
    "stated maximum": (lambda f: change(f, 3, max_m="nan"), "max_m is 'nan'"),
    "stated fraction": (lambda f: change(f, 3, valid_fraction="half"), "valid_fraction is 'half'"),
    "unknown split": (lambda f: change(f, 3, split="tran"), "unknown split 'tran': did you mean 'train'?"),
    "unknown scene": (lambda f: change(f, 3, scene_type="kichen"), "unknown scene_type 'kichen'"),
    "outside the folder": (lambda f: change(f, 3, path_rgb="../../etc/passwd"), "does not lie inside the folder"),
    "absolute path": (lambda f: change(f, 3, path_depth="/etc/passwd"), "does not lie inside the folder"),
    "zero scale": (lambda f: change(f, 3, depth_scale="0"), "depth_scale"),
    "negative focal length": (lambda f: change(f, 3, fx="-5"), "focal lengths"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_named_once_with_its_line(folder: Path, capsys: pytest.CaptureFixture[str], damage: str) -> None:
    spoil, words = DAMAGES[damage]
    spoil(folder)
    assert main(["data", "check", str(folder)]) == 1
    captured = capsys.readouterr()
    complaints = [line for line in captured.out.splitlines() if words in line]
    assert len(complaints) == 1
    assert "index.csv line 3: " in complaints[0]
    assert captured.err == ""


def test_every_problem_is_reported_not_only_the_first(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image(folder).unlink()
    cut(depth(folder), 0)
    change(folder, 5, scene_type="moon")
    assert main(["data", "check", str(folder)]) == 1
    out = capsys.readouterr().out
    assert "7 pairs checked, 3 problems" in out
    assert "moon" in out


def test_duplicate_rows(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = read_rows(folder)
    write_rows(folder, [*rows, rows[1]])
    assert main(["data", "check", str(folder)]) == 1
    out = capsys.readouterr().out
    assert out.count("line 10: ") == 2  # the image and its depth
    assert "already named in line 3" in out


def test_split_keeps_its_rows_only(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image(folder).unlink()  # in val
    assert main(["data", "check", str(folder), "--split", "train"]) == 0
    assert "6 pairs checked" in capsys.readouterr().out
    assert main(["data", "check", str(folder), "--split", "val"]) == 1
    assert main(["data", "check", str(folder), "--split", "vall"]) == 2
    assert "'val'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "has no index.csv"),
        ("", "has no column path_rgb and no column path_depth and no column depth_scale"),
        ("path_rgb,path_depth\na,b\n", "has no column depth_scale"),
        ("path_rgb,path_depth,depth_scale\n", "has no rows"),
    ],
)
def test_unusable_index(tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str | None, words: str) -> None:
    if content is not None:
        (tmp_path / "index.csv").write_text(content)
    assert main(["data", "check", str(tmp_path)]) == 1
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1


# list, show


def test_list_says_what_is_there_of_one_set(tmp_path: Path, command: Run) -> None:
    code, out, _ = command("data", "list", "folder", "--root", tmp_path)
    assert (code, out.splitlines()[-1]) == (0, "found  -")


def test_list_below_no_folder(tmp_path: Path, command: Run) -> None:
    place = tmp_path / "nowhere"
    assert command("data", "list", "--root", place) == (1, "", f"langdepth data: {place}: no such folder\n")


@pytest.mark.parametrize("name", ["sheet.txt", "sheet"])
def test_show_needs_the_ending_of_a_image(name: str, sample_folder: Path, tmp_path: Path, command: Run) -> None:
    out = tmp_path / name
    line = f"langdepth data: {out}: an image is written as .png, .jpg or .jpeg\n"
    assert command("data", "show", sample_folder, "--out", out) == (2, "", line)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["sheet.png", "sheet.jpg"])
def test_show_replaces_its_own_sheets_alone(name: str, sample_folder: Path, tmp_path: Path, command: Run) -> None:
    show = ("data", "show", sample_folder, "--count", 1, "--out", tmp_path / name)
    assert command(*show)[0] == 0
    assert command(*show)[0] == 0
    save_image(tmp_path / name, grey(0.5))
    before = (tmp_path / name).read_bytes()
    code, _, err = command(*show)
    assert (code, f"{name} exists and was not written by langdepth" in err) == (1, True)
    assert (tmp_path / name).read_bytes() == before


# the verb itself


def test_usage(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "--help"]) == 0
    assert "langdepth data check images" in capsys.readouterr().out
    assert main(["data"]) == 2
    assert main(["data", "chek", "somewhere"]) == 2
    assert "'check'" in capsys.readouterr().err


def test_what_is_found_has_a_line_of_modest_length(tmp_path: Path, command: Run) -> None:
    write_folder(tmp_path / "a", [{"split": "x" * 5000 + "\n"}, {"split": "val"}])
    code, out, _ = command("data", "check", tmp_path / "a")
    assert code == 1
    assert "unknown split 'xxx" in out
    assert max(map(len, out.splitlines())) < 1500
