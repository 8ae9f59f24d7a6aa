"""Options whose value is absurd, at the wrong place, or lacks."""

from __future__ import annotations

from pathlib import Path

from .cases import Case, Outcome, Random, pool, state
from .changes import NUMBERS, TEXTS
from .images import photo
from .sets import plain_set, report_right

OPTIONS: dict[str, tuple[list[str], tuple[str, ...]]] = {
    "predict": (
        ["good.png", "--system", "SMALL"],
        pool(
            "--save --range --colormap --intrinsics --fov --window --stride --samples --spread --seed "
            "--device --dtype --batch-size --text --scene --words --bins --prompts --captions "
            "--without-caption --overlay --system --clip-weights --flip --resume --unknown"
        ),
    ),
    "imagine": (
        ["a room"],
        ("--samples", "--seed", "--size", "--save", "--range", "--colormap", "--fov", "--intrinsics", "--device"),
    ),
    "evaluate": (
        ["--root", "set", "--out", "out/r.json", "--system", "SMALL"],
        pool(
            "--save --range --data --split --list --source --limit --protocol --flip --alignment --frame "
            "--crop --window --stride --resize --training-focal --min-depth --max-depth --min-pixels "
            "--predictions --prediction-scale --depth-kind --batch-size --truth-root --overlay"
        ),
    ),
    "data check": (["set"], ("--split", "--list", "--truth-root", "--root", "--json")),
    "data show": (["set", "--out", "out/s.png"], ("--count", "--split", "--list", "--root")),
    "data sample": (
        ["out/sample", "--count", "2", "--height", "48", "--width", "64"],
        ("--seed", "--height", "--width", "--count"),
    ),
    "data cache": (["folder", "--root", "set", "--out", "out/c"], ("--split", "--frame", "--list", "--trust-unit")),
    "systems": (["show"], ("", "--x")),
    "protocols": (["show"], ("", "--x")),
    "scenes": (["list"], ("--templates", "--architecture", "")),
    "convert": (
        ["good.png", "--system", "small", "--out", "out/w.safetensors"],
        ("--system", "--licence", "--options.width", "--options.x"),
    ),
    "train": (["--config", "missing.yaml"], ("--resume", "--config", "--optim.lr")),
    "benchmark": (["missing.yaml", "--out", "out"], ("--dtype", "--batch-size")),
}
CHEAP = pool("--samples --size --count --height --width --window --batch-size")  # what may rightly take long
WORDS = pool("npy npy,npy depth16, , 0,10 10,0 nan,1 0,inf kitchen train garg 32x32 0x0 1x1")
WORDS += pool("99999x99999 32x x -1x5 cuda cuda:99 cpu meta mps float16 bfloat16 median 60,60,31,23 full")
WORDS += ("set", "good.png", "out", "missing", "missing.yaml", "a,b", "near=far", "viridis", "magma_r", "1,2", "2,1")


VALID = {  # values that may be accepted, most of them at an edge
    "--save": "npy npz,ply color depth16,kitti16 npy,npz,depth16",
    "--range": "0,10 0,1e9 1e-9,1e-8 9,9.0001",
    "--colormap": "gray magma_r tab20",
    "--intrinsics": "60,60,31.5,23.5 1800,1800,0,0 9,9,63,47",
    "--fov": "2 150 60.5 149.999",
    "--window": "64x64 32x32 48x64 512x512",
    "--stride": "16x16 1x64 512x512",
    "--spread": "0 1 0.5 1e-9",
    "--seed": "0 9223372036854775807 1",
    "--dtype": "bfloat16 float32",
    "--batch-size": "1 64 4096",
    "--text": "null # ~ a",
    "--size": "32x32 64x48",
    "--data": "folder nyu cache",
    "--protocol": "full nyu-eigen kitti-eigen-garg ddad hypersim",
    "--flip": "true false",
    "--alignment": "none median least_squares disparity",
    "--frame": "stored kb kb-pasted nyu-inner",
    "--crop": "none eigen-nyu garg eigen-kitti eigen-nyu-inner",
    "--resize": "system bilinear bilinear-aligned bilinear-twice",
    "--training-focal": "60 1e-9 1e9",
    "--min-depth": "0 1e-9 3 1e9",
    "--max-depth": "3 1e9 1e-9 1e300",
    "--min-pixels": "0 1 3072 9999999",
    "--limit": "1 2 9999999",
    "--depth-kind": "metric relative disparity",
    "--prediction-scale": "0.001 1 1e-9",
    "--predictions": "set out",
    "--count": "2 3 9",
    "--height": "32 48",
    "--width": "32 64",
    "--list": "good.png missing set/index.csv",
    "--templates": "photo imagenet",
    "": "tiny wordepth-tiny full nyu-eigen depthclip",
}


def command_lines(rng: Random, folder: Path) -> Case:
    """A command with an option whose value is absurd, at the wrong place, or lacks."""
    from PIL import Image

    command = rng.choice(list(OPTIONS))
    plain, options = OPTIONS[command]
    Image.fromarray(photo(Random(1))).save(folder / "good.png")
    if "set" in plain or rng.random() < 0.2:
        plain_set(folder, rng)
    words = [str(state["small file"]) if word == "SMALL" else word for word in plain]
    if command == "predict":
        words += ["--out", "out"]
    if command == "imagine":
        words += ["--out", "out", "--samples", "1", "--save", "npy"]
    for _ in range(rng.choice((1, 1, 1, 2))):
        option = rng.choice(options)
        values = WORDS + TEXTS + NUMBERS
        if option in CHEAP:
            values = tuple(
                text
                for text in values
                if not text[:1].isdigit() or len(text) > 12 or text in ("0", "1", "3", "32x32", "0x0")
            )
        value = rng.choice(values).replace("\0", "")
        if option in VALID and rng.random() < 0.6:
            value = rng.choice(VALID[option].split())
        words += rng.choice(([option, value], [f"{option}={value}"], [option, value], [option])) if option else [value]
    if rng.random() < 0.08:
        rng.shuffle(words)
    words = [word.encode("utf-8", "replace").decode() for word in words]

    def right(outcome: Outcome) -> str | None:
        import numpy as np

        for path in sorted((folder / "out").rglob("*.npy")):
            if path.parent.name != "c" and not np.isfinite(np.load(path).astype(np.float32)).all():
                return f"{path.name} holds numbers that are not finite"
        return report_right(folder / "out/r.json") if (folder / "out/r.json").exists() else None

    return Case([*command.split(), *words], " ".join(words)[:200], right)
