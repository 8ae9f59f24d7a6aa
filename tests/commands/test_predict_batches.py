"""``langdepth predict``: one image that fails never ends the work on the others."""

from __future__ import annotations

import errno
import os
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from langdepth.prediction import pipeline, results
from langdepth.prediction.results import DepthResult
from tests.commands.test_predict import files
from tests.helpers import FakeSystem, Run, grey, ramp, save_image


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, command: Run) -> Run:
    """Run the command in an empty folder with the fake system; returns exit code, stdout, stderr."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("langdepth.runtimes.opening.load", lambda name, **options: FakeSystem())
    return partial(command, "predict")


def photos(count: int = 3) -> None:
    for i in range(count):
        save_image(Path(f"p/{i}.png"), ramp(seed=i))


def test_a_second_run_does_not_predict_the_first_ones_results(run: Run) -> None:
    photos(2)
    for _ in range(2):
        code, out, err = run("p", "--out", "p")
        assert code == 0
        assert "2 done, 0 failed" in out
        assert files("p") == ["0.png", "0_color.png", "0_depth.png", "1.png", "1_color.png", "1_depth.png"]
    assert err.splitlines() == [
        "langdepth predict: left out as no photos: 4 results of langdepth "
        "(p/0_color.png, p/0_depth.png, p/1_color.png, p/1_depth.png)"
    ]


def test_a_sensors_depth_map_is_not_overwritten(run: Run) -> None:
    photos(1)
    Image.fromarray(np.full((48, 64), 1000, np.uint16)).save("p/0_depth.png")
    before = Path("p/0_depth.png").read_bytes()
    code, _, err = run("p", "--save", "depth16", "--out", "p")
    assert code == 1
    assert "p/0.png: p/0_depth.png exists and was not written by langdepth" in err
    assert Path("p/0_depth.png").read_bytes() == before


@pytest.mark.parametrize("letters", [240, 249, 251])
def test_long_names(run: Run, letters: int) -> None:
    """Up to 245 letters and "_depth.png" fit a file system; a temporary name does in any case."""
    photos(2)
    long = "n" * letters
    save_image(Path("p", f"{long}.png"), ramp())
    code, out, err = run("p", "--save", "npy,depth16")
    short = ["0.npy", "0_depth.png", "1.npy", "1_depth.png"]
    if letters <= 245:
        assert (code, err) == (0, "")
        assert files() == [*short, f"{long}.npy", f"{long}_depth.png"]
    else:
        assert code == 1
        assert f"p/{long}.png: the name of its result, {long}_depth.png, is too long; shorten its own" in err
        assert files() == short
        assert "2 done, 1 failed" in out


@pytest.mark.parametrize("save", ["ply", "npz"])
def test_a_camera_that_fits_all_images_but_one(run: Run, save: str) -> None:
    photos(3)
    save_image(Path("p/small.png"), ramp(40, 40))
    code, out, err = run("p", "--save", save, "--intrinsics", "60,60,50,30")
    assert code == 1
    assert files() == [f"{i}.{save}" for i in range(3)]
    warned, refused = err.splitlines()
    assert "--intrinsics: states no image size, and its principal point (50, 30) is far from the middle" in warned
    assert "p/small.png: " in refused
    assert "3 done, 1 failed" in out


@pytest.mark.parametrize("text", ["1,2,3", "a,b,c,d", "-60,60,32,24", "60,0,32,24", "nan,60,32,24"])
def test_intrinsics_that_fit_no_image_are_known_before_the_work(run: Run, text: str) -> None:
    photos(2)
    code, _, err = run("p", f"--intrinsics={text}")
    assert code == 2
    assert len(err.splitlines()) == 1
    assert not Path("depth").exists()


def test_a_file_name_that_cannot_be_is_that_images_alone(run: Run) -> None:
    photos(3)
    Path("depth/1.npy").mkdir(parents=True)
    code, out, err = run("p", "--save", "npy")
    assert code == 1
    assert files() == ["0.npy", "2.npy"]
    assert "p/1.png: depth/1.npy exists and was not written by langdepth" in err
    assert "2 done, 1 failed" in out


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EACCES, errno.EROFS])
def test_a_place_that_cannot_be_written_ends_the_run(run: Run, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    photos(9)

    def refuse(*_: object, **__: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setitem(results.WRITERS, "npy", results.WRITERS["npy"]._replace(write=refuse))
    exit_code, _, err = run("p", "--save", "npy")
    assert exit_code == 1
    assert len(err.splitlines()) == 1
    assert os.strerror(code) in err
    assert files() == []


def test_memory_for_the_files_of_one_image(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    photos(2)
    save_image(Path("p/large.png"), grey(0.5, 128, 96))
    write = results.write_result

    def write_small(result: DepthResult, *arguments: object, **options: object) -> object:
        if result.depth.shape == (96, 128):
            raise MemoryError
        return write(result, *arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(results, "write_result", write_small)
    code, out, err = run("p", "--save", "npy")
    assert code == 1
    assert files() == ["0.npy", "1.npy"]
    assert "p/large.png: not enough memory to write its results" in err
    assert "2 done, 1 failed" in out


@pytest.mark.parametrize("place", ["to_network_size", "resized_map"])
def test_memory_for_one_image_before_and_after_the_network(
    run: Run, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    photos(2)
    save_image(Path("p/large.png"), grey(0.5, 128, 96))
    resize = getattr(pipeline, place)

    def fails_for_the_large(*arguments: object) -> object:
        size = arguments[1].shape[-2:] if place == "to_network_size" else arguments[1]  # type: ignore[attr-defined]
        if tuple(size) == (96, 128):  # type: ignore[call-overload]
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")
        return resize(*arguments)

    monkeypatch.setattr(pipeline, place, fails_for_the_large)
    code, out, err = run("p", "--save", "npy")
    assert code == 1
    assert files() == ["0.npy", "1.npy"]
    assert "p/large.png: not enough memory for its pixels; make it smaller" in err
    assert "2 done, 1 failed" in out


def test_a_cut_photo_is_said_once(run: Run) -> None:
    exif = Image.Exif()
    exif.get_ifd(0x8769).update({0xA405: 26, 0xA002: 4032, 0xA003: 3024})
    for i in range(3):
        save_image(Path(f"p/{i}.jpg"), grey(0.5, 48, 48), exif=exif)
    code, _, err = run("p", "--save", "ply")
    assert code == 0
    assert sum(".jpg: EXIF describes a larger image, of which this is a part" in line for line in err.splitlines()) == 1
    assert "camera: unknown, taken as 60 degrees across the longer side, for 3 images" in err
