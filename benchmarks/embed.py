"""Turn a run's weights into the embedded file of the package: float16, numbers in the card.

    python benchmarks/embed.py runs/tiny/best.safetensors accuracy.json

Writes src/langdepth/models/NAME.safetensors and its model card; prints the sha256 for the registry.
``accuracy.json`` is what benchmarks/accuracy.py wrote for these weights.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch

from langdepth.systems import registry
from langdepth.utils.reading import file_sha256
from langdepth.weights.checkpoint import load
from langdepth.weights.files import save

LARGEST = {"tiny": 25_000_000, "wordepth-tiny": 25_000_000}  # bytes
WEAKNESSES = {
    "tiny": (
        "large halls, nature, aerial views, drawings and other places it has not seen; tele and wide lenses where the "
        "camera is not stated; thin structures; mirrors, windows and screens"
    ),
    "wordepth-tiny": (
        "whatever tiny is bad at, and edges, which its latent blurs; imagined depth is right in scale and in the large "
        "(floor, walls, counters, open space); things are blurred, and layouts those of the training images"
    ),
}


def main() -> None:
    """Parse, convert, check, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights", type=Path)
    parser.add_argument("accuracy", type=Path)
    options = parser.parse_args()
    system = load(str(options.weights))
    record = registry.entry(system.name).weights
    if record is None:
        raise SystemExit(f"{system.name} has no weight record in the registry")
    measured = json.loads(options.accuracy.read_text(encoding="utf-8"))
    numbers = {
        f"{r['source']}, {r['split']}, {r['images']} image{'s' * (r['images'] != 1)}, {r['protocol']} ({r['hash']})": {
            name: round(r[name], 4) for name in ("delta1", "abs_rel", "rmse")
        }
        for r in measured["sources"]
        if r["split"] == "val"
    }
    system.provenance.pop("validation", None)
    facts = {
        "licence": record.licence,
        "source": record.source,
        "bad at": WEAKNESSES[system.name],
        "data": "NYU Depth V2, KITTI, 7-Scenes and smaller public captures; docs/systems/tiny.md lists them",
        "numbers": numbers,
    }
    path = save(system, record.path, extra=facts, dtype=torch.float16)
    size = path.stat().st_size
    if size > LARGEST[system.name]:
        raise SystemExit(f"{path}: {size} bytes is more than {LARGEST[system.name]}")
    print(f"{path}: {size / 1e6:.1f} MB\nsha256 {file_sha256(path)}")


if __name__ == "__main__":
    main()
