"""``langdepth data prepare``: what comes out, what a stopped run leaves, and archives that nobody should unpack."""

from __future__ import annotations

import errno
import io
import os
import stat
import tarfile
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import h5py
import numpy as np
import pytest
import scipy.io
from PIL import Image

from langdepth import cli
from langdepth.data.base import INCOMPLETE, MANIFEST, find_rows, open_dataset
from langdepth.data.tools import prepare as module
from langdepth.data.tools.prepare import prepare, read_manifest
from langdepth.errors import LangdepthError, UsageError
from langdepth.utils.reading import file_sha256
from tests import miniatures
from tests.helpers import Run
from tests.miniatures import Builder, depth, each, tar_of, write_labelled, zip_of


@pytest.fixture
def run(command: Run) -> Run:
    """Run ``langdepth data``; returns exit code, stdout, stderr."""
    return partial(command, "data")


def files(root: Path) -> dict[str, bytes]:
    return {p.relative_to(root).as_posix(): p.read_bytes() for p in root.rglob("*") if p.is_file()}


# What comes out


ENDINGS = (".zip", ".tar.gz")  # in turns: how files are packed and what they are do not depend on each other


@pytest.mark.parametrize(
    ("name", "build", "ending"),
    [pytest.param(*one.values, ENDINGS[number % 2], id=one.id) for number, one in enumerate(each())],
)
def test_an_archive_of_it_becomes_the_same_tree(
    name: str, build: Builder, ending: str, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree = build(tmp_path / "tree", monkeypatch)
    archive = (zip_of if ending == ".zip" else tar_of)(tree, tmp_path / f"official{ending}")
    out = tmp_path / "out"
    code, text, err = run("prepare", name, "--source", archive, "--out", out)
    assert (code, err) == (0, ""), text
    assert f"langdepth data check {name} --root {out}" in text
    unpacked = files(out)
    manifest = read_manifest(out)
    del unpacked[MANIFEST]
    assert unpacked == files(tree)
    assert {path: entry.size for path, entry in manifest.items()} == {p: len(b) for p, b in unpacked.items()}
    assert all(entry.sha256 == file_sha256(out / path) for path, entry in manifest.items())
    assert [row.key for row in find_rows(name, out)] == [row.key for row in find_rows(name, tree)]
    assert run("check", name, "--root", out)[0] == 0


def test_several_archives_fill_one_folder(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tree = miniatures.kitti_raw(tmp_path / "tree", monkeypatch)
    source = tmp_path / "downloads"
    source.mkdir()
    (source / "devkit.txt").write_text("passed over")
    for part in ("2011_09_26", "2011_09_30", "2011_10_03", "train", "val"):
        home = tmp_path / "parts" / part
        home.mkdir(parents=True)
        os.rename(tree / part, home / part)
        zip_of(home, source / f"{part}.zip")
    code, text, _ = run("prepare", "kitti", "--source", source, "--out", tmp_path / "out")
    assert code == 0
    assert "8 files" in text
    assert "train 2 pairs, test 2 pairs" in text


def test_the_labelled_file_becomes_images_with_an_index(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = miniatures.nyu_labelled(tmp_path / "source", monkeypatch) / "nyu_depth_v2_labeled.mat"
    out = tmp_path / "out"
    code, text, _ = run("prepare", "nyu", "--source", source, "--out", out)
    assert code == 0
    assert "11 files" in text  # five pairs and the index
    assert "train 3 pairs, test 2 pairs" in text
    with Image.open(out / "official_splits/test/kitchen/sync_depth_00001.png") as image:
        millimetres = np.asarray(image)
    np.testing.assert_array_equal(millimetres, np.floor(depth(1).astype(np.float64) * 1000))
    exported, original = (open_dataset("nyu", root, "test") for root in (out, source.parent))
    for i in range(2):
        found, expected = (images[i].image.float() / 255 for images in (exported, original))
        np.testing.assert_allclose(found.numpy(), expected.numpy(), atol=0.1)
        assert exported[i].scene == original[i].scene
    indexed = open_dataset("folder", out, "train")
    assert [row.scene_run for row in indexed.rows] == ["bedroom_0002", "nyu_office_0003", "kitchen_0004"]
    scenes = {row.key: row.scene for row in find_rows("nyu", out, "train")}
    assert {row.key.split("/", 2)[2]: row.scene for row in indexed.rows} == scenes
    for command in (("check", "nyu", "--root", out), ("check", out)):
        code, text, _ = run(*command)
        assert code == 0, text


@pytest.mark.parametrize("ending", [".mat", ".h5"])
def test_the_rim_of_labelled_photos_is_black_as_in_the_published_export(
    ending: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, sides = tmp_path / f"nyu_depth_v2_labeled{ending}", (640, 480) if ending == ".mat" else (480, 640)
    miniatures.nyu_labelled(tmp_path, monkeypatch)
    write_labelled(source, matlab=ending == ".mat")
    with h5py.File(source, "r+") as file:
        del file["images"], file["rawDepths"]
        file.create_dataset("images", (5, 3, *sides), "u1", fillvalue=200, chunks=True)
        file.create_dataset("rawDepths", (5, *sides), "f4", fillvalue=2, chunks=True)
    if ending == ".h5":
        (tmp_path / "nyu_depth_v2_labeled.mat").unlink()
    prepare("nyu", source, tmp_path / "out")
    for root, tolerance in ((tmp_path, 0), (tmp_path / "out", 20)):  # JPEG
        sample = open_dataset("nyu", root, "test")[1]
        expected = np.zeros((480, 640), int)
        expected[7:474, 7:632] = 200
        for channel in sample.image.numpy().astype(int):
            np.testing.assert_allclose(channel, expected, atol=tolerance)
        assert sample.mask.all()  # depth is known on the rim, too


@pytest.mark.parametrize(("name", "build"), each())
def test_files_with_a_dot_before_their_name_are_no_data(
    name: str, build: Builder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = build(tmp_path / "tree", monkeypatch)
    expected = [(row.split, row.key, row.files) for row in find_rows(name, root)]
    for path in [p for p in root.rglob("*") if p.is_file()]:
        for hidden in (f"._{path.name}", f".{path.name}.4711.partial{path.suffix}"):
            path.with_name(hidden).write_bytes(b"half")
    assert [(row.split, row.key, row.files) for row in find_rows(name, root)] == expected


def test_a_split_with_too_few_pairs_is_reported_and_kept(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree = miniatures.diode_indoor(tmp_path / "tree", monkeypatch)
    rows = find_rows("diode-indoor", tree, "val")
    for path in rows[0].path_rgb.parent.glob(f"{rows[0].path_rgb.stem}*"):
        path.unlink()
    out = tmp_path / "out"
    code, text, _ = run("prepare", "diode-indoor", "--source", zip_of(tree, tmp_path / "a.zip"), "--out", out)
    line = (
        f"diode-indoor: {len(rows) - 1} of {len(rows)} pairs of split val are there ({(len(rows) - 1) / len(rows):.2%})"
    )
    assert (code, text.splitlines()[0]) == (1, line)
    assert set(read_manifest(out)) == set(files(tree))
    code, text, _ = run("check", "diode-indoor", "--root", out)
    assert (code, text.splitlines()[0]) == (1, line)


def test_folders_on_top_of_all_lead_to_the_data_set(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    miniatures.folder(tmp_path / "tree" / "downloads" / "set", monkeypatch)
    (tmp_path / "tree" / "downloads" / "readme.txt").write_text("not of the set")
    archive, out = zip_of(tmp_path / "tree", tmp_path / "a.zip"), tmp_path / "out"
    code, text, _ = run("prepare", "folder", "--source", archive, "--out", out)
    root = out / "downloads" / "set"
    assert code == 0
    assert text.splitlines() == [
        f"8 files in {out}: train 2 pairs, val 1 pairs",
        f"check them with: langdepth data check folder --root {root}",
    ]
    (root / "index.csv").write_text((root / "index.csv").read_text() + "\n")
    (root.parent / "readme.txt").unlink()
    code, text, _ = run("check", "folder", "--root", root)
    line = f"{out / MANIFEST}: 1 files differ from what was written: downloads/set/index.csv;"
    assert (code, text.count(str(MANIFEST))) == (1, 1)
    assert line in text
    (out / INCOMPLETE).touch()
    with pytest.raises(LangdepthError, match=f"{out}: 'langdepth data prepare' was interrupted"):
        open_dataset("folder", root)


def test_names_that_are_not_utf8_are_printed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = miniatures.diml_published(tmp_path / "tree", monkeypatch)
    (root / "test/HR/outleft/0001.png").rename(root / "test/HR/outleft/t\udcff.png")
    terminal = io.TextIOWrapper(io.BytesIO(), "utf-8")
    monkeypatch.setattr("sys.stdout", terminal)
    monkeypatch.setattr("sys.argv", ["langdepth", "data", "check", "diml-outdoor", "--root", str(root)])
    with pytest.raises(SystemExit) as ended:
        cli.entry_point()
    terminal.seek(0)
    assert ended.value.code == 1
    assert r"1 of 2 pairs are missing: " + str(root / r"test/HR/depthmap/t\udcff.png") in terminal.read()


# Stopped runs, later changes


def test_a_stopped_run_goes_on_where_it_was(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = miniatures.nyu_labelled(tmp_path / "source", monkeypatch)
    out = tmp_path / "out"

    def stop(done: int, total: int) -> None:
        if done == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare("nyu", source, out, stop)
    kept = {path: (out / path).stat().st_mtime_ns for path in read_manifest(out)}
    assert len(kept) == 4
    assert (out / INCOMPLETE).exists()
    code, text, _ = run("check", "nyu", "--root", out)
    assert code == 1
    assert "'langdepth data prepare' was interrupted here; run it again" in text
    with (out / MANIFEST).open("a") as file:
        file.write("\0\0\0\nofficial_splits/te")  # zeros after a power failure, a line that the kill cut short
    assert run("prepare", "nyu", "--source", source, "--out", out)[0] == 0
    assert {path: (out / path).stat().st_mtime_ns for path in kept} == kept
    assert len(read_manifest(out)) == 11
    assert not (out / INCOMPLETE).exists()
    assert run("check", "nyu", "--root", out)[0] == 0


def test_what_is_lost_or_changed_later_is_reported(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = zip_of(miniatures.kitti_raw(tmp_path / "tree", monkeypatch), tmp_path / "a.zip")
    out = tmp_path / "out"
    prepare("kitti", archive, out)
    rows = find_rows("kitti", out)
    rows[0].path_depth.unlink()
    with Image.open(rows[3].path_rgb) as image:
        image.transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(rows[3].path_rgb)
    code, text, _ = run("check", "kitti", "--root", out)
    assert code == 1
    assert f"{MANIFEST}: 1 files are missing: {rows[0].path_depth.relative_to(out)}" in text
    assert f"{MANIFEST}: 1 files differ from what was written: {rows[3].path_rgb.relative_to(out)}" in text
    assert "'langdepth data prepare' writes them again" in text
    prepare("kitti", archive, out)  # mends both
    assert run("check", "kitti", "--root", out)[0] == 0


def test_a_damaged_file_of_the_same_size_is_written_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = zip_of(miniatures.kitti_raw(tmp_path / "tree", monkeypatch), tmp_path / "a.zip")
    prepare("kitti", archive, tmp_path / "out")
    whole = files(tmp_path / "out")
    damaged = find_rows("kitti", tmp_path / "out")[2].path_rgb
    content = bytearray(damaged.read_bytes())
    content[-20] ^= 255
    damaged.write_bytes(content)
    prepare("kitti", archive, tmp_path / "out")
    assert {k: v for k, v in files(tmp_path / "out").items() if k != MANIFEST} == {
        k: v for k, v in whole.items() if k != MANIFEST
    }


def test_images_that_a_better_list_adds_or_moves(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = miniatures.nyu_labelled(tmp_path / "source", monkeypatch)
    lists, out = source / "splits.mat", tmp_path / "out"
    right = lists.read_bytes()
    scipy.io.savemat(lists, {"trainNdxs": np.array([[2.0], [3.0], [4.0]]), "testNdxs": np.array([[1.0]])})
    assert run("prepare", "nyu", "--source", source, "--out", out)[0] == 1
    kept = out / "official_splits/train/bedroom/rgb_00002.jpg"
    written = kept.stat().st_mtime_ns
    lists.write_bytes(right)
    code, text, _ = run("prepare", "nyu", "--source", source, "--out", out)
    assert (code, text.splitlines()[0]) == (0, f"11 files in {out}: train 3 pairs, test 2 pairs")
    assert kept.stat().st_mtime_ns == written  # came from the same file
    assert not list(out.glob("official_splits/train/kitchen/*_00001.*"))  # belongs to test
    assert len(find_rows("folder", out)) == 5
    assert run("check", "nyu", "--root", out)[0] == 0


@pytest.mark.parametrize("kind", ["labelled file", "archive"])
def test_another_source_of_the_same_name_replaces_what_was_written(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stand(factor: float) -> Path:
        if kind == "archive":
            tree = miniatures.nyu_exported(tmp_path / str(factor), monkeypatch)
            for path in tree.rglob("*.png"):
                with Image.open(path) as image:
                    scaled = (np.asarray(image) * factor).astype(np.uint16)
                Image.fromarray(scaled).save(path, compress_level=0)  # of the same size
            return zip_of(tree, tmp_path / "a.zip")
        source = miniatures.nyu_labelled(tmp_path / str(factor), monkeypatch)
        with h5py.File(source / "nyu_depth_v2_labeled.mat", "r+") as file:
            file["rawDepths"][...] *= factor
        return source

    for factor in (1.0, 0.5):
        prepare("nyu", stand(factor), tmp_path / "out")
        far = open_dataset("nyu", tmp_path / "out", "test")[0].depth.max()
        assert far == pytest.approx(4 * factor, abs=0.002)


def test_archives_that_come_one_after_the_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tree = miniatures.kitti_raw(tmp_path / "tree", monkeypatch)
    os.renames(tree / "val", tmp_path / "rest" / "val")
    first, second = zip_of(tree, tmp_path / "first.zip"), zip_of(tmp_path / "rest", tmp_path / "second.zip")
    for archive in (first, second, first):
        prepare("kitti", archive, tmp_path / "out")
    assert len(read_manifest(tmp_path / "out")) == 8
    assert len(find_rows("kitti", tmp_path / "out")) == 4


def test_what_a_killed_run_was_writing_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive, out = (
        zip_of(miniatures.nyu_annotated(tmp_path / "tree", monkeypatch), tmp_path / "a.zip"),
        tmp_path / "out",
    )
    torn = out / "images" / "train" / ".bedroom_00002.jpg.4711.partial.jpg"
    torn.parent.mkdir(parents=True)
    torn.write_bytes(b"half")
    (out / INCOMPLETE).touch()
    prepare("nyu", archive, out)
    assert not torn.exists()
    assert len(find_rows("nyu", out)) == 5


def test_a_full_disk_is_one_line_and_leaves_nothing_half_written(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = zip_of(miniatures.kitti_raw(tmp_path / "tree", monkeypatch), tmp_path / "a.zip")
    out, real = tmp_path / "out", Path.open

    class Full(io.FileIO):
        def write(self, content: object) -> int:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def opened(self: Path, mode: str = "r", *arguments: object, **options: object) -> object:
        full = mode == "wb" and len(files(out)) > 3
        return Full(self, mode) if full else real(self, mode, *arguments, **options)  # type: ignore[call-overload]

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", opened)
        code, _, err = run("prepare", "kitti", "--source", archive, "--out", out)
    assert code == 1
    assert err.count("\n") == 1
    assert "cannot be written (No space left on device)" in err
    assert not [name for name in files(out) if "partial" in name]
    assert 0 < len(read_manifest(out)) < 8
    assert run("prepare", "kitti", "--source", archive, "--out", out)[0] == 0
    assert len(read_manifest(out)) == 8


def test_a_full_disk_while_the_manifest_grows_does_not_blame_the_archive(run: Run, tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for i in range(40):
            archive.writestr(f"{i}.txt", "small")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2048, limits[1]))  # bytes of a file
    try:
        code, _, err = run("prepare", "folder", "--source", tmp_path / "a.zip", "--out", tmp_path / "out")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert (code, err) == (1, f"langdepth data: {tmp_path / 'out' / MANIFEST}: cannot be written (File too large)\n")
    assert 10 < len(read_manifest(tmp_path / "out")) < 40
    assert len(prepare("folder", tmp_path / "a.zip", tmp_path / "out").manifest) == 40


def test_a_disk_that_is_too_small_is_known_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = zip_of(miniatures.kitti_raw(tmp_path / "tree", monkeypatch), tmp_path / "a.zip")
    monkeypatch.setattr(module.shutil, "disk_usage", lambda path: SimpleNamespace(free=62_900_000))
    with pytest.raises(LangdepthError, match=r"out: 1 MB are to be written and 64 MB to stay free, but only 62 MB are"):
        prepare("kitti", archive, tmp_path / "out")
    assert files(tmp_path / "out") == {}
    with zipfile.ZipFile(archive) as content:
        content.extractall(tmp_path / "out")
    prepare("kitti", archive, tmp_path / "out")  # needs no more room


def test_the_room_that_an_export_needs_is_known_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, out = miniatures.nyu_labelled(tmp_path / "source", monkeypatch), tmp_path / "out"
    prepare("nyu", source, tmp_path / "there")
    size = sum(len(content) for name, content in files(tmp_path / "there").items() if name != MANIFEST)
    monkeypatch.setattr(module.shutil, "disk_usage", lambda path: SimpleNamespace(free=64_000_000 + int(0.9 * size)))
    with pytest.raises(LangdepthError, match=r"out: 1 MB are to be written and 64 MB to stay free, but only 64 MB are"):
        prepare("nyu", source, out)
    assert files(out) == {}
    monkeypatch.setattr(module.shutil, "disk_usage", lambda path: SimpleNamespace(free=64_000_000 + int(1.1 * size)))
    prepare("nyu", source, out)


# Archives that nobody should unpack


def hostile_zip(path: Path, kind: str) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("good.txt", "good")
        if kind == "link":
            info = zipfile.ZipInfo("link")
            info.create_system = 3
            info.external_attr = (stat.S_IFLNK | 0o777) << 16
            archive.writestr(info, "/etc/passwd")
        elif kind == "device":
            info = zipfile.ZipInfo("null")
            info.create_system = 3
            info.external_attr = (stat.S_IFCHR | 0o666) << 16
            archive.writestr(info, "")
        else:
            archive.writestr(NAMES[kind], "bad")
    return path


def hostile_tar(path: Path, kind: str) -> Path:
    with tarfile.open(path, "w:gz") as archive:
        members = [tarfile.TarInfo("good.txt"), tarfile.TarInfo(NAMES.get(kind, "bad"))]
        members[1].type = {
            "link": tarfile.SYMTYPE, "hard link": tarfile.LNKTYPE, "device": tarfile.CHRTYPE,
        }.get(kind, tarfile.REGTYPE)  # fmt: skip
        members[1].linkname = "/etc/passwd"
        for member in members:
            archive.addfile(member)
    return path


NAMES = {
    "parent": "a/../../outside.txt",
    "absolute": "/tmp/outside.txt",
    "backslashes": "..\\outside.txt",
    "drive": "C:\\outside.txt",
    "not UTF-8": "t\udcff.png",
    "twice": "good.txt",
    "manifest": MANIFEST,
    "below the manifest": f"{MANIFEST}/x",
    "below the mark": f"{INCOMPLETE}/x",
    "below a file": "good.txt/x",
    "no name": ".",
    "long": "a" * 300 + "/x",
}
COMPLAINTS = {
    "parent": "would be written outside the folder",
    "absolute": "would be written outside the folder",
    "backslashes": "would be written outside the folder",
    "drive": "would be written outside the folder",
    "twice": "is there twice",
    "manifest": "has a name that is not free",
    "below the manifest": "has a name that is not free",
    "below the mark": "has a name that is not free",
    "below a file": "member 'good.txt' is a file, and a folder of other members",
    "no name": "member '.' is a file without a name",
    "long": "has a name that is too long",
    "not UTF-8": r"member 't\udcff.png' has a name that is not UTF-8",
    "link": "is a link; only plain files are unpacked",
    "hard link": "is a link; only plain files are unpacked",
    "device": "is a device; only plain files are unpacked",
}


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("kind", COMPLAINTS)
@pytest.mark.parametrize("write", [hostile_zip, hostile_tar])
def test_hostile_members_are_named_and_nothing_is_written(
    write: Callable[[Path, str], Path], kind: str, run: Run, tmp_path: Path
) -> None:
    if write is hostile_zip and kind in ("hard link", "not UTF-8"):
        pytest.skip("zip has none")
    archive = write(tmp_path / ("a.zip" if write is hostile_zip else "a.tgz"), kind)
    code, _, err = run("prepare", "folder", "--source", archive, "--out", tmp_path / "below" / "out")
    assert code == 1
    assert err.count("\n") == 1
    assert f"{archive}: member '" in err
    assert COMPLAINTS[kind] in err
    assert [path.name for path in tmp_path.iterdir()] == [archive.name]


def test_litter_of_other_computers_is_passed_over_and_their_folders_are_none(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree = miniatures.nyu_annotated(tmp_path / "tree", monkeypatch)
    whole = files(tree)
    litter = [
        "__MACOSX/images/._x.jpg",
        ".DS_Store",
        "images/train/._bedroom_00002.jpg",
        "images/Thumbs.db",
        "images\\",
    ]
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for name, content in {**dict.fromkeys(litter, b""), **whole}.items():
            archive.writestr(name.replace("/", "\\"), content)  # as old programs on Windows write it
    assert run("prepare", "nyu", "--source", tmp_path / "a.zip", "--out", tmp_path / "out")[0] == 0
    assert set(files(tmp_path / "out")) == {*whole, MANIFEST}


def test_a_compression_that_python_lacks_is_known_before(run: Run, tmp_path: Path) -> None:
    archive = tmp_path / "a.zip"
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("a.txt", "content")
    content = bytearray(archive.read_bytes())
    content[content.index(b"PK\1\2") + 10] = 9  # as Windows compresses files above 2 GB
    archive.write_bytes(content)
    code, _, err = run("prepare", "folder", "--source", archive, "--out", tmp_path / "out")
    assert code == 1
    assert "member 'a.txt' is a file compressed by method 9, which Python cannot read; only plain files" in err
    assert not (tmp_path / "out").exists()


def test_a_link_that_is_there_is_not_followed(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("sub/file.txt", "bad")
    (tmp_path / "out").mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "out" / "sub").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(LangdepthError, match=r"sub/file\.txt: lies outside .*/out through a link"):
        prepare("folder", tmp_path / "a.zip", tmp_path / "out")
    assert list((tmp_path / "elsewhere").iterdir()) == []


@pytest.mark.parametrize("kind", ["changed member", "changed tar.gz", "cut zip", "cut tar.gz", "no archive", "empty"])
def test_damaged_archives_are_one_line(kind: str, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tree = miniatures.kitti_raw(tmp_path / "tree", monkeypatch)
    archive = tar_of(tree, tmp_path / "a.tar.gz") if kind.endswith("tar.gz") else zip_of(tree, tmp_path / "a.zip")
    content = bytearray(archive.read_bytes())
    if kind == "changed tar.gz":
        content[-8] ^= 255  # the checksum itself
    elif kind == "changed member":
        content[content.index(b"IDAT") + 40] ^= 255  # stored without compression: only its checksum can tell
    elif kind.startswith("cut"):
        del content[len(content) // 2 :]
    else:
        content = bytearray(b"words " * (99 if kind == "no archive" else 0))
    archive.write_bytes(content)
    out = tmp_path / "out"
    code, _, err = run("prepare", "kitti", "--source", archive, "--out", out)
    assert code == 1
    assert err.count("\n") == 1
    assert f"{archive}: " in err
    assert "is damaged" in err
    assert "Error" not in err
    assert "method" not in err
    if kind == "changed member":
        assert "member 2011_09_26/" in err
        assert set(read_manifest(out)) == set(files(out)) - {MANIFEST, INCOMPLETE}
        assert all("partial" not in name for name in files(out))
    else:
        assert not out.exists()


@pytest.mark.parametrize("kind", ["cut after a member", "damaged header"])
def test_a_tar_that_ends_without_its_mark_is_damaged(
    kind: str, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = tar_of(miniatures.kitti_raw(tmp_path / "tree", monkeypatch), tmp_path / "a.tar")
    with tarfile.open(archive) as whole:
        fourth = [info for info in whole if info.isfile()][3].offset
    content = bytearray(archive.read_bytes())
    if kind == "damaged header":
        content[fourth] ^= 255
    else:
        del content[fourth:]
    archive.write_bytes(content)
    code, _, err = run("prepare", "kitti", "--source", archive, "--out", tmp_path / "out")
    line = "the archive is damaged (neither a member nor the archive's end is where one should be)"
    assert (code, err) == (1, f"langdepth data: {archive}: {line}\n")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_tars_of_every_kind_are_whole(kind: int, tmp_path: Path) -> None:
    names = ["a.txt", "long/" * 40 + "b.txt"][: 1 if kind == tarfile.USTAR_FORMAT else 2]
    with tarfile.open(tmp_path / "a.tar", "w", format=kind) as archive:
        for name in names:
            archive.addfile(tarfile.TarInfo(name))
    assert set(prepare("folder", tmp_path / "a.tar", tmp_path / "out").manifest) == set(names)


# Several sources in one folder


@pytest.mark.parametrize("endings", [(".zip", ".zip"), (".tar.gz", ".zip")])
def test_archives_that_contradict_each_other_are_named(
    endings: tuple[str, str], run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, out = tmp_path / "source", tmp_path / "out"
    source.mkdir()

    def pack(name: str, ending: str, readme: str) -> None:
        tree = tmp_path / name
        tree.mkdir(exist_ok=True)
        (tree / "readme.txt").write_text(readme)
        (tree / f"{name}.txt").write_text(name)
        (zip_of if ending == ".zip" else tar_of)(tree, source / f"{name}{ending}")

    pack("a", endings[0], "equal")
    pack("b", endings[1], "other")
    code, _, err = run("prepare", "folder", "--source", source, "--out", out)
    first, second = (source / f"{name}{ending}" for name, ending in zip("ab", endings, strict=True))
    line = f"{second}: 'readme.txt' is in {first}, too, and differs; prepare them into two folders"
    assert (code, err) == (1, f"langdepth data: {line}\n")
    assert not out.exists()
    pack("b", endings[1], "equal")
    assert set(prepare("folder", source, out).manifest) == {"readme.txt", "a.txt", "b.txt"}


def test_a_file_in_one_archive_that_is_a_folder_in_another(tmp_path: Path) -> None:
    for archive, name in (("a.zip", "x/y"), ("b.zip", "x")):
        with zipfile.ZipFile(tmp_path / archive, "w") as file:
            file.writestr(name, "content")
    with pytest.raises(LangdepthError, match=r"b\.zip: member 'x' is a file, and a folder of other members"):
        prepare("folder", tmp_path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_labelled_file_beside_an_archive_of_its_export(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = miniatures.nyu_labelled(tmp_path / "source", monkeypatch)
    zip_of(miniatures.nyu_exported(tmp_path / "tree", monkeypatch), source / "export.zip")
    with pytest.raises(
        LangdepthError, match=r"labeled\.mat: 'official_splits/.*' is in .*export\.zip, too, and differs"
    ):
        prepare("nyu", source, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_source_that_is_no_source(run: Run, tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "notes.txt").write_text("nothing here")
    for source in (tmp_path / "source", tmp_path / "source" / "notes.txt"):
        with pytest.raises(UsageError, match=r"nyu is prepared from one of nyu_.*\.zip"):
            prepare("nyu", source, tmp_path / "out")
    code, _, err = run("prepare", "nyu", "--source", tmp_path / "none", "--out", tmp_path / "out")
    assert (code, err) == (1, f"langdepth data: {tmp_path / 'none'}: no such file or folder\n")
    assert run("prepare", "nyuu", "--source", tmp_path, "--out", tmp_path / "out")[0] == 2


def test_a_labelled_file_without_splits_writes_nothing(run: Run, tmp_path: Path) -> None:
    file = write_labelled(tmp_path / "nyu_depth_v2_labeled.mat")
    (tmp_path / "splits.mat").unlink()
    code, _, err = run("prepare", "nyu", "--source", file, "--out", tmp_path / "out")
    assert code == 1
    assert "splits.mat: the official split list is missing" in err
    assert not (tmp_path / "out").exists()
