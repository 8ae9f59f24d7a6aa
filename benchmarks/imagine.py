"""How well depth from words alone fits the places that the words are about.

    python benchmarks/imagine.py --root DIR [--system wordepth-tiny] [--split val] [--out imagine.json]

DIR is an indexed folder whose images have sentences (column text). For every distinct sentence, the mean depth of
its imagined maps against the mean true depth of its images: Spearman's rank correlation over sentences, and the
mean of the logarithms' absolute difference. Prints a table and writes JSON.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import spearmanr

from langdepth.data.base import open_dataset
from langdepth.prediction.imagination import imagine
from langdepth.weights.checkpoint import load


def main() -> None:
    """Parse, imagine, compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--system", default="wordepth-tiny")
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--split", default="val")
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    images = open_dataset("folder", options.root, options.split)
    measured: dict[tuple[str, str], list[float]] = defaultdict(list)
    for index in range(len(images)):
        sample = images[index]
        if sample.text:
            measured[sample.text, sample.source].append(float(sample.depth[sample.mask].mean()))
    if not measured:
        raise SystemExit(f"{options.root}: no image of the split {options.split} has a sentence (column text)")
    system = load(options.system)
    rows: list[dict[str, Any]] = []
    for (sentence, source), depths in sorted(measured.items()):
        maps = imagine(system, sentence, samples=options.samples, seed=options.seed)
        imagined = float(np.mean([result.depth for result in maps]))
        rows.append({"sentence": sentence, "source": source, "true": float(np.mean(depths)), "imagined": imagined})
    rows.sort(key=lambda row: row["true"])
    for row in rows:
        print(f"{row['true']:7.2f} m  imagined {row['imagined']:7.2f} m  {row['sentence']}")
    groups = {"all": rows}
    for source in sorted({row["source"] for row in rows}):
        groups[source] = [row for row in rows if row["source"] == source]
    report: dict[str, Any] = {name: getattr(options, name) for name in ("system", "split", "samples", "seed")}
    report |= {name: _agreement(group) for name, group in groups.items() if len(group) >= 10}
    for name, found in report.items():
        print(f"{name}: {found}")
    if options.out:
        options.out.write_text(json.dumps(report | {"rows": rows}, indent=2) + "\n", encoding="utf-8")


def _agreement(rows: list[dict[str, Any]]) -> dict[str, float]:
    true, imagined = (np.array([row[key] for row in rows]) for key in ("true", "imagined"))
    correlation = spearmanr(true, imagined)
    return {
        "sentences": len(rows),
        "spearman": round(float(correlation.statistic), 3),
        "p": float(correlation.pvalue),
        "mean |log ratio|": round(float(np.abs(np.log(imagined / true)).mean()), 3),
    }


if __name__ == "__main__":
    main()
