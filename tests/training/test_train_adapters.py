"""Recipes of the CLIP adapters on a few synthetic rooms with a small random tower: with overlays, with two views."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from langdepth.data.tools.sample import write_sample
from langdepth.errors import ImageError, UsageError
from langdepth.training.recipe import load_recipe, read_recipe
from langdepth.training.run import train
from langdepth.weights import checkpoint
from tests.helpers import logged

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:.*random.*")]


def recipe(name: str, root: Path, out: Path, *, options: dict[str, Any], **fields: Any) -> Any:
    """A recipe of the repository on the images of ``root``, small; ``fields`` by their dotted names."""
    content = load_recipe(name)
    content["system"]["options"] |= {"architecture": "RN-small", **options}
    content["system"]["prepare"] = {"clip_weights": "random"}
    content["data"] |= {"name": "folder", "root": str(root), "val_split": "val", "workers": 0}
    content["train"] |= {"out": str(out), "accelerator": "cpu", "log_every": 1, "previews": 0}
    for key, value in fields.items():
        section, field = key.split("__")
        content[section][field] = value
    return read_recipe(content)


@pytest.fixture(scope="module")
def rooms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rooms 80x60 with overlays; the images 0 and 2 are for training, 1 is for validation."""
    root = write_sample(tmp_path_factory.mktemp("rooms") / "rooms", count=3, size=(60, 80))
    with (root / "index.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        row["path_overlay"] = row["path_rgb"].replace("0.jpg", "overlay.png")
        Image.open(root / row["path_rgb"]).rotate(180).save(root / row["path_overlay"])
    with (root / "index.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return root


@pytest.fixture(scope="module")
def frames(rooms: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same, enlarged to 640x480."""
    root = tmp_path_factory.mktemp("frames")
    with (rooms / "index.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        for column, rule in (("path_rgb", Image.Resampling.BILINEAR), ("path_depth", Image.Resampling.NEAREST)):
            (root / row[column]).parent.mkdir(parents=True, exist_ok=True)
            Image.open(rooms / row[column]).resize((640, 480), rule).save(root / row[column])
        row |= {"width": "640", "height": "480"}
    kept = ("path_rgb", "path_depth", "depth_scale", "split", "width", "height")
    with (root / "index.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, kept, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)
    return root


# The same images in every step.
PLAIN = dict.fromkeys(("flip", "zoom_probability", "rotate_probability", "colour_probability", "grey", "blur"), 0.0)


def test_msa_sam_learns_and_predicts(rooms: Path, tmp_path: Path) -> None:
    data = {"data__pipeline": "standard", "data__augmentation": PLAIN, "data__batch_size": 2}
    fields = {"optim__lr": 0.02, "optim__milestones": [4], "train__epochs": 5, "train__validate_every": 5}
    out = train(recipe("msa-sam-nyu", rooms, tmp_path / "run", options={"area": 64 * 64}, **data, **fields))
    found = logged(out, "train/depth")
    assert len(found) == 5
    assert found[-1] < 0.95 * found[0]
    system: Any = checkpoint.load(out / "last.safetensors")
    photo, overlay = sorted(rooms.rglob("0.jpg"))[0], sorted(rooms.rglob("overlay.png"))
    one, other = (system.predict(photo, overlay=file).depth for file in overlay[:2])
    assert one.shape == (60, 80)
    assert not np.array_equal(one, other)


# Two distances around that of the planes that the second views move by, so that a few steps show in the loss.
BINS = {"words": ["near", "far"], "templates": ["this object is {}"], "bin_centers": [0.8, 2.0]}
TWO_VIEWS = {"image_reduction": 32, "text_reduction": 16, "prompts": BINS}


def test_two_views_learn_without_depth_and_resume_in_mid_epoch(frames: Path, tmp_path: Path) -> None:
    def run(out: str, resume: bool = False, **fields: Any) -> Path:
        common = {"data__batch_size": 1, "train__epochs": 2, "train__validate_every": 2, "optim__lr": 3.0}
        asked = recipe("clip-adapter-ssl-nyu", frames, tmp_path / out, options=TWO_VIEWS, **common, **fields)
        return train(asked, resume=resume)

    whole = run("whole")
    found = logged(whole, "train/photometric")
    assert len(found) == 4
    assert np.mean(found[2:]) < 0.8 * np.mean(found[:2]), found
    run("paused", train__max_steps=3)
    paused = run("paused", resume=True)
    ends = [load_file(folder / "last.safetensors") for folder in (whole, paused)]
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])


def test_what_the_images_do_not_allow_is_one_line(frames: Path, tmp_path: Path) -> None:
    name = "clip-adapter-ssl-nyu"
    wide = write_sample(tmp_path / "wide", count=2, size=(48, 96))
    with pytest.raises(ImageError, match=r"0\.jpg: image is 96x48, these crops need 640x480 or its shape"):
        train(recipe(name, wide, tmp_path / "a", options=TWO_VIEWS, data__batch_size=1))
    with pytest.raises(UsageError, match=r"data\.pipeline.*network takes 96x64"):
        train(recipe(name, frames, tmp_path / "b", options=TWO_VIEWS | {"area": 64 * 96}))
    small = TWO_VIEWS | {"area": 64 * 96}
    with pytest.raises(UsageError, match=r"losses\.photometric.*data\.pipeline: nyu-adapters-two-views"):
        train(recipe(name, frames, tmp_path / "c", options=small, data__pipeline="standard", data__batch_size=1))
