"""Writing results without losing what was there."""

from __future__ import annotations

import errno
import json
import os
from importlib.metadata import EntryPoint, EntryPoints
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from langdepth.camera import Camera
from langdepth.errors import ImageError, LangdepthError, UsageError
from langdepth.prediction import results
from langdepth.prediction.results import WRITERS, DepthResult, Writer, is_own_result, write_result
from langdepth.utils import plugins as utils_plugins
from langdepth.utils.depth_files import read_depth, read_depth16
from langdepth.utils.files import atomic_path
from langdepth.utils.plugins import plugins

HEIGHT, WIDTH = 36, 48


def make_result(depth: npt.NDArray[np.float32], **changes: Any) -> DepthResult:
    camera = Camera.from_fov(60, depth.shape[1], depth.shape[0])
    return DepthResult(**{"depth": depth, "valid": depth > 0, "system": "fake", "camera": camera, **changes})


class TestWriteResult:
    def test_every_format_by_name_and_by_suffix(
        self, rgb: npt.NDArray[np.uint8], depth: npt.NDArray[np.float32], tmp_path: Path
    ) -> None:
        result = make_result(depth, image=rgb)
        for name, writer in WRITERS.items():
            if not writer.by_name or find_spec({"exr": "OpenEXR", "rrd": "rerun"}.get(name, "numpy")) is None:
                continue
            by_suffix = write_result(result, tmp_path / "new" / f"a{writer.suffix}")
            by_name = write_result(result, tmp_path / f"{name}{by_suffix.suffix}", format=name)
            assert is_own_result(by_suffix) == (name != "pfm")  # which has no place for a mark
            if name != "rrd":  # whose rows have a number and a time of their own
                assert by_suffix.read_bytes() == by_name.read_bytes()
        expected = {f"a{end}" for end in ("_depth.png", "_color.png", "_normals.png", ".npy", ".npz", ".ply")}
        expected |= {f"a{end}" for end in (".glb", ".html", ".pfm")}
        found = {path.name for path in (tmp_path / "new").iterdir()} - {"a.exr", "a.rrd"}  # of other packages
        assert found == expected  # and nothing temporary left

    def test_depth16_says_what_it_holds(self, depth: npt.NDArray[np.float32], tmp_path: Path) -> None:
        path = make_result(depth).save(tmp_path / "depth.png")
        with Image.open(path) as image:
            assert image.mode == "I;16"
            tag = json.loads(image.info["langdepth"])
        assert tag == {"unit": "metre", "scale": 0.001, "scale_kind": "metric", "system": "fake", "no_value": 0}
        np.testing.assert_array_equal(read_depth(path, 0.001), read_depth16(path)[0])

    def test_depth16_keeps_its_unit_and_clips_what_is_beyond(
        self, depth: npt.NDArray[np.float32], tmp_path: Path, recwarn: pytest.WarningsRecorder
    ) -> None:
        far = make_result(depth * 20)
        with pytest.warns(
            UserWarning, match=r"far.png: depth beyond 65.535 metres .* stored as 65.535; .*--depth-unit"
        ):
            path = write_result(far, tmp_path / "far.png")
        back, scale = read_depth16(path)
        assert scale == 0.001
        np.testing.assert_allclose(back, np.minimum(far.depth, 65.535), atol=0.00052)
        assert results.lost_pixels(far, "depth16") == ((far.depth > 65.5355).sum(), 0)
        assert results.lost_pixels(far, "depth16").far > 0
        recwarn.clear()
        back, scale = read_depth16(write_result(far, tmp_path / "fits.png", scale=0.004))
        assert (scale, results.lost_pixels(far, "depth16", 0.004), len(recwarn)) == (0.004, (0, 0), 0)
        np.testing.assert_allclose(back, far.depth, atol=0.00202)

    @pytest.mark.parametrize(
        ("form", "options", "half"), [("depth16", {"scale": 0.01}, 0.005), ("kitti16", {}, 1 / 512)]
    )
    def test_what_is_nearer_than_half_a_unit_is_said(
        self, form: str, options: dict[str, float], half: float, depth: npt.NDArray[np.float32], tmp_path: Path
    ) -> None:
        depth[0, :4] = 0, 0.9 * half, 0.5 * half, 1.1 * half
        near = make_result(depth)
        with pytest.warns(UserWarning, match="depth below half a unit is stored as 1 unit; npy, npz, exr and pfm keep"):
            path = write_result(near, tmp_path / "near_depth.png", format=form, **options)
        assert np.asarray(Image.open(path))[0, :4].tolist() == [0, 1, 1, 1]
        assert results.lost_pixels(near, form, options.get("scale")) == (0, 2)

    def test_depth16_is_16UC1_of_ros_without_our_tags(self, depth: npt.NDArray[np.float32], tmp_path: Path) -> None:
        depth[0, :3] = np.nan, 0, 3.0004
        path = write_result(make_result(depth), tmp_path / "a_depth.png")
        with Image.open(path) as image:
            Image.fromarray(np.asarray(image)).save(tmp_path / "bare.png")  # without metadata
        stored = np.asarray(Image.open(tmp_path / "bare.png"))
        cv2 = pytest.importorskip("cv2")
        np.testing.assert_array_equal(cv2.imread(str(tmp_path / "bare.png"), cv2.IMREAD_UNCHANGED), stored)
        assert stored.dtype == np.uint16
        assert stored[0, :3].tolist() == [0, 0, 3000]
        np.testing.assert_allclose(stored / 1000, np.nan_to_num(depth), atol=0.00051)

    def test_depth16_relative_depth_fills_the_range(self, depth: npt.NDArray[np.float32], tmp_path: Path) -> None:
        path = write_result(
            make_result(depth / np.float32(1000), scale_kind="relative", unit="unknown"), tmp_path / "r.png"
        )
        back, scale = read_depth16(path)
        np.testing.assert_allclose(back, depth / 1000, atol=scale * 0.51)
        assert back.max() == pytest.approx(65535 * scale)

    def test_kitti16_is_what_the_kitti_server_reads(self, depth: npt.NDArray[np.float32], tmp_path: Path) -> None:
        depth[0, :6] = 0, 0.0005, 1.0, 2.0 + 0.5 / 256 + 1e-4, 255.99, np.nan
        with pytest.warns(UserWarning, match="0000000000.png: depth below half a unit is stored as 1 unit"):
            path = write_result(make_result(depth), tmp_path / "0000000000.png", format="kitti16")
        with Image.open(path) as image:
            assert image.mode == "I;16"
            units = np.asarray(image)
        # No value is 0, and only that; the nearest unit, not the one below.
        assert units[0, :6].tolist() == [0, 1, 256, 513, 65533, 0]
        np.testing.assert_allclose(read_depth(path, 1 / 256)[1:], depth[1:], atol=0.5 / 256 + 1e-6)
        np.testing.assert_array_equal(read_depth16(path)[0], read_depth(path, 1 / 256))

    def test_kitti16_says_what_it_cannot_hold(self, depth: npt.NDArray[np.float32], tmp_path: Path) -> None:
        depth[0, 0] = 300
        with pytest.warns(UserWarning, match=r"far.png: depth beyond 255.996 m .* is stored as 255.996 m"):
            path = write_result(make_result(depth), tmp_path / "far.png", format="kitti16")
        back = read_depth(path, 1 / 256)
        assert back[0, 0] == pytest.approx(255.996, abs=0.001)
        np.testing.assert_allclose(back[1:], depth[1:], atol=0.5 / 256 + 1e-6)  # the others keep the scale
        with pytest.raises(UsageError, match="kitti16 holds metres, and 'fake' gives relative depth"):
            write_result(make_result(depth, scale_kind="relative"), tmp_path / "r.png", format="kitti16")

    def test_what_has_no_value_stays_without(self, depth: npt.NDArray[np.float32], tmp_path: Path) -> None:
        depth[10, :4] = np.nan, np.inf, -1, 3
        valid = np.ones_like(depth, dtype=bool)
        valid[10, 3] = False
        for name in ("a.png", "a.npy", "a.npz"):
            path = write_result(make_result(depth, valid=valid), tmp_path / name)
            back = read_depth(path, 0.001, keep_invalid=True)
            assert (back[10, :4] == 0).all()
            assert back[11, 0] == pytest.approx(depth[11, 0], abs=0.00051)
        nothing = make_result(np.zeros_like(depth), image=np.zeros((*depth.shape, 3), np.uint8))
        for name in ("n.png", "n.npy", "n.npz", "n_color.png", "n.ply"):
            assert write_result(nothing, tmp_path / name).stat().st_size > 0

    def test_depth16_without_its_scale(self, tmp_path: Path) -> None:
        Image.fromarray(np.ones((40, 40), np.uint16)).save(tmp_path / "plain.png")
        with pytest.raises(ImageError, match=r"plain.png: carries no depth scale"):
            read_depth16(tmp_path / "plain.png")
        for text in ("{}", "no json", "[1]", '{"scale": null}', '{"scale": NaN}', '{"scale": -1}'):
            tag = PngInfo()
            tag.add_text("langdepth", text)
            Image.fromarray(np.ones((40, 40), np.uint16)).save(tmp_path / "odd.png", pnginfo=tag)
            with pytest.raises(ImageError, match=r"odd.png: .*depth scale"):
                read_depth16(tmp_path / "odd.png")

    def test_npz_holds_everything_without_pickles(self, depth: npt.NDArray[np.float32], tmp_path: Path) -> None:
        result = make_result(
            depth, scene_probs={"kitchen": np.float32(0.5)}, provenance={"path": tmp_path, "size": (1, 2)}
        )
        with np.load(write_result(result, tmp_path / "a.npz"), allow_pickle=False) as content:
            np.testing.assert_array_equal(content["depth"], depth)
            np.testing.assert_array_equal(content["valid"], depth > 0)
            assert result.camera is not None
            np.testing.assert_array_equal(content["intrinsics"], result.camera.matrix)
            metadata = json.loads(str(content["metadata"]))
        assert metadata["scene_probs"] == {"kitchen": 0.5}
        assert metadata["provenance"] == {"path": str(tmp_path), "size": [1, 2]}
        assert Camera(**metadata["camera"]) == result.camera
        with np.load(write_result(make_result(depth, camera=None), tmp_path / "b.npz")) as content:
            assert "intrinsics" not in content

    def test_ply_is_the_unprojected_image(
        self, rgb: npt.NDArray[np.uint8], depth: npt.NDArray[np.float32], tmp_path: Path
    ) -> None:
        result = make_result(depth, image=rgb)
        header, points, colors = read_ply(write_result(result, tmp_path / "a.ply"))
        assert "format binary_little_endian 1.0" in header
        valid = depth > 0
        assert result.camera is not None
        np.testing.assert_array_equal(points, result.camera.unproject(depth)[valid])
        np.testing.assert_array_equal(colors, rgb[valid])
        few = write_result(result, tmp_path / "few.ply", max_points=10)
        assert len(read_ply(few)[1]) == 10

    def test_ply_without_image_and_without_camera(self, depth: npt.NDArray[np.float32], tmp_path: Path) -> None:
        path = write_result(make_result(depth), tmp_path / "plain.ply")
        content = path.read_bytes()
        assert b"red" not in content
        assert len(content.split(b"end_header\n", 1)[1]) == 24 * (depth > 0).sum()  # and normals
        with pytest.raises(UsageError, match="needs a camera"):
            write_result(make_result(depth, camera=None), tmp_path / "none.ply")
        assert not (tmp_path / "none.ply").exists()

    def test_color_is_the_color_map_with_a_legend(self, depth: npt.NDArray[np.float32], tmp_path: Path) -> None:
        from langdepth.prediction.viz import color_with_legend

        with Image.open(write_result(make_result(depth), tmp_path / "a_color.png")) as image:
            np.testing.assert_array_equal(np.asarray(image), color_with_legend(depth, depth > 0))

    @pytest.mark.parametrize(
        ("name", "options", "message"),
        [
            ("a.tga", {}, r"a.tga: no format has this name; known: _depth.png"),
            ("a", {}, "no format has this name"),
            ("a.png", {"format": "dpeth16"}, "did you mean 'depth16'"),
            ("a.png", {"format": "ply"}, "ends in '.ply'"),
            ("a.png", {"scale": 0.0}, "scale must be a positive"),
            ("a.png", {"scale": float("nan")}, "scale must be a positive"),
            ("a.ply", {"max_points": 0}, "max_points"),
        ],
    )
    def test_bad_requests(
        self, depth: npt.NDArray[np.float32], tmp_path: Path, name: str, options: dict[str, Any], message: str
    ) -> None:
        with pytest.raises(UsageError, match=message):
            write_result(make_result(depth), tmp_path / name, **options)
        assert list(tmp_path.iterdir()) == []

    def test_sigma_is_in_npz_and_below_the_legend(self, depth: npt.NDArray[np.float32], tmp_path: Path) -> None:
        sure, known = make_result(depth), make_result(depth, sigma=depth / 4)
        with np.load(sure.save(tmp_path / "a.npz")) as one, np.load(known.save(tmp_path / "b.npz")) as other:
            assert set(other.files) - set(one.files) == {"sigma"}
            np.testing.assert_array_equal(other["sigma"], depth / 4)
        plain, noted = (np.asarray(Image.open(one.save(tmp_path / "a_color.png"))) for one in (sure, known))
        side = plain.shape[0] * depth.shape[1] // depth.shape[0]
        np.testing.assert_array_equal(plain[:, :side], noted[:, :side])
        below = np.s_[-20:-4, side : side + 30]
        assert (plain[below][..., 0] < 255).mean() != (noted[below][..., 0] < 255).mean()

    def test_sizes_that_differ(self, depth: npt.NDArray[np.float32], tmp_path: Path) -> None:
        for name, array in (("valid", depth[1:] > 0), ("std", depth[:, 1:]), ("sigma", depth[:, 1:])):
            with pytest.raises(UsageError, match=rf"^{name}: expected \(H, W\), that of depth"):
                make_result(depth, **{name: array})
        with pytest.raises(UsageError, match="differ in size"):
            write_result(make_result(depth, image=np.zeros((5, 5, 3), np.uint8)), tmp_path / "a.ply")

    @pytest.mark.parametrize(
        ("fields", "message"),
        [
            ({"valid": np.full((36, 48), 2, np.uint8)}, "valid: expected an array of bool, got uint8"),
            ({"depth": np.ones((36, 48), np.complex64)}, "depth: expected an array of real numbers, got complex64"),
            ({"depth": np.ones((0, 0), np.float32), "valid": np.ones((0, 0), bool)}, "depth: expected"),
            ({"scale_kind": "metrik"}, "unknown scale_kind 'metrik': did you mean 'metric'"),
        ],
    )
    def test_a_result_that_means_nothing(
        self, depth: npt.NDArray[np.float32], fields: dict[str, Any], message: str
    ) -> None:
        with pytest.raises(UsageError, match=message):
            DepthResult(**{"depth": depth, "valid": depth > 0, "system": "x", **fields})

    @pytest.mark.parametrize("scale", [5e-324, 1e300])
    def test_a_scale_that_float32_does_not_hold(
        self, depth: npt.NDArray[np.float32], tmp_path: Path, scale: float
    ) -> None:
        with pytest.raises(UsageError, match="the scale must be a positive number"):
            write_result(make_result(depth), tmp_path / "a.png", format="depth16", scale=scale)


class TestAtomicPath:
    def test_replaces_only_when_complete(self, tmp_path: Path) -> None:
        target = tmp_path / "new folder" / "a.txt"
        with atomic_path(target) as temporary:
            temporary.write_text("one")
            assert not target.exists()
        assert target.read_text() == "one"
        with pytest.raises(KeyboardInterrupt):
            write_half(target, KeyboardInterrupt())
        assert target.read_text() == "one"
        assert list(target.parent.iterdir()) == [target]

    def test_file_where_a_folder_should_be(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("kept")
        with pytest.raises(LangdepthError, match=r"file/deep/a.npy: cannot be written"):
            write_result(make_result(np.ones((40, 40), np.float32)), tmp_path / "file" / "deep" / "a.npy")
        assert (tmp_path / "file").read_text() == "kept"

    def test_target_is_a_folder(self, tmp_path: Path) -> None:
        (tmp_path / "a.txt").mkdir()
        with (
            pytest.raises(LangdepthError, match=r"a.txt: cannot be written"),
            atomic_path(tmp_path / "a.txt") as temporary,
        ):
            temporary.write_text("x")
        assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]

    @pytest.mark.parametrize("code", [errno.ENOSPC, errno.EACCES, errno.EROFS])
    def test_full_disk_and_no_permission(self, tmp_path: Path, code: int) -> None:
        target = tmp_path / "a.txt"
        target.write_text("before")
        with pytest.raises(LangdepthError) as caught:
            write_half(target, OSError(code, os.strerror(code)))
        assert str(caught.value) == f"{target}: cannot be written ({os.strerror(code)})"
        assert target.read_text() == "before"
        assert list(tmp_path.iterdir()) == [target]

    @pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
    @pytest.mark.parametrize("name", ["a.png", "a.npy", "a.npz", "a_color.png", "a.ply", "a.glb", "a.exr", "a.pfm"])
    def test_every_writer_on_a_full_disk(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
        if name.endswith(".exr"):
            pytest.importorskip("OpenEXR")
        real_open = Path.open

        def full(self: Path, mode: str = "r", **options: Any) -> Any:
            return real_open(Path("/dev/full") if "w" in mode else self, mode, **options)

        monkeypatch.setattr(Path, "open", full)
        depth = np.random.default_rng(0).uniform(1, 9, (200, 200)).astype(np.float32)
        with pytest.raises(LangdepthError, match=rf"{name}: cannot be written \(No space left on device\)"):
            write_result(make_result(depth), tmp_path / name)
        assert list(tmp_path.iterdir()) == []

    def test_errors_about_other_files_pass_through(self, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError, match=r"other.txt"), atomic_path(tmp_path / "a.txt"):
            (tmp_path / "folder" / "other.txt").read_text()


def write_half(target: Path, error: BaseException) -> None:
    """A writer that fails in the middle."""
    with atomic_path(target) as temporary:
        temporary.write_text("half")
        raise error


def read_ply(path: Path) -> tuple[str, npt.NDArray[np.float32], npt.NDArray[np.uint8]]:
    header, _, body = path.read_bytes().partition(b"end_header\n")
    vertices = np.frombuffer(body, dtype=[("point", "<f4", 3), ("normal", "<f4", 3), ("color", "u1", 3)])
    assert f"element vertex {len(vertices)}\n" in header.decode()
    return header.decode(), vertices["point"], vertices["color"]


def test_arrays_of_somebody_else_are_not_taken_for_ours(depth: npt.NDArray[np.float32], tmp_path: Path) -> None:
    fields = [(f"field_{index:02d}", "<f4") for index in range(7)]  # a header as long as ours
    np.save(tmp_path / "theirs.npy", np.zeros(2, dtype=fields))
    assert not is_own_result(tmp_path / "theirs.npy")
    ours = write_result(make_result(depth), tmp_path / "ours.npy")
    assert is_own_result(ours)
    np.testing.assert_array_equal(np.load(ours), depth)


def test_a_format_with_the_file_names_of_another_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    point = EntryPoint("same", "somewhere:SAME", "langdepth.formats")
    monkeypatch.setattr(results, "plugins", lambda group: {"same": point})
    monkeypatch.setattr(results, "load_target", lambda *_: Writer("_depth.png", lambda *_: None))
    with pytest.raises(UsageError, match="'same' has the file names of 'depth16'"):
        results._of_plugin("same")


def test_two_plug_ins_of_one_name_or_suffix(monkeypatch: pytest.MonkeyPatch) -> None:
    points = [
        EntryPoint(name, f"{place}:X", "langdepth.formats") for name, place in (("a", "x"), ("a", "y"), ("b", "z"))
    ]
    monkeypatch.setattr(utils_plugins, "_installed", lambda: EntryPoints(points))
    plugins.cache_clear()
    with pytest.warns(UserWarning, match="y:X: 'a' is of x:X already; it is left out"):
        assert plugins("formats") == {"a": points[0], "b": points[2]}
    monkeypatch.setattr(results, "load_target", lambda *_: Writer("_far.tif", lambda *_: None))
    monkeypatch.setitem(WRITERS, "a", results._of_plugin("a")[1])
    with pytest.raises(UsageError, match="'b' has the file names of 'a'"):
        results._of_plugin("b")
    plugins.cache_clear()


def test_a_provenance_that_no_file_can_hold(tmp_path: Path) -> None:
    depth = np.ones((40, 40), np.float32)
    provenance: Any = {("a", 1): 2}
    with pytest.raises(LangdepthError, match="the provenance of the result is no JSON data: keys must be str"):
        DepthResult(depth=depth, valid=depth > 0, system="x", provenance=provenance).save(tmp_path / "a.npz")
    assert list(tmp_path.iterdir()) == []
