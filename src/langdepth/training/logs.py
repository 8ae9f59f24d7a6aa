"""Logs and printed progress of a training run."""

from __future__ import annotations

import csv
import math
import time
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import lightning.pytorch as pl
from lightning.pytorch.callbacks import ProgressBar
from lightning.pytorch.loggers import Logger, TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only

from langdepth.errors import LangdepthError
from langdepth.training.module import DepthTraining
from langdepth.utils.files import atomic_path
from langdepth.utils.reading import read_csv


class MetricsFile(Logger):
    """``metrics.csv``: a row per logged step.

    ``resume``: keep the rows that are there; those of the steps that a run repeats are written again. (Lightning's
    CSVLogger deletes the file of an earlier run, appends to it in place, and writes a row for each call.)
    """

    name = "metrics.csv"
    version = ""

    def __init__(self, path: Path, resume: bool) -> None:
        super().__init__()
        self.path = path
        self.rows: dict[int, dict[str, Any]] = {}
        if resume and path.exists():
            try:
                self.rows = {int(row["step"]): {k: v for k, v in row.items() if v} for row in read_csv(path)}
            except (OSError, csv.Error, ValueError, KeyError, TypeError):
                raise LangdepthError(f"{path}: is damaged; remove it to resume without it") from None

    @rank_zero_only
    def log_hyperparams(self, *_: Any, **__: Any) -> None:
        """The recipe has its own file."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        number = int(step or 0)
        rounded = {name: f"{value:.7g}" for name, value in metrics.items()}
        self.rows.setdefault(number, {"step": number}).update(rounded)

    @rank_zero_only
    def save(self) -> None:
        columns = dict.fromkeys(["step", *sorted({name for row in self.rows.values() for name in row})])
        with atomic_path(self.path) as path, path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(columns))
            writer.writeheader()
            writer.writerows(row for _, row in sorted(self.rows.items()))

    def finalize(self, status: str) -> None:
        self.save()


def loggers(out: Path, resume: bool) -> list[Logger]:
    chosen: list[Logger] = [MetricsFile(out / "metrics.csv", resume)]
    try:
        chosen.append(TensorBoardLogger(out, name="tensorboard", version=""))
    except ModuleNotFoundError:
        warnings.warn("TensorBoard logs are off: pip install 'langdepth[train]'", stacklevel=2)
    return chosen


class PlainProgress(ProgressBar):
    """A line every ``every`` steps, for output into a file or a pipe."""

    is_enabled = True  # asked for before something is printed

    def __init__(self, every: int) -> None:
        super().__init__()
        self.every = every
        self._last: tuple[int, float] = 0, 0.0

    def disable(self) -> None:
        """Nothing to do: only the first process prints."""

    def print(self, *words: Any, **options: Any) -> None:
        print(*words, **options, flush=True)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._last = trainer.global_step, time.monotonic()

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        step, (before, since) = trainer.global_step, self._last
        if not trainer.is_global_zero or step == before or step % self.every:
            return
        now = time.monotonic()
        self._last = step, now
        loss = float(trainer.callback_metrics.get("loss", math.nan))
        self.print(
            f"epoch {trainer.current_epoch + 1} step {step}/{cast(DepthTraining, pl_module).steps} "
            f"loss {loss:.3f} {(now - since) / (step - before):.2f} s/step"
        )
