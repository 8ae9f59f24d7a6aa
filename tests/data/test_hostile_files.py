"""Small files beside the images: pipes and devices are refused without waiting, huge ones before they are read."""

from __future__ import annotations

import os
import tracemalloc
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from zipfile import ZipFile

import pytest

from langdepth.data.base import MANIFEST, Search
from langdepth.data.hdf5 import read_hdf5
from langdepth.data.lists import read_intrinsics, read_list
from langdepth.data.overlays import Overlays
from langdepth.data.pairs import ListRules, listed_rows
from langdepth.data.rows import Row
from langdepth.data.sets import ddad, folder, hypersim
from langdepth.data.tools.cache import write_cache
from langdepth.data.tools.prepare import prepare, read_manifest
from langdepth.errors import LangdepthError
from langdepth.text.captions import read_captions
from langdepth.utils.depth_files import read_depth
from tests.helpers import write_folder

RULES = ListRules(row=lambda *_: Row(key="a", path_rgb=Path("a"), path_depth=Path("b")), key=str)
# Name below the folder -> what reads it, given the folder
READERS: dict[str, Callable[[Path], object]] = {
    "index.csv": folder.read_index,
    "overlays.csv": Overlays,
    "ddad.json": lambda root: ddad.rows(Search(root, "val")),
    "metadata_images_split_scene_v1.csv": lambda root: hypersim.rows(Search(root, "test")),
    "list.txt": lambda root: listed_rows(root / "list.txt", RULES, root),
    "official.txt": lambda root: read_list(root / "official.txt"),
    "intrinsics.txt": lambda root: read_intrinsics(root / "intrinsics.txt"),
    MANIFEST: read_manifest,
    "nyu/train/kitchen.txt": read_captions,
    "captions.csv.gz": read_captions,
}


@pytest.mark.parametrize("name", READERS)
def test_a_file_far_too_large_is_refused_before_it_is_read(tmp_path: Path, name: str) -> None:
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).touch()
    os.truncate(tmp_path / name, 20 << 30)  # takes no room on the disk
    with pytest.raises(LangdepthError, match=Path(name).name):
        READERS[name](tmp_path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs pipes with names")
@pytest.mark.parametrize("name", READERS)
def test_a_pipe_is_not_waited_for(tmp_path: Path, name: str) -> None:
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    os.mkfifo(tmp_path / name)
    if name in ("ddad.json", "metadata_images_split_scene_v1.csv", "intrinsics.txt"):  # as if it were not there
        with suppress(LangdepthError):
            assert READERS[name](tmp_path) is None
        return
    with pytest.raises(LangdepthError, match=r"not a regular file|no captions"):
        READERS[name](tmp_path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs pipes with names")
@pytest.mark.parametrize("name", ["d.npy", "d.npz", "d.png", "d.h5"])
def test_a_pipe_for_depth_is_not_waited_for(tmp_path: Path, name: str) -> None:
    os.mkfifo(tmp_path / name)
    with pytest.raises(LangdepthError, match=rf"{name}: .*not a regular file"):
        read_hdf5(tmp_path / name, ["depth"]) if name == "d.h5" else read_depth(tmp_path / name, 1.0)


@pytest.mark.parametrize("name", ["index.csv", "overlays.csv", "metadata_images_split_scene_v1.csv"])
def test_a_line_without_an_end_is_refused_before_it_takes_memory(tmp_path: Path, name: str) -> None:
    (tmp_path / name).touch()
    os.truncate(tmp_path / name, 40 << 20)  # zeros
    tracemalloc.start()
    with pytest.raises(LangdepthError, match=rf"{name}: not readable .* \(a line of more than 1000000 characters\)"):
        READERS[name](tmp_path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 100 << 20  # twice its size


def test_a_cache_and_a_manifest_are_not_written_through_links(tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.write_text("mine")
    root = write_folder(tmp_path / "images", [{}])
    for name in ("images.u8", "depths.u16", "edges.u8", "index.partial", "index.jsonl"):
        out = tmp_path / f"cache of {name}"
        out.mkdir()
        (out / name).symlink_to(precious)
        with suppress(LangdepthError):
            write_cache("folder", root, out)
    for target in (precious, tmp_path / "new"):
        out = tmp_path / f"set of {target.name}"
        out.mkdir()
        (out / MANIFEST).symlink_to(target)
        with ZipFile(tmp_path / "a.zip", "w") as archive:
            archive.writestr("a.txt", "a")
        prepare("folder", tmp_path / "a.zip", out)
        assert not (out / MANIFEST).is_symlink()
    assert precious.read_text() == "mine"
    assert not (tmp_path / "new").exists()
