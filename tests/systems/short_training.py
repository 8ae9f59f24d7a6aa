"""A few steps of training as ``langdepth train`` does them, and what must hold of every system after them."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

from langdepth.data.tools.sample import write_sample
from langdepth.systems.base import System
from langdepth.training.recipe import read_recipe
from langdepth.training.run import train
from langdepth.weights import checkpoint, files
from tests.helpers import logged


def train_shortly(
    section: dict[str, Any], protocol: str, lr: float, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[Path, System]:
    """Eight steps on synthetic rooms: the loss falls, and the weights file predicts what the trained system does.

    ``section``: system of the recipe. Returns the run folder and what the file holds.
    """
    rooms = write_sample(folder / "rooms", count=8, size=(64, 96))
    still = {"flip": 0.0, "zoom_probability": 0.0, "rotate_probability": 0.0, "colour_probability": 0.0}
    recipe = {
        "system": section,
        "data": {"root": rooms, "batch_size": 3, "workers": 0, "aspects": [1.5], "augmentation": still},
        "optim": {"lr": lr, "schedule": "constant", "warm_up": 0.0},
        "train": {"out": folder / "run", "epochs": 4, "accelerator": "cpu", "log_every": 1, "previews": 0,
                  "protocol": protocol, "validate_every": 4},
    }  # fmt: skip
    saved: list[System] = []

    def save(system: System, path: Path, **options: Any) -> Path:
        saved.append(system)
        return files.save(system, path, **options)

    monkeypatch.setattr("langdepth.training.validation.save", save)
    out = train(read_recipe(recipe))
    totals = logged(out, "train/total")
    assert len(totals) == 8
    assert sum(totals[-2:]) < sum(totals[:2])
    trained, loaded = copy.deepcopy(saved[-1]).eval(), checkpoint.load(out / "last.safetensors")
    image = torch.rand(2, 3, 64, 96)
    with torch.no_grad():
        assert torch.equal(loaded(image).depth, trained(image).depth)
    return out, loaded
