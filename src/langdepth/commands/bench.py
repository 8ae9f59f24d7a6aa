"""``langdepth bench``: which runtime and precision is fastest here, and what each costs in error."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from langdepth.commands._parse import images_in, run
from langdepth.errors import UsageError, say
from langdepth.utils.tables import columns
from langdepth.utils.threads import MOST_THREADS

if TYPE_CHECKING:
    from langdepth.runtimes.bench import Measured

EXAMPLE = """\
langdepth bench
langdepth bench --system wordepth-tiny --images photos --size 480x640 --threads 1 --out bench.json"""
CLOSE = 1e-4  # what runtimes agree within in float32
_MOST_IMAGES = 8
HEAD = ("", "runtime", "dtype", "ms", "times", "start s", "MB", "mean", "largest", "delta1")


def main(arguments: Sequence[str]) -> int:
    """Entry of the command table."""
    return run(bench, arguments, "langdepth bench", EXAMPLE)


def bench(
    *,
    system: str = "tiny",
    size: tuple[int, int] | None = None,
    images: Path | None = None,
    threads: int | None = None,
    seconds: float = 10.0,
    device: str = "auto",
    clip_weights: str | None = None,
    out: Path | None = None,
) -> None:
    """How fast each runtime computes a system on this machine, and how far its depth is from torch's in float32.

    A line for each runtime and precision that is installed here; * is what --runtime auto takes. ms: the median for one
    image, from its pixels to depth at its size, all lines in turns. times: as fast as the first line. start: seconds
    from nothing to the first depth; OpenVINO's first one converts the system, too. MB: the most memory of its process.
    mean, largest: relative difference from the first line's depth. delta1: the share of pixels within 25 % of it.

    Args:
        system: Registry name, .safetensors or .onnx file, or hub id.
        size: Resize the images to HEIGHTxWIDTH first.
        images: A folder of images, of which 8 are taken at most; without it one photograph of the package.
        threads: Threads to compute with; without it as many as there are cores.
        seconds: How long to measure.
        device: Of torch; auto (an accelerator if there is one), cpu, cuda, cuda:1, mps.
        out: Write the numbers here, too, as JSON.
    """
    if threads is not None and not 1 <= threads <= MOST_THREADS:
        raise UsageError(f"--threads must be from 1 to {MOST_THREADS}, got {threads}")
    if not 0 <= seconds < math.inf:
        raise UsageError(f"--seconds must be a number from 0 on, got {seconds:g}")
    if size is not None and min(size) < 32:
        raise UsageError(f"--size {size[0]}x{size[1]}: images have at least 32 pixels a side")
    from langdepth.runtimes import bench as benching
    from langdepth.runtimes.comparison import PHOTO
    from langdepth.runtimes.graph import thread_count
    from langdepth.runtimes.opening import load, runtime_of_auto
    from langdepth.utils.files import make_folder, require_marked, write_json
    from langdepth.utils.images import MAX_PIXELS, check_pixels

    if size is not None:
        check_pixels(*size[::-1], MAX_PIXELS)
    if out is not None:
        require_marked(out, b'"processor": ')
        make_folder(out.parent, out)
    choices = benching.choices_here(system)
    if not choices:
        load(system)  # states what is missing
    subject = benching.Subject(
        system=system,
        paths=images_in(images, "--images")[:_MOST_IMAGES] or [PHOTO],
        size=size,
        clip_weights=clip_weights,
        device=device,
    )
    benching.measure(choices, subject, threads=threads, seconds=seconds)
    facts = {
        "system": system,
        "images": len(subject.paths),
        "size": size and list(size),
        "threads": threads or thread_count(),
        "processor": benching.processor(),
        "auto": "torch" if clip_weights else runtime_of_auto(system, device),
    }
    _show(choices, facts)
    if out is not None:
        write_json({**facts, "choices": [_plain(one) for one in choices]}, out)
        say(f"written: {out}")


def _show(choices: Sequence[Measured], facts: dict[str, Any]) -> None:
    """What was measured, a line for each choice, and which to take."""
    size, images, auto = facts["size"], facts["images"], facts["auto"]
    sides = "" if size is None else f" of {size[0]}x{size[1]}"
    count = f"{images} images" if images > 1 else "one image"
    say(f"{facts['system']}, {count}{sides}, {facts['threads']} threads, {facts['processor']}")
    for line in columns([HEAD, *(_row(one, choices[0], auto) for one in choices)]):
        say(line)
    for one in choices:
        if one.failed:
            say(f"{one.runtime} {one.dtype}: {one.failed}")
    say(_advice(choices, auto))


def _row(one: Measured, first: Measured, auto: str) -> Sequence[str]:
    name = ("*" if one.runtime == auto and one.dtype == "float32" else "", one.runtime, one.dtype)
    if one.failed:
        return (*name, *["-"] * (len(HEAD) - len(name)))
    apart = one.difference
    return (
        *name,
        f"{1000 * one.seconds:.1f}",
        "-" if first.failed else f"{first.seconds / one.seconds:.2f}",
        f"{one.start_seconds:.2f}",
        "-" if one.peak_bytes is None else f"{one.peak_bytes / 1e6:.0f}",
        *(["-"] * 3 if apart is None else [f"{apart.mean:.1e}", f"{apart.largest:.1e}", f"{apart.delta1:.4f}"]),
    )


def _advice(choices: Sequence[Measured], auto: str) -> str:
    """Which line to take: the fastest of those whose depth is that of the first."""
    here = [one for one in choices if not one.failed]
    same = [one for one in here if one.difference is None or one.difference.largest < CLOSE]
    if not same:  # what they are compared with was ended in mid-run
        best = min(here, key=lambda one: one.seconds)
        return f"fastest: {best.runtime} {best.dtype}, whose depth is another than the first line's"
    best = min(same, key=lambda one: one.seconds)
    how = "which --runtime auto takes" if best.runtime == auto else f"--runtime {best.runtime}"
    return f"fastest with the same depth (within {CLOSE:g}): {best.runtime} {best.dtype}, {how}"


def _plain(one: Measured) -> dict[str, Any]:
    """For JSON; numbers that are not finite are None there."""
    facts: dict[str, Any] = {"runtime": one.runtime, "dtype": one.dtype}
    if one.failed:
        return {**facts, "failed": str(one.failed)}
    facts |= {"seconds": one.seconds, "rounds": len(one.rounds), "start_seconds": one.start_seconds}
    facts |= {"peak_bytes": one.peak_bytes}
    if one.difference is not None:
        for name in ("mean", "largest", "delta1"):
            value = getattr(one.difference, name)
            facts[name] = value if math.isfinite(value) else None
    return facts
