"""Commands and functions that write files replace their own alone: refused in one line before any work."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from langdepth.data.tools.sam import write_overlays
from langdepth.errors import LangdepthError
from langdepth.systems import registry
from langdepth.systems.base import System
from langdepth.weights.files import save
from langdepth.weights.hub import save_pretrained
from tests.helpers import Run, ramp, save_image

FOREIGN = b"of somebody else"


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder out beside photo.png, captions.csv, features.npz and a.zip, in the current folder."""
    monkeypatch.chdir(tmp_path)
    save_image(tmp_path / "photo.png", ramp(96, 64))
    (tmp_path / "captions.csv").write_text("image,caption\na.jpg,A room.\n")
    np.savez(tmp_path / "features.npz", caption=["A room."], feature=np.ones((1, 1024), np.float16))
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("README.txt", "of the data set")
    (tmp_path / "out").mkdir()
    return tmp_path / "out"


def kept(place: Path, name: str, problem: str) -> None:
    """The file is what it was, nothing is beside it, and the problem names it."""
    assert f"{name} exists and was not written by langdepth; give another name, or remove it" in problem
    assert len(problem.strip().splitlines()) == 1
    assert (place / name).read_bytes() == FOREIGN
    assert [path.name for path in place.iterdir()] == [name]


CONVERT = ("convert", "photo.png", "--system", "depthclip", "--out", "out/a.safetensors")
PROMPTS = ("prompts", "photo.png", "--clip-weights", "random", "--out", "out")
SCENES = ("scenes", "encode", "--clip-weights", "random", "--out", "out/a.safetensors")
PACK = ("data", "pack-captions", "--text", "captions.csv", "--features", "features.npz", "--out", "out")
PREPARE = ("data", "prepare", "folder", "--source", "a.zip", "--out", "out")
CACHE = ("data", "cache", "folder", "--out", "out", "--root")


@pytest.mark.parametrize(
    ("command_line", "name"),
    [
        (CONVERT, "a.safetensors"),
        (CONVERT, "a.md"),
        (SCENES, "a.safetensors"),
        (("bench", "--out", "out/a.json"), "a.json"),
        (PROMPTS, "photo_words.png"),
        (PROMPTS, "photo_words.npz"),
        (PACK, "features.npy"),
        (PREPARE, "README.txt"),
        (CACHE, "images.u8"),
    ],
)
def test_files_of_others_stay(
    command_line: tuple[str, ...], name: str, place: Path, sample_folder: Path, command: Run
) -> None:
    (place / name).write_bytes(FOREIGN)
    root = [sample_folder] if command_line[-1].endswith("root") else []
    code, out, problem = command(*command_line, *root)
    assert (code, out) == (1, "")
    kept(place, name, problem)


@pytest.fixture(scope="module")
def system() -> System:
    """A small ``tiny`` with random weights."""
    options: dict[str, Any] = {"area": 48 * 64, "widths": (8, 8, 12, 16), "bins": 8, "text_features": 16}
    return registry.build("tiny", options).eval()


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "README.md"])
def test_a_folder_with_another_model_stays(name: str, place: Path, system: System) -> None:
    (place / name).write_bytes(FOREIGN)
    with pytest.raises(LangdepthError) as caught:
        save_pretrained(system, place)
    kept(place, name, str(caught.value))


@pytest.mark.parametrize("name", ["a.safetensors", "a.md", "b.safetensors", "b.md"])
def test_weights_of_others_stay(name: str, place: Path, system: System) -> None:
    (place / name).write_bytes(FOREIGN)
    with pytest.raises(LangdepthError) as caught:
        save(system, place / "a.safetensors", also=[place / "b.safetensors"])
    kept(place, name, str(caught.value))


def test_masks_are_not_drawn_over_photos_of_others(place: Path) -> None:
    (place / "photo.jpg").write_bytes(FOREIGN)
    one = np.ones((1, 64, 96), bool)
    with pytest.raises(LangdepthError) as caught:
        list(write_overlays(place.parent, place, lambda _: one, [Path("photo.png")]))
    kept(place, "photo.jpg", str(caught.value))
    (place / "photo.jpg").unlink()
    for _ in range(2):
        assert list(write_overlays(place.parent, place, lambda _: one, [Path("photo.png")])) == [place / "photo.jpg"]


def test_own_files_empty_files_and_links(place: Path, system: System, command: Run) -> None:
    (place / "config.json").touch()
    for _ in range(2):
        save_pretrained(system, place)
        save(system, place / "a.safetensors")
        assert command(*PACK)[0] == 0
    (place / "a.safetensors").unlink()
    (place / "a.safetensors").symlink_to("gone.safetensors")
    with pytest.raises(LangdepthError, match="exists and was not written by langdepth"):
        save(system, place / "a.safetensors")


def test_a_workbench_is_replaced(place: Path) -> None:
    from langdepth.evaluation.workbench import files_of

    content = io.BytesIO()
    np.savez_compressed(content, words=["near"], bin_centers=[1.0], similarity=np.zeros((1, 9, 9)))
    (place / "photo_words.npz").write_bytes(content.getvalue())
    assert files_of(place, "photo")[1] == place / "photo_words.npz"
