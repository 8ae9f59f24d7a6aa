"""What is read of clips: upright frames of 8 bits with their times, and one line for what cannot be read."""

from __future__ import annotations

import os
import struct
import threading
import time
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from langdepth.errors import ImageError, LangdepthError, MissingFileError, UsageError
from langdepth.prediction.video import clip as clips
from langdepth.prediction.video import reading, sources
from langdepth.prediction.video.clip import Clip, Frame
from langdepth.prediction.video.reading import open_clip
from langdepth.prediction.video.sources import ClipOptions, is_clip
from tests.clips import brightening, save_clip
from tests.helpers import grey, save_image

ALL = ClipOptions()
HLG = (9, 18, 9)


def frames_of(path: object, options: ClipOptions = ALL) -> list[Frame]:
    return list(open_clip(str(path), options).frames())


@pytest.mark.parametrize("name", ["a.mp4", "a.mov", "a.mkv", "a.avi", "a.ts"])
def test_containers(name: str, tmp_path: Path) -> None:
    path = save_clip(tmp_path / name, brightening(6))
    assert is_clip(str(path))
    frames = frames_of(path)
    assert [frame.number for frame in frames] == list(range(6))
    np.testing.assert_allclose([frame.time for frame in frames], np.arange(6) / 10, atol=2e-3)
    np.testing.assert_allclose([frame.pixels.mean() for frame in frames], np.linspace(51, 204, 6), atol=4)


def test_webm(tmp_path: Path) -> None:
    path = save_clip(tmp_path / "a.webm", brightening(3), codec="libvpx-vp9")
    assert [frame.pixels.shape for frame in frames_of(path)] == [(48, 64, 3)] * 3


def test_a_clip_is_known_by_its_content(tmp_path: Path) -> None:
    path = save_clip(tmp_path / "a.mp4", brightening(2)).rename(tmp_path / "IMG_2")
    photo = save_image(tmp_path / "a.png", grey(0.5)).rename(tmp_path / "b.mp4")
    assert is_clip(str(path))
    assert not is_clip(str(photo))
    assert is_clip("webcam:0")
    assert is_clip("rtsp://host/stream")
    assert is_clip("frames_%04d.png")
    assert not is_clip(str(tmp_path))
    assert not is_clip("photo.jpg")


def test_times_of_variable_rate(tmp_path: Path) -> None:
    times = [0, 40, 300, 310, 900]
    frames = frames_of(save_clip(tmp_path / "a.mp4", brightening(5), times=times))
    np.testing.assert_allclose([frame.time for frame in frames], np.divide(times, 1000), atol=1e-4)


@pytest.mark.parametrize("seconds", [0.0, 0.95, 1.0, 2.03])
def test_start_and_end(seconds: float, tmp_path: Path) -> None:
    """Also between key frames, of which an encoder writes few."""
    path = save_clip(tmp_path / "a.mp4", brightening(40))
    frames = frames_of(path, ClipOptions(start=seconds, end=seconds + 0.5))
    first = int(np.ceil(seconds * 10))
    np.testing.assert_allclose([frame.time for frame in frames], np.arange(first, first + 5) / 10, atol=1e-4)
    np.testing.assert_allclose(frames[0].pixels.mean(), np.linspace(51, 204, 40)[first], atol=3)
    assert frames[0].number == 0


def test_fewer_frames_per_second(tmp_path: Path) -> None:
    path = save_clip(tmp_path / "a.mp4", brightening(20))
    found = frames_of(path, ClipOptions(fps=2.5))
    np.testing.assert_allclose([frame.time for frame in found], [0, 0.4, 0.8, 1.2, 1.6], atol=1e-4)
    assert len(frames_of(path, ClipOptions(fps=100))) == 20
    clip = open_clip(str(path), ClipOptions(fps=2.5, start=1))
    assert clip.count == 2 or clip.count == 3


@pytest.mark.parametrize(
    ("rotation", "place"), [(0, (4, 4)), (90, (-5, 4)), (-90, (4, -5)), (180, (-5, -5))], ids=["0", "90", "-90", "180"]
)
def test_phones_turn_their_videos(rotation: int, place: tuple[int, int], tmp_path: Path) -> None:
    """A white corner at the top left of what is stored; counter-clockwise turns take it to the bottom left."""
    image = np.zeros((48, 64, 3), np.uint8)
    image[:16, :16] = 255
    frame = frames_of(save_clip(tmp_path / "a.mp4", [image] * 2, rotation=rotation))[0]
    assert frame.pixels.shape == ((64, 48, 3) if rotation in (90, -90) else (48, 64, 3))
    assert frame.pixels[place].min() > 240
    assert frame.pixels.mean() < 40


def test_the_matrix_of_an_upright_phone(tmp_path: Path) -> None:
    """The track header of a phone held upright, as ISO 14496-12 writes it: x' = h - y, y' = x."""
    path = save_clip(tmp_path / "a.mp4", brightening(2))
    content = bytearray(path.read_bytes())
    place = content.index(b"tkhd") + 4 + 4 + 4 * 5 + 8 + 8
    content[place : place + 36] = struct.pack(">9i", 0, 1 << 16, 0, -1 << 16, 0, 0, 48 << 16, 0, 1 << 30)
    path.write_bytes(content)
    stored = brightening(2)[0]
    pixels = frames_of(path)[0].pixels
    assert pixels.shape == (64, 48, 3)
    np.testing.assert_allclose(pixels, np.rot90(stored, -1), atol=20)


def test_mirrored_matrices_are_those_of_exif() -> None:
    from langdepth.camera import turned_upright

    image = np.arange(6).reshape(2, 3)
    for (a, b, c, d), orientation in reading._ORIENTATIONS.items():
        turned = turned_upright(image, orientation)
        places = [(a * x + c * y, b * x + d * y) for y in range(2) for x in range(3)]
        left, top = min(x for x, _ in places), min(y for _, y in places)
        for value, (x, y) in enumerate(places):
            assert turned[y - top, x - left] == value


def test_odd_sizes(tmp_path: Path) -> None:
    frames = frames_of(save_clip(tmp_path / "a.mkv", brightening(2, 65, 49), codec="ffv1", pixels="bgr0"))
    assert frames[0].pixels.shape == (49, 65, 3)


def test_ten_bits_of_standard_range(tmp_path: Path) -> None:
    path = save_clip(tmp_path / "a.mkv", brightening(3), codec="ffv1", pixels="yuv420p10le", colors=(1, 1, 1))
    for frame, expected in zip(frames_of(path), brightening(3), strict=True):
        assert frame.pixels.dtype == np.uint8
        np.testing.assert_allclose(frame.pixels, expected, atol=3)


@pytest.mark.parametrize("transfer", [16, 18])
def test_high_dynamic_range_looks_like_a_photo(transfer: int, tmp_path: Path) -> None:
    """Paper white (203 nits; 58 % of PQ, 75 % of HLG) is light grey, black black, highlights are not cut at it."""
    paper = {16: 0.58, 18: 0.75}[transfer]
    levels = np.array([0, 0.5 * paper, paper, 1.1 * paper, 1.25 * paper]) * 65535
    image = np.broadcast_to(levels.repeat(16)[None, :, None], (48, 80, 3)).astype(np.uint16)
    path = save_clip(tmp_path / "a.mkv", [image], codec="ffv1", pixels="yuv444p10le", colors=(9, transfer, 9))
    pixels = frames_of(path)[0].pixels
    found = pixels[24, 8::16].mean(-1)
    assert found[0] < 8
    assert 170 < found[2] < 210
    assert np.all(np.diff(found) > 8)
    assert np.ptp(pixels, axis=-1).max() <= 4, "grey stays grey"


def test_colors_of_wide_gamut_are_those_of_a_photo(tmp_path: Path) -> None:
    """A red of BT.709 in the wider space is a mixture there, and red again here."""
    light = np.linalg.inv([[1.6605, -0.5876, -0.0728], [-0.1246, 1.1329, -0.0083], [-0.0182, -0.1006, 1.1187]])[:, 0]
    coded = np.sqrt(3 * light * 0.26)  # HLG below a half
    image = np.broadcast_to(coded * 65535, (48, 64, 3)).astype(np.uint16)
    path = save_clip(tmp_path / "a.mkv", [image], codec="ffv1", pixels="yuv444p10le", colors=HLG)
    red, green, blue = frames_of(path)[0].pixels[20, 20].astype(int)
    assert red > 130
    assert max(green, blue) < 0.4 * red


def test_numbered_images(tmp_path: Path) -> None:
    for number, brightness in enumerate((0.2, 0.4, 0.6), 9):
        save_image(tmp_path / f"f_{number:03d}.png", grey(brightness))
    frames = frames_of(tmp_path / "f_%03d.png", ClipOptions(fps=2))
    assert [frame.time for frame in frames] == [0, 0.5, 1]
    assert [frame.pixels[0, 0, 0] for frame in frames] == [51, 102, 153]
    assert len(frames_of(tmp_path / "f_%03d.png", ClipOptions(start=0.04))) == 2
    save_image(tmp_path / "f_012.png", grey(0.5, 80, 48))
    with pytest.raises(ImageError, match=r"f_012.png: 80x48 pixels, the frames before have 64x48"):
        frames_of(tmp_path / "f_%03d.png")
    with pytest.raises(LangdepthError, match="no images match"):
        frames_of(tmp_path / "g_%03d.png")


# Bad input


def test_a_cut_file_gives_its_frames_and_a_line(tmp_path: Path) -> None:
    for name, options in (("a.mkv", {}), ("b.mp4", {"movflags": "faststart"})):
        path = save_clip(tmp_path / name, brightening(60), **options)
        path.write_bytes(path.read_bytes()[: path.stat().st_size * 6 // 10])
        clip = open_clip(str(path), ALL)
        frames = list(clip.frames())
        assert 10 < len(frames) < 55
        assert len(clip.problems) == 1
        assert name in clip.problems[0]
    whole = open_clip(str(save_clip(tmp_path / "c.mkv", brightening(60))), ALL)
    list(whole.frames())
    assert whole.problems == []


def test_a_file_without_its_end_is_one_line(tmp_path: Path) -> None:
    path = save_clip(tmp_path / "a.mp4", brightening(20))
    path.write_bytes(path.read_bytes()[:-300])
    with pytest.raises(ImageError, match=r"a\.mp4: damaged, or its end is missing"):
        open_clip(str(path), ALL)


def test_damage_within_costs_its_place(tmp_path: Path) -> None:
    path = save_clip(tmp_path / "a.ts", brightening(40), codec="mpeg4")
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 400] = np.random.default_rng(1).bytes(400)
    path.write_bytes(content)
    clip = open_clip(str(path), ALL)
    assert len(list(clip.frames())) > 20


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "empty"),
        (b"no video at all", "not a video (known: MP4"),
        (b"#EXTM3U\n#EXTINF:1,\nsecret.ts\n", "not a video"),
        (b"version https://git-lfs.github.com/spec/v1\n", "git-lfs"),
        (b"\0\0\0\x18ftypisom" + b"\0" * 200, "damaged, or its end is missing"),
    ],
)
def test_what_is_no_video(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    path.write_bytes(content)
    assert is_clip(str(path))
    with pytest.raises(ImageError) as raised:
        frames_of(path)
    assert message in str(raised.value)


def test_without_frames_or_images(tmp_path: Path) -> None:
    import av

    path = save_clip(tmp_path / "a.mkv", brightening(5))
    with pytest.raises(LangdepthError, match="start 9 is after its end"):
        frames_of(path, ClipOptions(start=9))
    with pytest.raises(MissingFileError):
        frames_of(tmp_path / "b.mkv")
    with av.open(str(tmp_path / "c.mkv"), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000)
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), format="s16", layout="mono")
        sound.rate = 8000
        container.mux(stream.encode(sound))
    with pytest.raises(ImageError, match="no images, only sound"):
        frames_of(tmp_path / "c.mkv")
    empty = save_clip(tmp_path / "d.mkv", brightening(30))
    empty.write_bytes(empty.read_bytes()[:700])
    with pytest.raises(LangdepthError, match=r"d\.mkv: (has no frames|damaged)"):
        frames_of(empty)


def test_too_small(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="16x16 pixels is too small"):
        frames_of(save_clip(tmp_path / "a.mp4", [np.zeros((16, 16, 3), np.uint8)] * 2))


@pytest.mark.parametrize(
    ("options", "message"),
    [({"fps": 0}, "--fps"), ({"start": -1}, "--start"), ({"start": 3, "end": 2}, "not after"), ({"end": "x"}, "end")],
)
def test_options_that_make_no_sense(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        ClipOptions(**options)


@pytest.mark.parametrize(("name", "hint"), [("a.mp4", False), ("http://host/a.mp4", True)])
def test_a_stream_without_frames_says_what_it_may_lack(name: str, hint: bool) -> None:
    class Nothing(Clip):
        def _decoded(self) -> Any:
            yield from ()

    with pytest.raises(LangdepthError, match="has no frames") as caught:
        list(Nothing(name, ALL).frames())
    assert ("must begin with its table of contents" in str(caught.value)) == hint


# Cameras


class Blinking(Clip):
    """A camera whose frames come faster than anybody takes them, and that is pulled out."""

    def _decoded(self) -> Any:
        for number in range(20):
            time.sleep(0.005)
            yield number / 10, lambda number=number: np.full((48, 64, 3), number, np.uint8)
        self.problems.append("gone")


def test_of_a_camera_the_newest_frame_comes() -> None:
    clip = Blinking("webcam:0", ALL, live=True)
    taken = []
    for frame in clip.frames():
        taken.append(frame.number)
        time.sleep(0.03)
    assert len(taken) + clip.dropped == 20
    assert clip.dropped > 5
    assert taken == sorted(taken)


def test_of_a_file_all_frames_come_and_few_wait() -> None:
    clip = Blinking("a.mp4", ALL)
    made = []
    original = clip._decoded

    def counted() -> Any:
        for one in original():
            made.append(one)
            yield one

    clip._decoded = counted  # type: ignore[method-assign]
    frames = clip.frames()
    next(frames)
    time.sleep(0.2)
    assert len(made) <= clips._AHEAD + 3
    assert len(list(frames)) == 19


def test_no_thread_is_left() -> None:
    before = threading.active_count()
    frames = Blinking("a.mp4", ALL).frames()
    next(frames)
    frames.close()
    assert threading.active_count() == before


def test_a_webcam_is_opened_by_its_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(LangdepthError, match="webcam:99: there is no camera"):
        frames_of("webcam:99")
    path = save_clip(tmp_path / "a.avi", brightening(5), codec="mpeg4")
    monkeypatch.setattr(sources, "webcam", lambda source: ("avi", str(path)))
    clip = open_clip("webcam:0", ALL)
    assert clip.live
    assert clip.count is None
    frames = list(clip.frames())
    assert 1 <= len(frames) <= 5
    assert "no more frames come" in clip.problems[0]


def test_a_stream_that_nobody_sends_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "TIMEOUT", 0.5)
    with pytest.raises(LangdepthError, match=r"^rtsp://127\.0\.0\.1:9/x: ") as raised:
        open_clip("rtsp://127.0.0.1:9/x", ALL)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("a/clip.mp4", "clip"),
        ("webcam:0", "webcam0"),
        ("rtsp://user:secret@camera.local:554/live?key=secret", "camera_local_554_live"),
        ("shots/f_%04d.png", "f"),
        ("%d.png", "frames"),
    ],
)
def test_names_of_results(source: str, name: str) -> None:
    assert sources.place_of(source).with_suffix("") == Path(name)


def test_memory_does_not_grow_with_the_clip(tmp_path: Path) -> None:
    """4 s of 0.9 MB frames are 36 MB; few are held."""
    image = np.asarray(Image.effect_noise((640, 480), 40).convert("RGB"))
    path = save_clip(tmp_path / "a.mkv", [image] * 40, codec="mpeg4")
    tracemalloc.start()
    for _ in open_clip(str(path), ALL).frames():
        pass
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 12 * image.nbytes
    assert os.path.getsize(path) > 0


def test_times_of_thousands_of_frames_a_second(tmp_path: Path) -> None:
    path = save_clip(tmp_path / "fast.mp4", brightening(20), rate=4000, ticks=4000, codec="mpeg4")
    np.testing.assert_allclose([frame.time for frame in frames_of(path)], np.arange(20) / 4000, atol=1e-6)


@pytest.mark.parametrize("name", ["clip.avi", "clip.mkv"])
def test_a_title_in_another_encoding_does_no_harm(name: str, tmp_path: Path) -> None:
    path = save_clip(tmp_path / name, brightening(1), codec="mpeg4", title="CAFExx")
    assert path.read_bytes().count(b"CAFExx") == 1
    path.write_bytes(path.read_bytes().replace(b"CAFExx", b"CAF\xe9xx"))
    assert len(frames_of(path)) == 1


def test_a_pattern_of_absurd_width_is_none() -> None:
    assert sources.is_pattern("f_%04d.png")
    assert not sources.is_pattern("f_%0999999999999d.png")


def test_an_unknown_codec_is_one_line(tmp_path: Path) -> None:
    path = save_clip(tmp_path / "clip.mkv", brightening(2), codec="mpeg4")
    assert path.read_bytes().count(b"V_MPEG4/ISO/ASP") == 1
    path.write_bytes(path.read_bytes().replace(b"V_MPEG4/ISO/ASP", b"V_MPEG4/ISO/XXX"))
    with pytest.raises(ImageError, match=r"clip\.mkv: is coded in a way that FFmpeg does not know"):
        frames_of(path)


def test_an_avi_may_repeat_its_last_frame(tmp_path: Path) -> None:
    """As recordings of still screens do, in places that hold nothing; one that is cut states more than it has."""
    path = save_clip(tmp_path / "still.avi", brightening(1), times=[9000], codec="mpeg4")
    clip = open_clip(str(path), ALL)
    assert clip.duration is not None
    assert clip.duration > 5
    assert len(list(clip.frames())) == 1
    assert clip.problems == []
    path.write_bytes(path.read_bytes()[:-300])
    clip = open_clip(str(path), ALL)
    list(clip.frames())
    assert "cut; it states" in clip.problems[0]


def test_the_first_frame_of_matroska_may_come_late(tmp_path: Path) -> None:
    """As in recordings that begin with sound; the length that it states counts from 0."""
    path = save_clip(tmp_path / "late.mkv", brightening(5), times=[3000, 3100, 3200, 3300, 3400], codec="mpeg4")
    clip = open_clip(str(path), ALL)
    assert [frame.time for frame in clip.frames()] == pytest.approx([0, 0.1, 0.2, 0.3, 0.4], abs=1e-3)
    assert clip.problems == []
