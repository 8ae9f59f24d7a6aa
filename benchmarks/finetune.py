"""What the recipe `tiny-finetune` gains on small sets of images: abs_rel on held-back images, before and after.

    python benchmarks/finetune.py --root RGBD --sources tabletop_osd realsense_cup --threads 1 --out finetune.json

RGBD: an indexed folder with a column `source`, whose folders have the sources' names. Each source is made a data set of
its own, as a user would have it. Where its index has the split `val`, this is validated on; else the recipe's rule
holds images out: whole scenes or, where there is only one, the last quarter of its images, a block of time. The start
is the embedded model, evaluated before the first step. "best" is the epoch that did best on these same images, the
start among them; "last" is the end of the run, which nothing has chosen.
"""

from __future__ import annotations

import argparse
import csv
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

from common import parser, use_threads, write


def main() -> None:
    """Parse, train, print, write."""
    arguments = parser(__doc__)
    arguments.add_argument("--root", type=Path, required=True, help="folder with index.csv, which names sources")
    arguments.add_argument("--sources", nargs="+", required=True, help="names of the column source")
    arguments.add_argument("--threads", type=int, default=1, help="CPU threads of torch (default: 1)")
    arguments.add_argument("--set", nargs="*", default=[], metavar="FIELD=VALUE", help="fields over the recipe's")
    options = arguments.parse_args()
    use_threads(options.threads)

    from langdepth.utils.tables import columns

    found = {}
    for source in options.sources:
        with tempfile.TemporaryDirectory() as folder:
            found[source] = fine_tune(options, source, Path(folder))
    head = ("source", "learned from", "validated on", "before", "best", "last", "protocol", "s")
    rows = [
        (name, str(one["images"]), str(one["validated on"]), *(f"{one[key]:.4f}" for key in ("before", "best", "last")),
         one["protocol"], f"{one['seconds']:.0f}")
        for name, one in found.items()
    ]  # fmt: skip
    print(*columns([head, *rows]), sep="\n")
    write(found, options.out)


def fine_tune(options: argparse.Namespace, source: str, folder: Path) -> dict[str, Any]:
    """Train on one source; abs_rel before, at its best and at the end."""
    import yaml

    from langdepth.training.recipe import load_recipe, read_recipe
    from langdepth.training.run import train
    from langdepth.weights.checkpoint import load

    has_val = write_index(options.root, source, folder / "data")
    recipe = load_recipe("tiny-finetune")
    recipe["data"] |= {"root": str(folder / "data")} | ({"val_split": "val", "hold_out": None} if has_val else {})
    recipe["train"] |= {"out": str(folder / "run"), "previews": 0}
    for text in options.set:
        field, _, value = text.partition("=")
        section, _, name = field.partition(".")
        recipe[section][name] = yaml.safe_load(value)
    since = time.monotonic()
    run = train(read_recipe(recipe))
    seconds = time.monotonic() - since
    best, last = (load(run / f"{name}.safetensors").provenance for name in ("best", "last"))
    with (run / "metrics.csv").open(newline="") as file:
        before = next(row for row in csv.DictReader(file) if row["step"] == "0")
    return {
        "images": last["training"]["images"],
        "validated on": last["numbers"]["images"],
        "before": float(before["val/abs_rel"]),
        "best": best["numbers"]["abs_rel"],
        "last": last["numbers"]["abs_rel"],
        "steps": last["training"]["steps"],
        "best at step": best["training"]["steps"],
        "held out": "split val" if has_val else f"{recipe['data']['hold_out']} of the images",
        "protocol": last["numbers"]["protocol"].partition(" ")[0],
        "seconds": seconds,
    }


def write_index(root: Path, source: str, folder: Path) -> bool:
    """Make a data set of one source; returns whether it has images to validate on of its own."""
    with (root / "index.csv").open(newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["source"] == source]
    if not rows:
        raise SystemExit(f"{root / 'index.csv'}: no row has source '{source}'")
    has_val = any(row["split"] == "val" for row in rows)
    folder.mkdir()
    shutil.copytree(root / source, folder / source)
    with (folder / "index.csv").open("w", newline="", encoding="utf-8") as file:
        names = [name for name in rows[0] if has_val or name != "split"]
        writer = csv.DictWriter(file, names, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)
    return has_val


if __name__ == "__main__":
    main()
