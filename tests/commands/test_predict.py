"""``langdepth predict`` as a user meets it: files, names, messages and exit codes."""

from __future__ import annotations

import errno
import io
import logging
import re
import struct
import sys
import time
import warnings
from dataclasses import replace
from functools import partial
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from PIL import Image

from langdepth import cli
from langdepth.prediction import results
from langdepth.prediction.done import RECORD
from langdepth.prediction.results import DepthResult
from langdepth.utils.depth_files import read_depth16
from tests.helpers import FakeSystem, Run, grey, ramp, save_image


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, command: Run) -> Run:
    """Run the command in an empty folder with the fake system; returns exit code, stdout, stderr."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("langdepth.runtimes.opening.load", lambda name, **options: FakeSystem())
    return partial(command, "predict")


def files(folder: str = "depth") -> list[str]:
    """What lies there but the record of the results."""
    found = [f for f in Path(folder).rglob("*") if f.is_file() and f.name != RECORD]
    return sorted(str(f.relative_to(folder)) for f in found)


def test_photo_to_depth(run: Run) -> None:
    save_image(Path("photo.png"), grey(0.6))
    code, out, err = run("photo.png", "--save", "depth16,npy")
    assert (code, err) == (0, "")
    assert files() == ["photo.npy", "photo_depth.png"]
    depth, _ = read_depth16("depth/photo_depth.png")
    np.testing.assert_allclose(depth, 6.4, atol=0.0006)
    assert "photo.png -> depth/photo_depth.png, depth/photo.npy" in out
    assert "6.40 / 6.40 / 6.40 m" in out
    assert "scene kitchen 60%" in out


def test_words_reach_the_system(run: Run) -> None:
    save_image(Path("photo.png"), grey(0.6))
    for option in (("--text", "no null 5"), ("--scene", "kitchen")):
        assert run("photo.png", "--save", "npy", *option)[0] == 0
        np.testing.assert_allclose(np.load("depth/photo.npy"), 12.8, atol=1e-3)


def test_folder_with_bad_files_writes_the_rest_and_exits_1(run: Run) -> None:
    for i in range(4):
        save_image(Path(f"photos/{i}.png"), ramp(seed=i))
    Path("photos/empty.jpg").touch()
    Path("photos/text.jpg").write_text("no image")
    Path("photos/cut.png").write_bytes(Path("photos/0.png").read_bytes()[:60])
    Path("photos/notes.txt").write_text("not meant")
    code, out, err = run("photos", "--save", "npy")
    assert code == 1
    assert files() == ["0.npy", "1.npy", "2.npy", "3.npy"]
    assert len(err.splitlines()) == 3
    for name in ("empty.jpg", "text.jpg", "cut.png"):
        assert name in err
    assert "4 done, 3 failed" in out


def test_kitti16_has_the_names_and_values_of_the_kitti_server(run: Run) -> None:
    for i in range(2):
        save_image(Path(f"image/{i:010}.png"), grey(0.1 + 0.5 * i))
    code, _, err = run("image", "--save", "kitti16", "--out", "submission")
    assert (code, err) == (0, "")
    assert files("submission") == ["0000000000.png", "0000000001.png"]
    for i, metres in enumerate((1.9, 6.4)):
        values = np.asarray(Image.open(f"submission/{i:010}.png"))
        assert values.dtype == np.uint16
        assert values.shape == (48, 64)
        np.testing.assert_allclose(values / 256, metres, atol=0.02)


@pytest.mark.parametrize(
    ("kind", "form", "message"),
    [
        ("relative", "kitti16", "kitti16 holds metres, and 'fake' gives relative depth"),
        ("disparity", "kitti16", "kitti16 holds metres, and 'fake' gives disparity depth"),
        ("disparity", "ply", "ply holds depth, and 'fake' gives disparity"),
        ("disparity", "normals", "normals holds depth, and 'fake' gives disparity"),
    ],
)
def test_what_a_format_does_not_hold_is_said_before_the_work(
    kind: str, form: str, message: str, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    system = FakeSystem()
    monkeypatch.setattr(FakeSystem, "scale_kind", kind)
    monkeypatch.setattr("langdepth.runtimes.opening.load", lambda name, **options: system)
    save_image(Path("a.png"), grey(0.5))
    code, _, err = run("a.png", "--save", f"npy,{form}")
    assert (code, err.count("\n")) == (2, 1)
    assert message in err
    assert system.batches == []
    assert not Path("depth").exists()


def test_what_16_bits_do_not_hold_is_counted(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """The fake system's depth is 1 to 10 m."""
    for name, brightness in {"near": 0.0, "far": 1.0, "between": 0.5}.items():
        save_image(Path(f"p/{name}.png"), grey(brightness))
    code, _, err = run("p", "--save", "depth16", "--depth-unit", "0.0001")
    assert code == 0
    assert f"depth16: {48 * 64} pixels of 1 image lie beyond its reach and are stored as its farthest depth" in err
    monkeypatch.setattr(results, "_KITTI_SCALE", 4.0)
    code, _, err = run("p", "--save", "depth16,kitti16", "--depth-unit", "1")
    assert code == 0
    assert "depth16: " not in err
    assert f"kitti16: {48 * 64} pixels of 1 image are nearer than half a unit and are stored as 1 unit" in err


def test_small_relative_depth_is_printed_with_its_digits(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    system = FakeSystem()
    system.scale.data.fill_(1e-5)
    monkeypatch.setattr(FakeSystem, "scale_kind", "relative")
    monkeypatch.setattr("langdepth.runtimes.opening.load", lambda name, **options: system)
    save_image(Path("a.png"), grey(0.6))
    assert "depth 6.4e-05 / 6.4e-05 / 6.4e-05 (relative)" in run("a.png", "--save", "npy")[1]


def test_one_range_of_colors_for_all_images(run: Run) -> None:
    """The same depth has the same color in every image, and it is the one that the color map has there."""
    save_image(Path("p/near.png"), np.hstack([grey(0.1), grey(0.2)]))
    save_image(Path("p/far.png"), np.hstack([grey(0.1), grey(0.9)]))
    assert run("p", "--save", "color,npy", "--range", "1,11", "--colormap", "viridis")[0] == 0
    palette = matplotlib.colormaps["viridis"]
    for name in ("near", "far"):
        pixels, depth = np.asarray(Image.open(f"depth/{name}_color.png")), np.load(f"depth/{name}.npy")
        factor = pixels.shape[0] // 48
        for x in (10, 110):
            expected = palette((depth[24, x] - 1) / 10, bytes=True)[:3]
            np.testing.assert_allclose(pixels[24 * factor, x * factor], expected, atol=3)


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--range", "10,0", "--range: expected 0 <= NEAR < FAR, for example 0,10, got '10,0'"),
        ("--range", "-1,5", "--range: expected 0 <= NEAR < FAR, for example 0,10, got '-1,5'"),
        ("--range", "5", "--range: expected NEAR,FAR in metres"),
        ("--range", "0,inf", "--range: expected 0 <= NEAR < FAR"),
        ("--range", "nan,3", "--range: expected 0 <= NEAR < FAR"),
        ("--colormap", "virids", "unknown color map 'virids': did you mean 'viridis'?"),
    ],
)
def test_colors_that_make_no_sense_are_known_before_the_work(run: Run, option: str, value: str, message: str) -> None:
    save_image(Path("a.png"), grey(0.5))
    code, _, err = run("a.png", option, value)
    assert code == 2
    assert message in err
    assert not Path("depth").exists()


def test_sigma_is_in_the_line_the_page_and_the_maps(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    class Sure(FakeSystem):
        def forward(self, image, text=None, scene=None):  # type: ignore[no-untyped-def]
            output = super().forward(image, text, scene)
            return replace(output, sigma=output.depth / 4)

    save_image(Path("a.png"), grey(0.6))
    assert "sigma" not in run("a.png", "--save", "html,npz", "--out", "without")[1]
    assert "sigma" not in Path("without/a.html").read_text()
    monkeypatch.setattr("langdepth.runtimes.opening.load", lambda name, **options: Sure())
    code, out, _ = run("a.png", "--save", "html,npz")
    assert code == 0
    assert "; sigma 1.60 m (median); scene" in out
    assert '"sigma (median)", "1.60 m"' in Path("depth/a.html").read_text()
    with np.load("depth/a.npz") as maps:
        np.testing.assert_array_equal(maps["sigma"], maps["depth"] / 4)


def test_warnings_are_one_line(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    class Doubting(FakeSystem):
        def forward(self, image, text=None, scene=None):  # type: ignore[no-untyped-def]
            warnings.warn("the word 'zorblax'\nis not known", stacklevel=2)
            return super().forward(image, text, scene)

    monkeypatch.setattr("langdepth.runtimes.opening.load", lambda name, **options: Doubting())
    save_image(Path("a.png"), grey(0.5))
    code, _, err = run("a.png", "--save", "npy")
    assert (code, err) == (0, "langdepth predict: warning: the word 'zorblax' is not known\n")


def test_sub_folders_only_when_asked_and_kept(run: Run) -> None:
    save_image(Path("photos/a.png"), grey(0.2))
    save_image(Path("photos/sub/a.png"), grey(0.8))
    assert run("photos", "--save", "npy")[0] == 0
    assert files() == ["a.npy"]
    assert run("photos", "--save", "npy", "--recursive")[0] == 0
    assert files() == ["a.npy", "sub/a.npy"]
    assert np.load("depth/a.npy").mean() < np.load("depth/sub/a.npy").mean()


def test_same_stems_do_not_overwrite_each_other(run: Run) -> None:
    for i, name in enumerate(["p/a.jpg", "p/a.png", "p/a_jpg.png", "q/a.jpg"]):
        save_image(Path(name), grey(0.2 * (i + 1)))
    code, _, _ = run("p", "q", "--save", "npy")
    assert code == 0
    assert files() == ["a_jpg.npy", "a_jpg_2.npy", "a_jpg_3.npy", "a_png.npy"]
    values = sorted(round(float(np.load(f"depth/{name}").mean()), 1) for name in files())
    assert values == pytest.approx([2.8, 4.6, 6.4, 8.2], abs=0.1)
    before = {name: np.load(f"depth/{name}") for name in files()}
    assert run("p", "q", "--save", "npy")[0] == 0  # the same names again
    assert all(np.array_equal(before[name], np.load(f"depth/{name}")) for name in files())


def test_a_image_named_twice_is_done_once(run: Run) -> None:
    save_image(Path("p/a.png"), grey(0.5))
    _, out, _ = run("p/a.png", "p", "./p/a.png", "--save", "npy")
    assert len(out.splitlines()) == 1
    assert files() == ["a.npy"]


def test_glob(run: Run) -> None:
    for name in ("p/a1.png", "p/b1.png", "p/q/a2.png"):
        save_image(Path(name), grey(0.5))
    assert run("p/**/a*.png", "--save", "npy")[0] == 0
    assert files() == ["a1.npy", "q/a2.npy"]
    save_image(Path("[x].png"), grey(0.5))
    assert run("[x].png", "--save", "npy", "--out", "literal")[0] == 0
    assert files("literal") == ["[x].npy"]


def test_stdin(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    data = save_image(Path("photo.jpg"), grey(0.5)).read_bytes()
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))
    assert run("-", "--save", "npy")[0] == 0
    assert files() == ["stdin.npy"]
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"")))
    code, _, err = run("-", "--save", "npy")
    assert code == 1
    assert len(err.splitlines()) == 1


def test_resume_skips_what_is_complete(run: Run) -> None:
    for i in range(3):
        save_image(Path(f"photos/{i}.png"), grey(0.3 * i))
    assert run("photos", "--save", "npy,npz")[0] == 0
    Path("depth/1.npz").unlink()
    stamps = {name: Path("depth", name).stat().st_mtime_ns for name in files()}
    code, out, _ = run("photos", "--save", "npy,npz", "--resume")
    assert code == 0
    assert "2 of 3 images were already done" in out
    assert {n for n in files() if stamps.get(n) != Path("depth", n).stat().st_mtime_ns} == {"1.npy", "1.npz"}
    code, out, _ = run("photos", "--save", "npy,npz", "--resume")
    assert code == 0
    assert "3 of 3 images were already done" in out


def test_resume_does_again_what_an_unfinished_run_has_replaced(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("A", 0.3), ("B", 0.9)):
        save_image(Path(f"{name}/x.png"), grey(value))
    assert run("A/x.png", "--save", "depth16")[0] == 0

    def fail(result: object, file: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setitem(results.WRITERS, "npy", results.Writer(".npy", fail))
        assert run("B/x.png", "--save", "depth16,npy")[0] == 1
    np.testing.assert_allclose(read_depth16("depth/x_depth.png")[0].mean(), 9.1, atol=0.1)
    code, out, _ = run("A/x.png", "--save", "depth16", "--resume")
    assert (code, "already done" in out) == (0, False)
    np.testing.assert_allclose(read_depth16("depth/x_depth.png")[0].mean(), 3.7, atol=0.1)


def test_resume_does_again_what_a_folder_of_weights_made_before_it_changed(run: Run) -> None:
    save_image(Path("a.png"), grey(0.5))
    Path("weights").mkdir()
    for content in (b"1", b"22"):
        Path("weights/model.safetensors").write_bytes(content)
        for again in (False, True):
            code, out, _ = run("a.png", "--save", "npy", "--system", "weights", "--resume")
            assert (code, "already done" in out) == (0, again)


@pytest.mark.parametrize("change", ["option", "image", "weights", "empty", "folder", "record"])
def test_resume_does_again_what_is_made_of_something_else(run: Run, change: str) -> None:
    Path("m.safetensors").write_bytes(b"weights")
    for i in range(2):
        save_image(Path(f"p/{i}.png"), grey(0.3 + 0.3 * i))
    options = ["--save", "npy", "--system", "m.safetensors"]
    assert run("p", *options)[0] == 0
    target = Path("depth/1.npy")
    if change == "option":
        options += ["--text", "no null 5"]
    elif change == "image":
        save_image(Path("p/1.png"), grey(0.9))
    elif change == "weights":
        Path("m.safetensors").write_bytes(b"others!")
    elif change == "empty":
        target.write_bytes(b"")
    elif change == "folder":
        target.unlink()
        target.mkdir()
    else:
        Path("depth", RECORD).write_bytes(b"\xff{[")
    code, out, err = run("p", *options, "--resume")
    again = {"image": 1, "empty": 1, "folder": 1}.get(change, 2)
    assert ("1 of " in out) == (again == 1)
    if change == "folder":
        assert (code, "depth/1.npy exists" in err) == (1, True)
        return
    assert code == 0
    assert run("p", *options, "--resume")[1].startswith("2 of 2 images were already done")
    mean = {"option": 12.8, "image": 9.1}.get(change, 6.4)
    np.testing.assert_allclose(np.load(target).mean(), mean, atol=0.1)


def test_resume_knows_weights_that_lie_elsewhere_now(run: Run) -> None:
    save_image(Path("a.png"), grey(0.5))
    for name in ("m.safetensors", "sub/n.safetensors"):
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).write_bytes(b"weights")
        _, out, _ = run("a.png", "--save", "npy", "--system", name, "--resume")
        assert ("already done" in out) == (name != "m.safetensors")


def test_resume_does_again_what_was_cut_off(run: Run) -> None:
    for name in ("a", "b"):
        save_image(Path(f"p/{name}.png"), grey(0.5))
    assert run("p", "--save", "npz,depth16,ply")[0] == 0
    whole = {name: Path("depth", name).read_bytes() for name in files()}
    for name in ("a.npz", "a_depth.png", "a.ply"):
        Path("depth", name).write_bytes(whole[name][: len(whole[name]) // 2])
        code, out, err = run("p", "--save", "npz,depth16,ply", "--resume")
        assert (code, "1 of 2 images were already done" in out) == (0, True), err
        assert len(Path("depth", name).read_bytes()) == len(whole[name])


def test_results_follow_their_image_when_another_one_takes_its_name(run: Run) -> None:
    save_image(Path("p/sub/a.jpg"), grey(0.3))
    assert run("p", "--recursive", "--save", "depth16,npy", "--resume")[0] == 0
    save_image(Path("p/sub/a.png"), grey(0.9))
    code, out, _ = run("p", "--recursive", "--save", "depth16", "--resume")
    assert code == 0
    assert "2 results have other names now, as other images came or went: sub/a_depth.png -> sub/a_jpg_depth.png" in out
    assert "1 of 2 images were already done" in out
    assert files() == ["sub/a_jpg.npy", "sub/a_jpg_depth.png", "sub/a_png_depth.png"]
    means = [read_depth16(f"depth/sub/a_{end}_depth.png")[0].mean() for end in ("jpg", "png")]
    np.testing.assert_allclose(means, [3.7, 9.1], atol=0.1)
    Path("p/sub/a.jpg").unlink()
    assert "1 of 1 images were already done" in run("p", "--recursive", "--save", "depth16", "--resume")[1]
    assert files() == ["sub/a_depth.png", "sub/a_jpg.npy", "sub/a_jpg_depth.png"]


def test_a_missing_file_is_known_before_the_model_is_loaded(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("langdepth.runtimes.opening.load", lambda *_, **__: pytest.fail("loaded"))
    code, out, err = run("gone.jpg", "gone/too")
    assert (code, out) == (1, "")
    assert err.splitlines() == [f"langdepth predict: {name}: no such file" for name in ("gone.jpg", "gone/too")]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--seed", "0"], "seed is of samples; give samples, too"),
        (["--spread", "0.5"], "spread is of samples; give samples, too"),
        (["--without-caption", "stop"], "--without-caption is of captions; give --captions, too"),
        (["--range", "0,10", "--save", "npy"], "--range is of the formats color and html; name one in --save"),
        (["--colormap", "magma_r", "--save", "npy"], "--colormap is of the formats color and html; name one in --save"),
        (
            ["--intrinsics", "60,60,32,24", "--save", "npy"],
            "--intrinsics is for npz, normals, html, ply, glb, rrd with 'fake'; name one in --save",
        ),
    ],
)
def test_an_option_without_a_use_is_refused(run: Run, options: list[str], message: str) -> None:
    save_image(Path("a.png"), grey(0.5))
    code, _, err = run("a.png", *options)
    assert (code, err) == (2, f"langdepth predict: {message}\n")


def test_a_system_may_consider_the_camera(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Twice the focal length is twice as far away; in every format."""
    minded = FakeSystem()
    minded.input_spec = replace(minded.input_spec, focal=1.0)
    monkeypatch.setattr("langdepth.runtimes.opening.load", lambda name, **options: minded)
    save_image(Path("a.png"), grey(0.5))
    assert run("a.png", "--save", "npy", "--fov", "90", "--out", "wide")[0] == 0
    assert run("a.png", "--save", "npy", "--fov", "53.13", "--out", "narrow")[0] == 0
    np.testing.assert_allclose(np.load("narrow/a.npy"), 2 * np.load("wide/a.npy"), rtol=1e-3)


def test_results_inside_the_input_folder_are_not_images(run: Run) -> None:
    save_image(Path("photos/a.png"), grey(0.5))
    for _ in range(2):
        assert run("photos", "--recursive", "--save", "depth16", "--out", "photos/depth")[0] == 0
    assert files("photos/depth") == ["a_depth.png"]


def test_images_are_never_overwritten(run: Run) -> None:
    for name in ("a.png", "a_depth.png"):
        save_image(Path("photos", name), grey(0.5))
    before = Path("photos/a_depth.png").read_bytes()
    for word in ("photos", "photos/*.png", "photos/a.png"):
        code, _, err = run(word, "--save", "depth16", "--out", "photos")
        assert code == 1
        assert re.search(r"a\.png: photos/a_depth\.png exists and was not written by langdepth; give", err)
        assert Path("photos/a_depth.png").read_bytes() == before
    assert files("photos") == ["a.png", "a_depth.png", "a_depth_depth.png"]  # the other one was done


@pytest.mark.parametrize("form", ["depth16", "kitti16", "npy", "npz", "color", "ply"])
def test_only_results_of_langdepth_are_replaced(run: Run, form: str) -> None:
    save_image(Path("p/a.jpg"), ramp())
    for _ in range(2):
        code, _, err = run("p/a.jpg", "--save", form)
        assert code == 0, err
    (name,) = files()
    target = Path("depth", name)
    target.unlink()
    np.save("other.npy", np.ones((48, 64), np.float32))
    np.savez("other.npz", depth=np.ones((48, 64), np.float32))
    Image.fromarray(np.ones((48, 64), np.uint16)).save("other.png")
    Path("other.ply").write_text("ply\nformat ascii 1.0\n")
    others = [f"other{target.suffix}", "p/a.jpg"]
    for other in others:
        target.write_bytes(Path(other).read_bytes())
        code, _, err = run("p/a.jpg", "--save", form, "--resume")
        assert (code, err.count("\n")) == (1, 1)
        assert f"p/a.jpg: {target} exists and was not written by langdepth" in err
        assert target.read_bytes() == Path(other).read_bytes()
    target.unlink()
    target.symlink_to(Path("p/a.jpg").absolute())
    assert run("p/a.jpg", "--save", form)[0] == 1
    assert target.is_symlink()


def test_results_of_a_format_that_nobody_recognises_are_replaced_unless_they_changed(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As those of a plug-in."""
    monkeypatch.setitem(results.WRITERS, "text", results.Writer(".txt", lambda result, file: file.write(b"depth")))
    save_image(Path("a.png"), ramp())
    for _ in range(2):
        assert run("a.png", "--save", "text")[0] == 0
    Path("depth/a.txt").write_text("notes of somebody")
    assert run("a.png", "--save", "text")[0] == 1
    assert Path("depth/a.txt").read_text() == "notes of somebody"


def test_no_two_images_have_a_file_in_common(run: Run) -> None:
    for i, name in enumerate(("x.jpg", "x_COLOR.jpg", "x_depth.jpg")):
        save_image(Path("p", name), grey(0.2 + 0.3 * i))
    code, out, _ = run("p", "--save", "depth16,kitti16,color")
    assert (code, "3 done, 0 failed" in out) == (0, True)
    assert len(files()) == 9
    depths = [read_depth16(f"depth/{name}_depth.png")[0].mean() for name in ("x", "x_COLOR_2", "x_depth_2")]
    np.testing.assert_allclose(depths, [2.8, 5.5, 8.2], atol=0.1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "required: images"),
        (["a.png", "--sistem", "tiny"], "did you mean '--system'"),
        (["a.png", "--save", "npyy"], "did you mean 'npy'"),
        (["a.png", "--save", ","], "nothing to write"),
        (["a.png", "--dtype", "float23"], "--dtype: expected one of float32, bfloat16"),
        (["a.png", "--batch-size", "x"], "--batch-size: expected a whole number, got 'x'"),
        (["a.png", "--batch-size", "0"], "batch size must be at least 1, got 0"),
        (["a.png", "--fov", "200", "--save", "ply"], "between 2 and 150 degrees"),
        (["a.png", "--fov", "60", "--intrinsics", "1,1,1,1"], "give one of them"),
        (["a.png", "--intrinsics", "1,2"], "expected fx,fy,cx,cy"),
        (["a.png", "--window", "352"], "--window: expected HEIGHTxWIDTH in pixels, for example 352x512, got '352'"),
        (["a.png", "--stride", "8x8"], "a stride is given without a window"),
        (["a.png", "--scene", "kitchn"], "did you mean 'kitchen'"),
        (["a.png", "--device", "warp"], "device 'warp'"),
        (
            ["a.png", "--out", "o", "b.png", "c.png"],
            "'b.png', 'c.png': not understood after an option; write all names",
        ),
    ],
)
def test_usage_mistakes_cost_one_line_and_exit_2(run: Run, arguments: list[str], message: str) -> None:
    save_image(Path("a.png"), grey(0.5))
    code, out, err = run(*arguments)
    assert (code, out) == (2, "")
    assert len(err.splitlines()) == 1
    assert message in err


@pytest.mark.parametrize("word", ["gone.jpg", "nothing", "empty", "*.xyz"])
def test_nothing_to_do_is_one_line_and_exit_1(run: Run, word: str) -> None:
    Path("empty").mkdir()
    code, out, err = run(word)
    assert (code, out) == (1, "")
    assert len(err.splitlines()) == 1
    assert word in err


def test_unwritable_output_is_one_line_and_exit_1(run: Run) -> None:
    save_image(Path("a.png"), grey(0.5))
    Path("file").write_text("in the way")
    code, _, err = run("a.png", "--out", "file/depth")
    assert code == 1
    assert len(err.splitlines()) == 1
    assert "file/depth: cannot be written" in err


def test_full_disk_stops_and_leaves_nothing_half_written(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    for i in range(30):
        save_image(Path(f"photos/{i:02}.png"), grey(0.5))
    written: list[object] = []

    def nearly_full(result: DepthResult, file: io.BufferedWriter) -> None:
        if len(written) >= 5:
            file.write(b"the first bytes still fit")
            raise OSError(errno.ENOSPC, "No space left on device")
        written.append(file)
        whole.write(result, file)

    whole = results.WRITERS["npy"]
    monkeypatch.setitem(results.WRITERS, "npy", whole._replace(write=nearly_full))
    code, _, err = run("photos", "--save", "npy")
    assert code == 1
    assert len(err.splitlines()) == 1
    assert "No space left on device" in err
    assert len(files()) == 5
    assert all(np.load(f"depth/{name}").shape == (48, 64) for name in files())


def test_ctrl_c_keeps_what_is_written(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    for i in range(12):
        save_image(Path(f"photos/{i:02}.png"), grey(0.5))

    class Interrupted(FakeSystem):
        def forward(self, image, text=None, scene=None):  # type: ignore[no-untyped-def]
            if len(self.batches) >= 3:
                time.sleep(0.2)  # the writers catch up
                raise KeyboardInterrupt
            return super().forward(image, text, scene)

    monkeypatch.setattr("langdepth.runtimes.opening.load", lambda name, **options: Interrupted())
    code, _, err = run("photos", "--save", "npy", "--batch-size", "2")
    assert code == 130
    assert "interrupted" in err
    kept = len(files())
    assert 0 < kept < 12
    assert all(np.load(f"depth/{name}").shape == (48, 64) for name in files())
    monkeypatch.setattr("langdepth.runtimes.opening.load", lambda name, **options: FakeSystem())
    code, out, _ = run("photos", "--save", "npy", "--resume")
    assert code == 0
    assert f"{kept} of 12 images were already done" in out
    assert len(files()) == 12


def test_help_explains_every_option_and_ends_with_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.main(["predict", "--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    for option in ("--text", "--scene", "--save", "--fov", "--flip", "--resume", "--batch-size"):
        assert re.search(rf"^  {option}\b.*\n?.*[a-z]{{3}}", text, re.MULTILINE), option
    example = text[text.index("example:") :].splitlines()[1].split()
    assert example[:2] == ["langdepth", "predict"]


def test_metadata_that_nobody_uses_is_not_warned_of(command: Run, tmp_path: Path) -> None:
    Image.fromarray(ramp()).save(tmp_path / "a.tiff")
    content = bytearray((tmp_path / "a.tiff").read_bytes())
    entry = content.index(struct.pack("<HHI", 284, 3, 1))  # PlanarConfiguration
    content[entry + 4 : entry + 8] = struct.pack("<I", 254)
    (tmp_path / "a.tiff").write_bytes(content)
    _, _, err = command("predict", tmp_path / "a.tiff", "--out", tmp_path / "out", "--save", "npy")
    assert "warning" not in err


def test_a_tiff_of_thousands_of_channels_has_one_line(
    command: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Image.fromarray(ramp()).save(tmp_path / "a.tiff")
    content = bytearray((tmp_path / "a.tiff").read_bytes())
    entry = content.index(struct.pack("<HHI", 277, 3, 1))  # SamplesPerPixel
    content[entry + 8 : entry + 12] = struct.pack("<I", 12390)
    (tmp_path / "a.tiff").write_bytes(content)
    monkeypatch.setattr(logging.getLogger(), "handlers", [])  # as outside of tests
    code, _, err = command("predict", tmp_path / "a.tiff", "--out", tmp_path / "out")
    assert (code, err.count("\n")) == (1, 1)


def test_a_name_that_steers_a_terminal_is_printed_as_in_python(run: Run) -> None:
    save_image(Path("a\x1b[31m\n.png"), grey(0.5))
    code, out, _ = run("a\x1b[31m\n.png", "--save", "npy")
    assert (code, out.count("\n")) == (0, 1)
    assert out.startswith(r"a\x1b[31m\n.png -> ")
