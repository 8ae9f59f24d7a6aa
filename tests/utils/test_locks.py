"""Folders that one process at a time works in."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from langdepth.errors import LangdepthError
from langdepth.utils import locks
from langdepth.utils.locks import LOCK, locked


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


HOLD = """
import os, sys, time
from langdepth.utils.locks import locked
with locked(sys.argv[1]):
    parent = os.getpid()
    if "fork" in sys.argv and os.fork() == 0:
        while os.getppid() == parent:
            time.sleep(0.05)
        time.sleep(0.5)  # as a worker that notices late
        os._exit(0)
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[subprocess.Popen[str]]:
    words = [sys.executable, "-c", HOLD, str(tmp_path / "run"), *getattr(request, "param", [])]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


class TestLocked:
    def test_a_second_process_is_refused_by_a_line_that_names_the_first(
        self, tmp_path: Path, holder: subprocess.Popen[str]
    ) -> None:
        with pytest.raises(LangdepthError) as caught, locked(tmp_path / "run"):
            pass
        assert re.fullmatch(
            rf"{tmp_path}/run: is in use by process {holder.pid} on \S+ since \d{{4}}-\d\d-\d\d \d\d:\d\d:\d\d \S+; "
            "wait until that run has ended, or choose another folder",
            str(caught.value),
        )

    @pytest.mark.parametrize("holder", [[], ["fork"]], indirect=True)
    def test_a_killed_process_holds_nothing(self, tmp_path: Path, holder: subprocess.Popen[str]) -> None:
        """Not even while its workers have not noticed."""
        holder.send_signal(signal.SIGKILL)
        holder.wait()
        with locked(tmp_path / "run"):
            assert names(tmp_path / "run") == [LOCK]

    def test_a_second_thread_is_refused(self, tmp_path: Path) -> None:
        with (
            locked(tmp_path),
            pytest.raises(LangdepthError, match=f"in use by process {os.getpid()} "),
            locked(tmp_path),
        ):
            pass
        with locked(tmp_path):
            pass
        assert names(tmp_path) == []

    def test_nothing_stays_where_nothing_came_of_the_work(self, tmp_path: Path) -> None:
        with pytest.raises(KeyError), locked(tmp_path / "deep" / "run"):
            raise KeyError
        assert names(tmp_path) == []

    @pytest.mark.parametrize("content", [b"", b"{", b"[" * 3000, b'{"process": "x"}', b"\xff"])
    def test_whoever_says_nothing_of_itself(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes
    ) -> None:
        monkeypatch.setattr(locks, "_GRACE", 0.1)
        with locked(tmp_path):
            (tmp_path / LOCK).write_bytes(content)
            with pytest.raises(LangdepthError, match="is in use by another process"), locked(tmp_path):
                pass


def train(folder: Path, sample: Path) -> Any:
    from langdepth.training.recipe import read_recipe
    from langdepth.training.run import train

    content = {"system": {"name": "tiny"}, "data": {"root": str(sample)}, "train": {"out": str(folder)}}
    return train(read_recipe(content))


def matrix(folder: Path, sample: Path) -> Any:
    from langdepth.evaluation.matrix import run_matrix
    from langdepth.evaluation.matrix_file import Matrix, MatrixData

    return run_matrix(Matrix(data=[MatrixData(root=sample)], systems=("tiny",)), folder)


def cache(folder: Path, sample: Path) -> Any:
    from langdepth.data.tools.cache import write_cache

    return write_cache("folder", sample, folder)


def prepare(folder: Path, sample: Path) -> Any:
    import shutil

    from langdepth.data.tools.prepare import prepare

    return prepare("folder", shutil.make_archive(str(folder.parent / "a"), "zip", sample), folder)


def pack(folder: Path, sample: Path) -> Any:
    import numpy as np

    from langdepth.text.captions import Caption, pack

    return pack([Caption("a", "a room")], {"a room": np.ones(1, np.float16)}, folder)


@pytest.mark.parametrize("work", [train, matrix, cache, prepare, pack])
def test_folders_that_are_locked(work: Any, tmp_path: Path, sample_folder: Path) -> None:
    with locked(tmp_path / "run"), pytest.raises(LangdepthError, match=f"run: is in use by process {os.getpid()}"):
        work(tmp_path / "run", sample_folder)
    assert not (tmp_path / "run").exists()


def test_a_lock_that_is_a_link_or_a_pipe_is_refused(tmp_path: Path) -> None:
    """What is written into the lock would replace the content of the file behind the link."""
    precious = tmp_path / "precious"
    precious.write_text("not to be lost")
    for make in (lambda lock: lock.symlink_to(precious), lambda lock: lock.hardlink_to(precious), os.mkfifo):
        (tmp_path / "run").mkdir()
        make(tmp_path / "run" / LOCK)
        with pytest.raises(LangdepthError, match="is no lock of langdepth"), locked(tmp_path / "run"):
            pass
        assert precious.read_text() == "not to be lost"
        (tmp_path / "run" / LOCK).unlink()
        (tmp_path / "run").rmdir()
