"""Folders of overlays: which overlay belongs to which image, from ``data sam`` over training to evaluation."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from langdepth import cli
from langdepth.data.base import open_dataset
from langdepth.data.overlays import Overlays, overlay_names, with_overlays
from langdepth.data.tools import sam
from langdepth.data.tools.sam import write_overlays
from langdepth.errors import LangdepthError, UsageError
from langdepth.evaluation import protocols
from langdepth.evaluation.evaluate import evaluate
from langdepth.evaluation.matrix import run_matrix
from langdepth.evaluation.matrix_file import Matrix, MatrixData
from langdepth.evaluation.predictions import Predictions
from langdepth.prediction.inputs import images_below
from tests import miniatures
from tests.data.test_overlays import Looker
from tests.helpers import FakeSystem, grey, save_image, write_folder
from tests.stand_ins import clip_archive, small_networks

ROOT = Path(__file__).parents[2]


def left_half(image: npt.NDArray[np.uint8]) -> npt.NDArray[np.bool_]:
    """What stands for SAM: one mask, the left half."""
    mask = np.zeros((1, *image.shape[:2]), bool)
    mask[:, :, : image.shape[1] // 2] = True
    return mask


def draw(root: Path, out: Path, pattern: str | None = None) -> list[Path | LangdepthError]:
    return list(write_overlays(root, out, left_half, images_below(root, out, pattern)[0]))


def found(root: Path, name: str = "nyu", split: str | None = None, folder: Path | None = None) -> dict[str, str]:
    """Key of each image -> its overlay."""
    rows = with_overlays(open_dataset(name, root, split).rows, Looker(), folder)
    return {row.key: str(row.path_overlay) for row in rows}


PUBLISHED = {
    "train/bedroom/00002.jpg": "bedroom/rgb_00002.jpg",
    "train/nyu_office/00003.jpg": "nyu_office/rgb_00003.jpg",
    "train/kitchen/00004.jpg": "kitchen/rgb_00004.jpg",
    "test/bathroom/00000.jpg": "bathroom/rgb_00000.jpg",
    "test/kitchen/00001.jpg": "kitchen/rgb_00001.jpg",
}


def published(folder: Path) -> Path:
    """The authors' tree."""
    for name in PUBLISHED:
        save_image(folder / name, grey(0.5))
    return folder


@pytest.mark.parametrize("build", [miniatures.nyu_exported, miniatures.nyu_labelled])
def test_the_published_tree_is_found_beside_the_images(
    build: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = build(tmp_path / "nyu", monkeypatch)
    tree = published(root / "sam_out")
    expected = {key: str(tree / name) for name, key in PUBLISHED.items()}
    assert found(root) == expected
    moved = tree.rename(tmp_path / "elsewhere")
    assert found(root, folder=moved) == {key: path.replace(str(tree), str(moved)) for key, path in expected.items()}
    (moved / "train" / "kitchen" / "00004.jpg").unlink()
    with pytest.raises(LangdepthError, match=r"1 of 5 have none in .*elsewhere: .*kitchen/rgb_00004"):
        found(root, folder=moved)
    with pytest.raises(LangdepthError, match=r"5 of 5 have none since there is no folder sam_out.*langdepth data sam"):
        found(root)


@pytest.mark.parametrize("below", ["", "official_splits", "official_splits/train"])
def test_wherever_the_masks_were_drawn_from_the_folder_fits(
    below: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, out = miniatures.nyu_exported(tmp_path / "nyu", monkeypatch), tmp_path / "masks"
    assert all(isinstance(outcome, Path) for outcome in draw(root / below, out))
    start = len(Path(below).parts)
    for key, path in found(root, split="train", folder=out).items():
        parts = ("official_splits", "train", *Path(key.replace("rgb_", "")).parts)
        assert Path(path) == out.joinpath(*parts[start:])


def test_an_index_names_what_names_do_not_tell(tmp_path: Path) -> None:
    """Two images whose overlays would have one name; the index keeps what an earlier run has written."""
    root = write_folder(tmp_path / "data", [{}, {}])
    (root / "0.png").rename(root / "rgb_1.png")
    (root / "index.csv").write_text((root / "index.csv").read_text().replace("\n0.png", "\nrgb_1.png"))
    out = tmp_path / "masks"
    draw(root, out, "*.png")
    names = {"rgb_1.png": str(out / "rgb_1_png.jpg"), "1.png": str(out / "1_png.jpg")}
    assert found(root, "folder", folder=out) == names
    save_image(tmp_path / "more" / "hall" / "rgb_7.jpg", grey(0.1))
    draw(tmp_path / "more", out)
    assert found(root, "folder", folder=out) == names
    assert Overlays(out).find("x/hall/rgb_7.jpg") == out / "hall" / "7.jpg"
    (out / "overlays.csv").unlink()
    with pytest.raises(LangdepthError, match="2 of 2 have none"):
        found(root, "folder", folder=out)


def test_names_of_overlays() -> None:
    images = [Path("a/rgb_1.jpg"), Path("a/1.png"), Path("b/1.png")]
    assert [str(name) for name in overlay_names(images).values()] == ["a/rgb_1_jpg.jpg", "a/1_png.jpg", "b/1.jpg"]


def test_an_overlay_that_two_images_would_share_is_refused(tmp_path: Path) -> None:
    for name in ("a", "b"):
        save_image(tmp_path / "data" / name / "1.png", grey(0.5))
        miniatures.save_depth(tmp_path / "data" / name / "d.png", miniatures.depth(0), 0.001)
    lines = ["path_rgb,path_depth,depth_scale", "a/1.png,a/d.png,0.001", "b/1.png,b/d.png,0.001"]
    (tmp_path / "data" / "index.csv").write_text("\n".join(lines))
    save_image(tmp_path / "flat" / "1.jpg", grey(0.5))
    with pytest.raises(LangdepthError, match=r"flat/1\.jpg: .*overlay of both .*a/1\.png and .*b/1\.png"):
        found(tmp_path / "data", "folder", folder=tmp_path / "flat")


@pytest.mark.parametrize("overlay", ["../secret.jpg", "/etc/passwd", ""])
def test_an_index_does_not_lead_out_of_its_folder(overlay: str, tmp_path: Path) -> None:
    (tmp_path / "overlays.csv").write_text(f"image,overlay\na.jpg,{overlay}\n")
    with pytest.raises(LangdepthError, match=r"overlays\.csv line 2: overlay .* does not lie inside the folder"):
        Overlays(tmp_path)


@pytest.mark.parametrize(("content", "message"), [("a,b\n", "needs the columns"), (b"\xff\xfe", "not readable as CSV")])
def test_a_damaged_index_is_one_line(content: Any, message: str, tmp_path: Path) -> None:
    (tmp_path / "overlays.csv").write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(LangdepthError, match=rf"overlays\.csv: {message}"):
        Overlays(tmp_path)
    with pytest.raises(LangdepthError, match="gone: no such folder of overlays"):
        Overlays(tmp_path / "gone")


def test_evaluation_takes_a_folder_and_only_where_it_is_of_use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = miniatures.nyu_exported(tmp_path / "nyu", monkeypatch)
    dataset, rules = open_dataset("nyu", root, "test"), protocols.get("full")
    with pytest.raises(LangdepthError, match="no folder sam_out"):
        evaluate(Looker(), dataset, rules, progress=False)
    for level, folder in ((0.0, "dark"), (1.0, "bright")):
        for name in PUBLISHED:
            save_image(tmp_path / folder / name, grey(level))
    dark, bright = (
        evaluate(Looker(), dataset, rules, overlay=tmp_path / folder, progress=False) for folder in ("dark", "bright")
    )
    assert dark["image_mean"]["rmse"] < bright["image_mean"]["rmse"]
    (tmp_path / "dark").rename(root / "sam_out")
    assert evaluate(Looker(), dataset, rules, progress=False)["image_mean"] == dark["image_mean"]
    (root / "sam_out" / "test" / "kitchen" / "00001.jpg").unlink()  # the first image's is there
    assert evaluate(Looker(), dataset, rules, limit=1, progress=False)["images"] == 1
    for other in (FakeSystem(), Predictions(tmp_path, root)):
        with pytest.raises(UsageError, match=r"bright: .*no overlay; leave the folder out"):
            evaluate(other, dataset, rules, overlay=tmp_path / "bright", progress=False)


def test_a_matrix_runs_a_cell_again_when_its_overlays_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = miniatures.nyu_exported(tmp_path / "nyu", monkeypatch)
    monkeypatch.setattr("langdepth.weights.checkpoint.load", lambda *_, **__: Looker())
    data = MatrixData(data="nyu", root=root, overlay=published(tmp_path / "masks"), protocols=("full",))

    def lines() -> list[str]:
        said: list[str] = []
        run_matrix(Matrix(data=[data], systems=("tiny",)), tmp_path / "out", say=said.append)
        return [line.rpartition(", full: ")[2] for line in said]

    assert (lines(), lines()) == (["done"], ["as before"])
    save_image(tmp_path / "masks" / "test" / "kitchen" / "00001.jpg", grey(0.9))
    assert (lines(), lines()) == (["done"], ["as before"])
    shutil.rmtree(tmp_path / "masks" / "test")
    assert "2 of 2 have none in" in lines()[0]


def test_msa_sam_from_its_images_to_its_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """``data prepare``, ``data sam``, ``train`` with the recipe, ``evaluate``: nothing is written by hand."""
    small_networks(monkeypatch, embed=64)
    monkeypatch.chdir(tmp_path)
    source, root = miniatures.nyu_labelled(Path("published"), monkeypatch), "nyu"
    assert (
        cli.main(["data", "prepare", "nyu", "--source", str(source / "nyu_depth_v2_labeled.mat"), "--out", root]) == 0
    )
    clip = clip_archive(Path("RN50.pt"))
    train = ["train", "--config", "msa-sam-nyu", "--data.root", root]
    train += ["--data.name", "nyu", "--data.val_split", "test", "--data.pipeline", "standard", "--data.workers", "0"]
    train += ["--system.prepare.clip_weights", str(clip), "--system.options.area", str(64 * 96)]
    train += ["--train.epochs", "1", "--train.out", "run", "--train.accelerator", "cpu", "--data.batch_size", "3"]
    monkeypatch.setattr(sam, "load_sam", lambda *_: left_half)
    assert cli.main(["data", "sam", "nyu", "--weights", "sam.pth", "--out", "masks"]) == 0
    assert cli.main(train) == 1
    assert "'msa-sam' needs an overlay for each image; 3 of 3 have none" in capsys.readouterr().err
    assert cli.main([*train, "--data.overlay", "masks"]) == 0
    evaluation = ["evaluate", "--system", "run/last.safetensors", "--data", "nyu", "--root", "nyu", "--out", "a.json"]
    assert cli.main(evaluation) == 1
    assert "2 of 2 have none" in capsys.readouterr().err
    assert cli.main([*evaluation, "--overlay", "masks"]) == 0
    Path("masks").rename("nyu/sam_out")
    assert cli.main([*evaluation[:-1], "b.json"]) == 0
    one, other = (json.loads(Path(name).read_text()) for name in ("a.json", "b.json"))
    assert one["image_mean"] == other["image_mean"]
    photo = "nyu/official_splits/test/kitchen/rgb_00001.jpg"
    predict = ["predict", photo, "--system", "run/last.safetensors", "--save", "npy", "--overlay", "nyu/sam_out"]
    assert cli.main(predict) == 0
