"""What a reader has when a page begins: photos, downloads and data sets, in small and under the published names.

CLIP, the systems and the training runs are shrunk by ``shrink``; what their files hold follows. A page says which of
these things it needs (``<!-- given: NAME -->``).
"""

from __future__ import annotations

import atexit
import copy
import os
import shutil
import socket
import sys
import tempfile
import threading
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
import uvicorn
from PIL import Image
from safetensors.torch import save_file

from langdepth.backbones.clip_weights import find_clip_weights
from langdepth.camera import Camera
from langdepth.data.sets import kitti, nyu
from langdepth.data.tools.sample import write_sample
from langdepth.prediction.video import sources as video_sources
from langdepth.runtimes import bench
from langdepth.runtimes import export as exporting
from langdepth.serving.server import Server
from langdepth.systems import registry
from langdepth.systems.rsa.official import OFFICIAL_NAMES as rsa_names
from langdepth.systems.vgld.official import OFFICIAL_NAMES as vgld_names
from langdepth.systems.wordepth.official import OFFICIAL_NAMES
from langdepth.text.scene_table import encode_scenes
from langdepth.text.scenes import SCENES
from langdepth.training import recipe
from langdepth.training.loaders import TrainingLoader
from langdepth.training.module import DepthTraining
from langdepth.weights import fetch
from langdepth.weights.files import save
from tests import miniatures
from tests.commands.test_caption import save_tiny_model
from tests.commands.test_recipes import (
    KITTI_SIZE,
    KITTI_TEST,
    KITTI_TRAIN,
    NYU_SIZE,
    NYU_SYNC,
    NYU_TEST,
    TEST_PLACES,
    TYPES,
)
from tests.data.test_sam import halves
from tests.helpers import ramp, run_here, save_image
from tests.miniatures import depth, kitti_eigen, nyu_tree, save_depth, stand_in
from tests.stand_ins import (
    CONVNEXT,
    caption_trees,
    clip_archive,
    open_clip_file,
    small_networks,
    swin_classifier,
    transformers_model,
)
from tests.systems.test_cabins import official as cabins_tensors
from tests.systems.test_mde_clip import official as mde_clip_tensors
from tests.systems.test_prompt_clip import official as prompt_clip_tensors
from tests.systems.test_scaledepth import as_trained
from tests.systems.test_scaledepth import official as scaledepth_tensors

ROOT = Path(__file__).parents[2]
Thing = Callable[[Path], object]

NYU_TRAIN = tuple(f"{kind}/rgb_{place:05d}.jpg" for place, kind in enumerate(TYPES) if place not in TEST_PLACES)
FEATURES = 128  # of the small RN50's text tower, 1024 in the published one


def shrink(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small networks, short training runs, few synthetic rooms, split lists of the images that are given here.

    A download gives the thing of the file's name.
    """
    small_networks(monkeypatch, FEATURES)
    for name, entry in registry.REGISTRY.items():
        width = {"text_features": FEATURES} if name.startswith("wordepth-") and "tiny" not in name else {}
        width |= {"scale_queries": FEATURES // 32} if name == "scaledepth-s" else {}
        monkeypatch.setitem(registry.REGISTRY, name, replace(entry, preset={**entry.preset, **width}))
    read = recipe.read_recipe

    def read_short(content: Mapping[str, Any]) -> recipe.Recipe:
        short = copy.deepcopy(dict(content))
        short.setdefault("data", {}).update(batch_size=2, workers=0)
        short.setdefault("train", {}).update(epochs=1, accelerator="cpu", precision="32-true", previews=1, devices=1)
        return read(short)

    monkeypatch.setattr(recipe, "read_recipe", read_short)
    monkeypatch.setattr("langdepth.training.start.read_recipe", read_short)
    monkeypatch.setattr("langdepth.data.tools.sample.write_sample", small_sample)
    monkeypatch.setattr("langdepth.data.tools.sam.load_sam", lambda weights, device=None: halves)
    monkeypatch.setattr(bench, "choices_here", lambda system: [bench.Measured(runtime="onnx")])  # a process for each
    measure = bench.measure
    monkeypatch.setattr(bench, "measure", lambda *given, **options: measure(*given, **{**options, "seconds": 0}))
    cases = exporting._cases
    monkeypatch.setattr(exporting, "_cases", lambda *given: islice(cases(*given), 1))
    monkeypatch.setattr("langdepth.commands.demo.wait", lambda: None)
    monkeypatch.setattr(fetch, "download", lambda url, path, **_: THINGS[path.name](path))
    monkeypatch.setattr(fetch, "offline_stated", lambda: False)
    monkeypatch.setattr(fetch, "run", run_here)
    monkeypatch.setattr(video_sources, "webcam", webcam)
    for name, record in registry.PUBLISHED.items():
        monkeypatch.setitem(registry.PUBLISHED, name, replace(record, sha256=""))
    counts = {"train": len(NYU_TRAIN), "sync": len(NYU_SYNC), "test": len(NYU_TEST)}
    stand_in(monkeypatch, nyu, counts, {"nyu_test": NYU_TEST, "nyu_sync": NYU_SYNC})
    lists = {"kitti_eigen_train": KITTI_TRAIN, "kitti_eigen_test": KITTI_TEST}
    stand_in(monkeypatch, kitti, {"train": len(KITTI_TRAIN), "test": len(KITTI_TEST)}, lists)


def first_batch_alone(trainer: Any, module: DepthTraining, loader: TrainingLoader, checkpoint: Path | None) -> None:
    """In place of the steps: a batch is made, and the weights are kept as they are."""
    settings = module.recipe.train
    if module.recipe.data.cache == "none":
        next(iter(loader))
    loader.close()
    best = [f"best-{metric}" for metric in settings.monitors[1:]]
    others = [settings.out / f"{name}.safetensors" for name in ("best", *best)]
    save(module.system, settings.out / "last.safetensors", also=others)


def serve_beside(monkeypatch: pytest.MonkeyPatch) -> list[Server]:
    """Let ``langdepth serve`` answer in a thread, so that the next command can ask; returns the services there are."""
    running: list[Server] = []

    def run_beside(server: Server, sockets: list[socket.socket]) -> None:
        run = partial(uvicorn.Server.run, server, [one.dup() for one in sockets])
        threading.Thread(target=run, daemon=True).start()
        running.append(server)

    monkeypatch.setattr(Server, "run", run_beside)
    return running


def clone(folder: Path) -> None:
    """What a fresh clone of the repository holds."""
    shutil.copytree(ROOT / "examples", folder / "examples")
    for name in ("benchmarks", "docs", "src", "tests", "pyproject.toml", "README.md"):
        (folder / name).symlink_to(ROOT / name)


# Photos and clips


def clip(path: Path) -> None:
    """Four seconds of a pan over a photo, as the file, or as the camera, of this name."""
    from tests.clips import save_clip

    room = np.asarray(Image.open(ROOT / "examples" / "room.jpg").resize((320, 240)))
    frames = [np.ascontiguousarray(room[:192, 2 * step : 2 * step + 256]) for step in range(20)]
    kind = {"rate": 5} if path.suffix else {"rate": 5, "codec": "mpeg4", "format": "avi"}
    save_clip(path, frames, **kind)


def shot(path: Path) -> None:
    """Four numbered images."""
    for number in range(1, 5):
        save_image(path / f"frame_{number:04d}.png", ramp(seed=number))


def webcam(source: str) -> tuple[str, str] | None:
    """What stands for a camera: the file of its name."""
    return ("avi", os.path.abspath(source)) if source.startswith("webcam:") else None


def photo(path: Path) -> None:
    """A photo of a room, 640x480."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.open(ROOT / "examples" / "room.jpg").resize((640, 480)).save(path)


def camera_info(path: Path) -> None:
    """What camera_calibration of ROS writes for a camera of 640x480."""
    rows = {
        "camera_matrix": (3, 3, [457.3, 0, 323.2, 0, 455.4, 241.2, 0, 0, 1]),
        "distortion_coefficients": (1, 5, [-0.283, 0.074, 0.0002, 0.00002, 0]),
        "rectification_matrix": (3, 3, [1, 0, 0, 0, 1, 0, 0, 0, 1]),
        "projection_matrix": (3, 4, [435.2, 0, 330.1, 0, 0, 435.2, 250.3, 0, 0, 0, 1, 0]),
    }
    lines = ["image_width: 640", "image_height: 480", "distortion_model: plumb_bob"]
    lines += [f"{name}: {{rows: {high}, cols: {wide}, data: {data}}}" for name, (high, wide, data) in rows.items()]
    path.write_text("\n".join(lines), encoding="utf-8")


def photos(path: Path) -> None:
    """A folder of photos, one of them in a folder of its own."""
    for number, name in enumerate(("a.jpg", "b.jpg", "more/c.jpg")):
        save_image(path / name, ramp(96, 64, seed=number))


# Weights


def open_clip(path: Path) -> None:
    """open_clip's file of ScaleDepth's CLIP."""
    tensors = find_clip_weights("random", CONVNEXT, False).tensors
    save_file({name: value.contiguous() for name, value in tensors.items()}, path)


# Data sets


def nyu_splits(path: Path) -> None:
    """official_splits with the in-painted depth beside the sensor's, as DepthCLIP and its successors have them."""
    for split, keys in (("train", NYU_TRAIN), ("test", NYU_TEST)):
        nyu_tree(path / "official_splits" / split, keys, size=NYU_SIZE)
        for key in keys:
            scene, name = key.split("/")
            truth = path / "official_splits" / split / scene / name.replace("rgb_", "sync_depth_")
            dense = truth.parent / "dense" / truth.name.replace("depth_", "depth_dense_")
            dense.parent.mkdir(exist_ok=True)
            shutil.copy(truth.with_suffix(".png"), dense.with_suffix(".png"))


def nyu_with_overlays(path: Path) -> None:
    """The same with the published overlays."""
    nyu_splits(path)
    for split, keys in (("train", NYU_TRAIN), ("test", NYU_TEST)):
        for number, key in enumerate(keys):
            save_image(path / "sam_out" / split / key.replace("rgb_", ""), ramp(*NYU_SIZE[::-1], seed=number))


def nyu_frames(path: Path) -> None:
    """The frames of the raw sequences and the test images, as BTS and its successors have them."""
    nyu_tree(path / "sync", NYU_SYNC, size=NYU_SIZE)
    nyu_tree(path / "official_splits" / "test", NYU_TEST, size=NYU_SIZE)


def nyu_root(path: Path) -> None:
    """Both."""
    nyu_splits(path)
    nyu_tree(path / "sync", NYU_SYNC, size=NYU_SIZE)


def nyu_annotated(path: Path) -> None:
    """images and annotations, as mmdepth has them."""
    for split, keys in (("train", NYU_SYNC), ("test", NYU_TEST)):
        for number, key in enumerate(keys):
            name = key.replace("/rgb", "")
            save_image(path / "images" / split / name, ramp(*NYU_SIZE[::-1], seed=number))
            truth = (path / "annotations" / split / name).with_suffix(".png")
            save_depth(truth, depth(number, height=NYU_SIZE[0], width=NYU_SIZE[1]), 0.001)


def nyu_labelled(path: Path) -> None:
    """The labelled file, and the official splits.mat beside it."""
    miniatures.write_labelled(path, types=TYPES, test=TEST_PLACES, size=NYU_SIZE)


def kitti_trees(raw: Path, truth: Path) -> None:
    """The raw data and, in a tree of its own, the annotated depth."""
    kitti_eigen(raw, lambda _: truth, (*KITTI_TRAIN, *KITTI_TEST), size=KITTI_SIZE)


def nyu_list(path: Path, keys: Sequence[str], start: str = "", end: str = "") -> None:
    """A list of images and depth maps, a line each."""
    pairs = [(key, key.replace("rgb_", "sync_depth_").replace(".jpg", ".png")) for key in keys]
    path.write_text("\n".join(f"{start}{image} {start}{truth}{end}" for image, truth in pairs))


def kitti_list(path: Path) -> None:
    """The list of the test images as BTS has it."""
    lines = []
    for key in KITTI_TEST:
        _, drive, *_, name = key.split("/")
        lines.append(f"{key} {drive}/proj_depth/groundtruth/image_02/{name} 721.5377")
    path.write_text("\n".join(lines))


def small_sample(directory: str | Path, count: int = 24, seed: int = 0, *arguments: Any, **options: Any) -> Path:
    """``write_sample`` of at most six images, rendered once."""
    name = f"sample {min(count, 6)} {seed} {arguments}"
    _once(name, lambda path: write_sample(path, min(count, 6), seed, *arguments, **options), Path(directory))
    return Path(directory)


_MADE: dict[str, Path] = {}


def _once(name: str, thing: Thing, path: Path) -> None:
    """Lay out ``thing``, which is made the first time and copied from then on."""
    if name not in _MADE:
        kept = Path(tempfile.mkdtemp(prefix="langdepth-things-"))
        atexit.register(shutil.rmtree, kept, ignore_errors=True)
        thing(kept / path.name)
        _MADE[name] = kept / path.name
    made = _MADE[name]
    if made.is_dir():
        shutil.copytree(made, path, dirs_exist_ok=True)
    else:
        shutil.copy(made, path)


def rooms(path: Path) -> None:
    """An indexed folder, as ``langdepth data sample`` writes it."""
    small_sample(path)


def matrix(path: Path) -> None:
    """A matrix of one system and one folder."""
    rooms(path.with_name("images"))
    path.write_text("systems: [tiny]\ndata:\n  - {root: images, split: val, protocols: [full]}\n")


def finished_maps(path: Path) -> None:
    """Depth maps as .npy of the images of a folder ``rooms`` beside it and of NYU, in folders called like the sets."""
    rooms = path.parent / "rooms"
    images = {f"folder/{image.relative_to(rooms)}": (240, 320) for image in rooms.rglob("*.jpg")}
    images |= {f"{name}/{key}": NYU_SIZE for name in ("nyu", "nyu with captions") for key in NYU_TEST}
    for image, size in images.items():
        file = (path / image).with_suffix(".npy")
        file.parent.mkdir(parents=True, exist_ok=True)
        np.save(file, np.full(size, 3, np.float32))


# Captions


def sentences(path: Path) -> None:
    """A sentence for each of the photos, in a folder of its own."""
    path.mkdir()
    for name in "ab":
        (path / f"{name}.txt").write_text("A kitchen with a table.")


def trees(folder: Path, features: int = FEATURES) -> tuple[Path, Path]:
    """The published trees of captions and of their features."""
    images = {"nyu/train": NYU_SYNC, "nyu/test": NYU_TEST, "kitti/train": KITTI_TRAIN, "kitti/test": KITTI_TEST}
    return caption_trees(folder, images, features)


def packed(path: Path, width: int = FEATURES) -> None:
    """What ``langdepth data pack-captions`` makes of the published captions."""
    from langdepth.text.captions import pack, read_captions, tree_features

    text, features = trees(path.with_name("published"), width)
    found = read_captions(text)
    pack(found, tree_features(found, features, lambda: None), path)


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


def cabins_checkpoint(path: Path) -> None:
    """A file of CaBins' training."""
    torch.save({"model": cabins_tensors(registry.build("cabins")), "epoch": 24}, path)


def prompt_clip_checkpoint(path: Path) -> None:
    """Lightning's last.ckpt of Auty and Mikolajczyk."""
    torch.save({"state_dict": prompt_clip_tensors(registry.build("prompt-clip-256"))}, path)


def wordepth_checkpoint(path: Path) -> None:
    """WorDepth's file: names from DataParallel, and steps in a NumPy array."""
    tensors = {
        f"module.{theirs}{key.removeprefix(prefix)}": value
        for key, value in registry.build("wordepth-nyu-legacy").state_dict().items()
        for theirs, prefix in OFFICIAL_NAMES.items()
        if key.startswith(prefix)
    }
    best = {
        "best_eval_measures_lower_better": torch.zeros(6) + 1e3,
        "best_eval_measures_higher_better": torch.zeros(3),
        "best_eval_steps": np.zeros(9, dtype=np.int32),
    }
    torch.save({"global_step": 50000, "model": tensors, **best}, path)


def scene_embeddings(path: Path, count: int) -> None:
    """A plain tensor (count, D) of the scenes' features by ScaleDepth's CLIP."""
    torch.save(encode_scenes(find_clip_weights("random", CONVNEXT, False), SCENES[:count]), path)


def mmengine_checkpoint(path: Path) -> None:
    """mmengine's file, with objects of its own beside the tensors."""
    tensors = scaledepth_tensors(as_trained(registry.build("scaledepth-nk")))
    home = "mmengine.logging.history_buffer"
    buffer = type("HistoryBuffer", (), {"__module__": home})
    module = types.ModuleType(home)
    setattr(module, "HistoryBuffer", buffer)  # noqa: B010
    with pytest.MonkeyPatch.context() as patch:
        for name in ("mmengine", "mmengine.logging"):
            patch.setitem(sys.modules, name, types.ModuleType(name))
        patch.setitem(sys.modules, home, module)
        logged = buffer()
        vars(logged).update(_log_history=np.arange(3.0), _count_history=np.ones(3))
        for name in ("min", "mean"):  # since 0.7.3 the class's functions are saved with the numbers
            function = types.FunctionType((lambda self: None).__code__, {}, name)
            function.__module__, function.__qualname__ = home, f"HistoryBuffer.{name}"
            setattr(buffer, name, function)
            vars(logged).setdefault("statistics_methods", {})[name] = function
        hub = {"log_scalars": {"train/loss": logged}, "runtime_info": {"iter": 40000}, "resumed_keys": {}}
        content = {"meta": {"iter": 40000}, "state_dict": tensors, "message_hub": hub}
        torch.save({**content, "optimizer": {"state": {}}, "param_schedulers": []}, path)


def scale_head(path: Path, name: str, names: Mapping[str, str]) -> None:
    """The authors' head of a system that gives metres to relative maps; ``names``: their prefixes -> ours."""
    own = registry.build(name).named_parameters()
    back = {ours: theirs for theirs, ours in names.items()}
    torch.save({back[f"{key.partition('.')[0]}."] + key.partition(".")[2]: value for key, value in own}, path)


def floor_and_wall() -> npt.NDArray[np.float32]:
    """Depth of a floor 1.5 m below the camera and a wall 6 m away, 640x480, of 60 degrees across the width."""
    below = (np.arange(480) - 239.5) / Camera.from_fov(60, 640, 480).fy
    return np.repeat(np.minimum(1.5 / np.maximum(below, 1e-6), 6)[:, None], 640, 1).astype(np.float32)


def relative_png(path: Path) -> None:
    """A relative map, 16 bits."""
    Image.fromarray((floor_and_wall() * 10000).astype(np.uint16)).save(path)


THINGS: dict[str, Thing] = {
    # photos
    "photo.jpg": photo,
    "a.jpg": photo,
    "b.jpg": photo,
    "overlay.jpg": photo,
    "photos": photos,
    # clips
    "clip.mp4": clip,
    "webcam:0": clip,
    "shot": shot,
    "camera_info.yaml": camera_info,
    # relative maps
    "map.png": relative_png,
    "map.npy": lambda path: np.save(path, 1 / floor_and_wall()),
    # weights of others
    "RN50.pt": clip_archive,
    "RN101.pt": partial(clip_archive, architecture="RN101"),
    "ViT-B-16.pt": partial(clip_archive, architecture="ViT-B-16"),
    "open_clip_model.safetensors": open_clip,
    "open_clip_pytorch_model.bin": open_clip_file,
    "swin_large_patch4_window12_384_22k.pth": swin_classifier,
    "Salesforce/blip-image-captioning-base": save_tiny_model,
    "sam_vit_h_4b8939.pth": Path.touch,
    "dpt": partial(transformers_model, "depth_anything"),
    "depth-anything/Depth-Anything-V2-Small-hf": partial(transformers_model, "depth_anything"),
    "LiheYoung/depth-anything-small-hf": partial(transformers_model, "depth_anything"),
    "Intel/dpt-large": partial(transformers_model, "dpt"),
    # data sets
    "nyu": nyu_root,
    "nyu_depth_v2_labeled.mat": nyu_labelled,
    "nyu_depth_v2": nyu_frames,
    "datasets/nyu_depth_v2": nyu_splits,
    "datasets/nyudepthv2_train_files_with_gt_dense.txt": partial(nyu_list, keys=NYU_TRAIN),
    "datasets/nyudepthv2_test_files_with_gt_dense.txt": partial(nyu_list, keys=NYU_TEST),
    "nyudepthv2_train_files_with_gt.txt": partial(nyu_list, keys=NYU_SYNC, start="/", end=" 518.8579"),
    "loader/data/NYU": nyu_with_overlays,
    "data/nyu": nyu_annotated,
    "data/kitti": lambda path: kitti_trees(path / "input", path / "gt_depth"),
    "kitti_raw_data": lambda path: kitti_trees(path, path.with_name("kitti_ground_truth")),
    "kitti_ground_truth": lambda path: None,  # comes with the raw data
    "eigen_test_files_with_gt.txt": kitti_list,
    "rooms": rooms,
    "images": rooms,
    "matrix.yaml": matrix,
    "maps": finished_maps,
    # captions
    "text": lambda path: trees(path.parent),
    "text_feat": lambda path: None,  # comes with the text
    "packed": packed,
    "nyu_captions": partial(packed, width=1024),  # as published, for the embedded tiny
    "sentences": sentences,
    "captions.csv": lambda path: path.write_text("image,caption\nphotos/a,A kitchen.\nphotos/b,A street with cars.\n"),
    # checkpoints
    "best.pth": adapter_checkpoint,
    "coarse.pth": partial(adapter_checkpoint, name="clip-coarse-refined", stage="coarse"),
    "runs/NYU/depth_adapter/best.pth": adapter_checkpoint,
    "runs/NYU/depth_coarse/RN50/temp0.1/dl1/best.pth": partial(
        adapter_checkpoint, name="clip-coarse-refined", stage="coarse"
    ),
    "model.pt": mde_clip_checkpoint,
    "CaBins_nyu.pt": cabins_checkpoint,
    "save_dir/best_model/model.pt": mde_clip_checkpoint,
    "last.ckpt": prompt_clip_checkpoint,
    "model-50000-best_rms_0.31700": wordepth_checkpoint,
    "nyu_class_embeddings_convnext_large_d_320.pth": partial(scene_embeddings, count=27),
    "nyu_kitti_class_embeddings_convnext_large_d_320.pth": partial(scene_embeddings, count=28),
    "iter_40000.pth": mmengine_checkpoint,
    "rsa-head.pth": partial(scale_head, name="rsa-short", names=rsa_names),
    "vgld_midas-1_nk_t.pth": partial(scale_head, name="vgld-t", names=vgld_names),
}
# These lay out other files beside their own, or depend on what is there.
_EACH_TIME = {"kitti_raw_data", "kitti_ground_truth", "nyu_depth_v2_labeled.mat", "matrix.yaml", "maps"}
_EACH_TIME |= {"rooms", "images", "text", "text_feat", "packed", "nyu_captions"}
THINGS |= {name: partial(_once, name, thing) for name, thing in THINGS.items() if name not in _EACH_TIME}
