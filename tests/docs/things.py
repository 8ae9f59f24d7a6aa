"""What a reader has when a page begins: photos, downloads and data sets, in small and under the published names.

CLIP, the systems and the training runs are shrunk by ``shrink``; what their files hold follows. A page says which of
these things it needs (``<!-- given: NAME -->``).
"""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from langdepth import recipe, registry
from langdepth.backbones.clip_weights import find_clip_weights
from langdepth.data import kitti, nyu
from langdepth.data.sample import write_sample
from tests import miniatures
from tests.cli.test_caption import save_tiny_model
from tests.helpers import ramp, save_picture
from tests.miniatures import depth, save_depth, stand_in
from tests.stand_ins import CONVNEXT, caption_trees, clip_archive, small_networks
from tests.systems.test_mde_clip import official as mde_clip_tensors
from tests.unit.test_sam import halves

ROOT = Path(__file__).parents[2]
Thing = Callable[[Path], object]

FEATURES = 256  # of the small RN50's text tower, 1024 in the published one

NYU = {
    "train": miniatures.NYU_TRAIN,
    "test": miniatures.NYU_TEST,
    "sync": ("kitchen_0028b/rgb_00045.jpg", "living_room_0019/rgb_00111.jpg", "bathroom_0041/rgb_00007.jpg"),
}


def shrink(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small networks, short training runs, few synthetic rooms, and split lists of the images that are given here."""
    small_networks(monkeypatch, FEATURES)
    read = recipe.read_recipe

    def read_short(content: Mapping[str, Any]) -> recipe.Recipe:
        short = copy.deepcopy(dict(content))
        short.setdefault("data", {}).update(batch_size=2, workers=0)
        short.setdefault("train", {}).update(epochs=1, accelerator="cpu", precision="32-true", previews=1, devices=1)
        return read(short)

    monkeypatch.setattr(recipe, "read_recipe", read_short)
    monkeypatch.setattr("langdepth.train.read_recipe", read_short)
    monkeypatch.setattr("langdepth.data.sample.write_sample", small_sample)
    monkeypatch.setattr("langdepth.data.sam.load_sam", lambda weights, device=None: halves)
    counts = {split: len(keys) for split, keys in NYU.items()}
    stand_in(monkeypatch, nyu, counts, {"nyu_test": NYU["test"], "nyu_sync": NYU["sync"]})
    lists = {"kitti_eigen_train": miniatures.KITTI_TRAIN, "kitti_eigen_test": miniatures.KITTI_TEST}
    stand_in(monkeypatch, kitti, {"train": 2, "test": 2, "val": 2}, lists)


def clone(folder: Path) -> None:
    """What a fresh clone of the repository holds."""
    for name in ("recipes", "examples"):
        shutil.copytree(ROOT / name, folder / name)
    for name in ("benchmarks", "docs", "src", "tests", "pyproject.toml", "README.md"):
        (folder / name).symlink_to(ROOT / name)


# Photos


def photo(path: Path) -> None:
    """A photo of a room, 640x480."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.open(ROOT / "examples" / "room.jpg").resize((640, 480)).save(path)


def photos(path: Path) -> None:
    """A folder of photos, one of them in a folder of its own."""
    for number, name in enumerate(("a.jpg", "b.jpg", "more/c.jpg")):
        save_picture(path / name, ramp(96, 64, seed=number))


# Weights


def open_clip(path: Path) -> None:
    """open_clip's file of ScaleDepth's CLIP."""
    tensors = find_clip_weights("random", CONVNEXT, False).tensors
    save_file({name: value.contiguous() for name, value in tensors.items()}, path)


# Data sets


def _tree(folder: Path, keys: Sequence[str], first: int, size: tuple[int, int] = (480, 640)) -> None:
    for number, key in enumerate(keys, first):
        save_picture(folder / key, ramp(size[1], size[0], seed=number))
        metres = depth(number, height=size[0], width=size[1])
        save_depth((folder / key.replace("rgb_", "sync_depth_")).with_suffix(".png"), metres, 0.001)


def nyu_root(path: Path) -> None:
    """NYU Depth v2: official_splits and the frames of the raw sequences."""
    for number, (split, keys) in enumerate(NYU.items()):
        folder = path / "sync" if split == "sync" else path / "official_splits" / split
        _tree(folder, keys, 10 * number)


def nyu_labelled(path: Path) -> None:
    """The labelled file, and the official splits.mat beside it."""
    miniatures.write_labelled(path)


def small_sample(directory: str | Path, count: int = 24, seed: int = 0, *arguments: Any, **options: Any) -> Path:
    """``write_sample`` of at most six pictures."""
    return write_sample(directory, min(count, 6), seed, *arguments, **options)


def rooms(path: Path) -> None:
    """An indexed folder, as ``langdepth data sample`` writes it."""
    small_sample(path)


def matrix(path: Path) -> None:
    """A matrix of one system and one folder."""
    rooms(path.with_name("pictures"))
    path.write_text("systems: [tiny]\ndata:\n  - {root: pictures, split: val, protocols: [full]}\n")


def finished_maps(path: Path) -> None:
    """Depth maps of the pictures of a folder ``rooms`` beside it, as .npy."""
    for picture in sorted((path.parent / "rooms").rglob("*.jpg")):
        file = path / picture.relative_to(path.parent / "rooms").with_suffix(".npy")
        file.parent.mkdir(parents=True, exist_ok=True)
        np.save(file, np.full((240, 320), 3, np.float32))


# Captions


def sentences(path: Path) -> None:
    """A sentence for each of the photos, in a folder of its own."""
    path.mkdir()
    for name in "ab":
        (path / f"{name}.txt").write_text("A kitchen with a table.")


def trees(folder: Path) -> tuple[Path, Path]:
    """The published trees of captions and of their features."""
    images = {"nyu/train": NYU["sync"], "nyu/test": NYU["test"]}
    images |= {"kitti/train": miniatures.KITTI_TRAIN, "kitti/test": miniatures.KITTI_TEST}
    return caption_trees(folder, images, FEATURES)


def packed(path: Path) -> None:
    """What ``langdepth data pack-captions`` makes of the published captions."""
    from langdepth.text.captions import pack, read_captions, tree_features

    text, features = trees(path.with_name("published"))
    found = read_captions(text)
    pack(found, tree_features(found, features, lambda: None), path)


def foreign(path: Path) -> None:
    """A depth model of another library, saved by ``transformers``."""
    transformers = pytest.importorskip("transformers")
    backbone = transformers.Dinov2Config(
        hidden_size=12, num_hidden_layers=2, num_attention_heads=2, image_size=28, out_indices=[1, 2],
        reshape_hidden_states=False, apply_layernorm=True,
    )  # fmt: skip
    config = transformers.DepthAnythingConfig(
        backbone_config=backbone, reassemble_hidden_size=12, patch_size=14, reassemble_factors=[2, 1],
        neck_hidden_sizes=[8, 8], fusion_hidden_size=8, head_in_channels=8, head_hidden_size=4,
    )  # fmt: skip
    transformers.DepthAnythingForDepthEstimation(config).save_pretrained(path)
    transformers.DPTImageProcessor(size={"height": 42, "width": 56}).save_pretrained(path)


# Checkpoints as the authors' programs write them


def adapter_checkpoint(path: Path, name: str = "clip-adapter", **options: Any) -> None:
    """best.pth of a system of the CLIP adapters' repository, with its whole CLIP."""
    system: Any = registry.build(name, options)
    tensors = {f"clip.{key}": value for key, value in find_clip_weights("random", "RN50", True).tensors.items()}
    for theirs, ours in system.official_names().items():
        tensors |= {
            theirs + key.removeprefix(ours): value for key, value in system.state_dict().items() if key.startswith(ours)
        }
    torch.save({"state_dict": {f"module.{key}": value for key, value in tensors.items()}, "epoch": 3}, path)


def mde_clip_checkpoint(path: Path) -> None:
    """DME-CLIP's model.pt."""
    torch.save({f"module.{k}": v for k, v in mde_clip_tensors(registry.build("mde-clip")).items()}, path)


THINGS: dict[str, Thing] = {
    "photo.jpg": photo,
    "a.jpg": photo,
    "b.jpg": photo,
    "photos": photos,
    "RN50.pt": clip_archive,
    "open_clip_model.safetensors": open_clip,
    "nyu": nyu_root,
    "nyu_depth_v2_labeled.mat": nyu_labelled,
    "rooms": rooms,
    "pictures": rooms,
    "matrix.yaml": matrix,
    "maps": finished_maps,
    "text": lambda path: trees(path.parent),
    "text_feat": lambda path: trees(path.parent),
    "packed": packed,
    "sentences": sentences,
    "dpt": foreign,
    "captions.csv": lambda path: path.write_text("image,caption\nphotos/a,A kitchen.\nphotos/b,A street with cars.\n"),
    "Salesforce/blip-image-captioning-base": save_tiny_model,
    "sam_vit_h_4b8939.pth": Path.touch,
    "best.pth": adapter_checkpoint,
    "coarse.pth": partial(adapter_checkpoint, name="clip-coarse-refined", stage="coarse"),
    "model.pt": mde_clip_checkpoint,
}
