"""Every recipe as its comment prints it: prepared, trained and evaluated, on what the authors publish, in small.

The commands in the head of each file run in order and to the letter, but for what makes them quick: one step, two
images at once, no worker processes. Names of systems and architectures mean small networks (tests/stand_ins.py).
"""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest

from langdepth import cli
from langdepth.config import load_yaml
from langdepth.data.sets import kitti, nyu
from langdepth.training.recipe import RECIPES, load_recipe
from tests import stand_ins
from tests.helpers import Run, ramp, write_folder
from tests.miniatures import depth as metres
from tests.miniatures import kitti_eigen, nyu_tree, save_depth, save_image, stand_in, tar_of, write_labelled, zip_of

NYU_SIZE, KITTI_SIZE = (480, 640), (375, 1242)
# Of the labelled file: two runs of training images with one to test on between; each has an image of every type.
TYPES = ("kitchen", "bedroom", "bathroom", "kitchen", "bedroom")
TEST_PLACES = (2,)
NYU_TEST = tuple(f"{TYPES[place]}/rgb_{place:05d}.jpg" for place in TEST_PLACES)
NYU_SYNC = tuple(
    f"{scene}/rgb_{number:05d}.jpg"
    for scene in ("bedroom_0001", "kitchen_0028b", "living_room_0019")
    for number in (45, 46)
)
KITTI_TRAIN = tuple(
    f"{drive[:10]}/{drive}_sync/image_02/data/{number:010d}.png"
    for drive in ("2011_09_26_drive_0009", "2011_09_30_drive_0028")
    for number in (7, 12)
)
KITTI_TEST = ("2011_09_26/2011_09_26_drive_0002_sync/image_02/data/0000000069.png",)
QUICK = (
    "--train.max_steps 1 --train.devices 1 --train.accelerator cpu --train.previews 0 --data.batch_size 2 "
    "--data.workers 0"
)


def printed(recipe: Path) -> list[list[str]]:
    """The commands in the comment at the head of a recipe."""
    head = recipe.read_text(encoding="utf-8").partition("\nsystem:")[0].replace("\\\n#", " ")
    return [shlex.split(line)[1:] for line in re.findall(r"^#   (langdepth .*)$", head, re.MULTILINE)]


def published_nyu(root: Path) -> None:
    write_labelled(root / "nyu_depth_v2_labeled.mat", types=TYPES, test=TEST_PLACES, size=NYU_SIZE)
    for place, kind in enumerate(TYPES):  # the published overlays
        home = root / "sam_out" / ("test" if place in TEST_PLACES else "train") / kind
        save_image(home / f"{place:05d}.jpg", ramp(*NYU_SIZE[::-1], seed=place))
    nyu_tree(root / "nyu_depth_v2" / "sync", NYU_SYNC, size=NYU_SIZE)
    nyu_tree(root / "nyu_depth_v2" / "official_splits" / "test", NYU_TEST, size=NYU_SIZE)
    for split, keys in (("train", NYU_SYNC), ("test", NYU_TEST)):  # as ScaleDepth has it
        for i, key in enumerate(keys):
            name = key.replace("/rgb", "")
            save_image(root / "data" / "nyu" / "images" / split / name, ramp(*NYU_SIZE[::-1], seed=i))
            truth = (root / "data" / "nyu" / "annotations" / split / name).with_suffix(".png")
            save_depth(truth, metres(i, height=480, width=640), 0.001)


def published_kitti(root: Path) -> None:
    keys = (*KITTI_TRAIN, *KITTI_TEST)
    kitti_eigen(root / "kitti_raw_data", lambda _: root / "kitti_ground_truth", keys, size=KITTI_SIZE)
    kitti_eigen(
        root / "data" / "kitti" / "input", lambda _: root / "data" / "kitti" / "gt_depth", keys, size=KITTI_SIZE
    )
    archives = root / "kitti_archives"
    archives.mkdir()
    zip_of(root / "kitti_raw_data", archives / "raw.zip")
    tar_of(root / "kitti_ground_truth", archives / "data_depth_annotated.tar")


def own_pairs(root: Path) -> None:
    """The folder that the embedded models learn from: every source that a recipe names."""
    weighted = [load_yaml(path)["data"].get("weights", {}) for path in sorted(RECIPES.glob("*.yaml"))]
    sources = dict.fromkeys(["nyuv2_train", *(name for weights in weighted for name in weights)])
    rows = [{"source": "nyuv2_train", "split": "val", "text": "A bedroom with a bed."}]
    rows += [{"source": source, "split": "train", "text": "A kitchen with a sink."} for source in sources]
    write_folder(root, [{"scene_type": "kitchen", **row} for row in rows])


@pytest.fixture(scope="session")
def material(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with all that the printed commands name: data as published, weights, captions."""
    root = tmp_path_factory.mktemp("published")
    published_nyu(root)
    published_kitti(root)
    own_pairs(root / "rgbd")
    others = tuple(f"study_0003/rgb_{number:05d}.jpg" for number in range(44))  # of every scene that captions tell of
    captions = {
        "nyu/train": NYU_SYNC + others,
        "nyu/test": NYU_TEST,
        "kitti/train": KITTI_TRAIN,
        "kitti/test": KITTI_TEST,
    }
    stand_ins.caption_trees(root / "captions", captions)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LANGDEPTH_CACHE", str(root / "cache"))
        stand_ins.small_networks(patch)
        stand_ins.clip_archive(root / "RN50.pt")
        stand_ins.clip_archive(root / "RN101.pt", "RN101")
        stand_ins.clip_archive(root / "ViT-B-16.pt", "ViT-B-16")
        stand_ins.transformers_model("depth_anything", root / "LiheYoung" / "depth-anything-small-hf")
        stand_ins.transformers_model("dpt", root / "Intel" / "dpt-large")
        stand_ins.open_clip_file(root / "open_clip_pytorch_model.bin")
        stand_ins.swin_classifier(root / "swin_large_patch4_window12_384_22k.pth")
        stand_ins.swin_classifier(root / "swin_tiny_patch4_window7_224_22k.pth", "swin-tiny")
    return root


@pytest.fixture
def workplace(material: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder with the material in it, in which commands run; networks are small."""
    for path in material.iterdir():
        (tmp_path / path.name).symlink_to(path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LANGDEPTH_CACHE", str(material / "cache"))
    stand_ins.small_networks(monkeypatch)
    for size in (0, 2):
        stand_ins.efficientnet_package(monkeypatch, material, size)
    splits = {"train": len(TYPES) - len(TEST_PLACES), "sync": len(NYU_SYNC), "test": len(NYU_TEST)}
    stand_in(monkeypatch, nyu, splits, {"nyu_test": NYU_TEST, "nyu_sync": NYU_SYNC})
    lists = {"kitti_eigen_train": KITTI_TRAIN, "kitti_eigen_test": KITTI_TEST}
    stand_in(monkeypatch, kitti, {"train": len(KITTI_TRAIN), "test": len(KITTI_TEST)}, lists)
    return tmp_path


def quick(words: list[str]) -> list[str]:
    """A printed command with what makes it quick."""
    if words[0] == "evaluate":
        return [*words, "--device", "cpu"]
    if words[0] != "train":
        return words
    recipe = load_recipe(words[words.index("--config") + 1])
    step = ["--optim.effective_batch", "2"] if "effective_batch" in recipe["optim"] else []
    return [*words, *QUICK.split(), *step]


@pytest.mark.parametrize("recipe", sorted(RECIPES.glob("*.yaml")), ids=lambda path: path.stem)
def test_it_runs_as_printed(recipe: Path, workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    commands = printed(recipe)
    assert [words[0] for words in commands][-2:] == ["train", "evaluate"]
    for words in commands:
        code = cli.main(quick(words))
        said = capsys.readouterr()
        assert code == 0, said.err
    out = load_yaml(recipe)["train"]["out"]
    assert (workplace / out / "best.safetensors").is_file()
    report = json.loads((workplace / commands[-1][-1]).read_text())
    assert report["images"] >= 1
    assert report["skipped"] == 0
    assert report["image_mean"]["abs_rel"] > 0


@pytest.mark.parametrize("name", ["clip-adapter", "clip-adapter-ssl"])
def test_recipes_of_the_adapters_accept_the_sample(name: str, workplace: Path, command: Run) -> None:
    """Of the size that ``langdepth data sample`` writes by default, in both pipelines of the adapters."""
    assert command("data", "sample", "rooms", "--count", "4")[0] == 0
    words = ["train", "--config", f"{name}-nyu", "--data.name", "folder", "--data.root", "rooms"]
    code, _, err = command(*words, "--system.prepare.clip_weights", "RN50.pt", *QUICK.split())
    assert code == 0, err
    words = ["evaluate", "--system", f"runs/{name}/best.safetensors", "--data", "folder", "--root", "rooms"]
    code, _, err = command(*words, "--split", "val", "--out", "sample.json", "--device", "cpu")
    assert code == 0, err
    assert json.loads((workplace / "sample.json").read_text())["images"] == 1
