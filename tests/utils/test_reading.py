"""Small files of others: what is not a regular file of a sensible size is refused at once."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from langdepth.errors import CheckpointError
from langdepth.utils.arrays import load_npy
from langdepth.utils.files import not_the_file_itself
from langdepth.utils.png import is_own_png
from langdepth.utils.reading import read_bytes, read_csv, read_text
from langdepth.utils.tensors import read_pickle, read_safetensors


def sparse(path: Path, size: int) -> Path:
    with path.open("wb") as file:
        file.truncate(size)
    return path


def test_text_and_rows(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("image,caption\n1.png,ein Tisch\n", encoding="utf-8-sig")
    assert read_text(tmp_path / "a.csv").startswith("image,")
    assert list(read_csv(tmp_path / "a.csv")) == [{"image": "1.png", "caption": "ein Tisch"}]


@pytest.mark.parametrize("read", [read_bytes, read_text, read_csv, load_npy])
def test_a_pipe_is_not_waited_for(read: Callable[[Path], object], tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match="is not a regular file"):
        read(tmp_path / "pipe")
    assert not_the_file_itself(tmp_path / "pipe") is None
    assert not is_own_png(tmp_path / "pipe")


@pytest.mark.parametrize("read", [read_safetensors, read_pickle])
def test_weights_from_a_pipe_are_refused(read: Callable[[Path], object], tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(CheckpointError, match="pipe: cannot be read \\(is not a regular file\\)"):
        read(tmp_path / "pipe")


def test_devices_folders_and_huge_files_are_refused_before_they_are_read(tmp_path: Path) -> None:
    for path, reason in (
        (Path("/dev/zero"), "not a regular file"),
        (tmp_path, "Is a directory|is a folder"),
        (sparse(tmp_path / "index.csv", 20 << 30), "more than 268 MB"),
    ):
        with pytest.raises(OSError, match=reason):
            read_text(path)
    with pytest.raises(OSError, match="more than 10 bytes"):
        read_text(sparse(tmp_path / "small", 11), limit=10)
