"""``langdepth imagine``: depth of scenes from words alone."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

from langdepth.camera import GUESSED_FOV_DEGREES, Camera
from langdepth.commands._parse import run
from langdepth.commands._results import Known, Losses, ResultOptions
from langdepth.errors import LangdepthError, UsageError, one_line, say
from langdepth.records import Runtime

if TYPE_CHECKING:
    from langdepth.prediction.results import DepthResult

EXAMPLE = """
langdepth imagine "a bedroom with a stand and a bed" --samples 4 --seed 0 --out imagined
langdepth imagine "a kitchen" "a street with cars" --save depth16,ply --fov 60 --out imagined
"""
LONGEST_WORDS = 60


def main(arguments: Sequence[str]) -> int:
    """Entry of the command table."""
    return run(imagine, arguments, "langdepth imagine", EXAMPLE)


def imagine(
    prompts: list[str],
    *,
    system: str = "wordepth-tiny",
    runtime: Runtime = "auto",
    clip_weights: str | None = None,
    samples: int = 4,
    seed: int = 0,
    size: tuple[int, int] | None = None,
    output: ResultOptions,
    out: Path = Path("imagined"),
    device: str = "auto",
) -> int:
    """Depth maps of scenes that words describe, without any image.

    Writes each map, and sheet.png with all of them, a range of colors for each sentence. The same seed gives the same
    files.

    Args:
        prompts: Sentences, each in quotes, for example "a bedroom with a stand and a bed".
        system: A system that imagines: registry name (see "langdepth systems"), .safetensors file, or hub id
            owner/name.
        runtime: What computes it: torch, onnx or openvino; auto takes the fastest of those that are installed and can.
        clip_weights: CLIP weights (RN50), whose text tower then reads the sentences in place of the small encoder:
            OpenAI's archive, open_clip's or Hugging Face's file.
        samples: How many maps per sentence, at most 1000.
        seed: Random seed.
        size: HEIGHTxWIDTH of the maps in pixels, for example 352x1216; without it the system's own for a 4:3 image.
        output: Which files are written of each map.
        out: Folder for the results.
    """
    if "" in (prompt.strip() for prompt in prompts):
        raise UsageError("a prompt is empty; describe a scene, for example 'a bedroom with a desk'")

    from langdepth.prediction import imagination
    from langdepth.prediction.results import require_own
    from langdepth.prediction.sampling import check_drawn
    from langdepth.runtimes.opening import load

    check_drawn(samples, *(size or (1, 1)))
    names, sheet = file_names(prompts), out / "sheet.png"
    files = {name: [_files(out, name, number + 1, output) for number in range(samples)] for name in names}
    for path in (sheet, *(path for several in files.values() for one in several for path in one.values())):
        require_own(path)
    loaded, rows = load(system, runtime=runtime, device=device, clip_weights=clip_weights), []
    failed: list[LangdepthError] = []
    losses = Losses("map")
    for prompt, name in zip(prompts, names, strict=True):
        try:
            results = imagination.imagine(loaded, prompt, samples=samples, seed=seed, size=size, device=device)
        except LangdepthError as error:  # the other sentences go on
            failed.append(type(error)(f"'{prompt}': {error}") if len(prompts) > 1 else error)
            continue
        _write(results, files[name], output, losses)
        means = sorted(float(result.depth.mean()) for result in results)
        say(f"{prompt} -> {out / name}_*; mean depth of the samples {means[0]:.2f} to {means[-1]:.2f} m")
        rows.append((f"{prompt}  (seed {seed})", [result.depth for result in results]))
    if not rows:
        raise failed[0]
    for problem in (*failed, *losses.lines):
        say(f"langdepth imagine: {one_line(str(problem))}", file=sys.stderr)
    if output.with_camera and output.lens is None:
        guessed = Known("guess", round(GUESSED_FOV_DEGREES))
        say(f"langdepth imagine: {output.camera_line({guessed: len(rows) * samples})}", file=sys.stderr)
    _write_sheet(rows, sheet, output)
    say(f"all of them: {sheet}")
    return 1 if failed else 0


def _files(out: Path, name: str, number: int, output: ResultOptions) -> dict[str, Path]:
    """The file of each format of one map."""
    return {form: out / f"{name}_{number}{suffix}" for form, suffix in output.suffixes.items()}


def _write(
    results: Sequence[DepthResult], files: Sequence[dict[str, Path]], output: ResultOptions, losses: Losses
) -> None:
    """Write the maps of one sentence; their points have the colors of the depth."""
    from langdepth.prediction import viz

    height, width = results[0].depth.shape
    camera = output.lens(width, height) if output.lens else Camera.guess(width, height)
    for result, targets in zip(results, files, strict=True):
        points = viz.colorize(result.depth, result.valid, output.colors)
        output.write(replace(result, camera=camera, image=points), targets)
        losses.add(output.lost(result))


def _write_sheet(rows: Sequence[tuple[str, Sequence[Any]]], path: Path, output: ResultOptions) -> None:
    """A title and the depth maps for each sentence, in colors of their own range unless one is asked for."""
    from langdepth.prediction import viz
    from langdepth.utils.files import atomic_path
    from langdepth.utils.png import write_own_png

    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        write_own_png(file, viz.maps_sheet(rows, colors=output.colors), kind="sheet")


def file_names(prompts: Sequence[str]) -> list[str]:
    """A short file name for each prompt, no two alike."""
    names: list[str] = []
    for prompt in prompts:
        words = re.sub(r"[^a-z0-9]+", "-", prompt.lower()).strip("-")[:LONGEST_WORDS].strip("-") or "prompt"
        names.append(next(name for n in count(1) if (name := words if n == 1 else f"{words}-{n}") not in names))
    return names
