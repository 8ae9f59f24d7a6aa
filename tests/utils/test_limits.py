"""Small files that ask for much: refused in one line, with little memory and in little time."""

from __future__ import annotations

import io
import lzma
import tarfile
import time
import tracemalloc
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from langdepth.data.hdf5 import read_hdf5
from langdepth.data.masks import read_overlay
from langdepth.data.sets import nyu
from langdepth.data.sets.folder import read_index
from langdepth.data.tools.prepare import prepare
from langdepth.errors import CheckpointError, ImageError, LangdepthError, UsageError
from langdepth.records import InputSpec
from langdepth.utils.arrays import ArrayError, UnreadArrayError, load_npy
from langdepth.utils.depth_files import read_depth
from langdepth.utils.images import read_image
from langdepth.utils.matlab import read_matlab
from langdepth.utils.tensors import reading_tensors
from tests.helpers import Run

CEILING = 20_000_000  # bytes
SECONDS = 20.0


@contextmanager
def refused(kind: type[Exception], message: str) -> Iterator[None]:
    """An error with this message, after less than SECONDS and with less than CEILING bytes of Python and NumPy."""
    tracemalloc.start()
    since = time.monotonic()
    try:
        with pytest.raises(kind, match=message):
            yield
        assert tracemalloc.get_traced_memory()[1] < CEILING
        assert time.monotonic() - since < SECONDS
    finally:
        tracemalloc.stop()


def zeros(path: Path, name: str, shape: tuple[int, ...], dtype: str) -> Path:
    """An ``.npz`` of nothing but zeros, written in pieces; of a gigabyte there is left one megabyte."""
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": np.dtype(dtype).str, "fortran_order": False, "shape": shape})
    left = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive, archive.open(f"{name}.npy", "w") as file:
        file.write(header.getvalue())
        block = bytes(1 << 20)
        while left > 0:
            file.write(block[:left])
            left -= len(block)
    return path


def test_masks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    photo = np.zeros((400, 600, 3), np.uint8)
    path = zeros(tmp_path / "a.npz", "masks", (1, 20000, 5000), "?")
    assert path.stat().st_size < 200_000
    with refused(ImageError, r"a.npz: masks of shape \(1, 20000, 5000\) do not fit an image of 600x400"):
        read_overlay(path, photo)
    monkeypatch.setattr("langdepth.data.masks.MAX_MASK_BYTES", 100_000_000)
    path = zeros(tmp_path / "b.npz", "masks", (900, 400, 600), "?")
    with refused(ImageError, r"b.npz: 900 masks of 600x400 are more than 100 MB"):
        read_overlay(path, photo)


def test_depth(tmp_path: Path) -> None:
    zeros(tmp_path / "a.npz", "depth", (20000, 5000), "<f2")
    with (tmp_path / "b.npy").open("wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "<f8", "fortran_order": False, "shape": (20000, 5000)})
        file.truncate(8 * 20000 * 5000 + 128)
    for name in ("a.npz", "b.npy"):
        with refused(ImageError, rf"{name}: 5000x20000 = 100.0 megapixels is more than the limit of 80"):
            read_depth(tmp_path / name, 1)


@pytest.mark.parametrize("header", [b"{'descr': '<f4', 'shape': (", b"{" * 4000, b"\xff" * 90, b"[]", b"1" * 9000])
def test_damaged_headers(tmp_path: Path, header: bytes) -> None:
    (tmp_path / "a.npy").write_bytes(b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header)
    with refused(ImageError, r"a.npy: damaged or truncated \(its .npy header is damaged\)"):
        read_depth(tmp_path / "a.npy", 1)


@pytest.mark.parametrize("kind", ["c8", "M8[s]"])
def test_what_is_no_real_number(kind: str, tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.zeros((40, 40), kind))
    with refused(UnreadArrayError, r"^it holds values of type \S+, which are not read$"):
        load_npy(tmp_path / "a.npy")


def test_an_archive_that_lacks_bytes_is_damaged_not_the_disk(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    np.savez(path, depth=np.ones((40, 40), np.float32))
    content = path.read_bytes()
    path.write_bytes(content[:10] + content[14:])  # its members then begin before the file does
    with refused(ImageError, r"a.npz: damaged or truncated$"):
        read_depth(path, 1)
    with refused(CheckpointError, "a.npz: is damaged, truncated or not a table"), reading_tensors(path, "a table"):
        np.load(path)["depth"]


def test_comments_in_a_plain_ppm(tmp_path: Path) -> None:
    numbers = b"#x\n7 " * (3 * 40 * 40)
    (tmp_path / "a.ppm").write_bytes(b"P3\n# a comment\n40 40 # size\n255\n" + b"#\n" * 500_000 + numbers)
    since = time.monotonic()
    assert (read_image(tmp_path / "a.ppm").pixels == 7).all()
    assert time.monotonic() - since < SECONDS


def test_scans_of_a_jpeg(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (64, 64)).save(buffer, "JPEG", progressive=True)
    content = buffer.getvalue()
    assert read_image(content).pixels.shape == (64, 64, 3)
    scan = content[content.rindex(b"\xff\xda") : -2]
    with refused(ImageError, r"a progressive JPEG of \d{3} scans is refused, 100 at most"):
        read_image(content[:-2] + 200 * scan + content[-2:])


@pytest.mark.parametrize("kind", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_headers_of_a_tape(tmp_path: Path, kind: int) -> None:
    with tarfile.open(tmp_path / "a.tar.gz", "w:gz", format=kind) as archive:
        info = tarfile.TarInfo("a.txt")
        info.type = tarfile.GNUTYPE_LONGNAME if kind == tarfile.GNU_FORMAT else tarfile.XHDTYPE
        info.size = 40_000_000
        archive.fileobj.write(info.tobuf(kind))  # type: ignore[union-attr]
        for _ in range(40):
            archive.fileobj.write(bytes(1_000_000))  # type: ignore[union-attr]
    with refused(LangdepthError, "a.tar.gz: the archive is damaged .*a member's header of 40 MB"):
        prepare("folder", tmp_path / "a.tar.gz", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_ratio_of_an_archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("langdepth.data.tools.archives._SMALL", 10_000_000)
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.txt", bytes(20_000_000))
    with refused(LangdepthError, r"a.zip: unpacks to more than 100 times its size"):
        prepare("folder", tmp_path / "a.zip", tmp_path / "out")
    for kind in ("gz", "xz"):  # after the archive's end, too
        with tarfile.open(tmp_path / f"a.tar.{kind}", f"w:{kind}") as archive:
            archive.fileobj.write(bytes(20_000_000))  # type: ignore[union-attr]
        with refused(LangdepthError, f"a.tar.{kind}: unpacks to more than 100 times its size"):
            prepare("folder", tmp_path / f"a.tar.{kind}", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def with_large_dictionary(packed: bytes, header: int, place: int, size: bytes) -> bytes:
    """An .xz whose first block wants another dictionary; the header's checksum fits."""
    changed = bytearray(packed)
    changed[place : place + len(size)] = size
    end = header + 4 * (changed[header] + 1) - 4
    changed[end : end + 4] = zlib.crc32(changed[header:end]).to_bytes(4, "little")
    return bytes(changed)


def test_dictionaries_of_lzma(tmp_path: Path) -> None:
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("a.txt"))
    whole = content.getvalue()
    small, rest = lzma.compress(whole[:512]), lzma.compress(whole[512:])
    large = with_large_dictionary(rest, 12, 16, b"\x25")  # 768 MiB
    alone = lzma.compress(whole, lzma.FORMAT_ALONE)
    message = "wants a dictionary of more than 256 MB to be unpacked; refused"
    (tmp_path / "good.tar.xz").write_bytes(small + rest)
    (tmp_path / "a.tar.xz").write_bytes(small + large)
    (tmp_path / "b.tar.xz").write_bytes(alone[:1] + (1 << 30).to_bytes(4, "little") + alone[5:])
    with zipfile.ZipFile(tmp_path / "c.zip", "w", zipfile.ZIP_LZMA) as pack:
        pack.writestr("a.txt", b"x" * 100)
    prepare("folder", tmp_path / "c.zip", tmp_path / "c")
    packed = bytearray((tmp_path / "c.zip").read_bytes())
    start = packed.index(b"a.txt") + 5 + 5
    packed[start : start + 4] = (1 << 30).to_bytes(4, "little")
    (tmp_path / "c.zip").write_bytes(packed)
    for name in ("a.tar.xz", "b.tar.xz", "c.zip"):
        with refused(LangdepthError, f"{name}: {message}"):
            prepare("folder", tmp_path / name, tmp_path / "out")
        assert not (tmp_path / "out").exists()
    assert prepare("folder", tmp_path / "good.tar.xz", tmp_path / "good").total == 1


def test_depth_of_folders_in_an_archive(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("first.txt", b"x")
        archive.writestr("a/" * 2000 + "b.txt", b"x")
    with refused(LangdepthError, r"a.zip: member '[a/]+ \.\.\. [a/]+b.txt' (lies 2000 folders deep|has a name)"):
        prepare("folder", tmp_path / "a.zip", tmp_path / "out")
    assert not (tmp_path / "out").exists()


class TestHdf5:
    @staticmethod
    def check(path: Path, message: str) -> None:
        with refused(ImageError, f"{path.name}: {message}"):
            read_hdf5(path, ("depth",))

    def test_pieces(self, tmp_path: Path) -> None:
        with h5py.File(tmp_path / "a.h5", "w") as file:
            file.create_dataset("depth", (10, 10), "<f4", maxshape=(None, None), chunks=(30000, 30000), compression=9)
        self.check(tmp_path / "a.h5", "'depth' is stored in pieces of 3,600 MB, more than 256")

    @pytest.mark.parametrize("kind", ["c8", "S3"])
    def test_what_is_no_real_number(self, kind: str, tmp_path: Path) -> None:
        with h5py.File(tmp_path / "a.h5", "w") as file:
            file["depth"] = np.ones((40, 40)).astype(kind)
        self.check(tmp_path / "a.h5", "'depth' holds .*, no real numbers")

    def test_other_files(self, tmp_path: Path) -> None:
        (tmp_path / "secret.bin").write_bytes(bytes(400))
        with h5py.File(tmp_path / "other.h5", "w") as file:
            file["depth"] = np.ones((10, 10), np.float32)
        makers: dict[str, Callable[[Any], None]] = {
            "link.h5": lambda file: file.__setitem__("depth", h5py.ExternalLink(str(tmp_path / "other.h5"), "/depth")),
            "storage.h5": lambda file: file.create_dataset(
                "depth", (10, 10), "<f4", external=[(str(tmp_path / "secret.bin"), 0, 400)]
            ),
            "folder.h5": lambda file: file.create_group("depth"),
        }
        for name, make in makers.items():
            with h5py.File(tmp_path / name, "w") as file:
                make(file)
        with h5py.File(tmp_path / "around.h5", "w") as file:
            file["group"] = h5py.ExternalLink(str(tmp_path / "other.h5"), "/")
            file["depth"] = h5py.SoftLink("/group/depth")
        with h5py.File(tmp_path / "virtual.h5", "w") as file:
            layout = h5py.VirtualLayout((10, 10), "<f4")
            layout[:] = h5py.VirtualSource(str(tmp_path / "other.h5"), "depth", (10, 10))
            file.create_virtual_dataset("depth", layout)
        for name in ("storage.h5", "around.h5", "virtual.h5"):
            self.check(tmp_path / name, "'depth' lies in another file, which is not opened")
        self.check(tmp_path / "link.h5", "'depth' is no array of this file")
        self.check(tmp_path / "folder.h5", "'depth' is no array of this file")


class TestMatlab:
    @pytest.mark.parametrize("compressed", [True, False])
    def test_before_version_7(self, compressed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        path = tmp_path / "a.mat"
        savemat(path, {"small": np.ones(3), "large": np.zeros(2_000_000)}, do_compression=compressed)
        assert read_matlab(path, "small").tolist() == [1, 1, 1]
        assert read_matlab(path, "other") is None
        monkeypatch.setattr("langdepth.utils.matlab.MAX_BYTES", 5_000_000)
        with refused(ArrayError if compressed else OSError, "has a variable of more than 5 MB|more than 5 MB, far"):
            read_matlab(path, "large")

    def test_split_list_of_nyu(self, tmp_path: Path) -> None:
        with h5py.File(tmp_path / "splits.mat", "w") as file:
            file.create_dataset("testNdxs", (2_000_000_000,), "<f8")  # of which nothing is stored
        with refused(ImageError, r"splits.mat: 'testNdxs' of shape \(2000000000,\) is larger"):
            nyu.labelled_rows(tmp_path / "nyu_depth_v2_labeled.mat", "test")

    def test_texts_of_nyu(self, tmp_path: Path) -> None:
        with h5py.File(tmp_path / "a.mat", "w") as file:
            file["images"] = np.zeros((1, 3, 40, 30), np.uint8)
            file.create_dataset("long", (2_000_000_000,), "<u2")
            file["sceneTypes"] = np.array([[file["long"].ref]], h5py.ref_dtype)
        savemat(tmp_path / "splits.mat", {"testNdxs": [[1]]})
        with refused(ImageError, "a.mat: 'sceneTypes' has texts of more than 1000 characters"):
            nyu.labelled_rows(tmp_path / "a.mat", "test")


def test_network_sizes() -> None:
    for options in ({"area": 10**9}, {"size": (10**5, 10**5)}, {"multiple_of": 10**5}):
        with pytest.raises(ValueError, match="pixels inside the network are more than the limit"):
            InputSpec(**options)  # type: ignore[arg-type]


def test_numbers_of_thousands_of_digits(tmp_path: Path, command: Run) -> None:
    (tmp_path / "index.csv").write_text(f"path_rgb,path_depth,depth_scale,width,height\na.png,b.png,1,{'9' * 5000},5\n")
    assert read_index(tmp_path)[0].size is None
    for words in (("imagine", "a room", "--seed", 10**21), ("predict", "x.png", "--window", f"{'9' * 5000}x5")):
        code, _, err = command(*words)
        assert code == 2
        assert err.count("\n") == 1
        assert "Error" not in err


def test_links_that_point_at_themselves(tmp_path: Path, command: Run) -> None:
    (tmp_path / "loop.png").symlink_to("loop.png")
    Image.new("RGB", (40, 40)).save(tmp_path / "a.png")
    (tmp_path / "index.csv").write_text("path_rgb,path_depth,depth_scale\nloop.png,b.png,1\na.png,b.png,1\n")
    assert len(read_index(tmp_path)) == 2
    from langdepth.commands._jobs import find_jobs
    from langdepth.prediction.done import Done

    jobs, problems = find_jobs([str(tmp_path)], tmp_path / "out", {"npy": ".npy"}, False, Done(tmp_path / "out"))
    assert [job.place.name for job in jobs] == ["a.png", "loop.png"]
    assert problems == []
    code, out, err = command("data", "check", tmp_path)
    assert code == 1
    assert "loop.png" in out + err
    with refused(ImageError, r"loop.png: cannot be opened"):
        read_image(tmp_path / "loop.png")


def test_usage_errors_of_yaml_on_the_command_line(command: Run) -> None:
    code, _, err = command("train", "--config", "none.yaml", "--optim.lr", "[" * 5000)
    assert (code, err.count("\n")) == (2, 1)
    assert issubclass(UsageError, ValueError)
