"""How fast prediction is: a warm image, the start, and folders. Prints a table, writes JSON.

    python benchmarks/predict_speed.py --threads 2 --out predict_speed.json

Measured in one run; what is compared runs in turns (A B A B), so that both see the same machine:

* warm: one 640x480 JPEG file to its depth array, against the Depth Anything V2 Small architecture of `transformers`
  (random weights, 518x686 input), decoding included in both;
* start: importing the package, `langdepth --help`, and `langdepth predict photo.jpg` from nothing to written files;
* folder: images per second of the folder pipeline against a plain loop over single predictions, writing included.

Run it on an otherwise idle machine. Needs `pip install langdepth[bench]`. Nothing is downloaded; without weights in the
package the system gets random ones, which take the same time.
"""

from __future__ import annotations

import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from common import in_turns, parser, use_threads, write

GOALS = {  # what must hold, from the project's goals
    "warm_ratio": (">=", 6.0),
    "import_seconds": ("<=", 0.3),
    "help_seconds": ("<=", 1.0),
    "cold_predict_seconds": ("<=", 6.0),
    "folder_ratio": (">=", 1.5),
}


def main() -> None:
    """Parse, measure, print, write."""
    arguments = parser(__doc__)
    arguments.add_argument("--threads", type=int, default=2, help="CPU threads of torch (default: 2)")
    arguments.add_argument("--system", default="tiny", help="registry name or weights file (default: tiny)")
    arguments.add_argument("--images", type=Path, help="folder of 640x480 JPEGs; generated when not given")
    arguments.add_argument("--count", type=int, default=48, help="images of the folder test (default: 48)")
    arguments.add_argument("--runs", type=int, default=15, help="repetitions of the warm test (default: 15)")
    arguments.add_argument("--save", default="depth16,color", help="formats of the folder and cold tests")
    options = arguments.parse_args()
    use_threads(options.threads)

    import torch

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        system, weights = usable_system(options.system, folder)
        photos = photos_of(options.images, options.count, folder / "photos")
        numbers: dict[str, Any] = {
            "system": options.system,
            "weights": weights,
            "threads": options.threads,
            "cpu": cpu_name(),
            "torch": torch.__version__,
            "save": options.save,
            **start(system, photos[0], options.save, folder),
            **warm(system, photos[0], options.runs),
            **whole_folder(system, photos, options.save, folder),
        }
    report(numbers)
    write(numbers, options.out)


def warm(system: str, photo: Path, runs: int) -> dict[str, Any]:
    """Median seconds from file to depth array, ours and the reference in turns."""
    from langdepth import load
    from langdepth.prediction.predictor import predict_images

    ours = load(system)
    reference = depth_anything_v2_small()
    seconds = in_turns(
        {"ours": lambda: predict_images(ours, photo), "reference": lambda: reference(photo)}, runs
    ).seconds
    return {
        "warm_seconds": seconds["ours"],
        "warm_reference_seconds": seconds["reference"],
        "warm_ratio": seconds["reference"] / seconds["ours"],
    }


def depth_anything_v2_small() -> Callable[[Path], Any]:
    """File to depth array through the published small architecture: keep-aspect 518 input in multiples of 14."""
    import numpy as np
    import torch
    from PIL import Image
    from torch.nn import functional as F
    from transformers import DepthAnythingConfig, DepthAnythingForDepthEstimation, Dinov2Config

    backbone = Dinov2Config(
        hidden_size=384,
        num_hidden_layers=12,
        num_attention_heads=6,
        patch_size=14,
        image_size=518,
        out_indices=[3, 6, 9, 12],
        apply_layernorm=True,
        reshape_hidden_states=False,
    )
    config = DepthAnythingConfig(
        backbone_config=backbone,
        patch_size=14,
        reassemble_hidden_size=384,
        reassemble_factors=[4, 2, 1, 0.5],
        neck_hidden_sizes=[48, 96, 192, 384],
        fusion_hidden_size=64,
    )
    model = DepthAnythingForDepthEstimation(config).eval()
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))

    @torch.inference_mode()
    def depth_of(photo: Path) -> Any:
        with Image.open(photo) as photo:
            pixels = np.array(photo.convert("RGB"))
        height, width = pixels.shape[:2]
        scale = 518 / min(height, width)
        size = [round(side * scale / 14) * 14 for side in (height, width)]
        image = torch.from_numpy(pixels).permute(2, 0, 1)[None]
        image = F.interpolate(image, size=size, mode="bicubic", antialias=True).float() / 255
        depth = model((image - mean) / std).predicted_depth[None]
        return F.interpolate(depth, size=(height, width), mode="bilinear", align_corners=False)[0, 0].numpy()

    return depth_of


def start(system: str, photo: Path, save: str, folder: Path) -> dict[str, Any]:
    """Median seconds of programs started from nothing."""
    python = [sys.executable]
    predict = [*python, "-m", "langdepth", "predict", str(photo), "--system", system, "--save", save, "--out"]
    subprocess.run(
        [*predict, str(folder / "first")], check=True, stdout=subprocess.DEVNULL
    )  # files into the disk cache
    code = "import time; t = time.perf_counter(); import langdepth; print(time.perf_counter() - t)"
    inside = [float(subprocess.run([*python, "-c", code], check=True, capture_output=True).stdout) for _ in range(5)]
    return {
        "import_seconds": statistics.median(inside),
        "help_seconds": program_seconds([*python, "-m", "langdepth", "--help"]),
        "predict_help_seconds": program_seconds([*python, "-m", "langdepth", "predict", "--help"]),
        "torch_import_seconds": program_seconds([*python, "-c", "import torch"]),
        "cold_predict_seconds": program_seconds([*predict, str(folder / "cold")]),
    }


def program_seconds(command: list[str], runs: int = 3) -> float:
    """Median seconds a program takes."""
    seconds = []
    for _ in range(runs):
        begin = time.perf_counter()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        seconds.append(time.perf_counter() - begin)
    return statistics.median(seconds)


def whole_folder(system: str, photos: list[Path], save: str, folder: Path) -> dict[str, Any]:
    """Images per second, decoding and writing included: the pipeline of the command, and a plain loop."""
    from langdepth import load
    from langdepth.commands.predict import Job, find_jobs, written
    from langdepth.prediction.predictor import predict_images, predict_stream
    from langdepth.prediction.results import DepthResult, write_result

    ready = load(system)
    jobs, _ = find_jobs([str(photo) for photo in photos], folder / "results", save.split(","), recursive=False)

    def pipeline() -> None:
        outcomes = list(written(predict_stream(ready, jobs, read=Job.open)))
        assert all(isinstance(outcome, str) for outcome in outcomes), outcomes

    def loop() -> None:
        for job in jobs:
            result = predict_images(ready, job.source)
            assert isinstance(result, DepthResult)
            for name, target in job.targets.items():
                write_result(result, target, format=name)

    seconds = in_turns({"pipeline": pipeline, "loop": loop}, 3).seconds
    return {
        "folder_images": len(photos),
        "folder_images_per_second": len(photos) / seconds["pipeline"],
        "folder_loop_images_per_second": len(photos) / seconds["loop"],
        "folder_ratio": seconds["loop"] / seconds["pipeline"],
    }


def usable_system(name: str, folder: Path) -> tuple[str, str]:
    """(what to load, where its weights come from)."""
    from langdepth.errors import CheckpointError
    from langdepth.prediction.predictor import predict_images  # noqa: F401  (so that its import is not measured with the loading)
    from langdepth.systems.registry import build

    try:
        from langdepth import load

        load(name)
    except CheckpointError:
        return str(build(name).save(folder / "random.safetensors")), "random"
    return name, "its own"


def photos_of(given: Path | None, count: int, folder: Path) -> list[Path]:
    """``count`` JPEGs: those of a folder, repeated under new names if need be, or generated ones of 640x480."""
    import numpy as np
    from PIL import Image

    folder.mkdir()
    sources = sorted(given.glob("*.jp*g")) if given else []
    if given and not sources:
        sys.exit(f"{given}: no JPEG images in this folder")
    paths = [folder / f"photo_{number:04}.jpg" for number in range(count)]
    random = np.random.default_rng(0)
    for number, path in enumerate(paths):
        if sources:
            path.write_bytes(sources[number % len(sources)].read_bytes())
        else:  # smooth shapes with some grain: compresses like a photo (about 60 kB)
            coarse = Image.fromarray(random.integers(0, 255, (12, 16, 3), dtype=np.uint8))
            smooth = np.asarray(coarse.resize((640, 480), Image.Resampling.BICUBIC), dtype=np.float32)
            grain = random.normal(0, 6, smooth.shape)
            Image.fromarray((smooth + grain).clip(0, 255).astype(np.uint8)).save(path, quality=85)
    return paths


def cpu_name() -> str:
    """The processor's name and the number of cores."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.processor() or platform.machine()}, {os.cpu_count()} cores"


def report(numbers: dict[str, Any]) -> None:
    """A table: name, number, goal, verdict."""
    print(f"{'':<34}{'measured':>12}  goal")
    for name, value in numbers.items():
        if not isinstance(value, float):
            print(f"{name:<34}{value!s:>12}")
            continue
        goal = ""
        if name in GOALS:
            sign, bound = GOALS[name]
            met = value >= bound if sign == ">=" else value <= bound
            goal = f"  {sign} {bound:g}  {'met' if met else 'MISSED'}"
        print(f"{name:<34}{value:>12.3f}{goal}")


if __name__ == "__main__":
    main()
