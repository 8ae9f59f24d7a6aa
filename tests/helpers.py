"""What several tests share: a system whose depth is known, and images whose brightness is known."""

from __future__ import annotations

import csv
import io
import os
import re
import subprocess
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor, nn

from langdepth import cli
from langdepth.records import Batch, DepthOutput, InputSpec
from langdepth.systems.base import System
from langdepth.systems.capabilities import Trainable
from langdepth.systems.card import Entry
from langdepth.text.scenes import scene_index

Run = Callable[..., tuple[int, str, str]]  # arguments to exit code, stdout, stderr


@dataclass(frozen=True, kw_only=True)
class FakeConfig:
    """Options of FakeSystem."""

    area: int = 64 * 64


class FakeSystem(System, Trainable):
    """depth = (1 + 9 * brightness) * scale metres at half the network size; scale 1, or 2 with words or a scene.

    The scene it reads is "kitchen" for bright images and "street" for dark ones.
    """

    Config = FakeConfig
    name = "fake"
    scenes: tuple[str, ...] = ("kitchen", "street")

    def __init__(self, config: FakeConfig | None = None) -> None:
        config = config or FakeConfig()
        super().__init__(config, InputSpec(area=config.area, multiple_of=16))
        self.scale = nn.Parameter(torch.ones(()))
        self.provenance = {"source": "made for tests", "licence": "none", "weights": "fake", "sha256": None}
        self.batches: list[tuple[int, ...]] = []

    def inference_copy(self) -> FakeSystem:
        """Itself, so that ``batches`` tells what came."""
        return self

    def forward(
        self, image: Tensor, text: list[str] | Tensor | None = None, scene: list[str] | None = None
    ) -> DepthOutput:
        self.batches.append(tuple(image.shape))
        for name in scene or ():
            scene_index(name, self.scenes)
        brightness = nn.functional.avg_pool2d(image.mean(1, keepdim=True), 2)
        scale = self.scale * (1.0 if text is None and scene is None else 2.0)
        bright = image.mean((1, 2, 3))
        return DepthOutput(depth=(1 + 9 * brightness) * scale, scene_probs=torch.stack((bright, 1 - bright), 1))

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        depth = nn.functional.interpolate(self(batch.image).depth, size=batch.depth.shape[-2:])
        return {"total": (depth - batch.depth)[batch.mask].abs().mean()}


@dataclass(frozen=True, kw_only=True)
class LearnerConfig:
    """Options of Learner."""

    width: int = 8
    poison: str = ""
    """Images with this in their path have a loss that is not finite."""
    poisoned: str = "loss"
    """What of them is not finite: "loss" or "gradient"."""


class Learner(System, Trainable):
    """A small network that can be trained: BatchNorm, dropout, a frozen part and one that no loss reaches.

    ``drawn``: whether each batch so far was one of a step that trains ``sometimes``, too.
    """

    Config = LearnerConfig
    name = "learner"

    def __init__(self, config: LearnerConfig | None = None) -> None:
        config = config or LearnerConfig()
        super().__init__(config, InputSpec(area=48 * 64, multiple_of=16))
        self.config: LearnerConfig = config
        self.body = nn.Sequential(
            nn.Conv2d(3, config.width, 3, stride=4, padding=1),
            nn.BatchNorm2d(config.width),
            nn.ReLU(),
            nn.Dropout(0.2),
            nn.Conv2d(config.width, 1, 1),
        )
        self.frozen = nn.Linear(2, 2).requires_grad_(False)
        self.unreached = nn.Linear(2, 2)
        self.sometimes = nn.Parameter(torch.zeros(1, 1))
        self.drawn: list[bool] = []

    def forward(
        self, image: Tensor, text: list[str] | Tensor | None = None, scene: list[str] | None = None
    ) -> DepthOutput:
        return DepthOutput(depth=torch.exp(self.body(self.normalise(image))))

    def draw_step(self, generator: torch.Generator) -> dict[str, Any]:
        self.drawn.append(bool(torch.rand((), generator=generator) < 0.5))
        return {"scaled": self.drawn[-1]}

    def loss(self, batch: Batch, scaled: bool = False) -> dict[str, Tensor]:
        depth = nn.functional.interpolate(self(batch.image).depth, size=batch.depth.shape[-2:])
        if scaled:
            depth = depth * self.sometimes.exp()
        l1 = (depth.log() - batch.depth.clamp_min(0.1).log())[batch.mask].abs().mean()
        bad = self.config.poison and any(self.config.poison in path for path in batch.path)
        if bad and self.config.poisoned == "loss":
            if self.training:  # what a NaN image does to a norm
                self.body.get_buffer("1.running_mean").fill_(torch.nan)
            l1 = l1 * torch.nan
        elif bad:
            l1 = l1 + torch.sqrt(0 * depth.sum())  # 0, with a gradient of 0 / 0
        return {"total": l1, "l1": l1}


LEARNER = Entry(name="learner", target="tests.helpers:Learner", summary="made for tests", paper="none")


def grey(brightness: float, width: int = 64, height: int = 48) -> npt.NDArray[np.uint8]:
    """(height, width, 3) uint8 of one brightness in [0, 1]."""
    return np.full((height, width, 3), round(brightness * 255), np.uint8)


def ramp(width: int = 64, height: int = 48, seed: int = 0) -> npt.NDArray[np.uint8]:
    """(height, width, 3) uint8: brightness grows from left to right, colors differ by ``seed``."""
    row = np.linspace(0, 200, width)[None, :, None]
    tint = np.random.default_rng(seed).uniform(0.3, 1, 3)
    return np.broadcast_to(row * tint, (height, width, 3)).astype(np.uint8)


def save_image(path: Path, pixels: npt.NDArray[np.uint8], **options: Any) -> Path:
    """Write ``pixels`` in the format of the file name; folders are made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)
    return path


def logged(run: str | Path, column: str) -> list[float]:
    """The numbers that a run folder's metrics.csv has in a column."""
    with Path(run, "metrics.csv").open(newline="") as file:
        return [float(row[column]) for row in csv.DictReader(file) if row.get(column)]


def without_few(err: str) -> str:
    """What a training run wrote to stderr, without the warning of few validation images."""
    return re.sub(r"^langdepth train: warning: only \d validation images? \(.*\n", "", err, count=1)


def write_folder(root: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    """An indexed folder with one image and depth map in millimetres per row; returns ``root``.

    A row holds index columns that differ from the plain ones, and "size": (height, width), (48, 64) if not given. Row i
    is 1 + i metres away everywhere; the files are called i.png and i_depth.png.
    """
    root.mkdir(parents=True, exist_ok=True)
    table = []
    for i, row in enumerate(rows):
        columns = dict(row)
        height, width = columns.pop("size", (48, 64))
        save_image(root / f"{i}.png", ramp(width, height, seed=i))
        Image.fromarray(np.full((height, width), 1000 * (1 + i), np.uint16)).save(root / f"{i}_depth.png")
        table.append({"path_rgb": f"{i}.png", "path_depth": f"{i}_depth.png", "depth_scale": 0.001, **columns})
    with (root / "index.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(dict.fromkeys(name for row in table for name in row)))
        writer.writeheader()
        writer.writerows(table)
    return root


def run_here(command: Sequence[str], cwd: Path, **_: Any) -> subprocess.CompletedProcess[str]:
    """``subprocess.run`` of ``python -m langdepth ...``, in this process."""
    err = io.StringIO()
    before = os.getcwd()
    try:
        os.chdir(cwd)
        with redirect_stdout(io.StringIO()), redirect_stderr(err):
            code = cli.main(command[3:])
    finally:
        os.chdir(before)
    return subprocess.CompletedProcess(command, code, "", err.getvalue())
