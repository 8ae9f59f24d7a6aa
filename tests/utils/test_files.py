"""Files under temporary names, leftovers of killed processes, and folders that one process works in."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from langdepth.errors import LangdepthError
from langdepth.utils import files
from langdepth.utils.files import atomic_path, file_stamp, temporary_folder, temporary_path, write_tensors
from langdepth.utils.locks import locked
from langdepth.utils.reading import open_regular, require_regular

DAYS = 24 * 3600


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture(autouse=True)
def nothing_swept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "_swept", set())


class TestAtomicPath:
    def test_two_writers_of_one_target_have_names_of_their_own(self, tmp_path: Path) -> None:
        target = tmp_path / "a.bin"
        with atomic_path(target) as one, atomic_path(target) as other:
            one.write_bytes(b"1" * 1000)
            other.write_bytes(b"2" * 10)
            assert one != other
        assert target.read_bytes() == b"1" * 1000  # what was finished last, and all of it
        assert names(tmp_path) == ["a.bin"]

    def test_threads_that_write_one_target_leave_a_whole_file(self, tmp_path: Path) -> None:
        def write(number: int) -> None:
            with atomic_path(tmp_path / "a.bin", durable=False) as path, path.open("wb") as file:
                for _ in range(50):
                    file.write(bytes([number]) * 997)
                    file.flush()

        with ThreadPoolExecutor(8) as pool:
            list(pool.map(write, range(200)))
        content = (tmp_path / "a.bin").read_bytes()
        assert len(content) == 50 * 997
        assert len(set(content)) == 1
        assert names(tmp_path) == ["a.bin"]

    def test_the_same_process_number_elsewhere_has_another_name(self, tmp_path: Path) -> None:
        """As in two containers that share a volume, both with process 1."""
        assert len({temporary_path(tmp_path / "a.png") for _ in range(1000)}) == 1000

    def test_content_is_on_the_disk_before_it_has_its_name(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        done: list[str] = []
        fsync, replace = os.fsync, os.replace
        monkeypatch.setattr(os, "fsync", lambda file: (done.append("flushed"), fsync(file)))
        monkeypatch.setattr(os, "replace", lambda *places: (done.append("renamed"), replace(*places)))
        with atomic_path(tmp_path / "a.txt") as path:
            path.write_text("x")
        assert done == ["flushed", "renamed"]

    def test_a_disk_that_fails_on_flushing_leaves_the_old_file(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "a.txt").write_text("old")

        def fail(_: int) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(os, "fsync", fail)
        with (
            pytest.raises(LangdepthError, match=r"a.txt: cannot be written \(No space"),
            atomic_path(tmp_path / "a.txt") as path,
        ):
            path.write_text("new")
        assert (tmp_path / "a.txt").read_text() == "old"

    @pytest.mark.parametrize("name", ["a" * 251 + ".png", "ä" * 125 + ".png", "a." + "b" * 240])
    def test_any_name_that_a_file_can_have(self, tmp_path: Path, name: str) -> None:
        with atomic_path(tmp_path / name) as path:
            path.write_text("x")
        assert names(tmp_path) == [name]

    def test_tensors_leave_nothing_else(self, tmp_path: Path) -> None:
        write_tensors({"a": torch.ones(3)}, tmp_path / "a.safetensors", {"x": "y"})
        assert names(tmp_path) == ["a.safetensors"]
        assert load_file(tmp_path / "a.safetensors")["a"].tolist() == [1, 1, 1]
        umask = os.umask(0)
        os.umask(umask)
        assert (tmp_path / "a.safetensors").stat().st_mode & 0o777 == 0o666 & ~umask


def dead_process() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


class TestLeftovers:
    def test_those_of_killed_processes_go_with_the_next_file(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        dead = dead_process()
        with monkeypatch.context() as change:
            change.setattr(os, "getpid", lambda: dead)
            torn = temporary_path(tmp_path / "a.png"), temporary_path(tmp_path / "rooms")
        torn[0].write_bytes(b"half")
        torn[1].mkdir()
        (torn[1] / "0.jpg").write_bytes(b"x")
        kept = temporary_path(tmp_path / "b.png"), tmp_path / ".c.4711.partial.png", tmp_path / "a.partial"
        for path in kept:
            path.write_bytes(b"of a live process, or nobody's")
        with atomic_path(tmp_path / "d.txt") as path:
            path.write_text("x")
        assert names(tmp_path) == sorted(["d.txt", *(path.name for path in kept)])

    @pytest.mark.parametrize(("age", "stays"), [(0, True), (1 * DAYS, True), (3 * DAYS, False)])
    def test_another_machines_only_when_nothing_happens_any_more(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, age: int, stays: bool
    ) -> None:
        with monkeypatch.context() as change:
            change.setattr(files, "machine", lambda: "0123abcd")
            theirs = temporary_path(tmp_path / "a.png")
        theirs.write_bytes(b"half")
        os.utime(theirs, (time.time() - age,) * 2)
        files.remove_leftovers(tmp_path)
        assert theirs.exists() == stays
        with locked(tmp_path):  # nobody else works here
            assert not theirs.exists()

    def test_temporary_folders_of_killed_processes_go(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
        dead = dead_process()
        with monkeypatch.context() as change:
            change.setattr(os, "getpid", lambda: dead)
            torn = temporary_path(tmp_path / "langdepth")
        torn.mkdir()
        (torn / "model.safetensors").write_bytes(b"a whole checkpoint")
        with temporary_folder() as folder:
            assert names(tmp_path) == [folder.name]
        assert names(tmp_path) == []

    @pytest.mark.parametrize("named", [True, False])
    def test_what_cannot_be_written_inside_names_the_target(self, tmp_path: Path, named: bool) -> None:
        def fails(folder: Path) -> None:
            full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), *([str(folder / "part")] if named else []))
            raise full

        message = r"whole: cannot be written \(No space left on device\)"
        with pytest.raises(LangdepthError, match=message), temporary_folder(beside=tmp_path / "whole") as folder:
            fails(folder)
        with pytest.raises(FileNotFoundError), temporary_folder(beside=tmp_path / "whole"):
            (tmp_path / "another").read_text()
        assert names(tmp_path) == []


def test_a_name_with_a_zero_byte_is_one_line(tmp_path: Path) -> None:
    with (
        pytest.raises(LangdepthError, match="no file has a zero byte in its name"),
        atomic_path(tmp_path / "a\0b.npy"),
    ):
        pass
    for reader in (open_regular, require_regular):
        with pytest.raises(FileNotFoundError, match="zero byte"):
            reader(tmp_path / "a\0b.npy")


def test_a_full_disk_is_named_where_a_library_gives_no_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files.shutil, "disk_usage", lambda folder: type("Usage", (), {"free": 1000}))
    with pytest.raises(LangdepthError, match=r"a.npy: cannot be written \(No space left on device\)"):  # noqa: SIM117
        with atomic_path(tmp_path / "a.npy"):
            raise OSError("307200 requested and 92128 written")  # as NumPy does


def test_a_disk_that_is_full_in_mid_copy_is_that_of_the_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, name = tmp_path / "source.pth", tmp_path / "full" / "name.pth"
    source.write_bytes(b"weights")

    def full(one: Path, other: Path) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(one), None, str(other))  # as shutil.copyfile does

    monkeypatch.setattr(files.shutil, "copyfile", full)
    monkeypatch.setattr(files.os, "link", full)
    with pytest.raises(LangdepthError, match=f"^{name}: cannot be written \\(No space left on device\\)$"):
        files.second_name(source, name)
    with pytest.raises(LangdepthError, match=f"^{name}: cannot be written"), temporary_folder(name) as folder:
        full(source, folder / "part")


def test_a_stamp_tells_files_of_one_name_and_age_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stamps = set()
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        monkeypatch.chdir(tmp_path / folder)
        for content in ("1", "2"):
            with atomic_path("m") as path:
                path.write_text(content)
            os.utime("m", (1e9, 1e9))
            stamps.add(file_stamp("m"))
    assert len(stamps) == 4


@pytest.mark.parametrize("bad", ["content", "folder", "flush"])
def test_files_that_belong_together_are_there_all_or_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bad: str
) -> None:
    three = [tmp_path / name for name in ("a.bin", "b.bin", "c.xml")]
    with files.atomic_paths(*three) as parts:
        for part in parts:
            part.write_text("old")
    assert sorted(tmp_path.iterdir()) == three
    if bad == "folder":
        three[2].unlink()
        three[2].mkdir()
    flushed: list[Path] = []

    def fail(path: Path) -> None:
        flushed.append(path)
        if bad == "flush" and len(flushed) == 3:
            raise OSError(errno.EIO, "Input/output error", str(path))

    monkeypatch.setattr(files, "_flush", fail)

    def write() -> None:
        with files.atomic_paths(*three) as parts:
            for part in parts:
                part.write_text("new")
            if bad == "content":
                raise OSError(errno.ENOSPC, "No space left on device", str(parts[2]))

    with pytest.raises(LangdepthError, match=r"c\.xml: cannot be written"):
        write()
    assert sorted(tmp_path.iterdir()) == three
    assert [name.read_text() for name in three[:2]] == ["old", "old"]
