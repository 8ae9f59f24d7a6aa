"""``langdepth imagine``: depth of scenes from words alone."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import count
from pathlib import Path

from langdepth.camera import GUESSED_FOV_DEGREES, Camera
from langdepth.commands._parse import require_use, run
from langdepth.commands.predict import read_camera
from langdepth.errors import UsageError
from langdepth.prediction.options import ColorScale, read_formats, writer_options

EXAMPLE = """
langdepth imagine "a bedroom with a stand and a bed" --samples 4 --seed 0 --out imagined
langdepth imagine "a kitchen" "a street with cars" --save depth16,ply --fov 60 --out imagined
"""
LONGEST_NAME = 60


def main(arguments: Sequence[str]) -> int:
    """Entry of the command table."""
    return run(imagine, arguments, "langdepth imagine", EXAMPLE)


def imagine(
    prompts: list[str],
    *,
    system: str = "wordepth-tiny",
    clip_weights: str | None = None,
    samples: int = 4,
    seed: int = 0,
    size: tuple[int, int] | None = None,
    save: str = "depth16,color",
    range: str | None = None,
    colormap: str | None = None,
    out: Path = Path("imagined"),
    intrinsics: str | None = None,
    fov: float | None = None,
    device: str = "auto",
) -> None:
    """Depth maps of scenes that words describe, without any image.

    Writes each map, and sheet.png with all of them in one scale of colours. The same seed gives the same files.

    Args:
        prompts: Sentences, each in quotes, for example "a bedroom with a stand and a bed".
        system: A system that imagines: registry name (see "langdepth systems"), .safetensors file, or hub id
            owner/name.
        clip_weights: CLIP weights (RN50), whose text tower then reads the sentences in place of the small encoder:
            OpenAI's archive, open_clip's or Hugging Face's file.
        samples: How many maps per sentence.
        seed: Another seed, other maps.
        size: HEIGHTxWIDTH of the maps in pixels, for example 352x1216; without it the system's own for a 4:3 image.
        save: What to write, with commas: depth16 (16-bit PNG, millimetres), kitti16 (16-bit PNG, metres x 256), npy,
            npz, color (PNG to look at), ply.
        range: NEAR,FAR in metres, for example 0,10: the depths that the first and the last color stand for.
        colormap: Name of a matplotlib color map; without it magma_r, near bright and far dark.
        out: Folder for the results.
        intrinsics: Camera as fx,fy,cx,cy in pixels of the maps, for ply; otherwise one is guessed.
        fov: Camera as the field of view across the width, in degrees.
        device: auto (an accelerator if there is one), cpu, cuda, cuda:1, mps.
    """
    from langdepth.prediction.results import WRITERS, require_own, write_result
    from langdepth.utils.png import own_png

    formats, camera = read_formats(save, WRITERS), read_camera(intrinsics, fov)
    colors = ColorScale.from_text(range, colormap)
    require_use(
        not {"ply", "npz"}.isdisjoint(formats), "is for ply and npz; name one in --save", intrinsics=intrinsics, fov=fov
    )
    if "" in (prompt.strip() for prompt in prompts):
        raise UsageError("a prompt is empty; describe a scene, for example 'a bedroom with a desk'")

    names = file_names(prompts)
    for path in result_files(out, names, samples, [WRITERS[form].suffix for form in formats]):
        require_own(path)

    from PIL import Image

    from langdepth.prediction import imagination, viz
    from langdepth.utils.files import atomic_path
    from langdepth.weights.checkpoint import load

    loaded = load(system, clip_weights=clip_weights)
    rows = []
    for prompt, name in zip(prompts, names, strict=True):
        results = imagination.imagine(loaded, prompt, samples=samples, seed=seed, size=size, device=device)
        height, width = results[0].depth.shape
        lens = Camera.guess(width, height) if camera is None else camera(width, height)
        for number, result in enumerate(results, 1):
            points = viz.colorize(result.depth, result.valid, colors)
            coloured = replace(result, camera=lens, image=points)
            for form in formats:
                target = Path(out, f"{name}_{number}{WRITERS[form].suffix}")
                write_result(coloured, target, format=form, **writer_options(form, colors))
        means = sorted(float(result.depth.mean()) for result in results)
        print(f"{prompt} -> {Path(out, name)}_*; mean depth of the samples {means[0]:.2f} to {means[-1]:.2f} m")
        rows.append((f"{prompt}  (seed {seed})", [result.depth for result in results]))
    if "ply" in formats and camera is None:
        print(
            f"langdepth imagine: camera guessed for the .ply files, {GUESSED_FOV_DEGREES:g} degrees across the longer "
            "side; give --fov or --intrinsics for another",
            file=sys.stderr,
        )
    with atomic_path(Path(out, "sheet.png")) as path:
        Image.fromarray(viz.maps_sheet(rows, colors=colors)).save(path, pnginfo=own_png(kind="sheet"))
    print(f"all of them: {Path(out, 'sheet.png')}")


def result_files(out: Path, names: Sequence[str], samples: int, ends: Sequence[str]) -> Iterator[Path]:
    """All files that are written."""
    yield out / "sheet.png"
    for name in names:
        for number in range(1, samples + 1):
            yield from (out / f"{name}_{number}{end}" for end in ends)


def file_names(prompts: Sequence[str]) -> list[str]:
    """A short file name for each prompt, no two alike."""
    names: list[str] = []
    for prompt in prompts:
        words = re.sub(r"[^a-z0-9]+", "-", prompt.lower()).strip("-")[:LONGEST_NAME].strip("-") or "prompt"
        names.append(next(name for n in count(1) if (name := words if n == 1 else f"{words}-{n}") not in names))
    return names
