"""Checkpoints to continue from."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch.callbacks import Callback

from langdepth.records import Batch
from langdepth.training.recipe import Recipe
from langdepth.training.stopping import Stopped, Stopping
from langdepth.utils.files import atomic_path


class PlainCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint to the path it is given and nowhere else.

    Lightning's own first fills a file in the system's folder for temporary files: a second disk, which may be smaller
    and full, and where a killed run leaves a whole checkpoint that nobody finds.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        """Write ``checkpoint``. Raises OSError where the disk refuses."""
        with open(path, "wb") as file:  # torch gives no reason when it opens the file itself
            torch.save(checkpoint, file)


def within_step(trainer: pl.Trainer, batch_idx: int, accumulate: int) -> bool:
    """Whether further batches of the optimiser step follow on one that has just ended."""
    return not trainer.is_last_batch and (batch_idx + 1) % accumulate != 0


class ResumePoint(Callback):
    """Keeps ``resume.ckpt``: every ``checkpoint_every`` steps, before each validation, after each epoch, and at the
    run's end.

    SIGTERM ends the run as ``Stopping`` describes. Ctrl-C ends it at once and loses the steps since the last save.
    """

    def __init__(self, recipe: Recipe, stopping: Stopping) -> None:
        self.path = recipe.train.out / "resume.ckpt"
        self.max_steps, self.accumulate = recipe.train.max_steps, recipe.accumulate
        self.every = [recipe.train.checkpoint_every]
        if recipe.train.validate_every_steps is not None:
            self.every.append(recipe.train.validate_every_steps)
        self.stopping = stopping

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.stopping.step = trainer.global_step
        if trainer.global_step > 0:
            self.stopping.saved_step = trainer.global_step
        self._stop_if_due(trainer)

    def on_train_batch_start(self, trainer: pl.Trainer, *_: Any) -> None:
        self.stopping.in_step = True
        self.stopping.step = trainer.global_step

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        if trainer.is_last_batch or within_step(trainer, batch_idx, self.accumulate):  # the epoch's end follows
            return
        self._stop_if_due(trainer)
        if trainer.should_stop or any(trainer.global_step % every == 0 for every in self.every):
            self._save(trainer)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.is_last_batch:  # and not stopped mid-epoch
            self._save(trainer)
            self._stop_if_due(trainer)
        self.stopping.in_step = False

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._stop_if_due(trainer)  # all processes or none
        if self.stopping.asked:
            raise Stopped

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        if isinstance(exception, Stopped):
            self.stopping.end_others()

    def _stop_if_due(self, trainer: pl.Trainer) -> None:
        if trainer.strategy.reduce_boolean_decision(self.stopping.asked, all=False):
            self.stopping.asked = True
        if self.stopping.asked or 0 < self.max_steps <= trainer.global_step:
            trainer.should_stop = True

    def _save(self, trainer: pl.Trainer) -> None:
        with self.stopping.saving():
            with atomic_path(self.path) if trainer.is_global_zero else nullcontext(self.path) as path:
                trainer.save_checkpoint(path)
            self.stopping.step = self.stopping.saved_step = trainer.global_step
