"""``langdepth protocols``: the named evaluation protocols, and every rule of one in words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from langdepth.commands._parse import list_or_show, run
from langdepth.evaluation import protocols
from langdepth.evaluation.protocols import Protocol
from langdepth.utils.plugins import usable
from langdepth.utils.tables import columns

EXAMPLE = "langdepth protocols\nlangdepth protocols show nyu-eigen"

_FRAMES = {
    "stored": "the whole stored image takes part",
    "kb": "image and truth are cut to the KITTI benchmark's bottom 352 rows and centred 1216 columns",
    "kb-pasted": "the whole stored image takes part; the network sees the KITTI benchmark's 352x1216 of it",
    "nyu-inner": "image and truth are cut to the middle 416x544 of a 480x640 NYU image",
}
_RESIZES = {
    "system": "depth gets to image size bilinearly, as the system states it: corners on corners or pixel centres",
    "bilinear": "depth gets to image size bilinearly, pixel centres on pixel centres",
    "bilinear-aligned": "depth gets to image size bilinearly, corners on corners",
    "bilinear-twice": "depth is interpolated twice: to the stored image's size, then to the frame's",
}
_ALIGNMENTS = {
    "none": "depth is judged as it is, in metres",
    "median": "depth is multiplied, image by image, so that its median is the truth's",
    "least_squares": "depth is fitted to the truth, image by image, by a factor and a shift",
    "disparity": "1 / depth is fitted to 1 / truth, image by image, by a factor and a shift, and inverted",
}
_CROPS = {
    "none": "the whole frame is judged",
    "eigen-nyu": "judged are rows 45:471 and columns 41:601 of 480x640, the same share of other sizes",
    "eigen-nyu-46": "judged are rows 45:471 and columns 46:601 of 480x640, the same share of other sizes",
    "eigen-nyu-inner": "judged is the part of the Eigen window inside the frame, rows 0:415 and columns 0:541",
    "eigen-nyu-pixels": "judged are rows 45:471 and columns 41:601 of an image of any size",
    "eigen-kitti": "judged is Eigen's window, 33 to 91 % of the height and 4 to 96 % of the width",
    "garg": "judged is Garg's window, 41 to 99 % of the height and 4 to 96 % of the width",
}


def main(arguments: Sequence[str]) -> int:
    """Entry of the command table."""
    return run(show_protocols, arguments, "langdepth protocols", EXAMPLE)


def show_protocols(action: Literal["list", "show"] = "list", name: str | None = None) -> None:
    """List the evaluation protocols, or show one: every rule in words, and the hash that reports carry.

    Args:
        action: List all protocols, or show one.
        name: The protocol to show.
    """
    list_or_show("protocol", action, name, table, lambda known: describe(protocols.get(known)), example="nyu-eigen")


def table() -> str:
    """All protocols, one line each."""
    rows = [("name", "hash", "frame", "crop", "metres", "flip", "clamp", "alignment")]
    for protocol in usable(protocols.names(), protocols.get):
        metres = f"{protocol.min_depth:g} to {protocol.max_depth:g}"
        flip, clamp = ("yes" if switch else "no" for switch in (protocol.flip, protocol.clamp_prediction))
        rows.append(
            (protocol.name, protocol.hash, protocol.frame, protocol.crop, metres, flip, clamp, protocol.alignment)
        )
    return "\n".join(columns(rows))


def describe(protocol: Protocol) -> str:
    """Every switch of a protocol with its value and what it means."""
    switches, meanings = protocol.switches(), explain(protocol)
    width = max(map(len, switches))
    lines = [f"{protocol.name} ({protocol.hash})", ""]
    lines += [f"{key:<{width}}  {meanings[key]}  [{_value(value)}]" for key, value in switches.items()]
    if protocol.extra_metrics:
        lines += ["", f"reported beside the nine standard metrics: {', '.join(protocol.extra_metrics)}"]
    return "\n".join(lines)


def explain(protocol: Protocol) -> dict[str, str]:
    """What each switch of a protocol means as it is set."""
    low, high = f"{protocol.min_depth:g}", f"{protocol.max_depth:g}"
    window = "x".join(map(str, protocol.window or ()))
    stride = "x".join(map(str, protocol.stride or protocol.window or ()))
    return {
        "frame": _FRAMES[protocol.frame],
        "flip": "averaged with the depth of the mirrored image" if protocol.flip else "one look at each image",
        "resize": _RESIZES[protocol.resize],
        "alignment": _ALIGNMENTS[protocol.alignment],
        "clamp_prediction": f"depth is limited to {low} to {high} m"
        if protocol.clamp_prediction
        else "depth is not limited",
        "crop": _CROPS[protocol.crop],
        "min_depth": f"judged are true depths above {low} m",
        "max_depth": f"judged are true depths below {high} m",
        "clamp_views": (
            f"both looks are limited to 0 to {high} m before they are averaged"
            if protocol.clamp_views
            else "the looks are averaged as they are"
        ),
        "mask_prediction": (
            f"pixels whose prediction is not above {low} m are not judged"
            if protocol.mask_prediction
            else "which pixels are judged does not depend on the prediction"
        ),
        "window": f"the network sees windows of {window} pixels" if window else "the network sees the frame whole",
        "stride": f"a window every {stride} pixels" if window else "no windows",
        "training_focal": (
            f"depth is multiplied by the camera's focal length over {protocol.training_focal:g} pixels"
            if protocol.training_focal
            else "depth is not corrected for the camera's focal length"
        ),
        "min_pixels": f"images with fewer than {protocol.needed_pixels} of these pixels are skipped"
        if protocol.needed_pixels > 1
        else "images are skipped that have none of these pixels",
    }


def _value(value: Any) -> str:
    return "x".join(map(str, value)) if isinstance(value, tuple) else str(value).lower()
