"""Images in = images found, reported or counted, over all files of a folder."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from langdepth.prediction import inputs
from langdepth.prediction.done import RECORD, Done
from langdepth.prediction.inputs import Images, find_images, images_below
from langdepth.prediction.results import WRITERS, DepthResult, Writer, write_result
from tests.helpers import ramp, save_image


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def find(*words: str, out: str = "depth", recursive: bool = False) -> Images:
    return find_images(list(words), Path(out), recursive)


def names(images: Images) -> list[str]:
    return [source for source, _ in images.files]


def write_depth(path: str, brand: bool = True) -> None:
    depth = np.full((48, 64), 2, np.float32)
    Path(path).parent.mkdir(exist_ok=True)
    if brand:
        write_result(DepthResult(depth=depth, valid=depth > 0, system="fake"), path, format="depth16")
    else:
        Image.fromarray((1000 * depth).astype(np.uint16)).save(path)


def test_content_counts_not_the_ending() -> None:
    for name in ("a.jpg", "b.JPEG", "c.jpg_original", "d", "e.dat", "f.jfif"):
        Path(save_image(Path("p/x.jpg"), ramp())).rename(Path("p", name))
    Path("p/notes.txt").write_text("no image")
    Path("p/data.npz").write_bytes(b"PK\x03\x04" + bytes(90))
    Path("p/.hidden.jpg").write_bytes(Path("p/a.jpg").read_bytes())
    assert names(find("p")) == [f"p/{name}" for name in ("a.jpg", "b.JPEG", "c.jpg_original", "d", "e.dat", "f.jfif")]
    assert find("p").note is None


def test_kinds_that_are_not_read_are_not_passed_over() -> None:
    heic = struct.pack(">I", 24) + b"ftypheic" + bytes(4) + b"mif1heic" + bytes(200)
    for name, content in {"a.HEIC": heic, "b.bin": heic, "c.jxl": b"\xff\x0a" + bytes(99)}.items():
        Path("p").mkdir(exist_ok=True)
        Path("p", name).write_bytes(content)
    Path("p/d.NEF").write_bytes(b"MM\0*" + bytes(99))
    found = find("p")
    assert names(found) == ["p/a.HEIC", "p/b.bin", "p/c.jxl"]  # reported when they are read
    (problem,) = found.problems
    assert "p/d.NEF: is a camera raw file" in str(problem)


def test_files_of_unread_kinds_are_counted_in_one_line() -> None:
    save_image(Path("p/a.jpg"), ramp())
    for name in ("b.tga", "c.QOI", "notes.txt"):
        Path("p", name).write_bytes(b"qoif" + bytes(90))
    found = find("p")
    assert names(found) == ["p/a.jpg"]
    assert found.note == "not read, by their kind: 2 files (p/b.tga, p/c.QOI); convert them to JPEG or PNG"
    Path("p/a.jpg").unlink()
    (problem,) = find("p").problems
    assert str(problem).startswith("nothing to predict; not read, by their kind: 2 files")


def test_a_tiff_with_addresses_of_64_bits_needs_no_ending() -> None:
    Path("p").mkdir()
    Image.fromarray(ramp()).save("p/a", "TIFF", big_tiff=True)
    assert names(find("p")) == ["p/a"]


def test_each_of_two_links_is_an_image() -> None:
    save_image(Path("store/abc.jpg"), ramp())
    Path("p").mkdir()
    for name in ("kitchen.jpg", "living.jpg"):
        Path("p", name).symlink_to("../store/abc.jpg")
    assert names(find("p")) == ["p/kitchen.jpg", "p/living.jpg"]
    assert names(find("p/kitchen.jpg", "p/living.jpg", "./p/kitchen.jpg")) == ["p/kitchen.jpg", "p/living.jpg"]


def test_links_that_lead_nowhere_or_in_circles() -> None:
    save_image(Path("p/a.jpg"), ramp())
    Path("p/loop.jpg").symlink_to("loop.jpg")
    Path("p/loop").symlink_to("loop")
    Path("p/gone.jpg").symlink_to("nowhere.jpg")
    Path("p/up").symlink_to("..")
    save_image(Path("elsewhere/b.jpg"), ramp())
    Path("p/there").symlink_to("../elsewhere")
    assert names(find("p")) == ["p/a.jpg", "p/gone.jpg", "p/loop.jpg"]
    found = names(find("p", recursive=True))
    assert "p/there/b.jpg" in found
    assert len(found) == 4 + 1  # by "up" elsewhere/b.jpg is there once more
    assert names(find("p/loop.jpg", out="p/loop.jpg")) == ["p/loop.jpg"]


def test_results_of_an_earlier_run_are_left_out() -> None:
    save_image(Path("p/a.jpg"), ramp())
    write_depth("p/a_depth.png")
    save_image(Path("p/a_color.png"), ramp())  # of a version that did not mark them
    for words, out in ((["p"], "p"), (["p"], "other"), (["p/*"], "p"), (sorted(map(str, Path("p").iterdir())), "p")):
        found = find(*words, out=out)
        assert names(found) == ["p/a.jpg"]
        assert found.note == "left out as no photos: 2 results of langdepth (p/a_color.png, p/a_depth.png)"
        assert not found.problems


def test_only_results_are_nothing_to_predict() -> None:
    write_depth("p/a_depth.png")
    for word in ("p", "p/a_depth.png"):
        (problem,) = find(word).problems
        assert "nothing to predict; left out as no photos: 1 results" in str(problem)


def test_videos_are_counted_and_said() -> None:
    """Wherever a folder or a pattern has them, by their content; results of langdepth are results."""
    save_image(Path("p/a.jpg"), ramp())
    for name, head in {"b.mp4": b"\0\0\0\x18ftypisom", "c.bin": b"\x1aE\xdf\xa3", "d.avi": b"RIFF....AVI "}.items():
        Path("p", name).write_bytes(head + bytes(600))
    Path("p/e_color.mp4").write_bytes(b"\0\0\0\x18ftypisom" + b"langdepth color-video {}")
    for words in (["p"], ["p/*"]):
        found = find(*words)
        assert names(found) == ["p/a.jpg"]
        assert found.note == (
            "left out as no photos: 1 results of langdepth (p/e_color.mp4); left out: 3 videos (p/b.mp4, p/c.bin, "
            "p/d.avi); videos are predicted where they are named: langdepth predict p/b.mp4"
        )
    Path("p/a.jpg").unlink()
    (problem,) = find("p").problems
    assert "nothing to predict; " in str(problem)
    assert "langdepth predict p/b.mp4" in str(problem)


def test_depth_maps_of_sensors_are_left_out() -> None:
    for name in ("p/0001_color.png", "p/thermal.png", "p/x_depth.png"):
        save_image(Path(name), ramp())
    write_depth("p/0001_depth.png", brand=False)
    write_depth("p/sync_depth_00045.png", brand=False)
    write_depth("p/thermal.png", brand=False)  # 16 bits alone are no depth
    write_depth("p/map.png", brand=False)
    Path("p/index.csv").write_text("path_rgb,path_depth,depth_scale\nthermal.png,map.png,0.001\n")
    found = find("p")
    assert names(found) == ["p/0001_color.png", "p/thermal.png", "p/x_depth.png"]
    assert sorted(map(str, found.depth_maps)) == ["p/0001_depth.png", "p/map.png", "p/sync_depth_00045.png"]
    for name in ("p/0001_depth.png", "p/map.png"):
        assert names(find(name)) == [name]  # whoever names it alone means it
    for words in (["p/*"], sorted(map(str, Path("p").glob("*.png")))):  # and not a shell that was given a pattern
        assert names(find(*words)) == names(found)
        assert find(*words).note == found.note


def test_a_file_that_is_not_there_is_found_out_at_once() -> None:
    save_image(Path("p/a.jpg"), ramp())
    found = find("p/a.jpg", "p/b.jpg", "p/b.jpg", "b")
    assert names(found) == ["p/a.jpg"]
    assert list(map(str, found.problems)) == ["p/b.jpg: no such file", "b: no such file"]


def test_overlays_are_left_out() -> None:
    save_image(Path("p/a.jpg"), ramp())
    save_image(Path("p/sam_out/a.jpg"), ramp())
    Path("p/sam_out/overlays.csv").write_text("image,overlay\na.jpg,a.jpg\n")
    assert names(find("p", recursive=True)) == ["p/a.jpg"]
    assert names(find("p/sam_out")) == ["p/sam_out/a.jpg"]


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="everything may be read")
def test_a_folder_that_cannot_be_read_does_not_cost_the_others() -> None:
    save_image(Path("p/a.jpg"), ramp())
    Path("p/closed").mkdir(mode=0)
    found = find("p", recursive=True)
    assert names(found) == ["p/a.jpg"]
    assert "p/closed: cannot be read" in str(found.problems[0])


def test_results_of_plug_in_formats_are_no_images(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a.jpg", "sub/b.jpg", "a_far.tif", "c_far.tif", "sub/b.tif"):
        save_image(Path("p", name), ramp())
    done = Done(Path("p"))
    done.start()
    done.add([Path("p/a_far.tif"), Path("p/sub/b.tif")], "of", "")
    found = find("p", recursive=True)
    assert names(found) == ["p/a.jpg", "p/c_far.tif", "p/sub/b.jpg"]
    assert found.results == [Path("p/a_far.tif"), Path("p/sub/b.tif")]
    save_image(Path("p/sub/b.tif"), ramp(48, 64))  # another file of that name
    assert "p/sub/b.tif" in names(find("p/sub"))
    Path("p", RECORD).unlink()
    monkeypatch.setattr(inputs, "plugins", lambda group: {"far": None})
    monkeypatch.setitem(WRITERS, "far", Writer("_far.tif", lambda *_: None))
    assert names(find("p")) == ["p/a.jpg", "p/c_far.tif"]  # there is no c


def test_a_pipe_is_not_waited_for() -> None:
    save_image(Path("p/a.jpg"), ramp())
    os.mkfifo("p/pipe")
    os.mkfifo("p/pipe.jpg")
    assert names(find("p")) == ["p/a.jpg", "p/pipe.jpg"]


def test_images_below_a_folder_are_those_of_predict() -> None:
    for name in ("a.JPEG", "more/rgb_1.png", "[x]/c", "masks/d.jpg"):
        save_image(Path("p", f"{name}.png"), ramp()).rename(Path("p", name))
    write_depth("p/more/depth_1.png", brand=False)
    write_depth("p/more/e_depth.png")
    Path("p/f.NEF").write_bytes(b"MM\0*" + bytes(99))
    images, problems = images_below("p", "p/masks")
    assert images == [Path("[x]/c"), Path("a.JPEG"), Path("more/rgb_1.png")]
    assert ["f.NEF" in str(problem) for problem in problems] == [True]
    assert images_below("p", "p/masks", "**/*.*g") == ([Path("more/rgb_1.png")], [])
    assert images_below("p/[x]", "p/masks", "*") == ([Path("c")], [])
