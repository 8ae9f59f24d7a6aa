"""``langdepth data``: check a folder of pictures with depth, write a small sample of one, draw SAM's masks."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from langdepth.commands._parse import run
from langdepth.errors import LangdepthError, UsageError, nearest


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
        f"usage: langdepth data ACTION [options]\n\nFolders of pictures with depth, described by an index.csv.\n\n"
        f"actions:\n{actions}\n\noptions:\n  --help   this text, or an action's own: langdepth data check --help\n\n"
        f"example:\n{examples}\n"
    )


def check(directory: str, *, split: str | None = None) -> int:
    """Read every picture and depth map that the folder's index.csv names, and report what is wrong with them.

    One line per problem, then a table with one line per source. The exit code is 0 when all is well, 1 otherwise.

    Args:
        directory: Folder with an index.csv.
        split: Check only the rows of this split (train, val or test).
    """
    from tqdm import tqdm

    from langdepth.data.check import check_folder, summary

    with tqdm(unit="pair", disable=not sys.stderr.isatty(), leave=False) as bar:
        report = check_folder(directory, split, progress=bar.update)
    for problem in report.problems:
        print(problem)
    for line in summary(report.pairs):
        print(line)
    count = len(report.problems)
    print(f"{len(report.pairs)} pairs checked, {f'{count} problems' if count != 1 else '1 problem'}")
    return 1 if count else 0


def sample(directory: str, *, count: int = 24, seed: int = 0, height: int = 240, width: int = 320) -> None:
    """Write a small folder of synthetic rooms and streets with exact depth, to try training and evaluation on.

    Args:
        directory: New folder; it appears when it is complete.
        count: Number of pictures.
        seed: Another seed, other pictures.
        height: Of the pictures, in pixels.
        width: Of the pictures, in pixels.
    """
    from tqdm import tqdm

    from langdepth.data.sample import write_sample

    with tqdm(total=count, unit="picture", disable=not sys.stderr.isatty(), leave=False) as bar:
        root = write_sample(directory, count, seed, (height, width), progress=bar.update)
    print(f"{count} pictures with depth in {root}; look through them with: langdepth data check {root}")


def sam(
    directory: str,
    *,
    weights: str,
    out: str = "sam_out",
    pattern: str = "**/*.jpg",
    device: str = "auto",
    resume: bool = False,
) -> int:
    """Draw SAM's masks over photos, as the system msa-sam wants them. Needs the package segment-anything.

    The photo train/kitchen/rgb_00045.jpg has its overlay in sam_out/train/kitchen/00045.jpg. A photo that cannot be
    read is reported and skipped; the exit code is then 1.

    Args:
        directory: Folder of photos.
        weights: SAM's published weights, for example sam_vit_h_4b8939.pth.
        out: Folder for the overlays.
        pattern: Which files below the folder are photos.
        device: auto (an accelerator if there is one), cpu, cuda, cuda:1.
        resume: Skip photos whose overlay is there.
    """
    from tqdm import tqdm

    from langdepth.data.sam import load_sam, write_overlays

    failed = done = 0
    outcomes = write_overlays(directory, out, load_sam(weights, device), pattern=pattern, resume=resume)
    for outcome in tqdm(outcomes, unit="photo", disable=not sys.stderr.isatty(), leave=False):
        if isinstance(outcome, LangdepthError):
            failed += 1
            tqdm.write(f"langdepth data sam: {outcome}", file=sys.stderr)
        else:
            done += 1
    print(f"{done} overlays written, {failed} photos failed, results in {out}")
    return 1 if failed else 0


def pack_captions(*, text: Path, out: Path, features: Path | None = None, clip_weights: str | None = None) -> None:
    """Pack captions and their CLIP text features into the folder that data.captions of a recipe names.

    The features are published ones, or are computed from CLIP weights (RN50's text tower).

    Args:
        text: Captions: the published tree of .txt files, a CSV with the columns image and caption, or a folder of such.
        out: Folder to write: features.npy and captions.csv.
        features: Their features: the published tree of .pt files, or an .npz with the arrays caption and feature.
            Pictures without a feature are left out and counted.
        clip_weights: Compute the features that are not given: OpenAI's archive, open_clip's or Hugging Face's file, or
            the word random.
    """
    if features is None and clip_weights is None:
        raise UsageError("say where the captions' features come from: --features DIR or --clip-weights FILE")

    from tqdm import tqdm

    from langdepth.text import captions as words

    found = words.read_captions(text)
    known = {}
    if features is not None and features.is_dir():
        with tqdm(total=len(found), unit="caption", disable=not sys.stderr.isatty(), leave=False) as bar:
            known = words.tree_features(found, features, progress=bar.update)
    elif features is not None:
        known = words.table_features(features)
    new = list(dict.fromkeys(caption.sentence for caption in found if caption.sentence not in known))
    if clip_weights is not None and new:
        encoded = words.ClipSentences(clip_weights).encode(new).half().numpy()
        known |= dict(zip(new, encoded, strict=True))
    packed = words.pack(found, known, out)
    print(f"{packed.pictures} pictures, {packed.distinct} distinct captions in {out}")
    if packed.left_out:
        print(
            f"langdepth data pack-captions: {packed.left_out} pictures have a caption without feature", file=sys.stderr
        )


# Action -> (function, summary, example).
VERBS: dict[str, tuple[Callable[..., int | None], str, str]] = {
    "check": (check, "look through an indexed folder for mistakes", "langdepth data check pictures --split train"),
    "sample": (sample, "write a small synthetic folder", "langdepth data sample rooms --count 24"),
    "pack-captions": (
        pack_captions,
        "pack captions and their CLIP features for training",
        "langdepth data pack-captions --text text --features text_feat --out captions",
    ),
    "sam": (
        sam,
        "draw SAM's masks over photos",
        "langdepth data sam photos --weights sam_vit_h_4b8939.pth --out sam_out",
    ),
}
