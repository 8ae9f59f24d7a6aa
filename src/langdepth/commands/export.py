"""``langdepth export``: a system as a file for ONNX Runtime or OpenVINO."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from langdepth.commands._parse import images_in, run
from langdepth.commands._systems import WordOptions
from langdepth.errors import UsageError, say

EXAMPLE = """\
langdepth export depthclip --clip-weights RN50.pt --out depthclip.onnx --check photos
langdepth export depthclip --clip-weights RN50.pt --to openvino --out depthclip.xml"""


def main(arguments: Sequence[str]) -> int:
    """Entry of the command table."""
    return run(export, arguments, "langdepth export", EXAMPLE)


def export(
    system: str,
    *,
    out: Path,
    to: Literal["onnx", "openvino"] = "onnx",
    check: Path | None = None,
    int8: Path | None = None,
    clip_weights: str | None = None,
    own: WordOptions,
) -> None:
    """Write a system as one file that takes bytes of any size and gives metres at that size, without langdepth.

    The file is compared with torch before it is written: in several shapes and batches, with and without words.

    Args:
        system: Registry name, .safetensors file or hub id.
        out: The file to write: .onnx, or .xml for OpenVINO, which gets a .bin beside it. Systems that take sentences
            get OUT-words.onnx, too, which encodes these.
        to: What computes the file.
        check: A folder of images to compare on; without it one photograph of the package.
        int8: Compute convolutions in whole numbers of 8 bits, whose ranges follow from the images in this folder.
        clip_weights: CLIP weights for systems that stand on them, see "langdepth predict --help".
        own: Words of one's own.
    """
    photos, calibration = images_in(check, "--check"), images_in(int8, "--int8")
    try:
        import onnx  # noqa: F401

        from langdepth.runtimes import export as exporting
        from langdepth.weights.checkpoint import load
    except ImportError as error:
        if error.name not in ("onnx", "torch"):
            raise
        raise UsageError("this needs torch and onnx: pip install 'langdepth[torch,export]'") from None
    done = exporting.export(load(system, clip_weights=clip_weights, prompts=own.changes), to, out, photos, calibration)
    for name, shape in (*done.inputs.items(), *done.outputs.items()):
        say(f"{'input ' if name in done.inputs else 'output'} {name}: {shape}")
    sides = done.network_size
    say(f"inside the network: {f'{sides[0]}x{sides[1]} for every image' if sides else 'the shape of the image'}")
    say(f"opset: {done.opset}")
    say(f"relative difference from torch: {done.difference}")
    if done.quantised is not None:
        say(f"in 8 bits: {done.quantised}; {done.quantised.delta1:.2%} of the pixels within 25 %")
    for path in done.files:
        say(f"written: {path} ({path.stat().st_size / 1e6:.1f} MB)")
