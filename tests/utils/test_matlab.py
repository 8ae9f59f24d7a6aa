"""MATLAB files before 7.3, compared with scipy's reader."""

from __future__ import annotations

import random
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.io import loadmat, savemat
from scipy.sparse import csc_array

from langdepth.utils.arrays import ArrayError, UnreadArrayError
from langdepth.utils.matlab import read_matlab

PHOTO = np.arange(2 * 3 * 4, dtype=np.uint8).reshape(2, 3, 4)


@pytest.mark.parametrize("compressed", [True, False])
@pytest.mark.parametrize("kind", ["f8", "f4", "i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8", "?"])
def test_numbers(kind: str, compressed: bool, tmp_path: Path) -> None:
    savemat(tmp_path / "a.mat", {"before": 1.5, "x": PHOTO.astype(kind)}, do_compression=compressed)
    found = read_matlab(tmp_path / "a.mat", "x")
    expected = loadmat(tmp_path / "a.mat")["x"]
    assert found.dtype == expected.dtype
    assert np.array_equal(found, expected)
    assert read_matlab(tmp_path / "a.mat", "before") == 1.5


@pytest.mark.parametrize("compressed", [True, False])
def test_texts_cells_and_structures(compressed: bool, tmp_path: Path) -> None:
    cell = np.array(["a/kitchen", "b/straße", ""], dtype=object)
    inside = {"depth": PHOTO[0] / 7, "calib": np.eye(3), "name": "x", "n": {"deep": 5}}
    savemat(tmp_path / "a.mat", {"paths": cell, "data": inside, "empty": np.empty((0, 3))}, do_compression=compressed)
    paths = read_matlab(tmp_path / "a.mat", "paths")
    assert [str(path) for path in paths[:2]] == ["a/kitchen", "b/straße"]
    data = read_matlab(tmp_path / "a.mat", "data")
    assert list(data) == ["depth", "calib", "name", "n"]
    assert np.array_equal(data["depth"], PHOTO[0] / 7)
    assert np.array_equal(data["calib"], np.eye(3))
    assert (data["name"], int(data["n"]["deep"])) == ("x", 5)
    assert read_matlab(tmp_path / "a.mat", "empty").size == 0
    assert read_matlab(tmp_path / "a.mat", "other") is None


def test_the_other_order_of_bytes(tmp_path: Path) -> None:
    name, numbers = b"x", np.arange(6, dtype=">f8")

    def element(kind: int, content: bytes) -> bytes:
        head = kind.to_bytes(4, "big") + len(content).to_bytes(4, "big")
        return head + content + bytes(-len(content) % 8)

    sides = np.array([2, 3], ">i4").tobytes()
    parts = element(6, (6).to_bytes(4, "big") + bytes(4)) + element(5, sides)
    parts += (1).to_bytes(2, "big") + (1).to_bytes(2, "big") + name + bytes(3)  # a short element
    (tmp_path / "a.mat").write_bytes(
        b"MATLAB 5.0".ljust(124) + b"\1\0MI" + element(14, parts + element(9, numbers.tobytes()))
    )
    assert np.array_equal(read_matlab(tmp_path / "a.mat", "x"), [[0, 2, 4], [1, 3, 5]])
    assert np.array_equal(loadmat(tmp_path / "a.mat")["x"], [[0, 2, 4], [1, 3, 5]])


def test_what_is_not_read(tmp_path: Path) -> None:
    deep: Any = 1.0
    for _ in range(12):
        deep = {"a": deep}
    savemat(tmp_path / "a.mat", {"complex": np.ones(3) * 1j, "sparse": csc_array(np.eye(3)), "deep": deep})
    with pytest.raises(UnreadArrayError, match=r"^it holds complex numbers"):
        read_matlab(tmp_path / "a.mat", "complex")
    for name in ("sparse", "deep"):
        with pytest.raises(UnreadArrayError, match="of a kind that is not read"):
            read_matlab(tmp_path / "a.mat", name)


def test_damage_is_always_one_error(tmp_path: Path) -> None:
    path = tmp_path / "a.mat"
    savemat(path, {"x": [[1, 2]], "data": {"a": "text", "b": np.ones((2, 3))}, "c": np.array(["u", 1], dtype=object)})
    content, rng = path.read_bytes(), random.Random(0)
    for _ in range(600):
        changed = bytearray(content)
        for _ in range(rng.choice((1, 1, 2, 5))):
            changed[rng.randrange(120, len(changed))] = rng.choice((0, 1, 4, 14, 15, 127, 128, 255, rng.randrange(256)))
        path.write_bytes(changed[: rng.choice((None, None, rng.randrange(len(changed))))])
        for name in ("x", "data", "c"):
            with suppress(ArrayError):
                read_matlab(path, name)


def test_numbers_of_no_kind(tmp_path: Path) -> None:
    savemat(tmp_path / "a.mat", {"x": [[7]]})
    content = bytearray((tmp_path / "a.mat").read_bytes())
    place = content.rindex(b"\x0c\0\0\0")  # the kind of its numbers, int64; scipy's reader ends the process
    content[place] = 0
    (tmp_path / "a.mat").write_bytes(content)
    with pytest.raises(ArrayError, match="not laid out as MATLAB does"):
        read_matlab(tmp_path / "a.mat", "x")
