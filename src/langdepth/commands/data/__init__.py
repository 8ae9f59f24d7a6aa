"""``langdepth data``: prepare and check data sets, and write folders of images with depth."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from langdepth.commands._parse import run
from langdepth.commands.data import captions, folders, sets
from langdepth.errors import UsageError, nearest


def main(arguments: Sequence[str]) -> int:
    """Entry of the command table."""
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(usage(), end="")
        return 0 if arguments else 2
    verb, *rest = arguments
    if verb not in VERBS:
        raise UsageError(f"unknown action '{verb}': {nearest(verb, VERBS)}")
    function, _, example = VERBS[verb]
    return run(function, rest, f"langdepth data {verb}", example)


def usage() -> str:
    """The text of ``langdepth data --help``."""
    actions = "\n".join(f"  {name:<13} {summary}" for name, (_, summary, _) in VERBS.items())
    examples = "\n".join(f"  {example}" for *_, example in VERBS.values())
    return (
        "usage: langdepth data ACTION [options]\n\n"
        "Images with depth: published data sets, and folders described by an index.csv.\n\n"
        f"actions:\n{actions}\n\noptions:\n  --help   this text, or an action's own: langdepth data check --help\n\n"
        f"example:\n{examples}\n"
    )


# Action -> (function, summary, example).
VERBS: dict[str, tuple[Callable[..., int | None], str, str]] = {
    "list": (
        sets.list_sets,
        "which data sets are known, and which are there",
        "langdepth data list\n  langdepth data list nyu --root nyu",
    ),
    "prepare": (
        sets.prepare,
        "unpack or convert what a data set is published as",
        "langdepth data prepare nyu --source nyu_depth_v2_labeled.mat --out nyu",
    ),
    "check": (
        sets.check,
        "check a data set or an indexed folder for mistakes",
        "langdepth data check nyu --root nyu\n  langdepth data check images --split train",
    ),
    "cache": (
        sets.cache,
        "decode a data set once, for quick training",
        "langdepth data cache nyu --root nyu --split sync --out nyu-cache",
    ),
    "show": (sets.show, "a contact sheet with depth", "langdepth data show nyu --root nyu --out sheet.png"),
    "sample": (folders.sample, "write a small synthetic folder", "langdepth data sample rooms --count 24"),
    "caption": (
        captions.caption,
        "describe images with an image-to-text model",
        "langdepth data caption photos --model Salesforce/blip-image-captioning-base --out captions.csv",
    ),
    "pack-captions": (
        captions.pack_captions,
        "pack captions and their CLIP features for training",
        "langdepth data pack-captions --text text --features text_feat --out captions",
    ),
    "sam": (
        folders.sam,
        "draw SAM's masks over photos",
        "langdepth data sam photos --weights sam_vit_h_4b8939.pth --out sam_out",
    ),
}
