"""How fast prediction is, against the published steps in plain torch: the speed tables of docs/speed.md and README.

    python benchmarks/speed.py --threads 2 --out speed.json
    python benchmarks/speed.py --only depthclip,tiny --runs 10

Parts, each with its goal in ``GOALS``:

* depthclip: 416x544 with flip averaging; scaledepth: `scaledepth-nk` at 352x512; wordepth: `wordepth-nyu` at 480x640 in
  skip mode never. Each in every runtime against a straightforward port of the published steps (ports.py) in float32
  under ``no_grad``: same weights, one image, batch 1. Weights are random, or follow from the tensors' names
  (tests/parity), which takes the same time as trained ones. "at most": the ratio if the port's multiplications alone
  ran as fast as those of a large float32 matrix product, measured in the same turns, and all else took no time.
* tiny: a warm 640x480 JPEG file to its depth array, against Depth Anything V2 Small in `transformers` (random weights,
  its own input of 518x686), decoding included in both.
* start: `import langdepth`, `langdepth --help`, and `langdepth predict photo.jpg` from nothing to written files.
* bfloat16 (with --data ROOT, a folder with an index.csv): `tiny` on its validation images of NYUv2 in float32 and
  bfloat16: delta1 against float32's depth, over all pixels, and against the ground truth under `nyu-eigen`.
* folder: images per second of `langdepth predict FOLDER` in ONNX Runtime, in torch (which stands for the versions that
  had torch alone), and of a plain loop over single predictions; writing included.

What is compared runs in turns, A B C A B C, so that all get the same machine; ratios are those of medians. ``ratio`` is
of time on the clock, ``CPU`` of processor time, which changes less when others work on the machine; goals are of the
latter but for the start. Run it on an otherwise idle machine. Needs `pip install 'langdepth[all]'`; nothing is
downloaded.
"""

from __future__ import annotations

import argparse
import io
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import redirect_stdout
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ports
from common import ROOT, Turns, in_turns, keyed_system, parser, use_threads, write

if TYPE_CHECKING:
    from torch import Tensor

    from langdepth.systems.base import System

PHOTO = ROOT / "examples" / "desk.jpg"
SAVE = "depth16,color"
NYU = "nyuv2_train"
GOALS = {  # of the fastest float32 line; of tiny against Depth Anything; of folders against torch
    "depthclip": (">=", 2.0),
    "scaledepth": (">=", 1.8),
    "wordepth": (">=", 1.8),
    "tiny": (">=", 35.0),
    "start": ("<=", 0.8),
    "folder": (">=", 1.5),
}
Run = Callable[[], Any]


def main() -> None:
    """Parse, measure, print, write."""
    arguments = parser(__doc__)
    arguments.add_argument("--threads", type=int, default=2, help="CPU threads (default: 2)")
    arguments.add_argument(
        "--runs", type=int, default=5, help="repetitions; tiny takes three times as many (default: 5)"
    )
    arguments.add_argument("--only", default=",".join(GOALS), help=f"parts to measure (default: {','.join(GOALS)})")
    arguments.add_argument("--data", type=Path, help="of the part bfloat16")
    arguments.add_argument("--count", type=int, default=48, help="images of the folder (default: 48)")
    arguments.add_argument("--bfloat16", action="store_true", help="the first three parts in bfloat16, too")
    options = arguments.parse_args()
    use_threads(options.threads)

    import torch

    from langdepth.runtimes.bench import processor

    numbers: dict[str, Any] = {
        "threads": options.threads,
        "processor": f"{processor()}, {os.cpu_count()} cores",
        "torch": torch.__version__,
    }
    for name in options.only.split(","):
        print(f"\n{name}")
        numbers[name] = PARTS[name](options)
        if name in GOALS:
            sign, bound = GOALS[name]
            reached = numbers[name]["reached"]
            met = reached >= bound if sign == ">=" else reached <= bound
            print(f"{reached:.2f}, goal {sign} {bound:g}: {'met' if met else 'MISSED'}")
        write(numbers, options.out)


# -- networks --------------------------------------------------------------------------------------------------------


def depthclip(options: argparse.Namespace) -> dict[str, Any]:
    """With CLIP's ResNet-50."""
    import warnings

    from langdepth.weights.checkpoint import load

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the weights are random on purpose
        system: Any = load("depthclip", clip_weights="random")
    image = photo(416, 544)
    return network(options, system, ports.depthclip(system, image), image, flip=True)


def scaledepth(options: argparse.Namespace) -> dict[str, Any]:
    """With CLIP's ConvNeXt-L, and queries that differ enough for a spread of depth."""
    system, _ = keyed_system("scaledepth-nk", "scaledepth_full", {"area": None})
    image = photo(352, 512)
    return network(options, system, ports.scaledepth(system, image), image)


def wordepth(options: argparse.Namespace) -> dict[str, Any]:
    """With Swin-L; also depth from words alone, without the encoder."""
    import torch
    from torch.nn.functional import normalize

    system, weights = keyed_system("wordepth-nyu", "wordepth_full")
    head = {key.removeprefix("ref_2.fw."): value for key, value in weights.items() if key.startswith("ref_2.fw.")}
    image, generator = photo(480, 640), torch.Generator().manual_seed(0)
    text = normalize(torch.randn(1, 1024, generator=generator), dim=1)
    noise = system.draw_noise(1, 480, 640, generator)

    def words() -> Tensor:
        with torch.inference_mode():
            depth: Tensor = system.inference_copy().imagine(text, noise).depth
            return depth

    port = ports.wordepth(system, image, text, head)
    return network(options, system, port, image, text=text, others={"torch, words alone": words})


def network(
    options: argparse.Namespace,
    system: System,
    port: Run,
    image: Tensor,
    *,
    text: Tensor | None = None,
    flip: bool = False,
    others: Mapping[str, Run] | None = None,
) -> dict[str, Any]:
    """A network in every runtime against its port: seconds, ratios, and how far depth is from the port's."""
    from langdepth.prediction.network import infer
    from langdepth.runtimes.comparison import Difference
    from langdepth.runtimes.openvino import OpenvinoSystem

    pixels, words = image.numpy(), None if text is None else text.numpy()
    converted = OpenvinoSystem(system)

    def in_torch(dtype: str) -> Tensor:
        fast = system.for_inference(dtype=dtype)
        with fast.inference(dtype):
            depth: Tensor = infer(fast, image, text, flip=flip).depth.float()
            return depth

    def in_openvino(dtype: str) -> Any:
        return infer(converted.for_inference(dtype=dtype), pixels, words, flip=flip).depth

    runs: dict[str, Run] = {"port": port}
    for dtype in ("float32", "bfloat16")[: 1 + options.bfloat16]:
        runs |= {f"torch {dtype}": partial(in_torch, dtype), f"openvino {dtype}": partial(in_openvino, dtype)}
    turns = in_turns(runs | dict(others or {}) | {"matrix product": matrix_product}, options.runs)
    found = table(turns, "port")
    least = turns.cpu_seconds["matrix product"] * multiplications(port) / multiplications(matrix_product)
    at_most = turns.cpu_seconds["port"] / least
    print(f"at most {at_most:.2f}: its multiplications alone take {least:.3f} s of processor time")
    expected = turns.found["port"].numpy()
    for name in list(runs)[1:]:
        apart = Difference()
        apart.add(turns.found[name] if name.startswith("openvino") else turns.found[name].numpy(), expected)
        found[name] |= {"mean": apart.mean, "largest": apart.largest, "delta1": apart.delta1}
        print(f"{name}: {apart}; {apart.delta1:.4f} of the pixels within 25 %")
    best = max(found[f"{runtime} float32"]["cpu_ratio"] for runtime in ("torch", "openvino"))
    return {"reached": best, "at_most": at_most, "runs": options.runs, **found}


def matrix_product() -> Tensor:
    """Of a size at which processors multiply as fast as they can."""
    import torch

    matrix = torch.ones(2048, 2048)
    return matrix @ matrix


def multiplications(run: Run) -> int:
    """Of convolutions and matrix products; each counts twice, with its addition."""
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        run()
    return int(counter.get_total_flops())


def table(turns: Turns, baseline: str) -> dict[str, dict[str, float]]:
    """Seconds of all, and how many times as fast as the baseline each is."""
    print(f"{'':<22} {'seconds':>8} {'CPU s':>8} {'ratio':>7} {'CPU':>7}")
    found = {}
    for name, seconds in turns.seconds.items():
        cpu = turns.cpu_seconds[name]
        ratio, cpu_ratio = turns.seconds[baseline] / seconds, turns.cpu_seconds[baseline] / cpu
        print(f"{name:<22} {seconds:8.4f} {cpu:8.4f} {ratio:7.2f} {cpu_ratio:7.2f}")
        found[name] = {"seconds": seconds, "cpu_seconds": cpu, "ratio": ratio, "cpu_ratio": cpu_ratio}
    return found


def photo(height: int, width: int) -> Tensor:
    """(1, 3, height, width) in [0, 1]."""
    import numpy as np
    import torch
    from PIL import Image

    with Image.open(PHOTO) as image:
        pixels = np.array(image.convert("RGB").resize((width, height)))
    return torch.from_numpy(pixels).permute(2, 0, 1)[None].contiguous() / 255


# -- the whole way ---------------------------------------------------------------------------------------------------


def tiny(options: argparse.Namespace) -> dict[str, Any]:
    """A file to metres, warm."""
    import langdepth

    runs: dict[str, Run] = {"Depth Anything V2 S": partial(ports.depth_anything_v2_small(), PHOTO)}
    for runtime in ("onnx", "openvino", "torch"):
        runs[runtime] = partial(langdepth.load("tiny", runtime=runtime).predict, PHOTO)  # type: ignore[attr-defined, arg-type]
    found = table(in_turns(runs, 3 * options.runs), "Depth Anything V2 S")
    return {"reached": found["onnx"]["cpu_ratio"], "runs": 3 * options.runs, **found}


def start(options: argparse.Namespace) -> dict[str, Any]:
    """Programs from nothing; their modules are compiled, as those of an installed package are."""
    with tempfile.TemporaryDirectory() as folder:
        environment = {**os.environ, "PYTHONPYCACHEPREFIX": folder}
        environment.pop("PYTHONDONTWRITEBYTECODE", None)
        predict = [sys.executable, "-m", "langdepth", "predict", str(PHOTO), "--save", SAVE, "--out", f"{folder}/out"]
        programs = {
            "python": [sys.executable, "-c", "pass"],
            "import langdepth": [sys.executable, "-c", "import langdepth"],
            "--help": [sys.executable, "-m", "langdepth", "--help"],
            "predict --help": [sys.executable, "-m", "langdepth", "predict", "--help"],
            "predict": predict,
            "import torch": [sys.executable, "-c", "import torch"],
        }
        runs = {name: partial(seconds_of, command, environment) for name, command in programs.items()}
        taken: dict[str, list[tuple[float, float]]] = {name: [] for name in runs}
        for turn in range(1 + options.runs):
            for name, run in runs.items():
                pair = run()
                if turn:  # the first one fills the caches of the disk
                    taken[name].append(pair)
    found = {}
    for name, pairs in taken.items():
        seconds, cpu = (statistics.median(values) for values in zip(*pairs, strict=True))
        print(f"{name:<22} {seconds:8.3f} {cpu:8.3f} of CPU")
        found[name] = {"seconds": seconds, "cpu_seconds": cpu}
    return {"reached": found["predict"]["seconds"], "runs": options.runs, **found}


def seconds_of(command: list[str], environment: Mapping[str, str]) -> tuple[float, float]:
    """On the clock, and of processor time."""
    import resource

    before, begun = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=dict(environment))
    seconds, after = time.perf_counter() - begun, resource.getrusage(resource.RUSAGE_CHILDREN)
    return seconds, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def folder(options: argparse.Namespace) -> dict[str, Any]:
    """Images per second, decoding and writing included."""
    import langdepth
    from langdepth.cli import main as command

    with tempfile.TemporaryDirectory() as name:
        photos, out = Path(name, "photos"), Path(name, "out")
        photos.mkdir()
        for number in range(options.count):
            (photos / f"{number:04}.jpg").write_bytes(
                (ROOT / "examples" / ("desk.jpg", "room.jpg")[number % 2]).read_bytes()
            )

        def whole(runtime: str) -> None:
            with redirect_stdout(io.StringIO()):
                code = command(["predict", str(photos), "--save", SAVE, "--runtime", runtime, "--out", str(out)])
            assert code == 0

        model: Any = langdepth.load("tiny")

        def loop() -> None:
            for path in photos.iterdir():
                result = model.predict(path)
                for kind in SAVE.split(","):
                    result.save(out / f"{path.stem}_{kind}.png", format=kind)

        runs = {"torch": partial(whole, "torch"), "onnx": partial(whole, "onnx"), "onnx, a plain loop": loop}
        found = table(in_turns(runs, options.runs), "torch")
    for numbers in found.values():
        numbers["images_per_second"] = options.count / numbers["seconds"]
    print(", ".join(f"{name}: {numbers['images_per_second']:.1f} images/s" for name, numbers in found.items()))
    return {"reached": found["onnx"]["cpu_ratio"], "runs": options.runs, "images": options.count, **found}


def bfloat16(options: argparse.Namespace) -> dict[str, Any]:
    """What bfloat16 costs `tiny` in accuracy."""
    import json

    import numpy as np

    from langdepth.cli import main as command
    from langdepth.data.base import open_dataset
    from langdepth.runtimes.comparison import Difference

    data = open_dataset("folder", options.data, split="val", source=NYU)
    paths = [str(row.path_rgb) for row in data.rows]
    found: dict[str, Any] = {"images": len(paths)}
    choices = [("torch", "float32"), ("torch", "bfloat16"), ("openvino", "float32"), ("openvino", "bfloat16")]
    with tempfile.TemporaryDirectory() as name:
        for runtime, dtype in choices:
            out, report = Path(name, f"{runtime}-{dtype}"), Path(name, "report.json")
            how = ["--runtime", runtime, "--dtype", dtype, "--save", "npy", "--out", str(out)]
            whose = ["--data", "folder", "--root", str(options.data), "--split", "val", "--source", NYU]
            with redirect_stdout(io.StringIO()):
                assert command(["predict", *paths, *how]) == 0
                evaluate = ["evaluate", "--predictions", str(out), *whose, "--protocol", "nyu-eigen"]
                assert command([*evaluate, "--out", str(report)]) == 0
            apart = Difference()
            for path in sorted(out.glob("*.npy")):
                apart.add(np.load(path)[None], np.load(Path(name, "torch-float32", path.name))[None])
            means = json.loads(report.read_text())["image_mean"]
            found[f"{runtime} {dtype}"] = {
                "delta1_of_float32": apart.delta1,
                "mean": apart.mean,
                "largest": apart.largest,
                **{name: means[name] for name in ("delta1", "abs_rel", "rmse")},
            }
            print(f"{runtime} {dtype}: delta1 of float32 {apart.delta1:.5f}, {apart}; delta1 {means['delta1']:.4f}")
    return found


PARTS: dict[str, Callable[[argparse.Namespace], dict[str, Any]]] = {
    "depthclip": depthclip,
    "scaledepth": scaledepth,
    "wordepth": wordepth,
    "tiny": tiny,
    "start": start,
    "folder": folder,
    "bfloat16": bfloat16,
}

if __name__ == "__main__":
    main()
