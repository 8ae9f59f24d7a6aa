"""``langdepth predict`` on clips: files, times, resumption, and how it ends when something goes wrong."""

from __future__ import annotations

import csv
import errno
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import langdepth
from langdepth.commands import _clips, _window
from langdepth.errors import LangdepthError
from langdepth.prediction.video import sources
from langdepth.prediction.video.clip import Clip
from langdepth.prediction.video.writing import ClipFile, read_depth_video
from langdepth.utils.depth_files import read_depth16
from tests.clips import brightening, read_clip, save_clip
from tests.helpers import FakeSystem, Run, grey, ramp, save_image

EXACT = 0.25  # metres: what a codec with losses does to the depth of the fake system


class Indoors(FakeSystem):
    """Dark frames are an office to it, and no street, whose sky has no depth."""

    scenes = ("kitchen", "office")


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeSystem:
    system = Indoors()
    monkeypatch.setattr("langdepth.runtimes.opening.load", lambda name, **options: system)
    monkeypatch.setattr("langdepth.api.load", lambda name, **options: system)
    return system


@pytest.fixture
def run(fake: FakeSystem, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, command: Run) -> Run:
    """Run the command in an empty folder with the fake system; returns exit code, stdout, stderr."""
    monkeypatch.chdir(tmp_path)
    return partial(command, "predict")


def files(folder: str = "depth") -> list[str]:
    found = [path for path in Path(folder).rglob("*") if path.is_file() and not path.name.startswith(".")]
    return sorted(str(path.relative_to(folder)) for path in found)


def wanted(count: int) -> list[float]:
    """The fake system's depth of ``brightening`` frames."""
    return [1 + 9 * level / 255 for level in np.linspace(51, 204, count)]


def test_a_clip_becomes_clips(run: Run) -> None:
    save_clip(Path("clip.mp4"), brightening(12), times=[*range(0, 1100, 100), 1500])
    code, out, err = run("clip.mp4", "--steady", "off")
    assert (code, err) == (0, "")
    assert files() == ["clip_color.mp4", "clip_depth.mkv"]
    start = "clip.mp4 -> depth/clip_depth.mkv, depth/clip_color.mp4; 12 frames, second 0.00 to 1.50; depth 2."
    assert out.startswith(start)
    assert out.endswith("m (min / median / max)\n")
    found = list(read_depth_video("depth/clip_depth.mkv"))
    np.testing.assert_allclose([time for time, _ in found], [*np.arange(11) / 10, 1.5], atol=1e-3)
    np.testing.assert_allclose([np.median(depth) for _, depth in found], wanted(12), atol=EXACT)
    np.testing.assert_allclose(read_clip(Path("depth/clip_color.mp4"))[0], [*np.arange(11) / 10, 1.5], atol=1e-4)


def test_one_range_of_colors_for_the_whole_clip(run: Run) -> None:
    """The legend is the same in all frames, and what is near in the first is bright, far in the last dark."""
    save_clip(Path("clip.mkv"), brightening(30, 256, 224))
    assert run("clip.mkv", "--save", "color-video,side-by-side")[0] == 0
    images = read_clip(Path("depth/clip_color.mp4"))[1]
    legends = [image[:, 256:].astype(int) for image in images]
    assert max(np.abs(legend - legends[0]).mean() for legend in legends) < 4
    assert images[0][112, 128].mean() > 180 > 80 > images[-1][112, 128].mean()
    assert run("clip.mkv", "--save", "color-video", "--range", "0,100")[0] == 0
    assert min(image[112, 128].mean() for image in read_clip(Path("depth/clip_color.mp4"))[1]) > 180


def test_files_of_each_frame_and_their_times(run: Run) -> None:
    times = [0, 100, 130, 400, 700]
    save_clip(Path("clip.mp4"), brightening(5), times=times)
    code, _, err = run("clip.mp4", "--save", "depth16,npy,ply", "--steady", "off", "--sky", "keep", "--fov", "60")
    assert (code, err) == (0, "")
    names = [f"clip/{number:06d}{end}" for number in range(5) for end in (".npy", ".ply", "_depth.png")]
    assert files() == sorted([*names, "clip/frames.csv"])
    with open("depth/clip/frames.csv", newline="") as table:
        rows = list(csv.DictReader(table))
    assert [int(row["frame"]) for row in rows] == list(range(5))
    np.testing.assert_allclose([float(row["time"]) for row in rows], np.divide(times, 1000), atol=1e-4)
    depths = [float(np.median(np.load(f"depth/clip/{number:06d}.npy"))) for number in range(5)]
    np.testing.assert_allclose(depths, wanted(5), atol=EXACT)


def test_one_unit_for_clip_and_frames(run: Run) -> None:
    """That of --depth-unit; what 16 bits do not hold is counted."""
    save_clip(Path("clip.mp4"), brightening(5))
    code, _, err = run("clip.mp4", "--save", "depth16,depth-video", "--steady", "off", "--depth-unit", "0.01")
    assert (code, err) == (0, "")
    fine = [depth for _, depth in read_depth_video("depth/clip_depth.mkv")]
    for number, depth in enumerate(fine):
        stored, scale = read_depth16(f"depth/clip/{number:06d}_depth.png")
        assert scale == 0.01
        np.testing.assert_array_equal(stored, depth)
    code, _, err = run("clip.mp4", "--save", "depth16,depth-video", "--steady", "off", "--depth-unit", "0.0001")
    assert code == 0
    lost = [line for line in err.splitlines() if "lie beyond its reach" in line]
    assert [line.split(" ")[3] for line in lost] == ["depth16:", "depth-video:"]
    assert "pixels of 2 frames lie beyond its reach and are stored as its farthest depth" in lost[0]


def test_frames_of_relative_depth_have_one_unit(run: Run, fake: FakeSystem, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FakeSystem, "scale_kind", "relative")
    save_clip(Path("clip.mp4"), brightening(5))
    assert run("clip.mp4", "--save", "depth16")[0] == 0
    scales = {read_depth16(f"depth/clip/{number:06d}_depth.png")[1] for number in range(5)}
    assert len(scales) == 1
    code, _, err = run("clip.mp4", "--save", "kitti16", "--out", "other")
    assert code == 2
    assert "kitti16 holds metres, and 'fake' gives relative depth" in err
    assert not Path("other").exists()


def test_clips_beside_images(run: Run) -> None:
    save_clip(Path("a/x.mp4"), brightening(3))
    save_clip(Path("b/x.mkv"), brightening(3))
    save_image(Path("photo.png"), grey(0.5))
    code, out, _ = run("a/x.mp4", "photo.png", "b/x.mkv", "--save", "npy,depth-video")
    assert code == 0
    assert files() == sorted(
        [
            f"{name}/{file}"
            for name in ("x_mp4", "x_mkv")
            for file in ("000000.npy", "000001.npy", "000002.npy", "frames.csv")
        ]
        + ["photo.npy", "x_mkv_depth.mkv", "x_mp4_depth.mkv"]
    )
    assert len(out.splitlines()) == 3


def test_numbered_images_are_a_clip(run: Run) -> None:
    for number in range(4):
        save_image(Path(f"shot/f{number:02d}.png"), ramp(seed=number))
    assert run("shot/f%02d.png", "--fps", "2", "--save", "depth-video,npy")[0] == 0
    assert [time for time, _ in read_depth_video("depth/f_depth.mkv")] == [0, 0.5, 1, 1.5]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["a.png", "--fps", "3"], "--fps is of videos, and none is named"),
        (["a.png", "--steady", "off"], "--steady is of videos, and none is named"),
        (["a.png", "--show"], "--show is of videos, and none is named"),
        (["a.png", "--save", "depth-video"], "--save depth-video is of videos; of images name"),
        (["a.png", "clip.mp4", "--save", "depth-video"], "--save depth-video is of videos"),
        (["clip.mp4", "--overlay", "a.png"], "--overlay is of images"),
        (["clip.mp4", "--captions", "."], "--captions has a file for each image"),
        (["clip.mp4", "--end", "0"], "--end 0 is not after --start 0"),
        (["clip.mp4", "--save", "depth-vdeo"], "did you mean 'depth-video'?"),
        (["clip.mp4", "--save", "npy", "--range", "0,3"], "is of the formats color and html"),
        (["clip.mp4", "--save", "npy", "--depth-unit", "0.002"], "--depth-unit is of depth16 and of depth-video"),
        (["clip.mp4", "--show", "--depth-unit", "0.002"], "--depth-unit is of depth16 and of depth-video"),
        (["clip.mp4", "--fov", "60"], "--fov is for npz, normals, "),
        (["webcam:0", "--resume"], "--resume is of files"),
        (["clip.mp4", "--steady", "much"], "expected one of motion, scale, off"),
    ],
)
def test_options_that_do_not_fit(words: list[str], message: str, run: Run) -> None:
    save_image(Path("a.png"), grey(0.5))
    save_clip(Path("clip.mp4"), brightening(2))
    code, _, err = run(*words)
    assert code == 2
    assert message in err
    assert err.count("\n") == 1
    assert not Path("depth").exists()


def test_a_clip_that_cannot_be_read_costs_its_own_line(run: Run) -> None:
    Path("bad.mp4").write_bytes(b"\0\0\0\x18ftypisom" + b"\0" * 99)
    save_clip(Path("good.mp4"), brightening(3))
    code, out, err = run("bad.mp4", "missing.mov", "good.mp4", "--save", "npy")
    assert code == 1
    assert [line.partition(": ")[2][:11] for line in err.splitlines()] == ["bad.mp4: da", "missing.mov"]
    assert "3 frames" in out


def test_what_is_there_of_a_cut_file_is_done(run: Run) -> None:
    path = save_clip(Path("clip.mkv"), brightening(60))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    code, out, err = run("clip.mkv", "--save", "depth-video,color-video,npy")
    assert code == 1
    assert err.count("\n") == 1
    assert "clip.mkv: cut" in err
    count = len(list(read_depth_video("depth/clip_depth.mkv")))
    assert 10 < count < 55
    assert f"{count} frames" in out
    assert len(read_clip(Path("depth/clip_color.mp4"))[0]) == count
    assert f"clip/{count - 1:06d}.npy" in files()


def test_foreign_files_stay(run: Run) -> None:
    save_clip(Path("clip.mp4"), brightening(2))
    mine = save_clip(Path("depth/clip_color.mp4"), brightening(1)).read_bytes()
    code, _, err = run("clip.mp4")
    assert code == 1
    assert "depth/clip_color.mp4 exists and was not written by langdepth" in err
    assert Path("depth/clip_color.mp4").read_bytes() == mine
    Path("depth/clip_color.mp4").unlink()
    assert run("clip.mp4")[0] == 0
    assert run("clip.mp4")[0] == 0, "its own are replaced"
    code, _, err = run("depth/clip_depth.mkv")
    assert code == 1
    assert "is a result of langdepth" in err


# Resumption


def contents(folder: str) -> dict[str, bytes]:
    return {name: Path(folder, name).read_bytes() for name in files(folder)}


def interrupted_after(count: int) -> Callable[..., Iterator[Any]]:
    """``predict_frames`` that somebody interrupts."""
    whole = _clips.predict_frames

    def some(*arguments: Any, **options: Any) -> Iterator[Any]:
        with _closing(whole(*arguments, **options)) as frames:
            yield from islice(frames, count)
        raise KeyboardInterrupt

    return some


def _closing(frames: Any) -> Any:
    from contextlib import closing

    return closing(frames)


@pytest.mark.parametrize("steady", ["motion", "scale", "off"])
def test_an_interrupted_clip_is_gone_on_with(steady: str, run: Run, fake: FakeSystem) -> None:
    """Frames that are there are not predicted again, and the rest is as if nothing had been between."""
    save_clip(Path("clip.mp4"), brightening(25))
    words = ("clip.mp4", "--save", "npy", "--steady", steady, "--batch-size", "1")
    assert run(*words, "--out", "whole")[0] == 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_clips, "predict_frames", interrupted_after(14))
        code, _, err = run(*words, "--out", "parts")
    assert code == 130
    assert "clip.mp4: ended after 14 frames; kept: parts/clip" in err
    assert len(files("parts")) == 15
    fake.batches.clear()
    code, out, _ = run(*words, "--out", "parts", "--resume")
    assert code == 0
    assert "14 frames were already done" in out
    assert len(fake.batches) == 11
    assert contents("parts") == contents("whole")
    fake.batches.clear()
    code, out, _ = run(*words, "--out", "parts", "--resume")
    assert (code, out) == (0, "clip.mp4 was already done\n")
    assert fake.batches == []
    assert "already done" not in run(*words, "--out", "parts", "--resume", "--flip")[1]


def test_a_frame_that_was_changed_is_done_again(run: Run) -> None:
    save_clip(Path("clip.mp4"), brightening(4))
    words = ("clip.mp4", "--save", "npy", "--resume")
    run(*words)
    Path("depth/clip/000002.npy").write_bytes(b"")
    code, out, _ = run(*words)
    assert code == 0
    assert "already done" not in out
    assert np.load("depth/clip/000002.npy").shape == (48, 64)


@pytest.mark.parametrize("content", [b"PK\x03\x04" + bytes(200), b"\x93NUMPY", b"x", "other", "shapes"])
def test_what_is_left_of_an_earlier_run_may_be_damaged(content: Any, run: Run) -> None:
    save_clip(Path("clip.mp4"), brightening(4))
    words = ("clip.mp4", "--save", "npy", "--resume")
    assert run(*words)[0] == 0
    state = Path("depth/clip/.langdepth-clip.npz")
    with np.load(state) as found:
        arrays = dict(found)
    if content == "other":
        np.save(state.with_suffix(".npy"), np.ones(3))
        state.with_suffix(".npy").rename(state)
    elif content == "shapes":
        np.savez(state, **{**arrays, "complete": False, "grey": np.ones(3, np.float32)})
    else:
        state.write_bytes(content)
    (Path("depth/clip/frames.csv")).write_text("\n\nframe,time\n\u00b2,0\n")
    code, out, err = run(*words)
    assert (code, err) == (0, "")
    assert "4 frames" in out
    assert len(Path("depth/clip/frames.csv").read_text().splitlines()) == 5


def test_a_folder_may_have_the_name_of_a_protocol(run: Run) -> None:
    save_clip(Path("clip.mp4"), brightening(4))
    assert run("clip.mp4", "--out", "tcp:1")[0] == 0
    assert files("tcp:1") == ["clip_color.mp4", "clip_depth.mkv"]


def test_whole_clips_are_written_anew(run: Run) -> None:
    save_clip(Path("clip.mp4"), brightening(20))
    words = ("clip.mp4", "--save", "depth-video,npy")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_clips, "predict_frames", interrupted_after(9))
        code, _, err = run(*words)
    assert code == 130
    assert "kept: depth/clip, depth/clip_depth.cut.mkv" in err
    assert len(list(read_depth_video("depth/clip_depth.cut.mkv"))) == 9
    code, out, _ = run(*words, "--resume")
    assert code == 0
    assert "20 frames" in out
    assert len(list(read_depth_video("depth/clip_depth.mkv"))) == 20
    assert "depth/clip_depth.cut.mkv" not in files()
    assert run(*words, "--resume")[1] == "clip.mp4 was already done\n"


# How it ends


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_leaves_what_can_be_played(number: signal.Signals, tmp_path: Path) -> None:
    save_clip(tmp_path / "clip.mp4", brightening(3000), rate=30)
    words = [sys.executable, "-m", "langdepth", "predict", "clip.mp4", "--out", "out", "--batch-size", "1"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    usual = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # ignored where tests run in the background
    with subprocess.Popen(
        words, cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True, preexec_fn=usual
    ) as process:
        until = time.monotonic() + 120
        while not list(tmp_path.glob("out/.*mkv")) and time.monotonic() < until:
            time.sleep(0.05)
        time.sleep(1)
        process.send_signal(number)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    lines = err.splitlines()
    assert lines[0].startswith("langdepth predict: clip.mp4: ended after ")
    assert lines[1:] == ["langdepth predict: interrupted; what was already written is kept"]
    count = len(list(read_depth_video(tmp_path / "out" / "clip_depth.cut.mkv")))
    assert 1 <= count < 3000
    assert read_clip(tmp_path / "out" / "clip_color.cut.mp4")[0]


def test_a_full_disk_leaves_what_can_be_played(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    save_clip(Path("clip.mp4"), brightening(20))
    add = ClipFile.add

    def full(self: ClipFile, result: Any, time: float) -> None:
        if time > 0.85 and self.path.suffix == ".mp4":
            raise LangdepthError(f"{self.path}: cannot be written ({os.strerror(errno.ENOSPC)})")
        add(self, result, time)

    monkeypatch.setattr(ClipFile, "add", full)
    code, _, err = run("clip.mp4")
    assert code == 1
    assert "No space left on device" in err
    assert err.count("\n") == 2
    assert files() == ["clip_color.cut.mp4", "clip_depth.cut.mkv"]
    assert len(read_clip(Path("depth/clip_color.cut.mp4"))[0]) == 9
    assert len(list(read_depth_video("depth/clip_depth.cut.mkv"))) >= 9


@pytest.mark.skipif(sys.platform == "win32", reason="no limits of files there")
def test_a_file_that_may_not_grow_is_a_line(tmp_path: Path) -> None:
    """A real write that fails, in FFmpeg."""
    random = np.random.default_rng(0)
    save_clip(
        tmp_path / "clip.mkv", [random.integers(0, 255, (192, 256, 3), np.uint8) for _ in range(30)], codec="mpeg4"
    )
    script = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000)); "
        "from langdepth.cli import main; sys.exit(main(['predict', 'clip.mkv', '--save', 'depth-video']))"
    )
    words = [sys.executable, "-c", script]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 1
    assert "depth/clip_depth.mkv: cannot be written (File too large)" in done.stderr
    assert len(list(islice(read_depth_video(tmp_path / "depth" / "clip_depth.cut.mkv"), 2))) == 2


# Cameras


@pytest.fixture
def webcam(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file in place of the camera 0; it is pulled out where the file ends."""
    path = save_clip(tmp_path / "camera.avi", brightening(60), codec="mpeg4")
    monkeypatch.setattr(sources, "webcam", lambda source: ("avi", str(path)) if source == "webcam:0" else None)
    return path


def test_a_camera_that_vanishes_leaves_what_it_saw(run: Run, webcam: Path) -> None:
    code, out, err = run("webcam:0")
    assert code == 1
    assert "webcam:0: no more frames come after" in err
    assert err.count("\n") == 1
    count = len(list(read_depth_video("depth/webcam0_depth.mkv")))
    assert count >= 1
    assert f"{count} frames" in out
    assert len(read_clip(Path("depth/webcam0_color.mp4"))[0]) == count


def test_ctrl_c_is_the_common_end_of_a_camera(run: Run, webcam: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_clips, "predict_frames", interrupted_after(1))
    code, out, err = run("webcam:0", "--range", "0,10")
    assert (code, err) == (0, "")
    assert "webcam:0 -> depth/webcam0_depth.mkv, depth/webcam0_color.mp4; 1 frames" in out


def test_a_camera_that_is_not_there_is_a_line(run: Run) -> None:
    code, _, err = run("webcam:99", "--end", "1")
    assert code == 1
    assert err.count("\n") == 1
    assert "webcam:99" in err


class FakeWindow:
    """What tkinter would show."""

    shown: list[tuple[int, ...]] = []  # noqa: RUF012
    most = 100

    def __init__(self, title: str) -> None:
        FakeWindow.shown = []

    def show(self, pixels: Any) -> bool:
        FakeWindow.shown.append(pixels.shape)
        return len(FakeWindow.shown) < FakeWindow.most

    def close(self) -> None:
        FakeWindow.shown.append((0,))


def test_the_running_depth_is_shown(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Frame and depth side by side; without --save nothing is written, and closing the window ends it."""
    save_clip(Path("clip.mp4"), brightening(8, 224, 208))
    monkeypatch.setattr(_clips, "Window", FakeWindow)
    code, out, err = run("clip.mp4", "--show")
    assert (code, err) == (0, "")
    assert len(FakeWindow.shown) == 9
    assert FakeWindow.shown[0][1] > 2 * 224
    assert FakeWindow.shown[-1] == (0,), "it is closed"
    assert not Path("depth").exists()
    assert out.startswith("clip.mp4; 8 frames")
    monkeypatch.setattr(FakeWindow, "most", 3)
    assert run("clip.mp4", "--show", "--save", "npy")[0] == 0
    assert len(FakeWindow.shown) == 4
    assert "clip/000002.npy" in files()


def test_without_a_screen_it_is_a_line(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    tkinter = pytest.importorskip("tkinter")

    def refused(*_: Any) -> None:
        raise tkinter.TclError("no display name and no $DISPLAY environment variable")

    monkeypatch.setattr(tkinter, "Tk", refused)
    save_clip(Path("clip.mp4"), brightening(2))
    code, _, err = run("clip.mp4", "--show")
    assert code == 2
    assert err == (
        "langdepth predict: --show: no window can be opened here (no display name and no $DISPLAY environment "
        "variable)\n"
    )
    monkeypatch.setitem(sys.modules, "tkinter", None)
    with pytest.raises(langdepth.UsageError, match="needs tkinter"):
        _window.Window("x")


# Python


def test_results_with_times(fake: FakeSystem, tmp_path: Path) -> None:
    path = save_clip(tmp_path / "clip.mp4", brightening(6))
    camera = langdepth.Camera.from_fov(60, 64, 48)
    frames = list(langdepth.predict_video(path, fake, steady="off", camera=camera, start=0.2, text="a kitchen"))
    np.testing.assert_allclose([frame.time for frame in frames], [0.2, 0.3, 0.4, 0.5], atol=1e-4)
    assert [frame.number for frame in frames] == [0, 1, 2, 3]
    assert all(frame.result.camera == camera for frame in frames)
    np.testing.assert_allclose(
        [np.median(frame.result.depth) for frame in frames], 2 * np.array(wanted(6)[2:]), atol=2 * EXACT
    )
    assert frames[1].result.provenance["time"] == frames[1].time
    assert frames[1].result.image is not None


def test_python_is_told_of_a_cut_file(fake: FakeSystem, tmp_path: Path) -> None:
    path = save_clip(tmp_path / "clip.mkv", brightening(60))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    frames = langdepth.predict_video(path, fake)
    assert len(list(islice(frames, 10))) == 10
    with pytest.raises(LangdepthError, match=r"clip\.mkv: cut"):
        list(frames)
    with pytest.raises(langdepth.UsageError, match="steady"):
        langdepth.predict_video(path, fake, steady="no")  # type: ignore[arg-type]
    with pytest.raises(langdepth.UsageError, match="flp"):
        next(langdepth.predict_video(path, fake, flp=True))


def test_steady_is_the_default(fake: FakeSystem, tmp_path: Path) -> None:
    """The fake system's depth is brightness: a lamp that flickers makes it flicker."""
    levels = 1 + 0.1 * (np.arange(20) % 2)
    image = brightening(3)[1]
    path = save_clip(
        tmp_path / "clip.mkv", [(image * level).astype(np.uint8) for level in levels], codec="ffv1", pixels="bgr0"
    )

    def flicker(**options: Any) -> float:
        depths = [np.median(frame.result.depth) for frame in langdepth.predict_video(path, fake, **options)]
        return float(np.abs(np.diff(np.log(depths)))[10:].mean())

    raw = flicker(steady="off")
    assert raw > 0.06
    assert flicker() < 0.4 * raw
    assert flicker(steady="scale") < 0.4 * raw


def test_frames_wait_in_bounded_number(fake: FakeSystem, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save_clip(tmp_path / "clip.mkv", brightening(60))
    made = []
    decoded = Clip._chosen

    def counted(self: Clip) -> Iterator[Any]:
        for one in decoded(self):
            made.append(one[0])
            yield one

    monkeypatch.setattr(Clip, "_chosen", counted)
    frames = langdepth.predict_video(path, fake, batch_size=2)
    next(frames)
    time.sleep(0.3)
    assert len(made) < 30
    frames.close()
