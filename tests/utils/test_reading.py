"""Small files of others: what is not a regular file of a sensible size is refused at once."""

from __future__ import annotations

import csv
import io
import os
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from langdepth.errors import CheckpointError, ImageError, LangdepthError
from langdepth.text.captions import csv_rows
from langdepth.utils.arrays import load_npy
from langdepth.utils.depth_files import read_depth
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


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("image,caption,caption\n1.png,a,b\n", "two columns are called caption"),
        ("image,caption\n1.png,a\n2.png,a desk, a lamp\n", "line 3 has 3 cells, its header 2"),
    ],
)
def test_no_cell_of_a_table_is_dropped(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "index.csv").write_text(content)
    with pytest.raises(csv.Error, match=message):
        list(read_csv(tmp_path / "index.csv"))
    with pytest.raises(LangdepthError, match=f"index.csv: not readable as CSV .{message}"):
        list(csv_rows(tmp_path / "index.csv", ("image",)))


def test_empty_cells_beyond_the_header_hold_nothing(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("image,caption,,\n1.png,a,,,\n")
    assert [(row["image"], row["caption"]) for row in read_csv(tmp_path / "a.csv")] == [("1.png", "a")]


def test_two_arrays_of_one_name_are_refused(tmp_path: Path) -> None:
    content = io.BytesIO()
    np.save(content, np.ones((40, 40), np.float32))
    with zipfile.ZipFile(tmp_path / "d.npz", "w") as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # zipfile warns of what is made here
        archive.writestr("depth.npy", content.getvalue())
        archive.writestr("depth.npy", content.getvalue())
    with pytest.raises(ImageError, match=r"d\.npz: it holds two arrays of one name"):
        read_depth(tmp_path / "d.npz", 1.0)


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
